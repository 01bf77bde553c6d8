"""What the names and shapes of a state dict say about the network they came from."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from wnlb.export.model import STAGES, ModelConfig
from wnlb.runtime.errors import CheckpointError, WnlbError

_ANCHOR_KEY = "backbone.body.conv1.weight"
# torchvision before 0.13 named these without the inner index; later versions still read them.
_RENAMED = (
    (r"^rpn\.head\.conv\.(weight|bias)$", r"rpn.head.conv.0.0.\1"),
    (r"^(backbone\.fpn\.(?:inner|layer)_blocks\.\d)\.(weight|bias)$", r"\1.0.\2"),
    (r"^roi_heads\.mask_head\.mask_fcn(\d)\.(weight|bias)$", lambda m: f"roi_heads.mask_head.{int(m[1]) - 1}.0.{m[2]}"),
)
_RESIDUAL_UNITS: dict[tuple[str, tuple[int, ...]], str] = {
    ("basic", (2, 2, 2, 2)): "resnet18",
    ("basic", (3, 4, 6, 3)): "resnet34",
    ("bottleneck", (3, 4, 6, 3)): "resnet50",
    ("bottleneck", (3, 4, 23, 3)): "resnet101",
}


def canonical_state(state: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """The same tensors under the names that ``wnlb.export.model`` gives them.

    Raises:
        CheckpointError: there is no ResNet backbone, or a block lies where none can be placed.
    """
    state = {name.replace("_orig_mod.", ""): value for name, value in state.items() if name != "n_averaged"}
    prefix = next((name[: -len(_ANCHOR_KEY)] for name in state if name.endswith(_ANCHOR_KEY)), None)
    if prefix is None:
        raise CheckpointError(
            f"checkpoint {source} has no {_ANCHOR_KEY}: not a torchvision Mask R-CNN with a ResNet backbone. "
            f"Its weights start with {', '.join(list(state)[:3])}; rename them with --key-map"
        )
    state = {name.removeprefix(prefix): value for name, value in state.items()}
    for pattern, replacement in _RENAMED:
        state = {re.sub(pattern, replacement, name): value for name, value in state.items()}
    moves = _block_moves(state, source)
    renamed = {}
    for name, value in state.items():
        old = next((old for old in moves if name.startswith(old + ".")), None)
        renamed[moves[old] + name[len(old) :] if old else name] = value
    return renamed


def infer_config(state: Mapping[str, Tensor], known: Mapping[str, Any]) -> ModelConfig:
    """The configuration of a canonical state dict; entries of ``known`` win over what is read.

    Raises:
        CheckpointError: what is read is no network that this project builds.
    """
    try:
        read = {**_detector_fields(state), **_block_fields(state), "backbone": _backbone_name(state)}
    except KeyError as error:
        raise CheckpointError(f"checkpoint has no weight {error}: not a torchvision Mask R-CNN with FPN") from error
    anchors = state["rpn.head.cls_logits.weight"].shape[0]
    made = {**read, **known}
    if anchors != len(made.get("aspect_ratios", (0.5, 1.0, 2.0))):
        raise CheckpointError(
            f"checkpoint has {anchors} anchors per position, whose shapes its weights do not tell; "
            "give them: --set 'aspect_ratios=[0.5, 1, 2]' --set 'anchor_sizes=[32, 64, 128, 256, 512]'"
        )
    try:
        return ModelConfig.from_dict(made)
    except WnlbError as error:
        raise CheckpointError(str(error)) from error


def _detector_fields(state: Mapping[str, Tensor]) -> dict[str, Any]:
    norm = "batch" if "backbone.body.bn1.num_batches_tracked" in state else "frozen"
    return {
        "num_classes": state["roi_heads.box_predictor.cls_score.weight"].shape[0],
        "fpn_channels": state["backbone.fpn.inner_blocks.0.0.weight"].shape[0],
        "rpn_convs": _count(state, r"rpn\.head\.conv\.(\d+)\.0\.weight"),
        "box_features": state["roi_heads.box_head.fc6.weight"].shape[0],
        "mask_channels": tuple(
            state[f"roi_heads.mask_head.{i}.0.weight"].shape[0]
            for i in range(_count(state, r"roi_heads\.mask_head\.(\d+)\.0\.weight"))
        ),
        "mask_hidden": state["roi_heads.mask_predictor.conv5_mask.weight"].shape[1],
        "norm": norm,
    }


def _backbone_name(state: Mapping[str, Tensor]) -> str:
    kind = "bottleneck" if "backbone.body.layer1.0.conv3.weight" in state else "basic"
    units = tuple(_count(state, rf"backbone\.body\.layer{i}\.(\d+)\.conv1\.weight") for i in (1, 2, 3, 4))
    name = _RESIDUAL_UNITS.get((kind, units))
    if name is None:
        raise CheckpointError(
            f"checkpoint has a backbone of {kind} residual units {units}; expected that of "
            f"{', '.join(_RESIDUAL_UNITS.values())}"
        )
    return name


def _block_fields(state: Mapping[str, Tensor]) -> dict[str, Any]:
    paths = [name.removesuffix(".g.weight") for name in state if _is_block(state, name)]
    places = {}
    for path in paths:
        stage = re.search(r"layer(\d)\.wnlb$", path)
        places[int(stage[1]) + 1 if stage else int(path[-1])] = path
    if not places:
        return {"levels": ()}
    levels = sorted(places)
    modes = {_mode(state, path) for path in paths}
    placements = {("inline" if ".body." in path else path.split(".")[-2]) for path in paths}
    weighted = {f"{path}.w" in state for path in paths}
    if max(len(modes), len(placements), len(weighted)) > 1:
        raise CheckpointError(
            f"checkpoint mixes blocks of the modes {', '.join(sorted(modes))}, at {', '.join(sorted(placements))}, "
            f"{'some' if len(weighted) > 1 else 'all or none'} with w; expected blocks of one kind"
        )
    shapes = [state[f"{places[level]}.g.weight"].shape[:2] for level in levels]
    usual = all(inner == max(channels // 2, 1) for inner, channels in shapes)
    return {
        "levels": tuple(f"c{level}" for level in levels),
        "placement": {"output": "fpn"}.get(found := placements.pop(), found),
        "mode": modes.pop(),
        "weighted": weighted.pop(),
        "inner_channels": None if usual else tuple(inner for inner, _ in shapes),
    }


def _block_moves(state: Mapping[str, Tensor], source: str) -> dict[str, str]:
    """Where each block lies now and where our model has it."""
    moves, side_paths = {}, []
    for name in state:
        if not _is_block(state, name):
            continue
        path = name.removesuffix(".g.weight")
        if inline := re.fullmatch(r"backbone\.body\.layer([1-4])\.[^.]+", path):
            moves[path] = f"backbone.body.layer{inline[1]}.wnlb"
        elif path.startswith("backbone.") and not path.startswith("backbone.body."):
            side_paths.append(path)
        else:
            raise CheckpointError(
                f"checkpoint {source} has a non-local block at {path}; expected it after a stage "
                "(backbone.body.layerN.NAME) or at the FPN (backbone.fpn...); rename it with --key-map"
            )
    on_outputs = _lie_on_outputs(state, side_paths)
    for path in side_paths:
        letter, side = ("p", "output") if on_outputs else ("c", "lateral")
        moves[path] = f"backbone.fpn.{side}.{letter}{_stage_of(path, source)}"
    if len(set(moves.values())) < len(moves):
        raise CheckpointError(f"checkpoint {source} has two blocks for one level: {', '.join(moves)}")
    return moves


def _lie_on_outputs(state: Mapping[str, Tensor], paths: list[str]) -> bool:
    """Whether side blocks lie behind the FPN: by their names, else by their channels."""
    if all(re.search(r"(^|\.)p[2-5]$|out", path) for path in paths):
        return True
    if any(re.search(r"(^|\.)c[2-5]$|lateral|inner", path) for path in paths):
        return False
    width = state["backbone.fpn.inner_blocks.0.0.weight"].shape[0]
    return all(state[f"{path}.g.weight"].shape[1] == width for path in paths)


def _stage_of(path: str, source: str) -> int:
    """Stage of a side block from the last number of its name: c2..c5, p2..p5, or an index from 0."""
    if named := re.search(r"[cp]([2-5])$", path):
        return int(named[1])
    index = re.search(r"(\d)$", path)
    if not index or int(index[1]) >= len(STAGES):
        raise CheckpointError(f"checkpoint {source}: the level of block {path} is not in its name; use --key-map")
    return STAGES[int(index[1])]


def _is_block(state: Mapping[str, Tensor], name: str) -> bool:
    return name.endswith(".g.weight") and name.removesuffix("g.weight") + "W_z.0.weight" in state


def _mode(state: Mapping[str, Tensor], path: str) -> str:
    """Embedded and dot have the same weights; embedded is the authors' default."""
    if f"{path}.W_f.0.weight" in state:
        return "concatenate"
    return "embedded" if f"{path}.theta.weight" in state else "gaussian"


def _count(state: Mapping[str, Tensor], pattern: str) -> int:
    return len({found[1] for name in state if (found := re.fullmatch(pattern, name))})
