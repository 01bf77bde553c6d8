"""Attention over pieces of its queries, so that no N x N matrix is ever whole: for graphs of other tools."""

from __future__ import annotations

import math

import numpy as np
import onnx
from onnx import helper, numpy_helper

from wnlb.export.onnx_file.attention_nodes import AttentionNodes, Wiring, attentions


def cut_attention(model: onnx.ModelProto, pieces: dict[str, int]) -> bool:
    """Compute attentions in pieces, in place; True if there were any.

    ``softmax(q k) v`` of some rows of q are some rows of the whole: Split of the queries, for each piece product,
    Softmax and product, Concat.

    Args:
        pieces: how many, by how the name of one Softmax node begins; 1 leaves it whole.
    """
    changed = False
    for start, number in pieces.items():
        graph = Wiring(model)
        for match in list(attentions(model, graph)):
            softmax = [node for node in match.nodes if node.op_type == "Softmax"]
            if number > 1 and len(softmax) == 1 and softmax[0].name.startswith(start):
                _cut(model, graph, match, softmax[0], number)
                changed = True
                break
    return changed


def _cut(model: onnx.ModelProto, graph: Wiring, match: AttentionNodes, softmax: onnx.NodeProto, number: int) -> None:
    first, second = graph.makers[softmax.input[0]], graph.readers[softmax.output[0]][0]
    query, key, value = first.input[0], first.input[1], second.input[1]
    positions = graph.shapes[match.inputs[0]][2] or 0
    rows = math.ceil(positions / number)
    sizes = [min(rows, positions - start) for start in range(0, positions, rows)]
    scope = softmax.name.rpartition("/")[0]
    lengths = f"{scope}.pieces"
    model.graph.initializer.append(numpy_helper.from_array(np.array(sizes, np.int64), lengths))
    parts = [f"{scope}/Split:{i}" for i in range(len(sizes))]
    nodes = [helper.make_node("Split", [query, lengths], parts, name=f"{scope}/Split", axis=1)]
    results = []
    for i, part in enumerate(parts):
        made = [f"{scope}/{name}_piece{i}:0" for name in ("Logits", "Softmax", "Values")]
        for (operator, inputs), output in zip(
            (("MatMul", [part, key]), ("Softmax", made[:1]), ("MatMul", [made[1], value])), made, strict=True
        ):
            nodes.append(helper.make_node(operator, inputs, [output], name=output.rpartition(":")[0]))
        results.append(made[2])
    nodes.append(helper.make_node("Concat", results, list(second.output), name=f"{scope}/Concat", axis=1))
    gone = {first.output[0], softmax.output[0], second.output[0]}
    kept: list[onnx.NodeProto] = []
    for node in model.graph.node:
        if node.output[0] not in gone:
            kept.append(onnx.NodeProto.FromString(node.SerializeToString()))
        elif node.output[0] == second.output[0]:
            kept += nodes
    infos = [onnx.ValueInfoProto.FromString(v.SerializeToString()) for v in model.graph.value_info]
    del model.graph.node[:], model.graph.value_info[:]
    model.graph.node.extend(kept)
    model.graph.value_info.extend(info for info in infos if info.name not in gone - {second.output[0]})
