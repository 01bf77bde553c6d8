"""What the names and shapes of a state dict say about the network they came from."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from wnlb.export.backbone import STAGES, BackboneConfig
from wnlb.export.model import ModelConfig
from wnlb.runtime.errors import CheckpointError, WnlbError

_FIRST_WEIGHT = "backbone.body.conv1.weight"
_FIRST_WEIGHT_WRAPPED = re.compile(r"(.*?)backbone\.(?:model\.)*body\.(?:model\.)*conv1\.weight")
# A weight that only the networks of one kind and framework have under this name.
MARKS = {
    "mmdetection-solov2": "mask_head.mask_feature_head.conv_pred.conv.weight",
    "mmdetection": "roi_head.bbox_head.fc_cls.weight",
    "detectron2": "backbone.bottom_up.stem.conv1.weight",
    "torchvision_v2": "backbone.fpn.inner_blocks.0.1.weight",
    "torchvision": _FIRST_WEIGHT,
}
_UNWRAPPED_MARKS = [MARKS[name] for name in ("mmdetection-solov2", "mmdetection", "detectron2")]
# What DDP and DataParallel, torch.compile, FSDP, activation checkpointing, Lightning's and DeepSpeed's strategies and
# Opacus put around a module, each as one part of the names of its weights.
_WRAPPERS = frozenset(
    "module _orig_mod _fsdp_wrapped_module _fpw_module _checkpoint_wrapped_module _forward_module _module".split()
)
# torchvision before 0.13 named these without the inner index; later versions still read them.
_RENAMED = (
    (r"^rpn\.head\.conv\.(weight|bias)$", r"rpn.head.conv.0.0.\1"),
    (r"^(backbone\.fpn\.(?:inner|layer)_blocks\.\d)\.(weight|bias)$", r"\1.0.\2"),
    (r"^roi_heads\.mask_head\.mask_fcn(\d)\.(weight|bias)$", lambda m: f"roi_heads.mask_head.{int(m[1]) - 1}.0.{m[2]}"),
)
# A FastRCNNConvFCHead of two linear layers alone is a TwoMLPHead; behind convolutions they have other numbers.
_TWO_LINEAR = {
    f"roi_heads.box_head.{i}.{kind}": f"roi_heads.box_head.{name}.{kind}"
    for i, name in ((1, "fc6"), (3, "fc7"))
    for kind in ("weight", "bias")
}
# Kind and number of the residual units, groups of their 3 x 3 convolutions, channels of a group in the first stage.
_RESIDUAL_UNITS: dict[tuple[str, tuple[int, ...], int, int], str] = {
    ("basic", (2, 2, 2, 2), 1, 64): "resnet18",
    ("basic", (3, 4, 6, 3), 1, 64): "resnet34",
    ("bottleneck", (3, 4, 6, 3), 1, 64): "resnet50",
    ("bottleneck", (3, 4, 23, 3), 1, 64): "resnet101",
    ("bottleneck", (3, 8, 36, 3), 1, 64): "resnet152",
    ("bottleneck", (3, 4, 6, 3), 32, 4): "resnext50_32x4d",
    ("bottleneck", (3, 4, 23, 3), 32, 4): "resnext101_32x4d",
    ("bottleneck", (3, 4, 23, 3), 32, 8): "resnext101_32x8d",
    ("bottleneck", (3, 4, 23, 3), 64, 4): "resnext101_64x4d",
    ("bottleneck", (3, 8, 36, 3), 32, 8): "resnext152_32x8d",
    ("bottleneck", (3, 4, 6, 3), 1, 128): "wide_resnet50_2",
    ("bottleneck", (3, 4, 23, 3), 1, 128): "wide_resnet101_2",
}


def unwrapped(name: str) -> str:
    """A weight's name without what training wrapped around the network or parts of it."""
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def detector_prefixes(names: Iterable[str]) -> list[str]:
    """What stands before the names of each network among these unwrapped names: ``["model.", "ema_model."]``."""
    found = []
    for name in names:
        if torchvision := _FIRST_WEIGHT_WRAPPED.fullmatch(name):
            found.append(torchvision[1])
        found += [name[: -len(mark)] for mark in _UNWRAPPED_MARKS if is_called(name, mark)]
    return found


def is_called(name: str, weight: str) -> bool:
    """Whether a weight's name is ``weight``, or that behind a prefix."""
    return name == weight or name.endswith(f".{weight}")


def canonical_state(state: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """The same tensors under the names that ``wnlb.export.model`` gives them.

    Raises:
        CheckpointError: there is no ResNet backbone, or a block lies where none can be placed.
    """
    state = _without_wrappers(state, source)
    flattened = next((name for name in state if name.split(".")[-1].startswith("_flat_param")), None)
    if flattened:
        raise CheckpointError(
            f"checkpoint {source} holds weights that FSDP flattened ({flattened}); save whole ones, with "
            "StateDictType.FULL_STATE_DICT or torch.distributed.checkpoint.state_dict.get_model_state_dict"
        )
    if _FIRST_WEIGHT not in state:
        raise CheckpointError(
            f"checkpoint {source} has no {_FIRST_WEIGHT}: not a torchvision Mask R-CNN with a ResNet backbone. "
            f"Its weights start with {', '.join(list(state)[:3])}; rename them with --key-map"
        )
    for pattern, replacement in _RENAMED:
        state = {re.sub(pattern, replacement, name): value for name, value in state.items()}
    if {name for name in state if re.fullmatch(r"roi_heads\.box_head\.\d+\.(weight|bias)", name)} == set(_TWO_LINEAR):
        state = {_TWO_LINEAR.get(name, name): value for name, value in state.items()}
    moves = _block_moves(state, source)
    renamed = {}
    for name, value in state.items():
        old = next((old for old in moves if name.startswith(old + ".")), None)
        renamed[moves[old] + name[len(old) :] if old else name] = value
    return renamed


def _without_wrappers(state: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """Without wrappers, the detector's prefix and, behind that, Lightning's ``model``."""
    prefix = next(iter(detector_prefixes(map(unwrapped, state))), "")
    bare: dict[str, Tensor] = {}
    for name, value in state.items():
        own = unwrapped(name).removeprefix(prefix)
        own = ".".join(part for part in own.split(".") if part != "model")
        if own in bare:
            raise CheckpointError(f"checkpoint {source} has two weights named {own}, of which one is wrapped")
        if "." in own or value.dim():  # no counter: n_averaged, steps
            bare[own] = value
    return bare


def infer_config(state: Mapping[str, Tensor], known: Mapping[str, Any]) -> ModelConfig:
    """The configuration of a canonical state dict; entries of ``known`` win over what is read.

    Raises:
        CheckpointError: what is read is no network that this project builds.
    """
    try:
        read = {
            **_detector_fields(state),
            **_box_head_fields(state),
            **body_fields(state),
        }
    except KeyError as error:
        raise CheckpointError(f"checkpoint has no weight {error}: not a torchvision Mask R-CNN with FPN") from error
    try:
        config = ModelConfig.from_dict({**read, **known})
    except WnlbError as error:
        raise CheckpointError(str(error)) from error
    check_adaptive_downsampling(state, config)
    anchors = state["rpn.head.cls_logits.weight"].shape[0]
    if anchors != config.anchors_per_position:
        raise CheckpointError(
            f"checkpoint has {anchors} anchors per position, not the {config.anchors_per_position} that the sizes "
            f"{_listed(config.anchor_sizes)} and ratios {_listed(config.aspect_ratios)} make; its weights do not tell "
            f"which it was trained with, give them, for example {_anchor_proposal(anchors)}"
        )
    return config


def _anchor_proposal(count: int) -> str:
    """Settings that make so many anchors per position; which are the right ones, only the training script tells."""
    sizes, ratios = (count // 3, 3) if count % 3 == 0 else (1, count)
    levels = [[round(size * 2 ** (k / sizes)) for k in range(sizes)] for size in (32, 64, 128, 256, 512)]
    steps = (
        [0.5, 1.0, 2.0] if ratios == 3 else [round(2.0 ** (2 * k / max(ratios - 1, 1) - 1), 3) for k in range(ratios)]
    )
    return (
        f"--set 'anchor_sizes={_listed(levels if sizes > 1 else [level[0] for level in levels])}' "
        f"--set 'aspect_ratios={_listed([1.0] if ratios == 1 else steps)}'"
    )


def _listed(values: Sequence[Any]) -> str:
    return json.dumps(values)


def body_fields(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """What backbone, neck and blocks of a canonical state dict are, as ``BackboneConfig`` has it. Raises KeyError."""
    norm = "batch" if "backbone.body.bn1.num_batches_tracked" in state else "frozen"
    width = state["backbone.fpn.inner_blocks.0.0.weight"].shape[0]
    return {"norm": norm, "fpn_channels": width, **_block_fields(state), "backbone": _backbone_name(state)}


def _detector_fields(state: Mapping[str, Tensor]) -> dict[str, Any]:
    classes = state["roi_heads.box_predictor.cls_score.weight"].shape[0]
    mask_classes = state["roi_heads.mask_predictor.mask_fcn_logits.weight"].shape[0]
    return {
        "num_classes": classes,
        "mask_classes": None if mask_classes == classes else mask_classes,
        "rpn_convs": count_of(state, r"rpn\.head\.conv\.(\d+)\.0\.weight"),
        "mask_channels": tuple(
            state[f"roi_heads.mask_head.{i}.0.weight"].shape[0]
            for i in range(count_of(state, r"roi_heads\.mask_head\.(\d+)\.0\.weight"))
        ),
        "mask_hidden": state["roi_heads.mask_predictor.conv5_mask.weight"].shape[1],
    }


def _box_head_fields(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """fc6 and fc7 of a ``TwoMLPHead``, else what a ``FastRCNNConvFCHead`` without norms has."""
    head = "roi_heads.box_head"
    convs = count_of(state, r"roi_heads\.box_head\.(\d+)\.0\.weight")
    fcs = count_of(state, r"roi_heads\.box_head\.(\d+)\.weight")
    if not convs + fcs:
        return {"box_features": state[f"{head}.fc6.weight"].shape[0]}
    return {
        "box_convs": tuple(state[f"{head}.{i}.0.weight"].shape[0] for i in range(convs)),
        "box_fcs": fcs,
        "box_features": state[f"{head}.{convs + 1}.weight"].shape[0],  # behind the convolutions and an nn.Flatten
    }


def check_adaptive_downsampling(state: Mapping[str, Tensor], config: BackboneConfig) -> None:
    found = any(f"backbone.body.layer{i}.adad.weight_net.0.weight" in state for i in (2, 3, 4))
    if found and not config.adaptive_stride:
        raise CheckpointError(
            "checkpoint has LIS's adaptive downsampling, whose stride weights do not tell; give the configuration that "
            "it was trained with, or --set adaptive_stride=2 (of the backbone ResNetAdaD, and of ResNetAdaDSmoothPrior "
            "in the style caffe) or =1 (of the latter in the style pytorch)"
        )
    if config.adaptive_stride and not found:
        raise CheckpointError(
            f"adaptive_stride is {config.adaptive_stride}, but the checkpoint has no adaptive downsampling (of LIS); "
            "expected 0"
        )


def _backbone_name(state: Mapping[str, Tensor]) -> str:
    kind = "bottleneck" if "backbone.body.layer1.0.conv3.weight" in state else "basic"
    units = tuple(count_of(state, rf"backbone\.body\.layer{i}\.(\d+)\.conv1\.weight") for i in (1, 2, 3, 4))
    outputs, width = state[f"backbone.body.layer1.0.conv{2 if kind == 'bottleneck' else 1}.weight"].shape[:2]
    name = _RESIDUAL_UNITS.get((kind, units, outputs // width, width))
    if name is None:
        raise CheckpointError(
            f"checkpoint has a backbone of {kind} residual units {units}, in {outputs // width} groups of {width} "
            f"channels; expected that of {', '.join(_RESIDUAL_UNITS.values())}"
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


def count_of(state: Mapping[str, Tensor], pattern: str) -> int:
    return len({found[1] for name in state if (found := re.fullmatch(pattern, name))})
