"""INT8 by Q/DQ pairs, placed where TensorRT turns them into INT8 layers.

TensorRT's rules for explicit quantisation: a convolution or fully connected layer runs in INT8 where its input and its
weight come from DequantizeLinear; a residual sum joins the convolution before it where the other summand is quantised
too; pooling passes scales on. So each layer that is quantised has one pair at its input, shared by all readers of that
tensor, and one at its weight, one scale per output channel. Attention's products and its softmax have none.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from wnlb.calibration.precision.groups import groups_of
from wnlb.calibration.precision.ranges import LEVELS
from wnlb.runtime.errors import GraphError

LAYERS = ("Conv", "Gemm")
OPSET = 19  # from here on Q and DQ take FP16
# FP16's smallest normal number: below it a scale would lose its own digits.
SMALLEST_SCALE = 2.0**-14
_QUANTIZED, _DEQUANTIZED = ".int8", ".dequantized"


@dataclass(frozen=True)
class Layer:
    """A convolution or fully connected layer that can be quantised."""

    node: str
    group: str
    weight: str


class Graph:
    """Who makes and reads each tensor of a model without local functions.

    Args:
        groups: name to group of the nodes that are layers; by default what their names tell.
    """

    def __init__(self, model: onnx.ModelProto, groups: dict[str, str] | None = None) -> None:
        self.model, self._groups = model, groups
        self.weights = {tensor.name: tensor for tensor in model.graph.initializer}
        self.nodes = {node.name: node for node in model.graph.node}
        self.makers = {output: node for node in model.graph.node for output in node.output}
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        for node in model.graph.node:
            for name in dict.fromkeys(node.input):
                self.readers.setdefault(name, []).append(node)

    def layers(self) -> list[Layer]:
        """Every convolution and fully connected layer with a constant weight that belongs to a group."""
        groups = groups_of(self.model) if self._groups is None else self._groups
        return [
            Layer(node.name, groups[node.name], node.input[1])
            for node in self.model.graph.node
            if node.op_type in LAYERS and node.name in groups and node.input[1] in self.weights
        ]

    def source(self, name: str) -> str:
        """The tensor whose scale ``name`` has: what max pooling and reshaping pass on is of their input's range."""
        maker = self.makers.get(name)
        if maker is not None and maker.op_type in ("MaxPool", "Reshape", "Transpose", "Flatten"):
            return self.source(maker.input[0])
        return name

    def shortcuts(self, quantized: Collection[str]) -> Iterator[tuple[onnx.NodeProto, int]]:
        """Residual sums behind a quantised layer: an Add before ReLU, and which of its inputs is the shortcut."""
        for node in self.model.graph.node:
            if node.op_type != "Add" or [r.op_type for r in self.readers.get(node.output[0], [])] != ["Relu"]:
                continue
            if not all(name in self.makers for name in node.input):
                continue
            for i, name in enumerate(node.input):
                if self.makers[name].name in quantized and len(self.readers[name]) == 1:
                    yield node, 1 - i
                    break

    def activations(self) -> list[str]:
        """The tensors whose ranges ``quantize`` may ask for."""
        layers = self.layers()
        names = [self.source(self.nodes[layer.node].input[0]) for layer in layers]
        names += [self.source(node.input[i]) for node, i in self.shortcuts({layer.node for layer in layers})]
        return list(dict.fromkeys(names))


def quantize(model: onnx.ModelProto, layers: Collection[str], ranges: dict[str, float]) -> None:
    """Put Q/DQ pairs around layers, in place. Nodes keep their names, and so do the tensors that they make.

    Args:
        model: FP32, opset 19 or later.
        layers: names of nodes among ``Graph.layers``.
        ranges: largest magnitude to represent of each of ``Graph.activations``.

    Raises:
        GraphError: a range is missing.
    """
    graph, chosen = Graph(model), set(layers)
    shortcuts = {(node.name, i) for node, i in graph.shortcuts(chosen)}
    pairs = _Pairs(graph, ranges)
    for node in model.graph.node:
        if node.name in chosen:
            node.input[1] = pairs.weight(node.input[1], output_axis(node))
            node.input[0] = pairs.activation(node.input[0])
        for i in range(len(node.input)):
            if (node.name, i) in shortcuts:
                node.input[i] = pairs.activation(node.input[i])
        pairs.nodes.append(node)
    del model.graph.node[:]
    model.graph.node.extend(pairs.nodes)
    read = {name for node in pairs.nodes for name in node.input}
    kept = [tensor for tensor in (*model.graph.initializer, *pairs.constants.values()) if tensor.name in read]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)


class _Pairs:
    """Q/DQ nodes and their constants, made when they are first asked for."""

    def __init__(self, graph: Graph, ranges: dict[str, float]) -> None:
        self._graph, self._ranges = graph, ranges
        self._zero = numpy_helper.from_array(np.zeros((), np.int8), "int8.zero")
        self._names: dict[str, str] = {}  # of tensors, to what comes out of their pair
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {self._zero.name: self._zero}

    def activation(self, name: str) -> str:
        """``name`` after its pair. Raises GraphError where its range is missing."""
        if name not in self._names:
            source = self._graph.source(name)
            if source not in self._ranges:
                raise GraphError(f"no range was measured for {source}; calibrate again")
            value = np.asarray(_scale(np.float64(self._ranges[source])), np.float32)
            parameters = [self._constant(f"{name}.scale", value), self._zero.name]
            inner = f"{name}{_QUANTIZED}"
            inputs = [name, *parameters]
            self.nodes.append(helper.make_node("QuantizeLinear", inputs, [inner], f"{name}/QuantizeLinear"))
            self._dequantize(name, [inner, *parameters])
        return self._names[name]

    def weight(self, name: str, axis: int) -> str:
        """``name`` as int8 and its scales, dequantised."""
        if name not in self._names:
            integers, scales = quantized_weight(numpy_helper.to_array(self._graph.weights[name]), axis)
            zeros = np.zeros(scales.shape, np.int8)
            parts: dict[str, NDArray] = {_QUANTIZED: integers, ".scale": scales, ".zero": zeros}
            self._dequantize(name, [self._constant(name + suffix, array) for suffix, array in parts.items()], axis)
        return self._names[name]

    def _constant(self, name: str, array: NDArray) -> str:
        self.constants[name] = numpy_helper.from_array(array, name)
        return name

    def _dequantize(self, name: str, inputs: list[str], axis: int | None = None) -> None:
        output = self._names[name] = f"{name}{_DEQUANTIZED}"
        node = helper.make_node("DequantizeLinear", inputs, [output], f"{name}/DequantizeLinear")
        if axis is not None:
            node.attribute.append(helper.make_attribute("axis", axis))
        self.nodes.append(node)


def quantized_weight(values: NDArray, axis: int) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """int8 values and the scale of each output channel, from the largest magnitude there."""
    other = tuple(i for i in range(values.ndim) if i != axis)
    scales = _scale(np.abs(values).max(other).astype(np.float64)).astype(np.float32)
    shape = [-1 if i == axis else 1 for i in range(values.ndim)]
    integers = np.clip(np.rint(values / scales.reshape(shape)), -LEVELS, LEVELS)
    return integers.astype(np.int8), scales


def output_axis(node: onnx.NodeProto) -> int:
    """The axis of a layer's weight that counts its output channels."""
    transposed = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
    return 0 if node.op_type == "Conv" or transposed else 1


def pair_names(model: onnx.ModelProto) -> set[str]:
    """Names of all Q and DQ nodes."""
    return {node.name for node in model.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")}


def check_placement(model: onnx.ModelProto) -> None:
    """Raise GraphError where Q/DQ break the rules at the head of this module. FP16 or FP32 beside them."""
    graph = Graph(model)
    problems = [*_pair_problems(graph), *_layer_problems(graph), *_scale_problems(graph)]
    if problems:
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise GraphError(f"Q/DQ break {len(problems)} rules: {'; '.join(problems[:5])}{more}")


def _pair_problems(graph: Graph) -> Iterator[str]:
    """Q goes into one DQ, both with one scale and zero point 0; DQ feeds layers and residual sums only."""
    for node in graph.model.graph.node:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            continue
        zero = graph.weights.get(node.input[2]) if len(node.input) > 2 else None
        if zero is None or zero.data_type != TensorProto.INT8 or numpy_helper.to_array(zero).any():
            yield f"{node.name} has no int8 zero point of 0"
        if node.input[1] not in graph.weights:
            yield f"{node.name} has a scale that is not constant"
        readers = graph.readers.get(node.output[0], [])
        if node.op_type == "QuantizeLinear":
            if [reader.op_type for reader in readers] != ["DequantizeLinear"]:
                yield f"{node.name} does not go into one DequantizeLinear"
            elif list(readers[0].input[1:]) != list(node.input[1:]):
                yield f"{node.name} and {readers[0].name} have different scales"
        else:
            wrong = sorted({reader.op_type for reader in readers} - {*LAYERS, "Add"})
            if wrong:
                yield f"{node.name} feeds {', '.join(wrong)}"


def _layer_problems(graph: Graph) -> Iterator[str]:
    """A layer has both inputs from DQ or none; its weight has one scale per output channel, its input one in all."""
    quantized = set()
    for node in graph.model.graph.node:
        if node.op_type not in LAYERS:
            continue
        sources = [graph.makers.get(name) for name in node.input[:2]]
        both = [maker is not None and maker.op_type == "DequantizeLinear" for maker in sources]
        if any(both) and not all(both):
            yield f"{node.name} has only its {'input' if both[0] else 'weight'} quantised"
        if all(both) and sources[0] is not None and sources[1] is not None:
            quantized.add(node.name)
            if list(graph.weights[sources[0].input[1]].dims):
                yield f"{node.name} has an input with more than one scale"
            channels = graph.weights[sources[1].input[0]].dims[output_axis(node)]
            if list(graph.weights[sources[1].input[1]].dims) != [channels]:
                yield f"{node.name} has a weight without one scale for each of its {channels} output channels"
    for node, i in graph.shortcuts(quantized):
        if graph.makers[node.input[i]].op_type != "DequantizeLinear":
            yield f"the shortcut into {node.name} is not quantised"


def _scale_problems(graph: Graph) -> Iterator[str]:
    """What pooling or reshaping passes on has the scale of what went in."""
    scales: dict[str, list[tuple[str, NDArray]]] = {}
    for node in graph.model.graph.node:
        if node.op_type == "QuantizeLinear" and node.input[1] in graph.weights:
            scale = numpy_helper.to_array(graph.weights[node.input[1]])
            scales.setdefault(graph.source(node.input[0]), []).append((node.name, scale))
    for source, found in scales.items():
        if any(not np.array_equal(scale, found[0][1]) for _, scale in found):
            yield f"{', '.join(name for name, _ in found)} pass on {source} with different scales"


def _scale(largest: NDArray | np.float64) -> NDArray:
    """Of a symmetric int8; also exact in FP16, for the values are rounded with the scale that the file holds."""
    scale = np.where(largest > 0, np.maximum(largest / LEVELS, SMALLEST_SCALE), 1.0)
    return np.asarray(scale, np.float16).astype(np.float64) if np.all(scale < 60000) else scale
