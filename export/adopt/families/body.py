"""The network of a foreign file, in the form that a static graph of ours can hold."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import onnx_ir
from numpy.typing import NDArray
from onnx import helper, numpy_helper, shape_inference, version_converter

from wnlb.export.onnx_file.passes import simplify
from wnlb.export.onnx_file.trace import OPSET
from wnlb.runtime.contract import BATCH
from wnlb.runtime.errors import GraphError
from wnlb.runtime.onnx_file import with_shapes

_AXES = "each_image"  # the constant 1, 2, 3: axes of [N, C, h, w] but the first
_MOST_FILLED = 4096  # elements of a constant that a graph would make itself


def static_body(model: onnx.ModelProto, size: tuple[int, int], batch: int, batches: range | None) -> onnx.ModelProto:
    """A copy for one size, its constants folded, nothing in it unused; opset 18 or, where it is newer, its own.

    Args:
        model: with one input ``[N, 3, H, W]``; its dimensions may be open.
        size: height and width, px.
        batch: images of a run; at most, with ``batches``.
        batches: the numbers of images that a run may have, where that is open.

    Raises:
        GraphError: it cannot be converted, or has no shapes known beforehand at this size and batch.
    """
    model = _converted(model)
    # Folded for one number of images: what the graph computes of sizes is constant then.
    folded = model.graph.input[0].type.tensor_type.shape.dim[0].dim_value or 1
    _state(model.graph.input[0], [folded, 3, *size])
    _forget_shapes(model)
    try:
        model = _folded(model)
        if batches or batch != folded:
            _open_batch(model, folded)
            _state(model.graph.input[0], [BATCH if batches else batch, 3, *size])
            _forget_shapes(model)
        shapes = {n: _output_shapes(model, n) for n in ((batches[0], batches[-1]) if batches else (batch,))}
    except Exception as error:  # of three libraries; their types are not public
        reason = str(error.__cause__ or error).strip().splitlines()[:1]
        raise GraphError(f"the graph cannot be made static at {size[0]}x{size[1]}: {' '.join(reason)}") from error
    for images, own in shapes.items():
        for name, dims in own.items():
            if not dims or dims[0] != images or not all(isinstance(dim, int) for dim in dims):
                raise GraphError(
                    f"output {name} has the shape {dims} at {size[0]}x{size[1]} and batch {images}; expected whole "
                    "numbers, the batch first. Export the file anew for that batch, or adopt it with its own"
                )
            _state(next(value for value in model.graph.output if value.name == name), dims)
    if batches:
        for value in model.graph.output:
            value.type.tensor_type.shape.dim[0].dim_param = BATCH
    return model


def stated_shapes(model: onnx.ModelProto) -> dict[str, list[int | None]]:
    """Shapes of the outputs, None for a size that is open: as they are stated, or follow from the inputs."""
    shapes = {value.name: _dims(value) for value in model.graph.output}
    if not any(None in dims for dims in shapes.values()):
        return shapes
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    _forget_shapes(copy)
    try:
        inferred = with_shapes(_folded(copy)).graph
    except Exception:  # of three libraries; what they cannot compute is left open
        return shapes
    return {value.name: _dims(value) for value in inferred.output}


def _dims(value: onnx.ValueInfoProto) -> list[int | None]:
    return [dim.dim_value or None for dim in value.type.tensor_type.shape.dim]


def _folded(model: onnx.ModelProto) -> onnx.ModelProto:
    """Without what is constant, or idle: with each size that is folded others become known."""
    before = len(model.graph.node) + 1
    while len(model.graph.node) < before:
        before = len(model.graph.node)
        _forget_shapes(model)
        inner = onnx_ir.from_proto(shape_inference.infer_shapes(model, data_prop=True))
        simplify(inner)
        model = onnx_ir.to_proto(inner)
        _fill(model)
    return model


def _fill(model: onnx.ModelProto) -> None:
    """Constants for ConstantOfShape, which simplifying leaves alone; exporters make sizes of it, "-1, -1, h, w"."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in [node for node in model.graph.node if node.op_type == "ConstantOfShape"]:
        sizes = constants.get(node.input[0])
        shape = tuple(numpy_helper.to_array(sizes)) if sizes is not None else ()
        if sizes is None or np.prod(shape) > _MOST_FILLED:
            continue
        value = numpy_helper.to_array(node.attribute[0].t) if node.attribute else np.zeros(1, np.float32)
        filled = np.full(shape, value[0], value.dtype)
        model.graph.initializer.append(numpy_helper.from_array(filled, node.output[0]))
        model.graph.node.remove(node)


def _output_shapes(model: onnx.ModelProto, batch: int) -> dict[str, list[int | str]]:
    """Shapes of the outputs by name, of so many images; a name, or "?", for a size that is not known."""
    graph = with_shapes(model, strict=True, batch=batch).graph
    return {
        value.name: [dim.dim_value or dim.dim_param or "?" for dim in value.type.tensor_type.shape.dim]
        for value in graph.output
    }


def _converted(model: onnx.ModelProto) -> onnx.ModelProto:
    version = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)
    if version >= OPSET:
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        return copy
    try:
        return version_converter.convert_version(model, OPSET)
    except Exception as error:  # its types are not public
        reason = str(error).strip().splitlines()[:1]
        raise GraphError(
            f"the graph of opset {version} cannot be converted to {OPSET}: {' '.join(reason)}; export it with opset "
            f"{OPSET}"
        ) from error


def _state(value: onnx.ValueInfoProto, shape: list[int | str]) -> None:
    kind = value.type.tensor_type.elem_type
    value.CopyFrom(helper.make_tensor_value_info(value.name, kind, shape))


def _forget_shapes(model: onnx.ModelProto) -> None:
    """Of all but the inputs."""
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")
    del model.graph.value_info[:]


def _open_batch(model: onnx.ModelProto, folded: int) -> None:
    """Let Reshape keep the first size of what it reads, where it was told the number of images, Resize be told scales,
    and constant channels (coordinates) be there for each image."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    shapes = {value.name: _dims(value) for value in with_shapes(model).graph.value_info}
    opened: dict[str, str] = {}
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        target = constants.get(node.input[1]) if node.op_type == "Reshape" else None
        sizes = numpy_helper.to_array(target) if target is not None else np.empty(0, np.int64)
        if sizes.size >= 2 and sizes[0] == folded:
            name = node.input[1]
            if name not in opened:
                opened[name] = f"{name}/open"
                kept = np.concatenate([np.zeros(1, np.int64), sizes[1:]])
                model.graph.initializer.append(numpy_helper.from_array(kept, opened[name]))
            node.input[1] = opened[name]
        if node.op_type == "Resize" and len(node.input) == 4 and (told := constants.get(node.input[3])):
            model.graph.initializer.append(_scales(node, shapes.get(node.input[0], []), numpy_helper.to_array(told)))
        if node.op_type == "Concat" and node.attribute[0].i == 1:
            nodes += _constants_for_each(node, constants)
        nodes.append(node)
    if len(nodes) > len(model.graph.node):
        model.graph.initializer.append(numpy_helper.from_array(np.arange(1, 4), _AXES))
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def _scales(resize: onnx.NodeProto, before: Sequence[int | None], after: NDArray[np.int64]) -> onnx.TensorProto:
    """What a Resize of a map is to be told in the place of its sizes, of which one is the number of images."""
    scales = np.array([new / (old or new) for old, new in zip(before, after, strict=True)], np.float32)
    for i, (old, new) in enumerate(zip(before, after, strict=True)):
        while old and int(np.floor(scales[i] * np.float32(old))) < new:  # its size is rounded down
            scales[i] = np.nextafter(scales[i], np.float32(np.inf))
    scales[:2] = 1
    name = f"{resize.output[0]}/scales"
    resize.input[2:] = [name]
    return numpy_helper.from_array(scales, name)


def _constants_for_each(concat: onnx.NodeProto, constants: dict[str, onnx.TensorProto]) -> list[onnx.NodeProto]:
    """Nodes that make a constant ``[1, C, h, w]`` among the inputs of a Concat ``[N, C, h, w]``; they are its inputs
    then. Zeros of each image, added, need no operator for a size that is not known."""
    nodes: list[onnx.NodeProto] = []
    other = next((name for name in concat.input if name not in constants), None)
    for i, name in enumerate(concat.input):
        if other is None or name not in constants or len(constants[name].dims) != 4 or constants[name].dims[0] != 1:
            continue
        made = f"{concat.output[0]}/constant{i}"
        nodes += [
            helper.make_node("ReduceMean", [other, _AXES], [f"{made}/images"], keepdims=1),
            helper.make_node("Sub", [f"{made}/images"] * 2, [f"{made}/zeros"]),
            helper.make_node("Add", [f"{made}/zeros", name], [made]),
        ]
        concat.input[i] = made
    return nodes
