"""The mask branch of a network as a network of its own, whose time goes with the detections.

An engine has static shapes, for CUDA graphs: 100 rows of masks are computed where five are found. So a file of ours is
cut in two for its engine: what comes before the masks, and the masks, for some numbers of rows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from wnlb.runtime.contract import MASK_SIZE, Contract
from wnlb.runtime.onnx_file import with_shapes

if TYPE_CHECKING:
    import onnx

MASKS = "masks"
ROWS = "rows"
_STEPS = (8, 16, 32, 64)  # rows of masks that are computed at once, beside all


def mask_rows(detections: int) -> tuple[int, ...]:
    """Numbers of rows that the mask part is built for, the last one all: ``(8, 16, 32, 64, 100)``."""
    return (*(rows for rows in _STEPS if rows < detections), detections)


def split_masks(model: onnx.ModelProto, contract: Contract) -> tuple[onnx.ModelProto, onnx.ModelProto] | None:
    """What comes before the masks, and the masks, of a file of ours; ``model`` stays as it is.

    The first has all outputs but ``masks``, and beside them what the second takes: the maps that it pools from, and
    ``[1, D, ...]`` of each detection, which the second takes as ``[1, rows, ...]`` for any number of first rows. Each
    row is computed as in the whole. The second's output is ``masks [1, rows, 28, 28]``.

    None where the file has no masks, few rows, is for a CPU, is of several frames, or computes its masks in a way that
    holds the number of rows: with ``--mask-rows``, or in older files with adaptive RoIAlign in buckets.
    """
    import onnx
    from onnx import shape_inference

    has_masks = contract.masks == "box" and contract.target == "gpu" and contract.mask_rows is None
    if not has_masks or contract.batches != range(1, 2) or len(mask_rows(contract.detections)) == 1:
        return None
    others = [value.name for value in model.graph.output if value.name != MASKS]
    first, second = _cut(model.graph, set(others))
    weights = {tensor.name for tensor in model.graph.initializer}
    made = {name for node in first for name in node.output} | {value.name for value in model.graph.input}
    crossing = list(dict.fromkeys(name for node in second for name in node.input if name in made - weights))
    known = {value.name: value for value in _values(with_shapes(model).graph)}
    if not second or not known.keys() >= set(crossing):
        return None
    rows = [_opened(known[name], contract.detections) for name in crossing]
    masks = onnx.helper.make_tensor_value_info(MASKS, onnx.TensorProto.FLOAT, [1, ROWS, MASK_SIZE, MASK_SIZE])
    before = [value for value in model.graph.output if value.name != MASKS]
    before += [known[name] for name in crossing if name not in others]
    parts = _model(model, first, list(model.graph.input), before), _model(model, second, rows, [masks])
    try:
        fits = all(_takes(parts[1], count) for count in (1, 3))
    except shape_inference.InferenceError:
        return None
    return parts if fits else None


def _cut(graph: onnx.GraphProto, outputs: set[str]) -> tuple[list[onnx.NodeProto], list[onnx.NodeProto]]:
    """The nodes that these outputs need, and all others."""
    needed, first, second = set(outputs), [], []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            needed.update(node.input)
            first.append(node)
        else:
            second.append(node)
    return first[::-1], second[::-1]


def _values(graph: onnx.GraphProto) -> list[onnx.ValueInfoProto]:
    return [*graph.value_info, *graph.input, *graph.output]


def _opened(value: onnx.ValueInfoProto, detections: int) -> onnx.ValueInfoProto:
    """With an open number of rows where it tells of detections; as it is where it is a map ``[1, C, h, w]``."""
    import onnx

    opened = onnx.ValueInfoProto()
    opened.CopyFrom(value)
    dims = opened.type.tensor_type.shape.dim
    if 2 <= len(dims) <= 3 and dims[1].dim_value == detections:
        dims[1].dim_param = ROWS
    return opened


def _model(
    whole: onnx.ModelProto,
    nodes: list[onnx.NodeProto],
    inputs: list[onnx.ValueInfoProto],
    outputs: list[onnx.ValueInfoProto],
) -> onnx.ModelProto:
    """These nodes of ``whole`` with the weights that they read."""
    import onnx

    read = {name for node in nodes for name in node.input}
    part = onnx.ModelProto(ir_version=whole.ir_version, opset_import=whole.opset_import)
    part.functions.extend(f for f in whole.functions if any(node.op_type == f.name for node in nodes))
    part.graph.name = whole.graph.name
    part.graph.node.extend(nodes)
    part.graph.input.extend(value for value in inputs if value.name in read)
    part.graph.output.extend(outputs)
    part.graph.initializer.extend(tensor for tensor in whole.graph.initializer if tensor.name in read)
    return part


def with_rows(part: onnx.ModelProto, rows: int) -> onnx.ModelProto:
    """A copy of the second part for so many rows alone."""
    import onnx

    fixed = onnx.ModelProto()
    fixed.CopyFrom(part)
    for value in (*fixed.graph.input, *fixed.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param == ROWS:
                dim.dim_value = rows
    return fixed


def _takes(part: onnx.ModelProto, rows: int) -> bool:
    """Whether so many rows go through to the masks; the part's stated output must not tell it."""
    trial = with_rows(part, rows)
    trial.graph.output[0].type.tensor_type.ClearField("shape")
    shape = with_shapes(trial, strict=True).graph.output[0].type.tensor_type.shape
    return [dim.dim_value for dim in shape.dim] == [1, rows, MASK_SIZE, MASK_SIZE]
