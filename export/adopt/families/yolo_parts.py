"""The parts of a YOLO-seg network, by how its graph is wired, see ``wnlb.export.adopt.families.parts``.

- The backbone is what lies before the first upsampling;
- the neck is the rest up to the last map of each size that three convolutions or more read;
- behind these maps lie the heads: what ends in the prototypes is ``detect.mask``; of the others, the last convolutions
  are ``detect.box_predictor``, those before ``detect.box_head``, and all behind ``detect.decode``.
"""

from __future__ import annotations

import onnx

from wnlb.export.adopt.families.parts import Network

_HEADS = 3  # convolutions or more that read a map which the heads start from


class YoloNetwork(Network):
    """The nodes of a YOLO-seg network.

    Args:
        prototypes: the output that masks are made of.
    """

    def __init__(self, model: onnx.ModelProto, prototypes: str) -> None:
        super().__init__(model)
        self.prototypes = prototypes

    def neck_and_heads(self) -> tuple[set[str], dict[str, str]]:
        resized = self.behind([node for node in self.nodes.values() if node.op_type in ("Resize", "Upsample")])
        ends = self._ends(resized)
        before_ends = self.before([self.nodes[end] for end in ends])
        heads = self.behind([r for end in ends for r in self.wiring.readers.get(end, [])]) - before_ends
        masks = heads & self.before([self.wiring.makers[self.prototypes]])
        parts = {
            output: "detect.mask" if output in masks else self._head(self.nodes[output], heads) for output in heads
        }
        return resized, parts

    def _ends(self, resized: set[str]) -> list[str]:
        """The last map of each size, behind an upsampling, that several convolutions read."""
        forks = [
            output
            for output in self.nodes
            if output in resized
            and sum(reader.op_type == "Conv" for reader in self.wiring.readers.get(output, [])) >= _HEADS
        ]
        behind = {fork: self.behind(self.wiring.readers[fork]) for fork in forks}
        return [
            fork
            for fork in forks
            if not any(self._strides[fork] == self._strides[other] and other in behind[fork] for other in forks)
        ]

    def _head(self, node: onnx.NodeProto, heads: set[str]) -> str:
        """Of a node behind ``_ends`` that is not of the masks; ``heads`` are all that are there."""
        before = self.walk([node], lambda one: [own for own in self.made_from(one) if own.output[0] in heads])
        decoded = any(map(_is_reshape, before))
        ahead = self.walk(self.read_by(node), self.read_by, _is_reshape)
        convolves = any(reader.op_type == "Conv" for reader in ahead)
        if decoded or (node.op_type != "Conv" and not convolves):
            return "detect.decode"
        return "detect.box_head" if convolves else "detect.box_predictor"


def _is_reshape(node: onnx.NodeProto) -> bool:
    return node.op_type == "Reshape"
