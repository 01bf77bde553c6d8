"""FP16 and BF16 by casts: everything heavy in half precision, what needs its bits in FP32.

Public converters were tried first. ONNX Runtime's (``onnxruntime.transformers.float16``) rounds each value between two
operators that it keeps in FP32 to FP16 and back, box arithmetic included; ModelOpt's AutoCast pins an ONNX Runtime for
GPUs and brings CuPy, so it cannot be installed beside the CPU's.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from wnlb.calibration.precision.groups import groups_of
from wnlb.runtime.errors import GraphError
from wnlb.runtime.onnx_file import with_shapes

MASKS = "masks"
HALF = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
FP16_MAX = 65504.0
FP16_TINY = 2.0**-24  # the smallest number above 0; below half of it a weight becomes 0
HEADROOM = 8.0  # an activation may grow by this over what the calibration pictures showed
# Inputs that ONNX types on their own, whatever the operator computes in.
_OWN_TYPE = {"Resize": (1, 2), "GridSample": (1,)}
_FULL = ("Softmax", "InstanceNormalization")
_MOVERS = ("Reshape", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Split")


@dataclass(frozen=True)
class MixedReport:
    """What became of the nodes and weights."""

    half: int  # nodes in half precision
    full: int  # nodes that stay in FP32
    overflowing: tuple[str, ...]  # nodes kept in FP32 because their values leave FP16's range
    vanishing: dict[str, int]  # weight -> how many of its values FP16 turns to 0


def heavy_nodes(model: onnx.ModelProto) -> set[str]:
    """Names of the nodes that half precision is for: everything but box arithmetic, NMS, top-k, sampling coordinates,
    softmax, what a group norm divides by (as in ``torch.autocast``), masks of cells and the preparation of the input.

    Between the pyramid and the heads, the nodes that carry feature maps are in: the atlas, and what is sampled from it.
    """
    groups = groups_of(model)
    found = {node.name for node in model.graph.node if node.name in groups and node.op_type not in _FULL}
    sampled: set[str] = set()  # in FP32: TensorRT samples in the type of the coordinates
    makers = {output: node for node in model.graph.node for output in node.output}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    found -= {node.name for node in model.graph.node if ".pool/" in node.name}
    found -= {node.name for node in model.graph.node if node.op_type == "Sigmoid" and not _is_silu(node, readers)}
    for sampling in [node for node in model.graph.node if node.op_type == "GridSample"]:
        sampled.add(sampling.name)
        before, after = [sampling.input[0]], list(sampling.output)
        while before:
            maker = makers.get(before.pop())
            if maker is not None and maker.name not in found:
                found.add(maker.name)
                before += maker.input
        while after:
            for reader in readers.get(after.pop(), []):
                if reader.op_type == "ReduceMean" or (reader.op_type == "Reshape" and ".pool/" in reader.name):
                    sampled.add(reader.name)
                    after += reader.output
    found -= sampled
    for node in model.graph.node:  # what only moves values stays with what made them
        if node.op_type in _MOVERS and node.input[0] in makers and makers[node.input[0]].name not in found:
            found.discard(node.name)
    return found


def _is_silu(sigmoid: onnx.NodeProto, readers: dict[str, list[onnx.NodeProto]]) -> bool:
    """Whether it is half of an activation, x * sigmoid(x), and no probability."""
    own = readers.get(sigmoid.output[0], [])
    return [node.op_type for node in own] == ["Mul"] and sigmoid.input[0] in own[0].input


def to_half(
    model: onnx.ModelProto, precision: str, heavy: set[str], largest: dict[str, float] | None = None
) -> MixedReport:
    """Give the heavy nodes half precision, in place; each keeps its name and those of its outputs.

    A value is cast where it passes from one precision to the other, once for all its readers. FP32 nodes next to each
    other exchange FP32.

    Args:
        model: FP32, without local functions; Q/DQ are allowed, from opset 19 on.
        precision: ``fp16`` or ``bf16``.
        heavy: names of nodes, see ``heavy_nodes``.
        largest: largest magnitude seen of each tensor; a node that reads or makes more than FP16 holds, with
            ``HEADROOM``, stays in FP32.

    Raises:
        GraphError: a graph output would change its type.
    """
    half, types = HALF[precision], _types(model)
    weights = {tensor.name: tensor for tensor in model.graph.initializer if tensor.data_type == TensorProto.FLOAT}
    overflowing = _overflowing(model, heavy, weights, largest or {}) if precision == "fp16" else set()
    heavy = heavy - overflowing  # a new set: the caller keeps its own
    outputs = {value.name for value in model.graph.output}
    casts = _Casts(precision, types, weights)
    for node in model.graph.node:
        kind = half if node.name in heavy else TensorProto.FLOAT
        own = _OWN_TYPE.get(node.op_type, ())
        for i, name in enumerate(node.input):
            if types.get(name) == TensorProto.FLOAT:
                node.input[i] = casts.wanted(name, TensorProto.FLOAT if i in own else kind)
        casts.nodes.append(node)
        for name in node.output:
            if types.get(name) == TensorProto.FLOAT:
                casts.now[name] = kind
                if name in outputs and kind == half:
                    raise GraphError(f"output {name} is made by {node.name} in {precision}; expected float32")
        if node.op_type == "Cast" and kind == half:
            for attribute in node.attribute:
                if attribute.name == "to" and attribute.i == TensorProto.FLOAT:
                    attribute.i = half
    del model.graph.node[:]
    model.graph.node.extend(casts.nodes)
    model.graph.initializer.extend(casts.converted)
    _drop_unused_weights(model)
    infer_again(model)
    vanishing = casts.vanishing() if precision == "fp16" else {}
    return MixedReport(len(heavy), len(casts.nodes) - len(heavy), tuple(sorted(overflowing)), vanishing)


class _Casts:
    """Tensors in the other type, made when they are first asked for."""

    def __init__(self, precision: str, types: dict[str, int], weights: dict[str, onnx.TensorProto]) -> None:
        self._precision, self._weights = precision, weights
        self._names: dict[tuple[str, int], str] = {}
        self._used: dict[str, NDArray] = {}
        self.now = dict(types)  # of each tensor, in the new graph
        self.nodes: list[onnx.NodeProto] = []
        self.converted: list[onnx.TensorProto] = []

    def wanted(self, name: str, kind: int) -> str:
        """``name`` in type ``kind``, through a cast or a converted weight."""
        if self.now[name] == kind:
            return name
        if (name, kind) not in self._names:
            new = self._names[name, kind] = f"{name}.{'fp32' if kind == TensorProto.FLOAT else self._precision}"
            if name in self._weights:
                values = self._used[name] = numpy_helper.to_array(self._weights[name])
                self.converted.append(_half_tensor(values, HALF[self._precision], new))
            else:
                self.nodes.append(helper.make_node("Cast", [name], [new], name=f"{new}/Cast", to=kind))
        return self._names[name, kind]

    def vanishing(self) -> dict[str, int]:
        """How many values of the converted weights FP16 turns to 0, where it does."""
        counts = {
            name: int(((values != 0) & (np.abs(values) < FP16_TINY / 2)).sum()) for name, values in self._used.items()
        }
        return {name: count for name, count in counts.items() if count}


def half_masks(model: onnx.ModelProto) -> None:
    """Masks of the frame in float16, in place: as files of other precisions than FP32 have them."""
    output = next(value for value in model.graph.output if value.name == MASKS)
    maker = next(node for node in model.graph.node if MASKS in node.output)
    whole, held, scope = f"{MASKS}.whole", f"{MASKS}.held", maker.name.rpartition("/")[0]
    for node in model.graph.node:
        for names in (node.input, node.output):
            names[:] = [whole if name == MASKS else name for name in names]
    limits = {f"{MASKS}.{name}": value for name, value in (("lowest", -FP16_MAX), ("highest", FP16_MAX))}
    for name, value in limits.items():
        model.graph.initializer.append(numpy_helper.from_array(np.array(value, np.float32), name))
    model.graph.node.append(helper.make_node("Clip", [whole, *limits], [held], name=f"{scope}/Clip_half"))
    model.graph.node.append(
        helper.make_node("Cast", [held], [MASKS], name=f"{scope}/Cast_half", to=TensorProto.FLOAT16)
    )
    output.type.tensor_type.elem_type = TensorProto.FLOAT16


def infer_again(model: onnx.ModelProto) -> None:
    """State the type and shape of each tensor anew."""
    del model.graph.value_info[:]
    model.graph.value_info.extend(with_shapes(model, strict=True).graph.value_info)


def _types(model: onnx.ModelProto) -> dict[str, int]:
    graph = with_shapes(model).graph
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    for value in (*graph.value_info, *graph.input, *graph.output):
        types[value.name] = value.type.tensor_type.elem_type
    return types


def _overflowing(
    model: onnx.ModelProto, heavy: set[str], weights: dict[str, onnx.TensorProto], largest: dict[str, float]
) -> set[str]:
    limit = FP16_MAX / HEADROOM
    too_large = {name for name, value in largest.items() if not value <= limit}  # NaN is too large
    for node in model.graph.node:
        if node.name in heavy:
            too_large |= {
                name
                for name in node.input
                if name in weights and np.abs(numpy_helper.to_array(weights[name])).max(initial=0) > FP16_MAX
            }
    return {n.name for n in model.graph.node if n.name in heavy and too_large & {*n.input, *n.output}}


def _half_tensor(values: NDArray, half: int, name: str) -> onnx.TensorProto:
    return numpy_helper.from_array(values.astype(helper.tensor_dtype_to_np_dtype(half)), name)


def _drop_unused_weights(model: onnx.ModelProto) -> None:
    read: set[str] = {name for node in model.graph.node for name in node.input}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in read]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)


def float_tensors(model: onnx.ModelProto, nodes: Iterable[str]) -> list[str]:
    """Names of the float32 tensors that these nodes make or read, weights left out."""
    types, wanted = _types(model), set(nodes)
    weights = {tensor.name for tensor in model.graph.initializer}
    names = dict.fromkeys(
        name for node in model.graph.node if node.name in wanted for name in (*node.input, *node.output)
    )
    return [name for name in names if types.get(name) == TensorProto.FLOAT and name not in weights]
