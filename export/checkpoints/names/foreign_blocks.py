"""Non-local blocks in checkpoints of other frameworks: the authors' and mmcv's ``NonLocal2d``, by their names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from wnlb.export.backbone import STAGES
from wnlb.export.checkpoints.names.name_table import NORM_EPS
from wnlb.runtime.errors import CheckpointError

# mmcv/cnn/bricks/non_local.py: each convolution inside a ConvModule.
_MMCV = {
    "g.conv": "g",
    "theta.conv": "theta",
    "phi.conv": "phi",
    "concat_project.conv": "W_f.0",
    "conv_out.conv": "W_z.0",
    "conv_out.bn": "W_z.1",
}
_LEVEL = re.compile(r"(?:[cp]|res)([2-5])$|(?:layer|stage)([1-4])$|([0-3])$")


def block_paths(names: Iterable[str]) -> list[str]:
    """Paths of the modules that hold the parameters of a non-local block."""
    known = set(names)
    ours = [name.removesuffix(".g.weight") for name in known if name.endswith(".g.weight")]
    theirs = [name.removesuffix(".g.conv.weight") for name in known if name.endswith(".g.conv.weight")]
    found = [path for path in ours if f"{path}.W_z.0.weight" in known]
    return sorted(found + [path for path in theirs if f"{path}.conv_out.conv.weight" in known])


def block_weights(state: Mapping[str, Tensor], path: str, mode: str, scaled: bool) -> dict[str, Tensor]:
    """The weights of one block under the names of ``wnlb.export.block.WeightedNonLocalBlock``.

    ``NonLocal2d`` divides the logits of "embedded" by sqrt(d): theta takes that; it has no ``w``. Where its
    ``conv_out`` has no norm, one that does nothing follows.

    Args:
        mode: "embedded" or "dot", of blocks with theta and phi alone.
        scaled: whether ``NonLocal2d`` was built with ``use_scale``.
    """
    own = {name.removeprefix(f"{path}."): value for name, value in state.items() if name.startswith(f"{path}.")}
    if "g.conv.weight" not in own:
        if "w" in own:
            own["w"] = own["w"].reshape(1)
        return own
    made = {}
    for name, value in own.items():
        layer, _, kind = name.rpartition(".")
        made[f"{_MMCV.get(layer, layer)}.{kind}"] = value
    out = made["W_z.0.weight"]
    ones = torch.ones_like(out[:, 0, 0, 0])
    made.setdefault("W_z.0.bias", torch.zeros_like(ones))
    if "W_f.0.weight" in made:
        made.setdefault("W_f.0.bias", torch.zeros_like(made["W_f.0.weight"][:, 0, 0, 0]))
    elif "theta.weight" in made and mode == "embedded" and scaled:
        root = made["theta.weight"].shape[0] ** 0.5
        made.update({f"theta.{kind}": made[f"theta.{kind}"] / root for kind in ("weight", "bias")})
    if "W_z.1.weight" not in made:
        identity = {"weight": ones, "bias": 0 * ones, "running_mean": 0 * ones, "running_var": ones - NORM_EPS}
        made.update({f"W_z.1.{kind}": value for kind, value in identity.items()})
    return made


def block_home(path: str, homes: Iterable[tuple[str, str]], placement: str | None, source: str) -> str:
    """Where a block lies in torchvision's Mask R-CNN.

    Args:
        homes: regular expressions of paths and what they become; "" where a path does not tell whether what follows in
            the backbone sees what the block makes.
        placement: "inline" if it does, "lateral" if only the FPN does; None where nobody says it.

    Raises:
        CheckpointError: no block can lie there, or its place has to be asked for.
    """
    for pattern, home in homes:
        if not re.fullmatch(pattern, path):
            continue
        if home:
            return re.sub(pattern, home, path)
        stage = _stage(path, source)
        if placement == "inline":
            return f"backbone.body.layer{stage - 1}.wnlb"
        if placement == "lateral":
            return f"backbone.fpn.lateral.c{stage}"
        raise CheckpointError(
            f"checkpoint {source} has a non-local block at {path}, whose name does not tell what follows it; "
            "give it: --set placement=inline (the next stage and the FPN) or placement=lateral (the FPN alone)"
        )
    raise CheckpointError(
        f"checkpoint {source} has a non-local block at {path}; expected it after a stage of the backbone or in the "
        "neck, not inside a residual unit or a head"
    )


def _stage(path: str, source: str) -> int:
    found = _LEVEL.search(path)
    if not found:
        raise CheckpointError(
            f"checkpoint {source}: the level of block {path} is not in its name; expected it to end with c2 ... c5 or "
            "a number from 0; rename it with --key-map"
        )
    if found[1]:
        return int(found[1])
    return int(found[2]) + 1 if found[2] else STAGES[int(found[3])]
