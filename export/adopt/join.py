"""One graph of three: what prepares the input, a foreign network, and what makes our outputs of its own."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, version_converter

from wnlb.runtime.contract import Contract


def joined(
    before: onnx.ModelProto, body: onnx.ModelProto, behind: onnx.ModelProto, contract: Contract
) -> onnx.ModelProto:
    """The whole file, its interface that of the contract, its metadata those of ``body``.

    Args:
        before: from the contract's inputs to the network's.
        body: the network, with named nodes.
        behind: from the network's outputs, in their order, and ``content`` to the contract's outputs.
    """
    opset = next(entry.version for entry in body.opset_import if entry.domain in ("", "ai.onnx"))
    before, behind = (_of_opset(part, opset) for part in (before, behind))
    _rename(before, {}, "input.")
    _rename(body, {body.graph.input[0].name: before.graph.output[0].name}, "")
    taken = [value.name for value in behind.graph.input]
    _rename(behind, dict(zip(taken, [value.name for value in body.graph.output], strict=False)), "output.")
    parts = (before.graph, body.graph, behind.graph)
    kinds = {name: helper.np_dtype_to_tensor_dtype(np.dtype(kind)) for name, kind in contract.types.items()}
    inputs, outputs = (
        [helper.make_tensor_value_info(name, kinds[name], shape) for name, shape in contract.stated(shapes).items()]
        for shapes in (contract.input_shapes, contract.output_shapes)
    )
    graph = helper.make_graph(
        [node for part in parts for node in part.node],
        "wnlb",
        inputs,
        outputs,
        [tensor for part in parts for tensor in part.initializer],
        value_info=[value for part in parts for value in (*part.value_info, *part.output)],
    )
    del graph.value_info[-len(behind.graph.output) :]  # those of the interface
    opsets = {entry.domain: entry for part in (before, body, behind) for entry in part.opset_import}
    model = helper.make_model(graph, opset_imports=list(opsets.values()), ir_version=behind.ir_version)
    model.metadata_props.extend(body.metadata_props)
    return model


def _of_opset(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    own = next(entry.version for entry in model.opset_import if not entry.domain)
    return version_converter.convert_version(model, opset) if own < opset else model


def _rename(model: onnx.ModelProto, renamed: dict[str, str], prefix: str) -> None:
    """Values get other names, in place; constants without the name of a part the prefix."""
    renamed = dict(renamed)
    for tensor in model.graph.initializer:
        if "." not in tensor.name:
            renamed[tensor.name] = f"{prefix}{tensor.name}"
    for node in model.graph.node:
        for names in (node.input, node.output):
            names[:] = [renamed.get(name, name) for name in names]
    for value in (*model.graph.value_info, *model.graph.output, *model.graph.initializer):
        value.name = renamed.get(value.name, value.name)
