"""Softmax over an axis that is not the last, in operators that ONNX Runtime's CPU is quick with.

It turns the tensor so that the axis is the last, and calls a function for each row. For the rows of 16 by which the
sides of boxes are told (Li et al., "Generalized Focal Loss", equation 6), and the convolution that takes their mean,
that is 2.4 ms of a YOLOv8n's 25 at 320x320. Maxima, exponentials and sums along memory take 1.0. Engines fuse the
operator as it is.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper

from wnlb.runtime.onnx_file import with_shapes


def spread_softmax(model: onnx.ModelProto) -> bool:
    """Replace each such Softmax by ``e / sum(e)``, ``e = exp(x - max(x))``, in place; whether there was one.

    Where a convolution takes a mean by these shares, both become ``sum(weight * e) / sum(e)``.

    Args:
        model: of opset 18 or later.
    """
    graph = with_shapes(model).graph
    ranks = {v.name: len(v.type.tensor_type.shape.dim) for v in (*graph.value_info, *graph.input, *graph.output)}
    nodes: list[onnx.NodeProto] = []
    axes, means, replaced = set(), _means(model), set()
    for node in model.graph.node:
        axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), -1)
        rank = ranks.get(node.output[0], 0)
        if node.op_type == "Softmax" and axis % max(rank, 1) not in (0, rank - 1):
            axes.add(axis)
            mean = means.get(node.output[0]) if axis % rank == 1 else None
            nodes += _spread(node, _axes(axis), mean)
            replaced |= {mean.name} if mean is not None else set()
        elif node.name not in replaced:
            nodes.append(node)
    if not axes:
        return False
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(numpy_helper.from_array(np.array([axis]), _axes(axis)) for axis in sorted(axes))
    return True


def _axes(axis: int) -> str:
    return f"softmax_axis_{axis}"


def _spread(softmax: onnx.NodeProto, axes: str, mean: onnx.NodeProto | None) -> list[onnx.NodeProto]:
    x, y, name = softmax.input[0], softmax.output[0], softmax.name
    highest, lowered, powers, total, weighted, above = (
        f"{y}/{part}" for part in ("max", "lowered", "exp", "sum", "weighted", "weighted_sum")
    )
    steps = [
        ("ReduceMax", [x, axes], highest, name),
        ("Sub", [x, highest], lowered, name),
        ("Exp", [lowered], powers, name),
        ("ReduceSum", [powers, axes], total, name),
    ]
    if mean is None:
        steps.append(("Div", [powers, total], y, name))
    else:
        steps += [
            ("Mul", [powers, mean.input[1]], weighted, mean.name),
            ("ReduceSum", [weighted, axes], above, mean.name),
            ("Div", [above, total], mean.output[0], mean.name),
        ]
    return [helper.make_node(kind, names, [made], name=f"{of}/{kind}") for kind, names, made, of in steps]


def _means(model: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    """Convolutions to one channel, 1 x 1 and without bias, that alone read a tensor, by its name."""
    weights = {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    outputs = {value.name for value in model.graph.output}
    alone = {name: own[0] for name, own in readers.items() if len(own) == 1 and name not in outputs}
    return {
        name: node
        for name, node in alone.items()
        if node.op_type == "Conv" and len(node.input) == 2 and node.input[0] == name
        if weights.get(node.input[1], [0])[0] == 1 and set(weights[node.input[1]][2:]) == {1}
    }
