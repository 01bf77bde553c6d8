"""Anchors of a pyramid."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from wnlb.runtime.conventions import MaskRcnnConventions

STRIDES = (4, 8, 16, 32, 64)  # px, of P2 .. P6

Sizes = Sequence[Sequence[float]]  # of each level


def pyramid_anchors(
    sizes: Sizes,
    ratios: Sizes,
    shapes: Sequence[tuple[int, int]],
    frame: tuple[int, int],
    conventions: MaskRcnnConventions,
) -> list[Tensor]:
    """Anchors of each level, ``[h * w * A, 4]`` x1 y1 x2 y2 in input pixels: row by row, those of a position together.

    Ren et al., "Faster R-CNN", section 3.1.1. The area of an anchor is that of a square of its size.

    Args:
        sizes: px.
        ratios: of height to width.
        shapes: (height, width) of each level.
        frame: (height, width) of the input, px.
        conventions: roundings, strides and the order of the anchors of a position.
    """
    levels = []
    for own_sizes, own_ratios, shape, stride in zip(sizes, ratios, shapes, STRIDES, strict=True):
        pairs = [(size, math.sqrt(ratio)) for ratio in own_ratios for size in own_sizes]
        if conventions.sizes_first:
            pairs = [(size, math.sqrt(ratio)) for size in own_sizes for ratio in own_ratios]
        half = torch.tensor([(size / root, size * root) for size, root in pairs]) / 2  # [A, 2] width, height
        around = torch.cat([-half, half], 1)
        around = around.round() if conventions.rounded_anchors else around
        y_stride, x_stride = (
            (side // own for side, own in zip(frame, shape, strict=True))
            if conventions.map_strides
            else (stride, stride)
        )
        y, x = torch.meshgrid(torch.arange(shape[0]) * y_stride, torch.arange(shape[1]) * x_stride, indexing="ij")
        positions = torch.stack([x, y, x, y], 2).reshape(-1, 1, 4).to(around.dtype)
        levels.append((positions + around).reshape(-1, 4))
    return levels
