"""A file of another tool, of any network, in FP16, BF16 or INT8: by its operators, for its names tell nothing.

Half precision is for what lies between the first layer with weights and the last ones: convolutions, products,
activations and what moves maps. Softmax, sums over axes, and all behind the last layers (boxes, NMS, probabilities)
stay FP32, and so do inputs and outputs: whoever runs the file feeds it as before. INT8 is for convolutions and fully
connected layers but the first and the last, which are a hundredth of the arithmetic; not for the products of attention.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path

import onnx
from onnx import TensorProto, helper, inliner, version_converter

from wnlb.calibration.precision.convert import BF16_OPSET
from wnlb.calibration.precision.mixed import MixedReport, float_tensors, infer_again, to_half
from wnlb.calibration.precision.quantize import LAYERS, Graph, check_placement, pair_names, quantize
from wnlb.calibration.precision.quantize import OPSET as INT8_OPSET
from wnlb.calibration.precision.ranges import Inputs, largest_magnitudes
from wnlb.export.onnx_file.fuse import PLUGIN_OP, fuse_attention, unfuse_attention
from wnlb.runtime.errors import GraphError, WnlbError
from wnlb.runtime.onnx_file import described, read_onnx

_WEIGHTED = (*LAYERS, "ConvTranspose", "MatMul")
_HALF = frozenset(
    (
        *_WEIGHTED,
        *"Add AveragePool BatchNormalization Clip Concat Elu Flatten GlobalAveragePool HardSigmoid HardSwish".split(),
        *"Identity LeakyRelu MaxPool Mul PRelu Pad Relu Reshape Resize Sigmoid Slice Split Squeeze Tanh".split(),
        *"Transpose Unsqueeze".split(),
    )
)
_MOVERS = frozenset("Flatten Identity Reshape Slice Split Squeeze Transpose Unsqueeze".split())


class ForeignFile:
    """An FP32 file that is not ours, ready to be written in other precisions.

    Args:
        path: any ONNX file.

    Raises:
        WnlbError: it is no ONNX file, not FP32, or of a kind that is not converted; says why.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.model = path, read_onnx(path)
        self.sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        self._fused = unfuse_attention(self.model)
        if self.model.functions:
            self.model = inliner.inline_local_functions(self.model)
        _lift_constants(self.model)
        _name_nodes(self.model)
        _check(self.model, path)
        layers = _layers(self.model)
        self.heavy = _between(self.model, layers)
        inner = _inner(self.model, layers)
        self.layers = [node.name for node in self.model.graph.node if node.op_type in LAYERS and node.name in inner]
        self.activations = Graph(self.model, dict.fromkeys(self.layers, "network")).activations()
        self.largest: dict[str, float] = {}

    def watch_overflow(self, inputs: Iterable[Inputs], on_done: Callable[[], object] = lambda: None) -> None:
        """As ``Converter.watch_overflow``."""
        self.largest = largest_magnitudes(self.model, float_tensors(self.model, self.heavy), inputs, on_done)

    def half(self, precision: str) -> tuple[onnx.ModelProto, MixedReport]:
        """The file in ``fp16`` or ``bf16``."""
        model = self._copy(BF16_OPSET if precision == "bf16" else None)
        report = to_half(model, precision, self.heavy, self.largest)
        return self._finished(model), report

    def int8(self, ranges: dict[str, float], rest: str) -> onnx.ModelProto:
        """The file with ``layers`` in INT8.

        Args:
            ranges: of ``activations``.
            rest: precision of everything else, ``fp16`` or ``fp32``.
        """
        model = self._copy(INT8_OPSET)
        quantize(model, self.layers, ranges)
        infer_again(model)
        check_placement(model)
        if rest == "fp16":
            to_half(model, "fp16", self.heavy | pair_names(model), self.largest)
        return self._finished(model)

    def _copy(self, opset: int | None) -> onnx.ModelProto:
        """With its outputs made by nodes of their own, which stay FP32."""
        own = next(entry.version for entry in self.model.opset_import if entry.domain in ("", "ai.onnx"))
        model = onnx.ModelProto()
        model.CopyFrom(self.model)
        if opset is not None and own < opset:
            try:
                model = version_converter.convert_version(self.model, opset)
            except Exception as error:  # its types are not public
                raise GraphError(
                    f"{self.path} of opset {own} cannot be converted to {opset}, which this precision needs: "
                    f"{str(error).strip().splitlines()[0]}; export it with opset {opset}"
                ) from error
            _lift_constants(model)
            _name_nodes(model)
        _keep_outputs(model, self.heavy)
        return model

    def _finished(self, model: onnx.ModelProto) -> onnx.ModelProto:
        if self._fused:
            fuse_attention(model)
        return model


def _lift_constants(model: onnx.ModelProto) -> None:
    """Tensors of Constant nodes become initializers, in place."""
    nodes = []
    for node in model.graph.node:
        value = next((entry.t for entry in node.attribute if entry.name == "value"), None)
        if node.op_type != "Constant" or value is None:
            nodes.append(node)
            continue
        tensor = onnx.TensorProto()
        tensor.CopyFrom(value)
        tensor.name = node.output[0]
        model.graph.initializer.append(tensor)
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def _name_nodes(model: onnx.ModelProto) -> None:
    """A name of its own for each node, in place: after what it makes where it has none."""
    used: set[str] = set()
    for node in model.graph.node:
        if not node.name or node.name in used:
            node.name = f"{next(filter(None, node.output), '')}/{node.op_type}"
        used.add(node.name)


def _check(model: onnx.ModelProto, path: Path) -> None:
    types = {tensor.data_type for tensor in model.graph.initializer}
    operators = {node.op_type for node in model.graph.node}
    values = (*model.graph.input, *model.graph.output)
    if types & {TensorProto.FLOAT16, TensorProto.BFLOAT16} or operators & {"QuantizeLinear", "DequantizeLinear"}:
        raise WnlbError(f"{path} is in a lower precision already; convert the FP32 file that it was made from")
    if PLUGIN_OP in operators:
        raise WnlbError(f"{path} has {PLUGIN_OP} nodes without their bodies; convert the file before they were put in")
    if any(entry.HasField("g") or entry.graphs for node in model.graph.node for entry in node.attribute):
        raise WnlbError(f"{path} has graphs inside nodes (If, Loop, Scan), which are not converted; export it without")
    if not any(value.type.tensor_type.elem_type == TensorProto.FLOAT for value in values):
        raise WnlbError(f"{path} has {', '.join(map(described, values))}; expected inputs and outputs in float32")


def _layers(model: onnx.ModelProto) -> set[str]:
    """Names of the nodes with constant weights, but those that take the mean of probabilities: positions in bins."""
    graph = Graph(model)

    def of_probabilities(name: str) -> bool:
        maker = graph.makers.get(name)
        while maker is not None and maker.op_type in _MOVERS:
            maker = graph.makers.get(maker.input[0])
        return maker is not None and maker.op_type == "Softmax"

    return {
        node.name
        for node in model.graph.node
        if node.op_type in _WEIGHTED and node.input[1] in graph.weights and not of_probabilities(node.input[0])
    }


def _between(model: onnx.ModelProto, layers: set[str]) -> set[str]:
    """Names of the nodes for half precision: behind a layer and before one, or a layer itself."""
    behind, before = _behind(model, layers), _before(model, layers)
    names = {node.name for node in model.graph.node if node.op_type in _HALF and node.name in behind & before}
    return layers | names


def _inner(model: onnx.ModelProto, layers: set[str]) -> set[str]:
    """The layers with others before and behind them."""
    return {name for name in layers if name in _behind(model, layers) and name in _before(model, layers)}


def _behind(model: onnx.ModelProto, layers: set[str]) -> set[str]:
    """Names of the nodes that read, through others, what a layer makes."""
    made: set[str] = set()
    found: set[str] = set()
    for node in model.graph.node:  # in the order in which they run
        reads = not made.isdisjoint(node.input)
        if reads:
            found.add(node.name)
        if reads or node.name in layers:
            made.update(node.output)
    return found


def _before(model: onnx.ModelProto, layers: set[str]) -> set[str]:
    """Names of the nodes that a layer reads, through others."""
    wanted: set[str] = set()
    found: set[str] = set()
    for node in reversed(model.graph.node):
        read = not wanted.isdisjoint(node.output)
        if read:
            found.add(node.name)
        if read or node.name in layers:
            wanted.update(node.input)
    return found


def _keep_outputs(model: onnx.ModelProto, heavy: set[str]) -> None:
    """Outputs that a node for half precision makes are passed on by one that is not, in place."""
    makers = {output: node for node in model.graph.node for output in node.output}
    for value in model.graph.output:
        maker = makers.get(value.name)
        if maker is None or maker.name not in heavy:
            continue
        inner = f"{value.name}/inner"
        for node in model.graph.node:
            for names in (node.input, node.output):
                names[:] = [inner if name == value.name else name for name in names]
        model.graph.node.append(helper.make_node("Identity", [inner], [value.name], name=f"{value.name}/Identity"))
