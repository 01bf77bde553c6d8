"""Names for the nodes of a foreign network, after the part that they belong to, as the files of ``wnlb export`` have.

By these names the other commands know groups for INT8, stages for profiles, and blocks. The parts follow from how the
graph is wired, not from how its tool called the nodes:

- the backbone is ``body``, by the size of its maps: ``body.layer1`` has a quarter of the input's sides, ``body.layer2``
  an eighth, and so on;
- where it ends, what the neck, ``fpn``, is and what the heads are, each family says;
- a weighted non-local block is ``body.layer2.wnlb``, or ``fpn.output.p3`` in the neck, with the layers of its paper.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import onnx

from wnlb.export.onnx_file.attention_nodes import AttentionNodes, Wiring, attentions

Nodes = dict[str, onnx.NodeProto]  # by their first output


@dataclass(frozen=True)
class Block:
    """A non-local block of a foreign network."""

    level: str  # "c3"; of a second one there "c3.2"
    scope: str  # how the names of its nodes begin
    mode: str  # "embedded" or "gaussian"
    height: int  # of its map
    width: int
    channels: int
    inner_channels: int  # of the values
    w: None = None  # folded into the file's constants


def name_by_part(network: Network) -> list[Block]:
    """Name all nodes, and what they make, in place; constants become ``network.NAME``. The blocks that were found."""
    model = network.model
    scopes, blocks = network.scopes()
    used: Counter[str] = Counter()
    fixed = {value.name for value in (*model.graph.input, *model.graph.output)}
    renamed = {tensor.name: f"network.{tensor.name}" for tensor in model.graph.initializer}
    for node in model.graph.node:
        name = f"{scopes[node.output[0]]}/{node.op_type}"
        used[name] += 1
        node.name = name if used[name] == 1 else f"{name}_{used[name]}"
        renamed |= {output: f"{node.name}:{i}" for i, output in enumerate(node.output) if output not in fixed}
        node.ClearField("doc_string")
        node.ClearField("metadata_props")
    for node in model.graph.node:
        for names in (node.input, node.output):
            names[:] = [renamed.get(name, name) for name in names]
    for value in (*model.graph.value_info, *model.graph.initializer):
        value.name = renamed.get(value.name, value.name)
    return blocks


class Network(ABC):
    """The nodes of a static graph, and which part each belongs to."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model, self.wiring = model, Wiring(model)
        self.nodes: Nodes = {node.output[0]: node for node in model.graph.node}
        self.sides = [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim[2:]]
        self._strides: dict[str, int] = {model.graph.input[0].name: 1}
        for node in model.graph.node:
            self._note_stride(node)

    @abstractmethod
    def neck_and_heads(self) -> tuple[set[str], dict[str, str]]:
        """Nodes of the neck, and heads to their parts, by their first outputs; all others are of the backbone."""

    def scopes(self) -> tuple[dict[str, str], list[Block]]:
        """Scope of each node, by its first output, and the blocks."""
        neck, heads = self.neck_and_heads()
        parts = {}
        for output, node in self.nodes.items():
            level = self._level(node)
            body = f"body.layer{level}" if level else "body.stem"
            part = heads.get(output, "fpn" if output in neck else body)
            parts[output] = f"{part}.{_plain(node)}" if _plain(node) else part
        blocks: list[Block] = []
        for attention in attentions(self.model, self.wiring):
            block, own = self._block(attention, neck, {block.scope for block in blocks})
            blocks.append(block)
            parts |= own
        return parts, blocks

    def _note_stride(self, node: onnx.NodeProto) -> None:
        """Pixels of the input that its map has between two positions; else the most of what it reads."""
        most = max((self._strides.get(name, 0) for name in node.input), default=0)
        for output in node.output:
            shape = self.wiring.shapes.get(output, [])
            sides = shape[2:] if len(shape) == 4 else []
            steps = {
                full // own if own and full % own == 0 else 0 for full, own in zip(self.sides, sides, strict=False)
            }
            step = steps.pop() if len(steps) == 1 else 0
            self._strides[output] = step if step and step & (step - 1) == 0 else most

    def _level(self, node: onnx.NodeProto) -> int:
        """1 for a quarter of the input's sides, 4 for a thirty-second and less; 0 for more."""
        return min(max(self._strides[node.output[0]].bit_length() - 2, 0), 4)

    def _block(self, attention: AttentionNodes, neck: set[str], known: set[str]) -> tuple[Block, dict[str, str]]:
        """A block, and the scopes of its nodes."""
        wiring = self.wiring
        made = [self._projection(name) for name in attention.inputs]
        query = made[0][-1]
        source = query.input[0]
        level, in_neck = self._level(query), query.output[0] in neck
        base = f"fpn.output.p{level + 1}" if in_neck else f"body.layer{level}.wnlb"
        scope = next(name for n in range(1, 99) if (name := base if n == 1 else f"{base}_{n}") not in known)
        own = {node.output[0]: scope for node in attention.nodes}
        for layer, nodes in zip(("theta", "phi", "g"), made, strict=True):
            own |= {node.output[0]: f"{scope}.{layer}" if node.op_type == "Conv" else scope for node in nodes}
        after: list[onnx.NodeProto] = []
        reader = wiring.only_reader(attention.output)
        while reader is not None and len(after) < 8:
            after.append(reader)
            if reader.op_type == "Add":
                break
            reader = wiring.only_reader(reader.output[0])
        if after and after[-1].op_type == "Add" and any(node.op_type == "Conv" for node in after):
            own |= {node.output[0]: f"{scope}.W_z" if node.op_type == "Conv" else scope for node in after}
            for name in after[-1].input:  # the input's own share
                maker = wiring.makers.get(name)
                if maker is not None and maker.op_type == "Mul" and source in maker.input:
                    own[name] = scope
        shape = wiring.shapes[source]
        level_name = f"{'p' if in_neck else 'c'}{level + 1}"
        suffix = scope.removeprefix(base).replace("_", ".")
        mode = "embedded" if query.op_type == "Conv" else "gaussian"
        channels, height, width, inner = (dim or 0 for dim in (*shape[1:4], wiring.shapes[attention.inputs[2]][1]))
        return Block(f"{level_name}{suffix}", scope, mode, height, width, channels, inner), own

    def _projection(self, name: str) -> list[onnx.NodeProto]:
        """What makes query, key or value of the map: the reshape, and the convolution where there is one."""
        reshape = self.wiring.makers[name]
        conv = self.wiring.makers.get(reshape.input[0])
        return [reshape, conv] if conv is not None and conv.op_type == "Conv" else [reshape]

    def read_by(self, node: onnx.NodeProto) -> list[onnx.NodeProto]:
        return [reader for output in node.output for reader in self.wiring.readers.get(output, [])]

    def made_from(self, node: onnx.NodeProto) -> list[onnx.NodeProto]:
        return [self.wiring.makers[name] for name in node.input if name in self.wiring.makers]

    def behind(self, nodes: Iterable[onnx.NodeProto]) -> set[str]:
        return {node.output[0] for node in self.walk(nodes, self.read_by)}

    def before(self, nodes: Iterable[onnx.NodeProto]) -> set[str]:
        return {node.output[0] for node in self.walk(nodes, self.made_from)}

    def walk(
        self,
        start: Iterable[onnx.NodeProto],
        step: Callable[[onnx.NodeProto], list[onnx.NodeProto]],
        last: Callable[[onnx.NodeProto], bool] = lambda node: False,
    ) -> list[onnx.NodeProto]:
        """All nodes that are reached, the first ones too, not beyond those that are ``last``."""
        found: Nodes = {}
        left = list(start)
        while left:
            node = left.pop()
            if node.output[0] not in found:
                found[node.output[0]] = node
                if not last(node):
                    left += step(node)
        return list(found.values())


def _plain(node: onnx.NodeProto) -> str:
    """What its tool called a node, without the operator: ``/model.4/cv1/conv/Conv`` to ``model.4.cv1.conv``."""
    name = re.sub(r"[^\w.]+", ".", node.name).strip(".")
    return re.sub(rf"\.?{node.op_type}(_\d+)?$", "", name)
