"""The network of a foreign file, in the form that a static graph of ours can hold."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir
from onnx import helper, numpy_helper, shape_inference, version_converter

from wnlb.export.onnx_file.passes import simplify
from wnlb.export.onnx_file.trace import OPSET
from wnlb.runtime.contract import BATCH
from wnlb.runtime.errors import GraphError
from wnlb.runtime.onnx_file import with_shapes


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
        inner = onnx_ir.from_proto(shape_inference.infer_shapes(model, data_prop=True))
        simplify(inner)
        model = onnx_ir.to_proto(inner)
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
    """Let Reshape keep the first size of what it reads, where it was told the number of images."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    opened: dict[str, str] = {}
    for node in model.graph.node:
        target = constants.get(node.input[1]) if node.op_type == "Reshape" else None
        sizes = numpy_helper.to_array(target) if target is not None else np.empty(0, np.int64)
        if sizes.size < 2 or sizes[0] != folded:
            continue
        name = node.input[1]
        if name not in opened:
            opened[name] = f"{name}/open"
            kept = np.concatenate([np.zeros(1, np.int64), sizes[1:]])
            model.graph.initializer.append(numpy_helper.from_array(kept, opened[name]))
        node.input[1] = opened[name]
