"""What each stage of a network computes and moves at the least: the two sides of its roofline.

S. Williams, A. Waterman and D. Patterson: Roofline, an insightful visual performance model for multicore
architectures, Communications of the ACM 52(4), 2009.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from wnlb.runtime.errors import WnlbError
from wnlb.runtime.onnx_file import with_shapes
from wnlb.runtime.profile.stages import place_of, stages_of

if TYPE_CHECKING:
    import onnx

# Bytes of an element, and the precision in which floating elements are computed; of double, no faster than float.
_BYTES = {"BOOL": 1, "INT8": 1, "UINT8": 1, "INT16": 2, "UINT16": 2, "FLOAT16": 2, "BFLOAT16": 2, "INT32": 4}
_BYTES |= {"UINT32": 4, "FLOAT": 4, "INT64": 8, "UINT64": 8, "DOUBLE": 8}
_PRECISIONS = {"FLOAT": "fp32", "DOUBLE": "fp32", "FLOAT16": "fp16", "BFLOAT16": "bf16"}

# FLOPs of an output element; 1 where an operator is not listed.
_PER_OUTPUT = dict.fromkeys(
    "Cast Concat ConstantOfShape DepthToSpace DequantizeLinear Expand Flatten Gather GatherElements GatherND "
    "Identity OneHot Pad QuantizeLinear Range Reshape Resize ScatterElements ScatterND Shape Size Slice SpaceToDepth "
    "Split Squeeze Tile Transpose Unsqueeze".split(),
    0,  # data movement; Resize repeats the nearest, as in the FPN
)
_PER_OUTPUT["Softmax"] = 5  # maximum, difference, exponential, sum and quotient
_PER_OUTPUT["GridSample"] = 8  # bilinear: four taps; their weights are shared by all channels
# These look at each element of their input once.
_PER_INPUT = frozenset("ArgMax ArgMin GlobalAveragePool GlobalMaxPool TopK".split())
# Their output is their first input in another shape, order or scale, which whoever reads it can apply.
_VIEWS = frozenset("DequantizeLinear Flatten Identity Reshape Squeeze Transpose Unsqueeze".split())
# A size that depends on what is found, as our files for a CPU have it in their mask branch: "196*rows0 + 1".
# Those of the mask branch are rows0 and rows1; rows100 and up are what NMS keeps, see ``name_rows``.
_ROWS = re.compile(r"(?P<number>\d+)|(?:\d+\*)*(?:(?P<masks>rows\d{1,2})|rows\d+)")


@dataclass(frozen=True)
class Work:
    """Of one run of a stage.

    FLOPs count a multiply-add as two, by the precision of its factors: fp32, fp16, bf16 or int8. Bytes are the least
    that pass between the stage and memory.
    """

    flops: dict[str, float]
    bytes: int

    def __add__(self, other: Work) -> Work:
        """Of both, one after the other."""
        kinds = self.flops.keys() | other.flops.keys()
        flops = {kind: self.flops.get(kind, 0.0) + other.flops.get(kind, 0.0) for kind in sorted(kinds)}
        return Work(flops, self.bytes + other.bytes)


@dataclass(frozen=True)
class _Tensor:
    type: str  # as in TensorProto.DataType
    shape: tuple[int, ...]

    @property
    def count(self) -> int:
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        return self.count * _BYTES[self.type]


def work_by_stage(model: onnx.ModelProto, batch: int | None = None, rows: int = 0) -> dict[str, Work]:
    """The work of one run by stage, in the order of the network; ``model`` stays as it is.

    Stages as ``stages_of`` tells them. Local functions are
    inlined, so that attention as a plugin node counts as its body does.

    FLOPs: convolutions and products by their shapes, products with padding among them; other operators a few for each
    element, data movement none. Nodes without floating inputs count none, and nor do those of constants alone, which
    runtimes compute when they load the model. A node is INT8 where its data inputs come from DequantizeLinear, through
    changes of shape too; otherwise it has the precision of its first floating input.

    Bytes: each tensor that a stage reads from other stages or from the model's inputs, and each that it makes for
    others or for the outputs, whole and once; and the constants that it reads, as they are stored. What stays inside
    a stage is free. Changes of shape and order are no tensors of their own. Nor is what DequantizeLinear makes: it
    belongs to its readers, and QuantizeLinear to the stage that makes its input, so that INT8 crosses as INT8. Their
    scales are left out.

    Masks that are computed for what is found alone, in files for a CPU, count for ``rows``. What RoIAlign and NMS share
    out by levels and classes counts as none there: the least.

    Args:
        model: with static shapes, but for such rows and an open batch. Weights may lie in files beside it.
        batch: frames of the run, where that is open.
        rows: detections of the run, where the file computes no more.

    Raises:
        WnlbError: the shape or type of a tensor is not known, or a node has graphs of its own.
    """
    network = _Network(model, batch, rows)
    flops: dict[str, dict[str, float]] = {stage: {} for stage in network.stages}
    for node, stage in zip(network.nodes, network.stages, strict=True):
        count, precision = network.flops(node), network.precision(node)
        if count and precision:
            flops[stage][precision] = flops[stage].get(precision, 0.0) + count
    moved = network.bytes_moved()
    return {stage: Work(flops[stage], moved[stage]) for stage in sorted(flops, key=place_of)}


class _Network:
    """The nodes of a model, their stages, and what becomes of each tensor."""

    def __init__(self, model: onnx.ModelProto, batch: int | None, rows: int) -> None:
        inferred = with_shapes(model, batch=batch)
        self.nodes = list(inferred.graph.node)
        self.stages = stages_of(node.name for node in self.nodes)
        self._tensors = _tensors(inferred, model.graph.initializer, rows)
        self._constants = {tensor.name for tensor in model.graph.initializer}
        self._outputs = [value.name for value in inferred.graph.output]
        self._sources: dict[str, str] = {}  # of views
        self._makers: dict[str, str] = {}  # stage of each tensor that a node makes and is no view
        for node, stage in zip(self.nodes, self.stages, strict=True):
            self._check(node)
            self._place(node, stage)

    def flops(self, node: onnx.NodeProto) -> float:
        """0 for a node of constants alone."""
        if node.output[0] in self._constants:
            return 0
        shapes = [self._tensors[name].shape if name else () for name in node.input]
        return _flops(node, shapes, self._tensors[node.output[0]].count)

    def precision(self, node: onnx.NodeProto) -> str:
        """Empty where no input is floating."""
        floating = [name for name in node.input if name and self._tensors[name].type in _PRECISIONS]
        if not floating:
            return ""
        data = [name for name in node.input[:2] if name in floating]  # a bias is the third
        stored = [self._tensors[self._source(name)].type for name in data]
        if stored and all(kind in ("INT8", "UINT8") for kind in stored):
            return "int8"
        return _PRECISIONS[self._tensors[floating[0]].type]

    def bytes_moved(self) -> dict[str, int]:
        """By stage."""
        border: dict[str, set[str]] = {stage: set() for stage in self.stages}
        for node, stage in zip(self.nodes, self.stages, strict=True):
            if node.output[0] in self._constants or node.op_type in _VIEWS or not self._tensors[node.output[0]].count:
                continue
            stage = self._makers[node.output[0]]
            names = node.input[:1] if node.op_type == "QuantizeLinear" else node.input
            for source in {self._source(name) for name in names if name}:
                maker = self._makers.get(source)  # None: an input of the model, or a constant
                if maker != stage:
                    border[stage].add(source)
                    if maker is not None:
                        border[maker].add(source)
        for source in {self._source(name) for name in self._outputs} & self._makers.keys():
            border[self._makers[source]].add(source)
        return {stage: sum(self._tensors[name].bytes for name in names) for stage, names in border.items()}

    def _check(self, node: onnx.NodeProto) -> None:
        name = node.name or node.output[0]
        if any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute):
            raise WnlbError(f"node {name} ({node.op_type}) has graphs of its own, whose work is not known")
        for tensor in filter(None, (*node.input, *node.output)):
            if tensor not in self._tensors:
                raise WnlbError(
                    f"node {name} ({node.op_type}) has a tensor {tensor} without a known type and static shape; "
                    "export the model with fixed sizes"
                )

    def _place(self, node: onnx.NodeProto, stage: str) -> None:
        """Note what the outputs of a node are: constants, a view, or made by a stage."""
        names = [name for name in node.input if name]
        if node.op_type in _VIEWS:
            self._sources[node.output[0]] = self._source(names[0])
            names = names[:1]
        elif node.op_type == "QuantizeLinear":
            stage = self._makers.get(self._source(names[0]), stage)
        if all(name in self._constants for name in names):
            self._constants.update(node.output)
        elif node.op_type not in _VIEWS:
            self._makers.update(dict.fromkeys(node.output, stage))

    def _source(self, name: str) -> str:
        return self._sources.get(name, name)


def _flops(node: onnx.NodeProto, shapes: Sequence[tuple[int, ...]], outputs: int) -> float:
    """Of one node, by the shapes of its inputs and the number of elements of its first output."""
    from onnx import helper

    attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    if node.op_type == "Conv":
        return 2.0 * outputs * math.prod(shapes[1][1:])  # weight: [M, C / groups, ...]
    if node.op_type == "ConvTranspose":
        return 2.0 * math.prod(shapes[0]) * math.prod(shapes[1][1:])  # weight: [C, M / groups, ...]
    if node.op_type == "MatMul":
        return 2.0 * outputs * shapes[0][-1]
    if node.op_type == "MultiHeadAttention":  # query, key [B, N, d], value [B, N, e], output [B, N, e]
        return 2.0 * shapes[1][1] * (math.prod(shapes[0]) + outputs)
    if node.op_type == "Gemm":
        return 2.0 * outputs * shapes[0][0 if attributes.get("transA") else 1]
    if node.op_type in ("AveragePool", "MaxPool"):
        return float(outputs * math.prod(attributes["kernel_shape"]))
    if node.op_type in _PER_INPUT or node.op_type.startswith("Reduce"):
        return float(math.prod(shapes[0]))
    return float(_PER_OUTPUT.get(node.op_type, 1) * outputs)


def _size_of(size: str, rows: int) -> int | None:
    """A size by its name where so many rows are found; None where it is no sum of rows and numbers."""
    terms = [_ROWS.fullmatch(term) for term in size.split(" + ")]
    if not all(terms):
        return None
    sizes = [(math.prod(map(int, re.findall(r"(\d+)\*", term[0]))), term) for term in terms if term]
    return sum(
        int(term["number"]) if term["number"] else factor * (rows if term["masks"] else 0) for factor, term in sizes
    )


def _tensors(inferred: onnx.ModelProto, weights: Iterable[onnx.TensorProto], rows: int) -> dict[str, _Tensor]:
    """All tensors with a known type and shape, by name."""
    from onnx import TensorProto

    found = {}
    graph = inferred.graph
    for value in (*graph.value_info, *graph.input, *graph.output):
        declared = value.type.tensor_type
        dims = declared.shape.dim
        kind = TensorProto.DataType.Name(declared.elem_type)
        sizes = [dim.dim_value if dim.HasField("dim_value") else _size_of(dim.dim_param, rows) for dim in dims]
        if kind in _BYTES and declared.HasField("shape") and None not in sizes:
            found[value.name] = _Tensor(kind, tuple(size for size in sizes if size is not None))
    for tensor in weights:
        kind = TensorProto.DataType.Name(tensor.data_type)
        if kind in _BYTES:
            found[tensor.name] = _Tensor(kind, tuple(tensor.dims))
    return found
