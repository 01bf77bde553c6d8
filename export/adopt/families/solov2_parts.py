"""The parts of a SOLOv2 network, by how its graph is wired, see ``wnlb.export.adopt.families.parts``.

- What only the mask features need is ``features``, what only kernels and scores need is ``cells``;
- of what both need, the neck begins with the convolutions whose maps are enlarged or added to an enlarged one, those of
  the laterals; all before is the backbone;
- of the cells' branches, the last convolutions are ``cells.conv_kernel`` and ``cells.conv_class``, all before them that
  belongs to one branch alone ``cells.kernel_convs`` and ``cells.class_convs``.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx

from wnlb.export.adopt.families.parts import Network
from wnlb.export.adopt.families.solov2_heads import Heads

_ENLARGES = ("Resize", "Upsample")


class Solov2Network(Network):
    """The nodes of a SOLOv2 network with the outputs ``Heads.OUTPUTS``."""

    def neck_and_heads(self) -> tuple[set[str], dict[str, str]]:
        kernels, scores, features = (self.before([self.wiring.makers[name]]) for name in Heads.OUTPUTS)
        shared = features & (kernels | scores)
        laterals = list(self._laterals(shared))
        neck = shared & self.behind(laterals)
        parts = dict.fromkeys(features - shared, "features") | dict.fromkeys((kernels | scores) - shared, "cells")
        for name, own in (("kernel", kernels - scores - shared), ("class", scores - kernels - shared)):
            for output in own:
                if any(
                    reader.op_type == "Conv" for reader in self.walk(self.read_by(self.nodes[output]), self.read_by)
                ):
                    parts[output] = f"cells.{name}_convs"
                elif self.nodes[output].op_type == "Conv":
                    parts[output] = f"cells.conv_{name}"
        return neck, parts

    def _laterals(self, shared: set[str]) -> Iterator[onnx.NodeProto]:
        """The convolutions between the backbone and the way down of the neck."""
        for output in shared:
            node = self.nodes[output]
            if node.op_type not in _ENLARGES:
                continue
            sources = [node.input[0]]
            for reader in self.read_by(node):
                if reader.op_type == "Add":
                    sources += [name for name in reader.input if name != output]
            for source in sources:
                maker = self.wiring.makers.get(source)
                while maker is not None and maker.op_type not in ("Conv", "Add"):  # a norm, say
                    maker = self.wiring.makers.get(maker.input[0])
                if maker is not None and maker.op_type == "Conv":
                    yield maker
