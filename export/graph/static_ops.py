"""Detection operations whose every shape is known before they run.

All boxes are x1 y1 x2 y2 in input pixels, floating-point, unless said otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def decode_boxes(
    deltas: Tensor, anchors: Tensor, weights: Sequence[float], max_log_scale: float, min_log_scale: float | None = None
) -> Tensor:
    """Boxes from deltas, one per row.

    Args:
        deltas: ``[..., 4]`` dx dy dw dh (Girshick et al., "Rich feature hierarchies", appendix C).
        anchors: ``[..., 4]`` boxes that the deltas are relative to.
        weights: the four numbers that the deltas were multiplied with.
        max_log_scale, min_log_scale: dw and dh are cut here before the exponential.

    Returns:
        ``[..., 4]`` boxes, not clipped.
    """
    # No division by the 1 of an RPN: it would be a node in every level.
    dx, dy, dw, dh = (deltas[..., i] if weight == 1 else deltas[..., i] / weight for i, weight in enumerate(weights))
    x1, y1, x2, y2 = anchors.unbind(-1)
    width, height = x2 - x1, y2 - y1
    center_x, center_y = dx * width + (x1 + 0.5 * width), dy * height + (y1 + 0.5 * height)
    half_width = 0.5 * (torch.exp(dw.clamp(min_log_scale, max_log_scale)) * width)
    half_height = 0.5 * (torch.exp(dh.clamp(min_log_scale, max_log_scale)) * height)
    edges = (center_x - half_width, center_y - half_height, center_x + half_width, center_y + half_height)
    return torch.stack(edges, -1)


def clip_boxes(boxes: Tensor, limit: Tensor) -> Tensor:
    """``[N, K, 4]`` boxes between 0 and ``limit [N, 1, 4]``, the largest coordinates of each picture."""
    return torch.minimum(boxes.clamp(min=0), limit)


def large_enough(boxes: Tensor, side: float) -> Tensor:
    """``[..., 4]`` boxes to bool ``[...]``: both sides reach ``side`` pixels; where that is 0, both are above it."""
    width, height = boxes[..., 2] - boxes[..., 0], boxes[..., 3] - boxes[..., 1]
    if side == 0:
        return (width > 0) & (height > 0)
    return (width >= side) & (height >= side)


def take_rows(rows: Tensor, index: Tensor) -> Tensor:
    """``rows [N, M, c]`` and ``index [N, K]`` to ``[N, K, c]``."""
    return rows.gather(1, index.unsqueeze(-1).expand(-1, -1, rows.shape[2]))


class StaticNMS(nn.Module):
    """Greedy non-maximum suppression, unrolled.

    With ``S[j, i] = IoU(j, i) > threshold and j < i`` over boxes in descending order of score, greedy NMS is
    the only fixed point of ``keep_i = valid_i and not any_j (keep_j and S[j, i])``. Iterating from
    ``keep = valid`` settles a box one round after the last box that its fate depends on, so as many
    rounds as the longest chain of dependent boxes give the exact result (``chain_lengths``).
    """

    def __init__(self, iou_threshold: float, rounds: int) -> None:
        super().__init__()
        self.iou_threshold, self.rounds = iou_threshold, rounds

    def forward(self, boxes: Tensor, valid: Tensor, groups: Tensor | None = None) -> Tensor:
        """Which boxes survive.

        Args:
            boxes: ``[B, K, 4]`` in descending order of score.
            valid: ``[B, K]`` float, 1 for boxes that take part and 0 for padding.
            groups: ``[B, K]`` integers; boxes of different groups do not suppress each other.

        Returns:
            ``[B, K]`` float, 1 for boxes that are kept.
        """
        suppress = self.suppression(boxes, groups)
        valid = valid.unsqueeze(1)  # [B, 1, K]
        keep = valid
        for _ in range(self.rounds):
            keep = torch.relu(valid - keep @ suppress)
        return keep.squeeze(1)

    def suppression(self, boxes: Tensor, groups: Tensor | None) -> Tensor:
        """``S`` as float ``[B, K, K]``."""
        x1, y1, x2, y2 = boxes.unbind(-1)
        area = (x2 - x1) * (y2 - y1)

        def row(t: Tensor) -> Tensor:
            return t.unsqueeze(2)

        def column(t: Tensor) -> Tensor:
            return t.unsqueeze(1)

        width = torch.relu(torch.minimum(row(x2), column(x2)) - torch.maximum(row(x1), column(x1)))
        height = torch.relu(torch.minimum(row(y2), column(y2)) - torch.maximum(row(y1), column(y1)))
        intersection = width * height
        rank = torch.arange(boxes.shape[1], device=boxes.device)
        # Divided, not multiplied out: the same rounding as torchvision's nms decides the close calls.
        overlap = intersection / (row(area) + column(area) - intersection) > self.iou_threshold
        overlap = overlap & (rank[:, None] < rank[None, :])
        if groups is not None:
            overlap = overlap & (row(groups) == column(groups))
        return overlap.to(boxes.dtype)

    def chain_length(self, boxes: Tensor, valid: Tensor, groups: Tensor | None = None) -> int:
        """Rounds that these boxes need; arguments as ``forward``."""
        suppress = self.suppression(boxes, groups)
        valid = valid.unsqueeze(1)
        keep, needed = valid, 0
        while not torch.equal(after := torch.relu(valid - keep @ suppress), keep):
            keep, needed = after, needed + 1
        return needed


@dataclass(frozen=True)
class AtlasLayout:
    """Where the pyramid levels lie in one picture: P2 left, the others stacked at its right.

    All numbers are pixels of the atlas. Below the last level at the right there is room, which stays zero.
    """

    sizes: tuple[tuple[int, int], ...]  # (height, width) of each level, finest first

    @property
    def height(self) -> int:
        return self.sizes[0][0]

    @property
    def width(self) -> int:
        return self.sizes[0][1] + self.sizes[1][1]

    @property
    def origins(self) -> list[tuple[int, int]]:
        """(x, y) of each level's left top corner."""
        x, rows = self.sizes[0][1], [size[0] for size in self.sizes[1:]]
        return [(0, 0)] + [(x, sum(rows[:i])) for i in range(len(rows))]

    def build(self, levels: Sequence[Tensor]) -> Tensor:
        """``[N, C, h, w]`` per level to the atlas ``[N, C, height, width]``."""
        right = [F.pad(level, (0, self.sizes[1][1] - level.shape[3])) for level in levels[1:]]
        rest = self.height - sum(size[0] for size in self.sizes[1:])
        right[-1] = F.pad(right[-1], (0, 0, 0, rest))
        return torch.cat([levels[0], torch.cat(right, 2)], 3)


class AtlasRoIAlign(nn.Module):
    """torchvision's ``MultiScaleRoIAlign`` (``aligned=False``) by one GridSample over an atlas of the levels.

    Every RoI samples only the level it belongs to; its points are clamped inside that level, as
    ``roi_align`` does at borders. Points beyond the border (of boxes thinner than one feature pixel)
    count as zero there; here they read the empty corner of the atlas.

    Args:
        layout: of the atlas.
        scales: feature pixels per input pixel of each level.
        output_size: S, side of the pooled square.
        sampling_ratio: points per bin and axis.
        canonical_scale, canonical_level: of the rule that assigns levels by area (Lin et al.,
            "Feature Pyramid Networks", equation 1).
    """

    area_thresholds: Tensor  # [L - 1] input pixels^2
    level_table: Tensor  # [L, 5] scale, width, height, x, y
    points: Tensor  # [P] in 0..1

    def __init__(
        self,
        layout: AtlasLayout,
        scales: Sequence[float],
        output_size: int,
        sampling_ratio: int,
        canonical_scale: int,
        canonical_level: int,
    ) -> None:
        super().__init__()
        self.layout, self.output_size, self.sampling_ratio = layout, output_size, sampling_ratio
        first = round(-math.log2(scales[0]))
        # floor(level0 + log2(sqrt(area) / scale0) + 1e-6) >= k, as a threshold on the area
        sides = [canonical_scale * 2.0 ** (first + i - canonical_level - 1e-6) for i in range(1, len(scales))]
        table = [
            (scale, width, height, x, y)
            for scale, (height, width), (x, y) in zip(scales, layout.sizes, layout.origins, strict=True)
        ]
        points = (torch.arange(output_size * sampling_ratio) + 0.5) / (output_size * sampling_ratio)
        self.register_buffer("area_thresholds", torch.tensor(sides) ** 2, persistent=False)
        self.register_buffer("level_table", torch.tensor(table) * 1.0, persistent=False)
        self.register_buffer("points", points, persistent=False)

    def forward(self, atlas: Tensor, boxes: Tensor) -> Tensor:
        """``atlas [N, C, height, width]`` and ``boxes [N, R, 4]`` to ``[N * R, C, S, S]``."""
        batch, channels, side = *atlas.shape[:2], self.output_size
        grid = self._grid(boxes).permute(0, 3, 5, 1, 2, 4, 6)  # [N, r, r, R, S, S, 2]
        pooled = self._pooled(atlas, grid.reshape(batch, -1, side, 2))  # [N, C, R*S*S]
        return pooled.reshape(batch, channels, -1, side, side).transpose(1, 2).flatten(0, 1)

    def pixels_first(self, atlas: Tensor, boxes: Tensor) -> Tensor:
        """The same as ``[S * S, N * R, C]``."""
        batch, channels, pixels = *atlas.shape[:2], self.output_size**2
        # In views R is the -1, so that the file's constants do not hold it.
        grid = self._grid(boxes).permute(0, 3, 5, 2, 4, 1, 6).contiguous()  # [N, r, r, S, S, R, 2]
        pooled = self._pooled(atlas, grid.view(batch, self.sampling_ratio**2 * pixels, -1, 2))  # [N, C, S*S*R]
        pooled = pooled.transpose(1, 2).contiguous().view(batch, pixels, -1, channels)
        return pooled.squeeze(0) if batch == 1 else pooled.transpose(0, 1).flatten(1, 2)

    def _grid(self, boxes: Tensor) -> Tensor:
        """Sampling points ``[N, R, S, r, S, r, 2]``, y before x in the order of axes, x before y in the last."""
        grid = torch.stack(self._sampling_points(boxes), -1)
        bins = (self.output_size, self.sampling_ratio)
        return grid.reshape(boxes.shape[0], -1, *bins, *bins, 2)

    def _pooled(self, atlas: Tensor, grid: Tensor) -> Tensor:
        """``grid [N, r*r*..., ..., 2]`` to means ``[N, C, ...]``.

        The r*r points of a bin lie outermost, so that their mean runs over whole blocks of memory.
        """
        samples = F.grid_sample(atlas, grid, align_corners=False)
        return samples.reshape(*atlas.shape[:2], self.sampling_ratio**2, -1).mean(2)

    def _sampling_points(self, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Atlas coordinates of the points, from -1 to 1 over its width and height."""
        area = (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])
        level = (area.unsqueeze(-1) >= self.area_thresholds).sum(-1)
        scale, width, height, origin_x, origin_y = (
            F.embedding(level, self.level_table).unsqueeze(-1).unbind(-2)
        )  # [N, R, 1]
        x = self._points_along(boxes[..., 0:1] * scale, boxes[..., 2:3] * scale)  # [N, R, P]
        y = self._points_along(boxes[..., 1:2] * scale, boxes[..., 3:4] * scale)
        inside = (x <= width).unsqueeze(-2) & (y <= height).unsqueeze(-1)  # [N, R, P, P]
        x = (torch.minimum(x, width - 1) + origin_x + 0.5) * (2 / self.layout.width) - 1
        y = (torch.minimum(y, height - 1) + origin_y + 0.5) * (2 / self.layout.height) - 1
        # (1, 1) is the corner of the last pixel, which is empty, as are its neighbours.
        return torch.where(inside, x.unsqueeze(-2), 1.0), torch.where(inside, y.unsqueeze(-1), 1.0)

    def _points_along(self, start: Tensor, end: Tensor) -> Tensor:
        return start + (end - start).clamp(min=1) * self.points
