"""Attention as one node for the TensorRT plugin, and back.

``fuse_attention`` replaces each non-local attention of a graph

    query [B, d, N] -> Transpose [-> Split] -> MatMul(key) -> Softmax -> MatMul(Transpose(value)) [-> Concat]
    -> Transpose

by one node ``WnlbNonLocalAttention(query, key, value)`` whose body, a local function, is the very nodes that it
replaces: an engine without the plugin runs those. Each node has a domain of its own, for bodies differ in their pieces
and casts; TensorRT finds the plugin by name and ``plugin_namespace``, whatever the domain.

``use_multi_head_attention`` replaces it by ONNX Runtime's own operator, in files for a CPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx
from onnx import helper, inliner, numpy_helper

from wnlb.runtime.contract import BATCH
from wnlb.runtime.onnx_file import with_shapes

PLUGIN_OP = "WnlbNonLocalAttention"
PLUGIN_NAMESPACE, PLUGIN_VERSION = "wnlb", "1"
RUNTIME_OP, RUNTIME_DOMAIN = "MultiHeadAttention", "com.microsoft"
# Before the names of tensors inside a body: TensorRT 10.3 confuses them with equal names outside.
_INNER, _BORDER = "wnlb/", "wnlb."


@dataclass(frozen=True)
class _Match:
    """The nodes of one attention and the tensors at its border."""

    nodes: tuple[onnx.NodeProto, ...]
    inputs: tuple[str, str, str]  # query, key, value, all channels first
    output: str  # channels first

    @property
    def made(self) -> set[str]:
        """Names of all tensors that its nodes make."""
        return {name for node in self.nodes for name in node.output}


class _Graph:
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


def fuse_attention(model: onnx.ModelProto, names: tuple[str, ...] | None = None) -> bool:
    """Replace non-local attentions by plugin nodes, in place; True if there were any.

    Fires only on what the plugin computes: softmax over all positions of one map, of unscaled products, one head, with
    query, key and value from that map by at most a 1x1 convolution each. Works on what PyTorch's exporters make of the
    authors' block too, and on files in FP16 or with Q/DQ.

    Args:
        names: only attentions whose Softmax node has a name that begins with one of these.
    """
    graph = _Graph(model)
    found = [match for match in _matches(model, graph) if _wanted(match, names)]
    if found:
        _use_plugin(model, graph, found)
    return bool(found)


def use_multi_head_attention(model: onnx.ModelProto, names: tuple[str, ...] | None = None) -> bool:
    """Replace non-local attentions by ONNX Runtime's ``MultiHeadAttention``, in place; True if there were any.

    On a CPU it goes over blocks that fit into the caches and never holds a row of the N x N matrix. Fires on the same
    attentions as ``fuse_attention``, in float32.

    Args:
        names: as in ``fuse_attention``.
    """
    graph = _Graph(model)
    found = [match for match in _matches(model, graph) if _wanted(match, names)]
    if found:
        _rewrite(model, graph, {match.output: _multi_head_nodes(match) for match in found}, found)
        model.graph.value_info.extend(_multi_head_shape(match, graph) for match in found)
        model.opset_import.append(helper.make_opsetid(RUNTIME_DOMAIN, 1))
    return bool(found)


def unfuse_attention(model: onnx.ModelProto) -> bool:
    """Put the bodies back in the place of plugin nodes, in place; True if there were any."""
    own = [(f.domain, f.name) for f in model.functions if f.name == PLUGIN_OP]
    if not own:
        return False
    inlined = inliner.inline_selected_functions(model, own)
    before = {name for node in model.graph.node for name in node.output}
    for node in [n for n in inlined.graph.node if n.op_type == "Constant" and n.output[0] not in before]:
        tensor = onnx.TensorProto.FromString(node.attribute[0].t.SerializeToString())
        tensor.name = node.output[0]
        inlined.graph.initializer.append(tensor)
        inlined.graph.node.remove(node)
    domains = {domain for domain, _ in own}
    kept = [entry for entry in inlined.opset_import if entry.domain not in domains]
    del inlined.opset_import[:]
    inlined.opset_import.extend(kept)
    model.CopyFrom(inlined)
    return True


# Finding them


def _matches(model: onnx.ModelProto, graph: _Graph) -> Iterator[_Match]:
    done: set[str] = set()
    for node in model.graph.node:
        if node.op_type == "Softmax" and node.output[0] not in done:
            match = _match(graph, node)
            if match is not None and _closed(graph, match):
                done |= match.made
                yield match


def _closed(graph: _Graph, match: _Match) -> bool:
    """Whether nobody else reads what is inside."""
    own = {node.output[0] for node in match.nodes}
    inner = match.made - {match.output}
    readers = {reader.output[0] for name in inner for reader in graph.readers.get(name, [])}
    return readers <= own and not inner & graph.outputs


def _match(graph: _Graph, softmax: onnx.NodeProto) -> _Match | None:
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
    return _Match((turn_query, turn_value, *nodes, turn_out), inputs, turn_out.output[0])


def _core(graph: _Graph, softmax: onnx.NodeProto) -> tuple[str, str, str, str, list[onnx.NodeProto]] | None:
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


def _pieces(graph: _Graph, cutter: onnx.NodeProto, key: str, value: str) -> tuple[str, list[onnx.NodeProto]] | None:
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


def _cut(graph: _Graph, cutter: onnx.NodeProto) -> tuple[list[onnx.NodeProto], list[str]] | None:
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


def _turned(graph: _Graph, name: str) -> onnx.NodeProto | None:
    node = graph.made_by(name, "Transpose")
    return node if node is not None and _turns(node) else None


def _turns(node: onnx.NodeProto) -> bool:
    """Whether a node exchanges channels and positions of ``[B, channels, positions]``."""
    return node.op_type == "Transpose" and [list(a.ints) for a in node.attribute if a.name == "perm"] == [[0, 2, 1]]


def _one_map(graph: _Graph, names: tuple[str, str, str]) -> bool:
    """Whether query, key and value are the positions of one feature map, without a scale or another step between."""
    roots = {_root(graph, name) for name in names}
    return len(roots) == 1 and None not in roots


def _root(graph: _Graph, name: str) -> str | None:
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


def _through_casts(graph: _Graph, name: str) -> str:
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


def _wanted(match: _Match, names: tuple[str, ...] | None) -> bool:
    own = next(node.name for node in match.nodes if node.op_type == "Softmax")
    return names is None or own.startswith(names)


# Replacing them


def _use_plugin(model: onnx.ModelProto, graph: _Graph, matches: list[_Match]) -> None:
    first = 1 + sum(function.name == PLUGIN_OP for function in model.functions)
    domains = [f"{PLUGIN_NAMESPACE}.attention{number}" for number in range(first, first + len(matches))]
    functions = [_function(model, graph, *pair) for pair in zip(matches, domains, strict=True)]
    fused = {m.output: [_plugin_node(m, domain)] for m, domain in zip(matches, domains, strict=True)}
    _rewrite(model, graph, fused, matches)
    model.functions.extend(functions)
    model.opset_import.extend(helper.make_opsetid(domain, 1) for domain in domains)


def _rewrite(
    model: onnx.ModelProto, graph: _Graph, replacements: dict[str, list[onnx.NodeProto]], matches: list[_Match]
) -> None:
    """Each match becomes the nodes that ``replacements`` has for its output, where its last node was."""
    gone = set().union(*(match.made for match in matches))
    nodes = []
    for node in model.graph.node:
        if node.output[0] not in gone:
            nodes.append(onnx.NodeProto.FromString(node.SerializeToString()))
        else:
            nodes += replacements.get(node.output[0], [])
    infos = [info for info in model.graph.value_info if info.name not in gone or info.name in replacements]
    infos = [onnx.ValueInfoProto.FromString(info.SerializeToString()) for info in infos]
    del model.graph.node[:], model.graph.value_info[:]
    model.graph.node.extend(nodes)
    model.graph.value_info.extend(infos)
    used = {name for node in nodes for name in node.input} | graph.outputs
    inside = {name for match in matches for node in match.nodes for name in node.input} - used
    for tensor in [t for t in model.graph.initializer if t.name in inside]:
        model.graph.initializer.remove(tensor)


def _multi_head_nodes(match: _Match) -> list[onnx.NodeProto]:
    """The attention over ``[B, N, channels]``, and what turns query, key, value and output."""
    turned, scope = [f"{match.output}/{name}" for name in ("query", "key", "value", "y")], _scope(match)

    def turn(source: str, target: str, what: str) -> onnx.NodeProto:
        return helper.make_node("Transpose", [source], [target], name=f"{scope}/Transpose_{what}", perm=[0, 2, 1])

    attention = helper.make_node(
        RUNTIME_OP, turned[:3], turned[3:], name=f"{scope}/{RUNTIME_OP}", domain=RUNTIME_DOMAIN, num_heads=1, scale=1.0
    )
    before = [turn(*pair, pair[1].rpartition("/")[2]) for pair in zip(match.inputs, turned, strict=False)]
    return [*before, attention, turn(turned[3], match.output, "y")]


def _multi_head_shape(match: _Match, graph: _Graph) -> onnx.ValueInfoProto:
    """Of the operator's output, which ONNX's shape inference does not know."""
    batch, channels, positions = graph.shapes[match.output]
    shape = [batch or BATCH, positions, channels]
    return helper.make_tensor_value_info(f"{match.output}/y", onnx.TensorProto.FLOAT, shape)


def _scope(match: _Match) -> str:
    return match.nodes[-1].name.rpartition("/")[0]


def _plugin_node(match: _Match, domain: str) -> onnx.NodeProto:
    scope = _scope(match) or domain  # names must differ, and so do domains
    return helper.make_node(
        PLUGIN_OP,
        match.inputs,
        [match.output],
        name=f"{scope}/{PLUGIN_OP}",
        domain=domain,
        plugin_namespace=PLUGIN_NAMESPACE,
        plugin_version=PLUGIN_VERSION,
    )


def _function(model: onnx.ModelProto, graph: _Graph, match: _Match, domain: str) -> onnx.FunctionProto:
    """The replaced nodes as a function of query, key and value."""
    border = dict(zip((*match.inputs, match.output), ("query", "key", "value", "y"), strict=True))
    inner = {name: f"{_BORDER}{short}" for name, short in border.items()} | {"": ""}
    constants = sorted({n for node in match.nodes for n in node.input if n in graph.constants})
    body = [helper.make_node("Constant", [], [f"{_INNER}{n}"], value=graph.constants[n]) for n in constants]
    order = {name: i for i, node in enumerate(model.graph.node) for name in node.output}
    for node in sorted(match.nodes, key=lambda node: order[node.output[0]]):
        copy = onnx.NodeProto.FromString(node.SerializeToString())
        for names in (copy.input, copy.output):
            for i, name in enumerate(names):
                names[i] = inner.get(name, f"{_INNER}{name}")
        body.append(copy)
    return helper.make_function(
        domain,
        PLUGIN_OP,
        [f"{_BORDER}query", f"{_BORDER}key", f"{_BORDER}value"],
        [f"{_BORDER}y"],
        body,
        [entry for entry in model.opset_import if entry.domain == ""],
        attributes=["plugin_namespace", "plugin_version"],
    )
