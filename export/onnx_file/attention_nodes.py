"""Non-local attentions in a graph, of whatever tool: found by their nodes, not by their names."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx
from onnx import helper, numpy_helper

from wnlb.runtime.onnx_file import with_shapes


@dataclass(frozen=True)
class AttentionNodes:
    """The nodes of one attention and the tensors at its border."""

    nodes: tuple[onnx.NodeProto, ...]
    inputs: tuple[str, str, str]  # query, key, value, all channels first
    output: str  # channels first

    @property
    def made(self) -> set[str]:
        """Names of all tensors that its nodes make."""
        return {name for node in self.nodes for name in node.output}


class Wiring:
    """Who makes and who reads each tensor."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.constants = {tensor.name: tensor for tensor in model.graph.initializer}
        self.outputs = {value.name for value in model.graph.output}
        self.makers: dict[str, onnx.NodeProto] = {}
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        for node in model.graph.node:
            for name in node.output:
                self.makers[name] = node
            for name in filter(None, node.input):
                self.readers.setdefault(name, []).append(node)
        inferred = with_shapes(model).graph
        self.shapes = {
            value.name: [dim.dim_value or None for dim in value.type.tensor_type.shape.dim]
            for value in (*inferred.value_info, *inferred.input, *inferred.output)
            if value.type.tensor_type.HasField("shape")
        }

    def made_by(self, name: str, op_type: str) -> onnx.NodeProto | None:
        node = self.makers.get(name)
        return node if node is not None and node.op_type == op_type and not node.domain else None

    def only_reader(self, name: str) -> onnx.NodeProto | None:
        readers = self.readers.get(name, [])
        return readers[0] if len(readers) == 1 and name not in self.outputs else None


def attentions(model: onnx.ModelProto, graph: Wiring) -> Iterator[AttentionNodes]:
    """The attentions of a graph that ``fuse_attention`` replaces, in its order.

    Softmax over all positions of one map, of unscaled products, one head, with query, key and value from that map by at
    most a 1x1 convolution each.

    Args:
        graph: of the model.
    """
    done: set[str] = set()
    for node in model.graph.node:
        if node.op_type == "Softmax" and node.output[0] not in done:
            match = _match(graph, node)
            if match is not None and _closed(graph, match):
                done |= match.made
                yield match


def _closed(graph: Wiring, match: AttentionNodes) -> bool:
    """Whether nobody else reads what is inside."""
    own = {node.output[0] for node in match.nodes}
    inner = match.made - {match.output}
    readers = {reader.output[0] for name in inner for reader in graph.readers.get(name, [])}
    return readers <= own and not inner & graph.outputs


def _match(graph: Wiring, softmax: onnx.NodeProto) -> AttentionNodes | None:
    first = _core(graph, softmax)
    if first is None:
        return None
    query, key, value, out, nodes = first
    if graph.makers.get(query) is not None and graph.makers[query].op_type in ("Split", "Slice"):
        whole = _pieces(graph, graph.makers[query], key, value)
        if whole is None:
            return None
        query, out, nodes = graph.makers[query].input[0], *whole
    turn_query, turn_value = _turned(graph, query), _turned(graph, value)
    turn_out = graph.only_reader(out)
    if turn_query is None or turn_value is None or turn_out is None or not _turns(turn_out):
        return None
    inputs = (turn_query.input[0], key, turn_value.input[0])
    if not _one_map(graph, inputs):
        return None
    return AttentionNodes((turn_query, turn_value, *nodes, turn_out), inputs, turn_out.output[0])


def _core(graph: Wiring, softmax: onnx.NodeProto) -> tuple[str, str, str, str, list[onnx.NodeProto]] | None:
    """Query ``[B, N', d]``, key ``[B, d, N]``, value ``[B, N, e]``, output and nodes around one Softmax."""
    casts: list[onnx.NodeProto] = []
    logits = softmax.input[0]
    if (cast := graph.made_by(logits, "Cast")) is not None and graph.only_reader(logits) is softmax:
        casts.append(cast)
        logits = cast.input[0]
    product = graph.made_by(logits, "MatMul")
    weights = softmax.output[0]
    reader = graph.only_reader(weights)
    if reader is not None and reader.op_type == "Cast":
        casts.append(reader)
        weights, reader = reader.output[0], graph.only_reader(reader.output[0])
    if product is None or reader is None or reader.op_type != "MatMul" or reader.input[0] != weights:
        return None
    if graph.only_reader(logits) is None or len(graph.shapes.get(logits, ())) != 3 or _axis(softmax) not in (-1, 2):
        return None
    query, key = product.input
    return query, key, reader.input[1], reader.output[0], [product, *casts, softmax, reader]


def _pieces(graph: Wiring, cutter: onnx.NodeProto, key: str, value: str) -> tuple[str, list[onnx.NodeProto]] | None:
    """The output and the nodes of an attention whose queries are cut into pieces over positions."""
    cut = _cut(graph, cutter)
    if cut is None:
        return None
    nodes, names = cut
    outputs = []
    for name in names:
        product = graph.only_reader(name)
        softmax = graph.only_reader(product.output[0]) if product is not None else None
        if softmax is not None and softmax.op_type == "Cast":
            softmax = graph.only_reader(softmax.output[0])
        core = _core(graph, softmax) if softmax is not None and softmax.op_type == "Softmax" else None
        if core is None or core[:3] != (name, key, value):
            return None
        outputs.append(core[3])
        nodes += core[4]
    concat = graph.only_reader(outputs[0])
    if concat is None or concat.op_type != "Concat" or list(concat.input) != outputs or _axis(concat) not in (1, -2):
        return None
    return concat.output[0], [*nodes, concat]


def _cut(graph: Wiring, cutter: onnx.NodeProto) -> tuple[list[onnx.NodeProto], list[str]] | None:
    """The nodes that cut a tensor ``[B, N, d]`` into pieces of N, and the pieces in their order.

    One Split, or a Slice for each, as PyTorch's exporter writes it where there are many. None where they do not make
    up the whole.
    """
    if cutter.op_type == "Split":
        return ([cutter], list(cutter.output)) if _axis(cutter, 0) in (1, -2) else None
    slices = graph.readers[cutter.input[0]]
    pieces = []
    for node in slices:
        if node.op_type != "Slice" or len(node.input) < 4:
            return None
        values = [numpy_helper.to_array(graph.constants[n]).tolist() for n in node.input[1:] if n in graph.constants]
        if len(values) != len(node.input) - 1 or values[2] not in ([1], [-2]) or values[3:] not in ([], [[1]]):
            return None
        pieces.append((values[0][0], values[1][0], node.output[0]))
    pieces.sort()
    positions = graph.shapes.get(cutter.input[0], [None, None])[1]
    borders = [0, *(end for _, end, _ in pieces)]
    if positions is None or borders[:-1] != [start for start, _, _ in pieces] or borders[-1] < positions:
        return None
    return list(slices), [name for _, _, name in pieces]


def _turned(graph: Wiring, name: str) -> onnx.NodeProto | None:
    node = graph.made_by(name, "Transpose")
    return node if node is not None and _turns(node) else None


def _turns(node: onnx.NodeProto) -> bool:
    """Whether a node exchanges channels and positions of ``[B, channels, positions]``."""
    return node.op_type == "Transpose" and [list(a.ints) for a in node.attribute if a.name == "perm"] == [[0, 2, 1]]


def _one_map(graph: Wiring, names: tuple[str, str, str]) -> bool:
    """Whether query, key and value are the positions of one feature map, without a scale or another step between."""
    roots = {_root(graph, name) for name in names}
    return len(roots) == 1 and None not in roots


def _root(graph: Wiring, name: str) -> str | None:
    """The 4-d map whose positions ``name``, ``[B, channels, H * W]``, holds; None where it is something else."""
    name = _through_casts(graph, name)
    reshape = graph.made_by(name, "Reshape") or graph.made_by(name, "Flatten")
    if reshape is None:
        return None
    source = reshape.input[0]
    before, after = graph.shapes.get(source, []), graph.shapes.get(name, [])
    if len(before) != 4 or len(after) != 3 or before[1] is None or before[1] != after[1]:
        return None
    source = _through_casts(graph, source)
    conv = graph.made_by(source, "Conv")
    if conv is None:
        return source
    attributes = {a.name: helper.get_attribute_value(a) for a in conv.attribute}
    plain = all(all(v == 1 for v in attributes.get(key, [1])) for key in ("kernel_shape", "strides"))
    weight = graph.constants.get(conv.input[1])
    if not plain or any(attributes.get("pads", [0])) or (weight is not None and list(weight.dims[2:]) != [1, 1]):
        return source
    return _through_casts(graph, conv.input[0])


def _through_casts(graph: Wiring, name: str) -> str:
    """``name`` before casts and Q/DQ, which change the type and not the positions."""
    while (node := graph.makers.get(name)) is not None and node.op_type in (
        "Cast",
        "QuantizeLinear",
        "DequantizeLinear",
    ):
        name = node.input[0]
    return name


def _axis(node: onnx.NodeProto, default: int = -1) -> int:
    return next((a.i for a in node.attribute if a.name == "axis"), default)
