"""torchvision's multi-level RoIAlign by the standard operator RoiAlign, for files that are for a CPU alone.

Each level pools its own boxes, a number that depends on data. As in ``node_nms`` that is hidden in one operation of
ours, ``wnlb::roi_align_by_level``, whose outputs have a known number of rows: those of the first level first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import roi_align


@torch.library.custom_op("wnlb::roi_align_by_level", mutates_args=())
def roi_align_by_level(
    levels: Sequence[Tensor], rois: Tensor, level: Tensor, scales: Sequence[float], side: int, sampling_ratio: int
) -> tuple[Tensor, Tensor]:
    """Pool each RoI from its own level.

    Args:
        levels: ``[N, C, h, w]`` each.
        rois: ``[K, 5]``, number of the image, x1 y1 x2 y2.
        level: ``[K]`` integers.
        scales: feature pixels per input pixel of each level.
        side: S of the pooled square.
        sampling_ratio: points per bin and axis.

    Returns:
        ``[K, C, S, S]``, ordered by level, and ``[K]``: which RoI each row is of.
    """
    own = [(level == i).nonzero()[:, 0] for i in range(len(levels))]
    pooled = [
        roi_align(feature, rois[rows], side, scale, sampling_ratio)
        for feature, rows, scale in zip(levels, own, scales, strict=True)
    ]
    return torch.cat(pooled), torch.cat(own)


@roi_align_by_level.register_fake
def _(
    levels: Sequence[Tensor], rois: Tensor, level: Tensor, scales: Sequence[float], side: int, sampling_ratio: int
) -> tuple[Tensor, Tensor]:
    pooled = rois.new_empty((rois.shape[0], levels[0].shape[1], side, side))
    return pooled, level.new_empty((rois.shape[0],), dtype=torch.int64)


def onnx_roi_align_by_level(
    levels: Sequence[Any], rois: Any, level: Any, scales: Sequence[float], side: int, sampling_ratio: int
) -> tuple[Any, Any]:
    """``roi_align_by_level`` in operators of ONNX, opset 18, for ``torch.onnx.export``."""
    from onnxscript import opset18

    op: Any = opset18
    first, image, corners = (op.Constant(value_ints=values) for values in ([0], [0], [1, 2, 3, 4]))
    pooled, own = [], []
    for number, (feature, scale) in enumerate(zip(levels, scales, strict=True)):
        rows = op.Squeeze(op.NonZero(op.Equal(level, op.Constant(value_int=number))), first)  # [n]
        of_level = op.Gather(rois, rows, axis=0)  # [n, 5]
        number_of_image = op.Cast(op.Squeeze(op.Gather(of_level, image, axis=1), op.Constant(value_ints=[1])), to=7)
        own.append(rows)
        pooled.append(
            op.RoiAlign(
                feature,
                op.Gather(of_level, corners, axis=1),
                number_of_image,
                coordinate_transformation_mode="output_half_pixel",
                output_height=side,
                output_width=side,
                sampling_ratio=sampling_ratio,
                spatial_scale=scale,
            )
        )
    return op.Concat(*pooled, axis=0), op.Concat(*own, axis=0)


class LevelRoIAlign(nn.Module):
    """``AtlasRoIAlign`` by a RoiAlign node for each level; arguments as there."""

    area_thresholds: Tensor  # [L - 1] input pixels^2

    def __init__(
        self, scales: Sequence[float], output_size: int, sampling_ratio: int, area_thresholds: Sequence[float]
    ) -> None:
        super().__init__()
        self.scales, self.output_size, self.sampling_ratio = tuple(scales), output_size, sampling_ratio
        self.register_buffer("area_thresholds", torch.tensor(area_thresholds) * 1.0, persistent=False)

    def forward(self, levels: Sequence[Tensor], boxes: Tensor) -> tuple[Tensor, Tensor]:
        """``levels [N, C, h, w]`` each and ``boxes [N, R, 4]`` to ``[N * R, C, S, S]``, ordered by level.

        Beside them which of the N * R boxes each row is of, for ``in_order``.
        """
        area = (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])
        level = (area.unsqueeze(-1) >= self.area_thresholds).sum(-1)
        image = torch.arange(boxes.shape[0], dtype=boxes.dtype, device=boxes.device).reshape(-1, 1, 1)
        rows = torch.cat([boxes[..., :1] * 0 + image, boxes], -1).flatten(0, 1)
        return roi_align_by_level(
            list(levels), rows, level.flatten(), self.scales, self.output_size, self.sampling_ratio
        )

    def pixels_first(self, levels: Sequence[Tensor], boxes: Tensor) -> Tensor:
        """``[S * S, N * R, C]``, in the order of the boxes."""
        return in_order(*self(levels, boxes)).flatten(2).permute(2, 0, 1)


def in_order(rows: Tensor, order: Tensor) -> Tensor:
    """``rows [K, ...]`` of which number k is that of ``order[k]``, each at its own place."""
    none = order * 0  # their number need not be known
    places = (none + 1).cumsum(0) - 1  # 0, 1, 2, ...
    return rows.index_select(0, none.scatter(0, order, places))
