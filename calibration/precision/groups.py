"""Which part of the network a node belongs to, by the names that the export gave."""

from __future__ import annotations

import re

import onnx

# In the order of the network. "c2 block" ... "p5 block" stand between them where a model has blocks.
# The heads are those of Mask R-CNN, then those of SOLOv2.
GROUPS = (
    *("stem", "c2", "c3", "c4", "c5", "fpn"),
    *("rpn", "box head", "mask head"),
    *("cell head", "mask features"),
    "predictors",
)
_PREDICTORS = re.compile(
    r"rpn\.head\.(cls_logits|bbox_pred)$|detect\.box_predictor(\.|$)|cells\.conv_(kernel|class)(\.|$)"
)
_BLOCK_LAYER = re.compile(r"(.*)\.(theta|phi|g|W_z)$")
_PARTS = (
    (re.compile(r"body\.layer([1-4])(\.|$)"), lambda m: f"c{int(m[1]) + 1}"),
    (re.compile(r"body(\.|$)"), lambda m: "stem"),
    (re.compile(r"fpn(\.|$)"), lambda m: "fpn"),
    (_PREDICTORS, lambda m: "predictors"),
    (re.compile(r"rpn\.head(\.|$)"), lambda m: "rpn"),
    (re.compile(r"detect\.box_head(\.|$)"), lambda m: "box head"),
    (re.compile(r"detect\.mask(\.|$)"), lambda m: "mask head"),
    (re.compile(r"cells\.(kernel|class)_convs(\.|$)"), lambda m: "cell head"),
    (re.compile(r"features(\.|$)"), lambda m: "mask features"),
)


def scope_of(node: onnx.NodeProto) -> str:
    """``body.layer2.wnlb.theta/Conv`` to ``body.layer2.wnlb.theta``."""
    return node.name.rpartition("/")[0]


def group_of(node: onnx.NodeProto, blocks: dict[str, str]) -> str | None:
    """One of ``GROUPS``, ``"c2 block"`` and so on; None for what belongs to no part, such as box arithmetic.

    Args:
        blocks: scope of each block to its level, as ``blocks_of`` gives.
    """
    scope = scope_of(node)
    for path, level in blocks.items():
        if scope == path or scope.startswith(f"{path}."):
            return f"{level} block"
    for pattern, name in _PARTS:
        if found := pattern.match(scope):
            return name(found)
    return None


def blocks_of(model: onnx.ModelProto) -> dict[str, str]:
    """Scope of each non-local block of an exported file to its level: ``body.layer1.wnlb`` to ``c2``."""
    blocks = {}
    for node in model.graph.node:
        if found := _BLOCK_LAYER.match(scope_of(node)):
            path = found[1]
            stage = re.match(r"body\.layer([1-4])\.", path)
            blocks[path] = f"c{int(stage[1]) + 1}" if stage else path.rpartition(".")[2]
    return blocks


def groups_of(model: onnx.ModelProto) -> dict[str, str]:
    """Name of each node that belongs to a group, to that group."""
    blocks = blocks_of(model)
    found = {node.name: group_of(node, blocks) for node in model.graph.node}
    return {name: group for name, group in found.items() if group}


def in_order(groups: set[str]) -> list[str]:
    """Groups in the order of the network, each block behind its level."""

    def place(group: str) -> tuple[float, str]:
        level = group.removesuffix(" block")
        if level in GROUPS:
            return GROUPS.index(level) + 0.5 * (level != group), group
        return GROUPS.index("fpn") + 0.5, group  # p2 ... p5, on the outputs of the FPN

    return sorted(groups, key=place)
