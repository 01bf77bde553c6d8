"""SOLOv2 as other tools export it, the outputs of its head: a small network, computed by the reference, and a tiny one.

``FORMS`` are the arrangements of these outputs. "mmdetection": of each grid kernels and logits, channels first. "SOLO":
probabilities that are the most among neighbours, channels last, and kernels. "SOLO, all cells": the same of all cells
at once, of one image.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from unittest import mock

import solo_checkpoint
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wnlb.export.references import blocks, solov2
from wnlb.export.references.interface import SoloSettings
from wnlb.export.references.layers import conv
from wnlb.export.references.mmdet import pyramid_of
from wnlb.export.references.weights import Weights

FORMS = ("mmdetection", "SOLO", "SOLO, all cells")
SETTINGS = SoloSettings(grids=solo_checkpoint.SMALL_GRIDS, norm_groups=8)


def in_form(form: str, kernels: list[Tensor], logits: list[Tensor], features: Tensor) -> tuple[Tensor, ...]:
    """What a file of this form gives, of kernels ``[N, E, g, g]``, logits ``[N, C, g, g]`` and features."""
    if form == "mmdetection":
        return (*kernels, *logits, features)
    last = [solov2._peaks([own[0].sigmoid()])[0].permute(1, 2, 0)[None] for own in logits]
    if form == "SOLO":
        return (*last, *kernels, features)
    cells = [kernel.permute(0, 2, 3, 1).reshape(-1, kernel.shape[1]) for kernel in kernels]
    return torch.cat([score.reshape(-1, score.shape[3]) for score in last]), torch.cat(cells), features


class SmallHeads(nn.Module):
    """``solo_checkpoint.small_state``: frames ``[N, 3, H, W]``, normalised, to the outputs of the head."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form, self.state = form, solo_checkpoint.small_state()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        weights = Weights(self.state, "mmdetection", "SOLOv2")
        pyramid = pyramid_of(weights, SETTINGS, x)
        kernels, logits = solov2.branches(weights, SETTINGS, pyramid)
        return in_form(self.form, kernels, logits, solov2.mask_features(weights, SETTINGS, pyramid))


class TinyHeads(nn.Module):
    """No more than outputs of the right shapes: three classes, kernels of four channels."""

    def __init__(self, form: str, grids: tuple[int, ...] = solo_checkpoint.SMALL_GRIDS, classes: int = 3) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.form, self.grids = form, grids
        self.kernel, self.score, self.feature = nn.Conv2d(3, 4, 1), nn.Conv2d(3, classes, 1), nn.Conv2d(3, 4, 4, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        maps = [F.interpolate(x, size=(grid, grid), mode="bilinear") for grid in self.grids]
        logits = [3 * self.score(own) - 4 for own in maps]
        return in_form(self.form, [self.kernel(own) for own in maps], logits, self.feature(x))


def _aggregated(weights: Weights, x: Tensor, names: list[str], mode: str, scaled: bool) -> Tensor:
    """A block's y as its authors write it: one matrix of all pairs."""
    query, key, value = (conv(weights, name, x).flatten(2) for name in names[:3])
    attention = torch.softmax(query.transpose(1, 2) @ key, -1)
    return (attention @ value.transpose(1, 2)).transpose(1, 2).reshape(value.shape[:2] + x.shape[2:])


def write_heads(path: Path, model: nn.Module, size: tuple[int, int] = (64, 96), names: tuple[str, ...] = ()) -> Path:
    """By PyTorch's older exporter, opset 17.

    Args:
        names: of the outputs.
    """
    with warnings.catch_warnings(), mock.patch.object(blocks, "_aggregated", _aggregated):
        warnings.simplefilter("ignore")
        example = (torch.zeros(1, 3, *size),)
        options = {"dynamo": False, "opset_version": 17, "input_names": ["input"], "output_names": list(names) or None}
        torch.onnx.export(model.eval(), example, path, **options)
    return path
