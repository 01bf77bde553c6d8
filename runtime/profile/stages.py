"""Which part of the network a layer belongs to, by the names of the nodes that it was made of."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

# In the order of the network; "c2 block" ... "p5 block" stand behind their levels where a model has blocks.
STAGES = (
    "input",
    "stem",
    "c2",
    "c3",
    "c4",
    "c5",
    "fpn",
    "cells",  # this and the next three are of SOLOv2
    "mask features",
    "masks",
    "matrix nms",
    "rpn",
    "proposals",
    "box roi align",
    "box head",
    "detections",
    "mask roi align",
    "mask head",
)
UNKNOWN = "unknown"  # where no layer tells
_SCOPES = (
    (re.compile(r"body\.layer([1-4])\.wnlb"), lambda m: f"c{int(m[1]) + 1} block"),
    (re.compile(r"fpn\.(?:lateral|output)\.([cp][2-5])"), lambda m: f"{m[1]} block"),
    (re.compile(r"body\.layer([1-4])"), lambda m: f"c{int(m[1]) + 1}"),
    (re.compile(r"body"), lambda m: "stem"),
    (re.compile(r"fpn"), lambda m: "fpn"),
    (re.compile(r"rpn\.head"), lambda m: "rpn"),
    (re.compile(r"rpn"), lambda m: "proposals"),
    (re.compile(r"detect\.box_pool"), lambda m: "box roi align"),
    (re.compile(r"detect\.(?:box_head|box_predictor)"), lambda m: "box head"),
    (re.compile(r"detect\.mask\.pool"), lambda m: "mask roi align"),
    (re.compile(r"detect\.mask"), lambda m: "mask head"),
    (re.compile(r"detect\.found\.nms"), lambda m: "matrix nms"),
    (re.compile(r"detect\.found"), lambda m: "masks"),
    (re.compile(r"cells"), lambda m: "cells"),
    (re.compile(r"features"), lambda m: "mask features"),
    (re.compile(r"detect"), lambda m: "detections"),
    (re.compile(r"graph/"), lambda m: "input"),
)
_NAME = re.compile(r"(?<![A-Za-z0-9.])(?:body|fpn|rpn|detect|cells|features|graph)(?=[./])[\w./]*")


def stage_of(name: str) -> str | None:
    """The stage of a layer of ONNX Runtime or TensorRT; None where its name tells none.

    The name may be that of several fused nodes, ``"fused body.conv1/Conv + body.relu/Relu"``: the first counts.
    """
    found = _NAME.search(name)
    if found is None:
        return None
    for pattern, stage in _SCOPES:
        if match := pattern.match(found[0]):
            return stage(match)
    return None


def stages_of(names: Iterable[str]) -> list[str]:
    """The stage of each layer, of layers in the order in which they run.

    A layer whose name tells none, such as a change of layout between two, counts to the one before it; those before all
    others to the first that is known; all to ``UNKNOWN`` where none is.
    """
    found = [stage_of(name) for name in names]
    current = next(filter(None, found), UNKNOWN)
    stages = []
    for stage in found:
        current = stage or current
        stages.append(current)
    return stages


def stage_times(layers: Sequence[tuple[str, float]]) -> dict[str, float]:
    """Times by stage, in the order of the network, of layers in the order in which they ran; see ``stages_of``."""
    times: dict[str, float] = {}
    for stage, (_, time) in zip(stages_of(name for name, _ in layers), layers, strict=True):
        times[stage] = times.get(stage, 0.0) + time
    return {stage: times[stage] for stage in sorted(times, key=place_of)}


def place_of(stage: str) -> tuple[float, str]:
    """A key to sort stages by, in the order of the network; stages that it does not know come last."""
    level = stage.removesuffix(" block")
    if level in STAGES:
        return STAGES.index(level) + 0.5 * (level != stage), stage
    return (STAGES.index("fpn") + 0.5 if level != stage else len(STAGES)), stage
