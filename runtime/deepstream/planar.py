"""The file that Gst-nvinfer feeds: one input of planar float pixels, and the place of the picture known beforehand."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from wnlb.runtime.contract import CONTENT, METADATA_KEY, Contract

if TYPE_CHECKING:
    import onnx

_ROWS = "deepstream/pixels"  # of the picture, as the graph had them
_COUNT = "deepstream/count"


def for_nvinfer(model: onnx.ModelProto, contract: Contract, content: tuple[int, int]) -> onnx.ModelProto:
    """A copy whose only input is ``image``, float32 ``[N, 3, height, width]``, RGB from 0 to 255.

    Gst-nvinfer makes such planes (``net-scale-factor=1``); mean and deviation stay in the graph. It has one input for
    frames and fills others once, so ``content`` becomes a constant: all frames come from cameras of one resolution.
    ``count`` becomes ``[N, 1]``, for a frame's part of an output should have a dimension. The contract is taken out:
    the file no longer keeps it.

    Args:
        content: height and width in pixels of a frame in the input, from its left top corner.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    made = onnx.ModelProto()
    made.CopyFrom(model)
    graph = made.graph
    for node in graph.node:
        for i, name in enumerate(node.input):
            if name == contract.input_name:
                node.input[i] = _ROWS
    rows = helper.make_node("Transpose", [contract.input_name], [_ROWS], "deepstream/Transpose", perm=[0, 2, 3, 1])
    first = [rows]
    sizes = np.array([content], np.int32)
    if contract.min_batch is None:
        sizes = np.repeat(sizes, contract.batch, 0)
        graph.initializer.append(numpy_helper.from_array(sizes, CONTENT))
    else:  # as many as there are frames
        graph.initializer.append(numpy_helper.from_array(sizes, "deepstream/content"))
        graph.initializer.append(numpy_helper.from_array(np.array([2], np.int64), "deepstream/two"))
        first += [
            helper.make_node("Shape", [contract.input_name], ["deepstream/frames"], "deepstream/Shape", start=0, end=1),
            helper.make_node("Concat", ["deepstream/frames", "deepstream/two"], ["deepstream/shape"], axis=0),
            helper.make_node("Expand", ["deepstream/content", "deepstream/shape"], [CONTENT], "deepstream/Expand"),
        ]
    for node in graph.node:
        node.output[:] = [_COUNT if name == "count" else name for name in node.output]
        node.input[:] = [_COUNT if name == "count" else name for name in node.input]
    graph.initializer.append(numpy_helper.from_array(np.array([1], np.int64), "deepstream/one"))
    last = helper.make_node("Unsqueeze", [_COUNT, "deepstream/one"], ["count"], "deepstream/Unsqueeze")
    nodes = list(graph.node)
    del graph.node[:]
    graph.node.extend([*first, *nodes, last])
    for value in graph.output:
        if value.name == "count":
            value.type.tensor_type.shape.dim.add().dim_value = 1
    del graph.input[:]
    shape = [contract.axis, 3, contract.height, contract.width]
    graph.input.append(helper.make_tensor_value_info(contract.input_name, TensorProto.FLOAT, shape))
    kept = [entry for entry in made.metadata_props if entry.key != METADATA_KEY]
    del made.metadata_props[:]
    made.metadata_props.extend(kept)
    return made
