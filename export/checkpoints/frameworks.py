"""From the checkpoint of any framework to torchvision's names and the settings that weights do not tell."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from wnlb.export.checkpoints.configurations import detectron2_config, mmdet_config
from wnlb.export.checkpoints.configurations.settings import TORCHVISION, DetectorSettings, NetworkSettings
from wnlb.export.checkpoints.configurations.solov2_settings import Solov2Settings
from wnlb.export.checkpoints.names import detectron2, mmdet, solov2, torchvision_v2
from wnlb.export.checkpoints.names.dialect import MARKS, canonical_state, is_called, unwrapped
from wnlb.export.checkpoints.names.foreign_blocks import block_home, block_paths, block_weights
from wnlb.export.checkpoints.names.name_table import renamed
from wnlb.runtime.errors import CheckpointError

TABLES = {
    "mmdetection": mmdet.TABLE,
    "mmdetection-solov2": solov2.TABLE,
    "detectron2": detectron2.TABLE,
    "torchvision_v2": torchvision_v2.TABLE,
}
# Those whose networks torchvision's own code does not compute.
SETTINGS: dict[str, type[NetworkSettings]] = {
    "mmdetection": DetectorSettings,
    "detectron2": DetectorSettings,
    "mmdetection-solov2": Solov2Settings,
}
_REFUSED = (
    (r"(^|\.)roi_head\.bbox_head\.\d\.fc_cls\.weight$", "a cascade of mmdetection"),
    (r"^(module\.)?bbox_head\.fc_cls\.weight$", "an mmdetection 1.x network, whose boxes are counted otherwise"),
    (
        r"^(module\.)?(neck\.lateral_convs|bbox_head|mask_head|panoptic_head)\.",
        "an mmdetection network of another kind",
    ),
    (r"(^|\.)backbone\.(stem\.conv1|res[2-5]\.\d+\.conv1)\.weight$", "a detectron2 network without FPN"),
    (r"^(conv1_w|res2_0_branch2a_w|fpn_inner_res\w+_w)$", "a Detectron or Caffe2 network ('matching_heuristics')"),
)
_STEM = "backbone.body.conv1.weight"
# Parts whose class may be one of the user's own: what they are to be read as.
TYPES = ("detector", "backbone", "neck", "rpn_head", "roi_head", "bbox_head", "mask_head")


def recognise(names: Iterable[str]) -> str:
    """Which of ``MARKS`` a checkpoint's weights are named after: "mmdetection", "detectron2", "torchvision_v2",
    "torchvision" for Mask R-CNN, "mmdetection-solov2" for that of mmdetection, or "" where it is none of them.

    Raises:
        CheckpointError: it is one of which another version or network is supported.
    """
    known = list(names)
    for framework, mark in MARKS.items():
        if any(is_called(name, mark) for name in known):
            return framework
    for pattern, what in _REFUSED:
        found = next((name for name in known if re.search(pattern, name)), None)
        if found:
            raise CheckpointError(
                f"weight {found} is of {what}; supported is Mask R-CNN with FPN of torchvision, mmdetection 2.x and "
                "3.x, and detectron2, and SOLOv2 of mmdetection"
            )
    return ""


def settings_for(
    framework: str,
    content: Any,
    source: str,
    config: Path | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> NetworkSettings:
    """Everything that the weights do not tell.

    Args:
        framework: as ``recognise`` gives it.
        content: what the checkpoint holds, of which ``meta`` is looked at.
        source: its name, for messages.
        config: the configuration that it was trained with; goes before the one in the checkpoint.
        overrides: fields of the settings, and classes of the user's own: ``{"backbone_type": "ResNet"}``.
            All fields, as ``told`` gives them, leave nothing open: no configuration is looked at then.

    Raises:
        CheckpointError: something is not known, not told, or not supported exactly.
    """
    overrides = dict(overrides or {})
    types = {name: overrides.pop(name) for name in [f"{part}_type" for part in TYPES] if name in overrides}
    for name, value in types.items():
        if not isinstance(value, str):
            raise CheckpointError(f"{name} is {value!r}; expected the name of a class")
    meta = content.get("meta") if isinstance(content, Mapping) else None
    meta = meta if isinstance(meta, Mapping) else {}
    settings = SETTINGS[framework](framework) if framework in SETTINGS else TORCHVISION
    if overrides.keys() >= set(settings.field_names) and not config:
        return settings.with_overrides(overrides).complete(source)
    if framework in ("mmdetection", "mmdetection-solov2"):
        names = mmdet_config.class_names_from_meta(meta)
        told = (
            mmdet_config.settings_from_file(config, types, framework)
            if config
            else mmdet_config.settings_from_meta(meta, source, types, framework)
        )
        settings = (told or settings).with_overrides({"class_names": names} if names else {})
    elif framework == "detectron2" and config:
        settings = detectron2_config.settings_from_file(config, types)
    elif config:
        raise CheckpointError(f"configuration {config} is given; expected one for mmdetection or detectron2 alone")
    return settings.with_overrides(overrides).complete(source)


def own_names(state: Mapping[str, Tensor], framework: str) -> dict[str, Tensor]:
    """The weights without what training wrapped around the network, as the framework itself calls them."""
    mark = MARKS[framework]
    bare = {unwrapped(name): value for name, value in state.items()}
    bare = {name: value for name, value in bare.items() if "." in name or value.dim()}  # no counter: steps
    prefix = next((name[: -len(mark)] for name in bare if is_called(name, mark)), "")
    return {name.removeprefix(prefix): value for name, value in bare.items()}


def torchvision_state(
    state: Mapping[str, Tensor],
    framework: str,
    settings: NetworkSettings,
    source: str,
    placement: str | None = None,
) -> dict[str, Tensor]:
    """The weights under the names, and in the form, that ``wnlb.export.model`` gives them.

    Args:
        framework: as ``recognise`` gives it.
        placement: of blocks whose names do not tell it, "inline" or "lateral".

    Raises:
        CheckpointError: weights are missing, superfluous or misshapen, or of something that is not supported.
    """
    if framework not in TABLES:
        return canonical_state(state, source)
    table = TABLES[framework]
    own = table.prepare(own_names(state, framework))
    blocks: dict[str, Tensor] = {}
    for path in block_paths(own):
        home = block_home(path, table.block_homes, placement, source)
        values = block_weights(own, path, settings.block_mode, settings.non_local_scaled)
        blocks.update({f"{home}.{name}": value for name, value in values.items()})
        own = {name: value for name, value in own.items() if not name.startswith(f"{path}.")}
    made = renamed(own, table, source)
    absent = next((part for layer, part in table.parts.items() if f"{layer}.weight" not in made), None)
    if absent:
        raise CheckpointError(
            f"checkpoint {source} has no {absent}, or not all of it; expected a {table.network} with FPN of "
            f"{table.framework}"
        )
    scores, boxes = (made.get(f"rpn.head.{name}.weight") for name in ("cls_logits", "bbox_pred"))
    if scores is not None and boxes is not None and 4 * scores.shape[0] != boxes.shape[0]:
        raise CheckpointError(
            f"checkpoint {source}: its RPN has {scores.shape[0]} scores for {boxes.shape[0]} box offsets; expected one "
            "for four: sigmoid scores, which alone are supported"
        )
    if settings.channel_order == "bgr":  # frames are RGB for every file of ours
        made[_STEM] = made[_STEM].flip(1)
    return canonical_state({**made, **blocks}, source)
