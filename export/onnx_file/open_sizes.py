"""What PyTorch's exporter makes of sizes that are not known yet, in the form that engines and shape inference like.

Graph passes on its model, in place and idempotent.
"""

from __future__ import annotations

import numpy as np
import onnx_ir
from numpy.typing import NDArray


def drop_idle(model: onnx_ir.Model) -> None:
    """Take out what PyTorch's exporter does to every index: Reshape of one axis to one, Cast of integers to their type.

    Behind it, sizes that depend on data have lost their names.
    """
    for node in list(model.graph):
        source, made = node.inputs[0] if node.inputs else None, node.outputs[0]
        if source is None or made in model.graph.outputs or source.shape is None:
            continue
        if node.op_type == "Reshape":
            target = node.inputs[1].const_value if node.inputs[1] else None
            idle = len(source.shape) == 1 and target is not None and target.numpy().tolist() == [-1]
        else:
            idle = node.op_type == "Cast" and source.dtype == node.attributes["to"].as_int() == onnx_ir.DataType.INT64
        if idle:
            made.replace_all_uses_with(source)
            model.graph.remove(node, safe=True)


def state_targets(model: onnx_ir.Model) -> None:
    """Constants for what PyTorch's exporter computes where a size is open: targets of Reshape, Expand and Resize.

    An open size that the input has at the same place is taken from there (0 of Reshape, 1 of Expand), and another one
    of Reshape follows from all the others (-1). Resize gets its scales. What is more open than that stays computed.
    """
    for node in list(model.graph):
        place = {"Reshape": 1, "Expand": 1, "Resize": 3}.get(node.op_type)
        source, computed = (node.inputs[0], node.inputs[place]) if place and len(node.inputs) > place else (None, None)
        if place is None or source is None or computed is None or computed.const_value is not None:
            continue
        constant = _target(node.op_type, source.shape, node.outputs[0].shape)
        if constant is None:
            continue
        made = onnx_ir.node("Constant", [], {"value": onnx_ir.tensor(constant)}, name=f"{node.name}/target")
        made.metadata_props.update(node.metadata_props)
        model.graph.insert_before(node, made)
        if node.op_type == "Resize":
            node.replace_input_with(place, None)
            place = 2  # of scales
        node.replace_input_with(place, made.outputs[0])
        node.attributes.pop("allowzero", None)


def shapes_behind_casts(model: onnx_ir.Model) -> None:
    """Read the number of images from what an input is cast to, where it is: inputs go into Cast alone, for engines."""
    for node in list(model.graph):
        source = node.inputs[0] if node.op_type == "Shape" else None
        if source is None or source not in model.graph.inputs:
            continue
        cast = next((reader for reader in source.consumers() if reader.op_type == "Cast"), None)
        if cast is None:
            continue
        node.replace_input_with(0, cast.outputs[0])
        model.graph.remove(cast)
        model.graph.insert_before(node, cast)


def _target(operator: str, source: onnx_ir.Shape | None, made: onnx_ir.Shape | None) -> NDArray | None:
    """What the constant of ``state_targets`` holds; None where there is none."""
    if source is None or made is None:
        return None
    sizes, own = list(made), list(source)
    same = [i < len(own) and own[i] == size for i, size in enumerate(sizes)]
    if operator == "Resize":
        known = all(isinstance(size, int) or equal for size, equal in zip(sizes, same, strict=True))
        scales = [1 if equal else size / of for size, of, equal in zip(sizes, own, same, strict=True)] if known else []
        return np.array(scales, np.float32) if known else None
    kept = 0 if operator == "Reshape" else 1
    stated = [size if isinstance(size, int) else kept if equal else -1 for size, equal in zip(sizes, same, strict=True)]
    allowed = 1 if operator == "Reshape" and 0 not in sizes else 0
    fits = stated.count(-1) <= allowed and (operator == "Reshape" or len(own) == len(sizes))
    return np.array(stated, np.int64) if fits else None
