"""ResNet and FPN over a state dict: He et al., 2015; Xie et al., 2016 (ResNeXt); Lin et al., 2016 (FPN).

mmdetection: mmdet/models/backbones/resnet.py, necks/fpn.py, 3.3.0. detectron2: modeling/backbone/resnet.py, fpn.py,
02b5c4e2. Both compute the same; their names differ. LIS, a fork of mmdetection 2.x, adds what is in lis.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from wnlb.export.references.blocks import block, is_block
from wnlb.export.references.interface import NetworkSettings
from wnlb.export.references.layers import conv, norm, normed_conv
from wnlb.export.references.lis import adaptive_downsampling, smooth_convolution
from wnlb.export.references.weights import Weights
from wnlb.runtime.errors import CheckpointError

Module = Callable[[str, Tensor], Tensor]  # path of a module, its input -> its output


@dataclass(frozen=True)
class ResNetNames:
    """What a framework calls the parts of a ResNet; ``{}`` stands for a number from 1."""

    stem: str
    stem_norm: str
    stages: tuple[str, str, str, str]
    norm: str  # of the convolution conv{} of a residual unit
    shortcut: str
    shortcut_norm: str
    downsampling: str = ""  # LIS's, before the stages 3, 4 and 5, numbered 1, 2 and 3


def resnet(weights: Weights, names: ResNetNames, settings: NetworkSettings, x: Tensor) -> list[Tensor]:
    """The network's input ``[N, 3, H, W]`` to C2, C3, C4 and C5, ``[N, C, H/4, W/4]`` to ``[N, C, H/32, W/32]``."""
    x = normed_conv(weights, names.stem, (names.stem_norm,), x, 2, settings.norm_eps).relu()
    x = F.max_pool2d(x, kernel_size=3, stride=2, padding=1)
    outputs = []
    for i, path in enumerate(names.stages):
        stride = 1 if i == 0 or settings.adaptive_stride == 2 else 2
        if i > 0 and settings.adaptive_stride:
            x = adaptive_downsampling(weights, names.downsampling.format(i), x, settings.adaptive_stride)
        for child in weights.children(path):
            if f"{child}.conv1.weight" in weights:
                x = _residual_unit(weights, names, settings, child, x, stride)
                stride = 1  # of all units but the first
            elif is_block(weights, child):
                x = block(weights, child, x, settings.block_mode, settings.non_local_scaled)
        outputs.append(x)
    return outputs


def _residual_unit(
    weights: Weights, names: ResNetNames, settings: NetworkSettings, path: str, x: Tensor, stride: int
) -> Tensor:
    """relu(F(x) + shortcut(x)); F of two 3 x 3 convolutions (ResNet-18, 34) or of 1 x 1, 3 x 3 and 1 x 1.

    The stride is that of the first convolution of two. Of three it is the second's in the style "pytorch", the first's
    in the style "caffe" (detectron2: STRIDE_IN_1X1).
    """
    last = 3 if f"{path}.conv3.weight" in weights else 2
    strided = 2 if last == 3 and settings.style == "pytorch" else 1
    eps = settings.norm_eps
    y = x
    for i in range(1, last + 1):
        own_stride = stride if i == strided else 1
        y = _unit_conv(weights, names, path, i, y, own_stride, eps)
        y = y.relu() if i < last else y
    for child in weights.children(path):  # mmcv's plugin behind the last convolution
        if is_block(weights, child):
            y = block(weights, child, y, settings.block_mode, settings.non_local_scaled)
    if f"{path}.{names.shortcut}.weight" in weights:
        x = normed_conv(weights, f"{path}.{names.shortcut}", (f"{path}.{names.shortcut_norm}",), x, stride, eps)
    return (y + x).relu()


def _unit_conv(weights: Weights, names: ResNetNames, unit: str, i: int, x: Tensor, stride: int, eps: float) -> Tensor:
    """Convolution i of a residual unit, and its norm; in LIS something is added between the two of the second."""
    path, norm_path = f"{unit}.conv{i}", f"{unit}.{names.norm.format(i)}"
    smooth = smooth_convolution(weights, unit, x, stride) if i == 2 else None
    if smooth is None:
        return normed_conv(weights, path, (norm_path,), x, stride, eps)
    return norm(weights, norm_path, conv(weights, path, x, stride) + smooth, eps)


def fpn(levels: list[Tensor], module: Module, names: list[tuple[str, str]]) -> list[Tensor]:
    """C2..C5 to P2..P5, ``[N, C, h, w]`` each.

    inner_5 = lateral_5(C5); inner_k = lateral_k(C_k) + inner_{k+1}, its pixels repeated 2 x 2; P_k = output_k(inner_k).

    Args:
        module: a convolution of the framework, with its norm if it has one.
        names: paths of the lateral (1 x 1) and the output (3 x 3) module of each level.
    """
    inner = [module(lateral, x) for (lateral, _), x in zip(names, levels, strict=True)]
    for k in (2, 1, 0):
        inner[k] = inner[k] + F.interpolate(inner[k + 1], size=inner[k].shape[2:], mode="nearest")
    return [module(output, x) for (_, output), x in zip(names, inner, strict=True)]


def with_p6(levels: list[Tensor]) -> list[Tensor]:
    """P2..P5 and P6: every second pixel of P5 (a 1 x 1 max pooling by stride 2 in both frameworks)."""
    return [*levels, levels[3][:, :, ::2, ::2]]


def blocks_of_neck(weights: Weights, start: str, besides: str, width: int) -> tuple[dict[int, str], dict[int, str]]:
    """Paths of the non-local blocks before and behind an FPN, by the stage 2..5 that each belongs to.

    A name tells the stage by its end: c2..c5 and p2..p5, or a number from 0. It lies before the FPN if it is called
    c2..c5, lateral or inner, behind it if p2..p5 or out; with neither, where its channels are those of the FPN.

    Args:
        start, besides: what the paths start with, and what they do not.
        width: channels of the FPN.
    """
    before: dict[int, str] = {}
    behind: dict[int, str] = {}
    for path in weights.owners_of("g.weight"):
        if not path.startswith(start) or path.startswith(besides) or not is_block(weights, path):
            continue
        if not (stage := re.search(r"([cp][2-5]|[0-3])$", path)):
            raise CheckpointError(f"non-local block {path} does not tell its level; expected c2..c5, p2..p5 or 0..3")
        own, level = path.removeprefix(start), stage[1]
        if level[0] == "c" or re.search(r"lateral|inner", own):
            side = before
        elif level[0] == "p" or "out" in own or weights[f"{path}.g.weight"].shape[1] == width:
            side = behind
        else:
            side = before
        side[int(level[-1]) + (2 if level.isdigit() else 0)] = path
    return before, behind


def through_blocks(
    weights: Weights, settings: NetworkSettings, paths: dict[int, str], levels: list[Tensor]
) -> list[Tensor]:
    """Levels 2, 3 ... with the blocks of ``blocks_of_neck`` applied to those that have one."""
    return [
        block(weights, paths[k], x, settings.block_mode, settings.non_local_scaled) if k in paths else x
        for k, x in enumerate(levels, 2)
    ]
