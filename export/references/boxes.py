"""Anchors, deltas, levels and RoIAlign, as far as both frameworks compute the same formula.

Boxes are x1 y1 x2 y2 in pixels of the network's input; corners are continuous, a pixel's centre lies at + 0.5.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import roi_align

STRIDES = (4, 8, 16, 32, 64)  # of P2 .. P6
MAX_LOG_RATIO = math.log(1000 / 16)  # a box grows to at most 62.5 times its anchor


def anchors(shapes: Sequence[tuple[float, float]], stride: int, level: Tensor) -> Tensor:
    """Boxes of the given (width, height) around the top left corner of each cell, not rounded.

    mmdet/models/task_modules/prior_generators/anchor_generator.py (center_offset 0); detectron2
    modeling/anchor_generator.py (OFFSET 0.0).

    Args:
        shapes: of the A anchors of a position, px.
        level: ``[1, C, h, w]``, of which only size and dtype matter.

    Returns:
        ``[h*w*A, 4]``: row by row, the anchors of a position together.
    """
    height, width = level.shape[2:]
    half = torch.tensor(shapes, dtype=level.dtype) / 2
    own = torch.cat([-half, half], 1)  # [A, 4]
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    corners = torch.stack([x, y, x, y], 2).reshape(-1, 1, 4).to(level.dtype) * stride
    return (corners + own).reshape(-1, 4)


def by_anchor(maps: Tensor, anchors_per_cell: int) -> Tensor:
    """``[1, A*K, h, w]`` to ``[h*w*A, K]``, in the order of ``anchors``."""
    return maps[0].permute(1, 2, 0).reshape(-1, maps.shape[1] // anchors_per_cell)


def decoded(boxes: Tensor, deltas: Tensor, clamped: str) -> Tensor:
    """Boxes moved by dx, dy of their size and made exp(dw), exp(dh) times as large: Girshick et al., 2014 (R-CNN).

    Args:
        boxes: ``[K, 4]``.
        deltas: ``[K, 4]`` dx dy dw dh.
        clamped: "both": dw and dh are cut to +- ``MAX_LOG_RATIO`` (mmdetection: delta_xywh_bbox_coder.py);
            "above": only from above (detectron2: modeling/box_regression.py).
    """
    size = boxes[:, 2:] - boxes[:, :2]
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2 + deltas[:, :2] * size
    lowest = -MAX_LOG_RATIO if clamped == "both" else -math.inf
    size = size * deltas[:, 2:].clamp(lowest, MAX_LOG_RATIO).exp()
    return torch.cat([centre - size / 2, centre + size / 2], 1)


def clipped(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """``[K, 4]`` cut to a picture of ``size`` (height, width)."""
    height, width = size
    limits = boxes.new_tensor([width, height, width, height])
    return boxes.clamp(min=0).minimum(limits)


def not_empty(boxes: Tensor) -> Tensor:
    """``[K]`` bool: width and height above 0."""
    return (boxes[:, 2:] > boxes[:, :2]).all(1)


def levels(boxes: Tensor, epsilon: float) -> Tensor:
    """``[K]``: 0..3 for P2..P5, a box of 224 x 224 on P4; Lin et al., 2016 (FPN), equation 1.

    floor(4 + log2(sqrt(area) / 224 + epsilon)): mmdetection has epsilon 1e-6 (single_level_roi_extractor.py, with the
    same for 56 and level 0), detectron2 1e-8 (modeling/poolers.py).
    """
    width, height = (boxes[:, 2:] - boxes[:, :2]).unbind(1)
    level = torch.floor(4 + torch.log2((width * height).sqrt() / 224 + epsilon))
    return level.clamp(2, 5).long() - 2


def pooled(pyramid: Sequence[Tensor], boxes: Tensor, level: Tensor, size: int) -> Tensor:
    """RoIAlign of each box from its own level, aligned (corners at - 0.5 px) and with adaptive sampling.

    A bin is the mean of ceil(height / size) x ceil(width / size) bilinear samples, height and width of the box in cells
    of its level: He et al., 2017 (Mask R-CNN), section 3; mmcv/ops/roi_align.py and detectron2's ROIAlignV2 with
    sampling_ratio 0.

    Args:
        pyramid: P2 .. P5 of one image, ``[1, C, h, w]`` each.
        boxes: ``[K, 4]``.
        level: ``[K]``, 0..3.

    Returns:
        ``[K, C, size, size]``.
    """
    out = boxes.new_zeros(len(boxes), pyramid[0].shape[1], size, size)
    for k, x in enumerate(pyramid[:4]):
        own = level == k
        out[own] = roi_align(x, [boxes[own]], size, 1 / STRIDES[k], sampling_ratio=0, aligned=True)
    return out
