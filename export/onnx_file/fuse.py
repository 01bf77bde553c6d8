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

import onnx
from onnx import helper, inliner

from wnlb.export.onnx_file.attention_nodes import AttentionNodes, Wiring, attentions
from wnlb.runtime.contract import BATCH

PLUGIN_OP = "WnlbNonLocalAttention"
PLUGIN_NAMESPACE, PLUGIN_VERSION = "wnlb", "1"
RUNTIME_OP, RUNTIME_DOMAIN = "MultiHeadAttention", "com.microsoft"
# Before the names of tensors inside a body: TensorRT 10.3 confuses them with equal names outside.
_INNER, _BORDER = "wnlb/", "wnlb."


def fuse_attention(model: onnx.ModelProto, names: tuple[str, ...] | None = None) -> bool:
    """Replace non-local attentions by plugin nodes, in place; True if there were any.

    Fires only on what the plugin computes: softmax over all positions of one map, of unscaled products, one head, with
    query, key and value from that map by at most a 1x1 convolution each. Works on what PyTorch's exporters make of the
    authors' block too, and on files in FP16 or with Q/DQ.

    Args:
        names: only attentions whose Softmax node has a name that begins with one of these.
    """
    graph = Wiring(model)
    found = [match for match in attentions(model, graph) if _wanted(match, names)]
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
    graph = Wiring(model)
    found = [match for match in attentions(model, graph) if _wanted(match, names)]
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


def _use_plugin(model: onnx.ModelProto, graph: Wiring, matches: list[AttentionNodes]) -> None:
    first = 1 + sum(function.name == PLUGIN_OP for function in model.functions)
    domains = [f"{PLUGIN_NAMESPACE}.attention{number}" for number in range(first, first + len(matches))]
    functions = [_function(model, graph, *pair) for pair in zip(matches, domains, strict=True)]
    fused = {m.output: [_plugin_node(m, domain)] for m, domain in zip(matches, domains, strict=True)}
    _rewrite(model, graph, fused, matches)
    model.functions.extend(functions)
    model.opset_import.extend(helper.make_opsetid(domain, 1) for domain in domains)


def _rewrite(
    model: onnx.ModelProto, graph: Wiring, replacements: dict[str, list[onnx.NodeProto]], matches: list[AttentionNodes]
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


def _multi_head_nodes(match: AttentionNodes) -> list[onnx.NodeProto]:
    """The attention over ``[B, N, channels]``, and what turns query, key, value and output."""
    turned, scope = [f"{match.output}/{name}" for name in ("query", "key", "value", "y")], _scope(match)

    def turn(source: str, target: str, what: str) -> onnx.NodeProto:
        return helper.make_node("Transpose", [source], [target], name=f"{scope}/Transpose_{what}", perm=[0, 2, 1])

    attention = helper.make_node(
        RUNTIME_OP, turned[:3], turned[3:], name=f"{scope}/{RUNTIME_OP}", domain=RUNTIME_DOMAIN, num_heads=1, scale=1.0
    )
    before = [turn(*pair, pair[1].rpartition("/")[2]) for pair in zip(match.inputs, turned, strict=False)]
    return [*before, attention, turn(turned[3], match.output, "y")]


def _multi_head_shape(match: AttentionNodes, graph: Wiring) -> onnx.ValueInfoProto:
    """Of the operator's output, which ONNX's shape inference does not know."""
    batch, channels, positions = graph.shapes[match.output]
    shape = [batch or BATCH, positions, channels]
    return helper.make_tensor_value_info(f"{match.output}/y", onnx.TensorProto.FLOAT, shape)


def _scope(match: AttentionNodes) -> str:
    return match.nodes[-1].name.rpartition("/")[0]


def _plugin_node(match: AttentionNodes, domain: str) -> onnx.NodeProto:
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


def _function(model: onnx.ModelProto, graph: Wiring, match: AttentionNodes, domain: str) -> onnx.FunctionProto:
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


def _wanted(match: AttentionNodes, names: tuple[str, ...] | None) -> bool:
    own = next(node.name for node in match.nodes if node.op_type == "Softmax")
    return names is None or own.startswith(names)
