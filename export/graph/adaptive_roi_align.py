"""Multi-level RoIAlign with aligned corners and adaptive sampling, as mmdetection and detectron2 pool, in static form.

Along each axis a bin holds ceil(side of the RoI / side of the output) samples, of which it is the mean: the number
depends on the RoI (torchvision's ``roi_align`` with ``aligned=True, sampling_ratio=0``). Two modules compute it:
``NodeRoIAlign`` by the standard operator RoiAlign, ``CellRoIAlign`` by GridSample alone. All boxes are
x1 y1 x2 y2 in input pixels; a box without width or height pools to zero.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import roi_align

from wnlb.export.graph.plane_roi_align import PlaneRoIAlign
from wnlb.export.graph.static_ops import AtlasLayout, AtlasRoIAlign

Buckets = Sequence[tuple[int, int]]  # (RoIs, cells per bin), those of most cells first


def level_areas(finest_side: float, epsilon: float, levels: int = 4) -> list[float]:
    """Areas in input pixels^2 from which on a box belongs to the second, third, ... level.

    ``floor(log2(sqrt(area) / 56 + 1e-6))`` of mmdetection is ``(56, 1e-6)``;
    ``floor(4 + log2(sqrt(area) / 224 + 1e-8))`` of detectron2, counted from level 2, is ``(56, 4e-8)``.
    """
    return [(finest_side * (2.0**i - epsilon)) ** 2 for i in range(1, levels)]


class NodeRoIAlign(nn.Module):
    """One RoiAlign node for each level, summed.

    In the node of a level the boxes of the others are the point (0, 0), which has no samples and costs next to nothing.

    Args:
        scales: feature pixels per input pixel of each level, finest first.
        output_size: S, side of the pooled square.
        area_thresholds: input pixels^2, see ``level_areas``.
    """

    area_thresholds: Tensor  # [L - 1]

    def __init__(self, scales: Sequence[float], output_size: int, area_thresholds: Sequence[float]) -> None:
        super().__init__()
        self.scales, self.output_size = tuple(scales), output_size
        self.register_buffer("area_thresholds", torch.tensor(area_thresholds) * 1.0, persistent=False)

    def forward(self, levels: Sequence[Tensor], boxes: Tensor) -> Tensor:
        """``levels [N, C, h, w]`` each and ``boxes [N, R, 4]`` to ``[N * R, C, S, S]``."""
        batch, rois = boxes.shape[:2]
        level = _levels(boxes, self.area_thresholds).unsqueeze(-1)  # [N, R, 1]
        # One negative side would be a negative number of samples, at which ONNX Runtime and torchvision fail.
        boxes = torch.cat([boxes[..., :2], torch.maximum(boxes[..., :2], boxes[..., 2:])], -1)
        image = torch.arange(batch, dtype=boxes.dtype, device=boxes.device).reshape(-1, 1, 1).expand(-1, rois, 1)
        pooled = []
        for i, (feature, scale) in enumerate(zip(levels, self.scales, strict=True)):
            own = torch.cat([image, boxes * (level == i)], -1).flatten(0, 1)  # [N * R, 5]
            pooled.append(roi_align(feature, own, self.output_size, scale, sampling_ratio=0, aligned=True))
        return sum(pooled[1:], pooled[0])

    def pixels_first(self, levels: Sequence[Tensor], boxes: Tensor) -> Tensor:
        """The same as ``[S * S, N * R, C]``."""
        return self(levels, boxes).flatten(2).permute(2, 0, 1)


class CellRoIAlign(nn.Module):
    """RoIAlign by GridSample over an atlas of the levels, each feature pixel read about once.

    The samples of a bin give a weight to each pixel that they touch, a product of one along y and one along x. Samples
    lie at most a pixel apart, so g of them touch at most g + 1 neighbouring pixels along an axis. These are taken in
    cells of 2 x 2, and one bilinear sample at the centre of gravity of a cell's weights, times their sum, is exactly
    the weighted sum of its four pixels. A bin of gy x gx samples has (gy // 2 + 1) (gx // 2 + 1) cells: 9 for 4 x 4.

    RoIs are sorted by their number of cells and served from ``buckets``. One that has more cells than its bucket
    holds (``overflow``) gets cells of more than 2 x 2 pixels, each still read by one sample, and comes
    as near as two samples per axis do.

    Args:
        layout: of the atlas.
        scales: feature pixels per input pixel of each level.
        output_size: S, side of the pooled square.
        area_thresholds: input pixels^2, see ``level_areas``.
        buckets: how many RoIs of an image get how many cells per bin, most cells first.
    """

    area_thresholds: Tensor  # [L - 1]
    level_table: Tensor  # [L, 5] scale, width, height, x, y
    bins: Tensor  # [S, 1] 0 ... S - 1
    pixel: Tensor  # [2, 1, 1] a pixel's width and height in the atlas, which spans -1 to 1

    def __init__(
        self,
        layout: AtlasLayout,
        scales: Sequence[float],
        output_size: int,
        area_thresholds: Sequence[float],
        buckets: Buckets,
    ) -> None:
        super().__init__()
        self.output_size, self.buckets = output_size, tuple(buckets)
        table = [
            (scale, width, height, x, y)
            for scale, (height, width), (x, y) in zip(scales, layout.sizes, layout.origins, strict=True)
        ]
        pixel = 2 / torch.tensor([layout.width, layout.height]).reshape(2, 1, 1)
        self.register_buffer("area_thresholds", torch.tensor(area_thresholds) * 1.0, persistent=False)
        self.register_buffer("level_table", torch.tensor(table) * 1.0, persistent=False)
        self.register_buffer("bins", torch.arange(output_size).unsqueeze(1) * 1.0, persistent=False)
        self.register_buffer("pixel", pixel, persistent=False)

    def forward(self, atlas: Tensor, boxes: Tensor) -> Tensor:
        """``atlas [N, C, height, width]`` and ``boxes [N, R, 4]`` to ``[N * R, C, S, S]``."""
        pooled, rows = self._pooled(atlas, boxes)
        side = self.output_size
        rois_first = pooled.transpose(1, 2).reshape(-1, atlas.shape[1], side, side)
        return rois_first if rows is None else rois_first.index_select(0, rows)

    def pixels_first(self, atlas: Tensor, boxes: Tensor) -> Tensor:
        """The same as ``[S * S, N * R, C]``."""
        pooled, rows = self._pooled(atlas, boxes)
        pixels = pooled.permute(3, 0, 2, 1).flatten(1, 2)
        return pixels if rows is None else pixels.index_select(1, rows)

    def cells(self, boxes: Tensor) -> Tensor:
        """Cells per bin that ``boxes [..., 4]`` need, as whole floating-point numbers ``[...]``."""
        _, sides, _ = self._in_level(boxes)
        wanted = _cells(_samples(sides, self.output_size))
        return wanted[..., 0] * wanted[..., 1]

    def overflow(self, boxes: Tensor) -> int:
        """How many of ``boxes [N, R, 4]`` have more cells than their bucket holds, over the whole batch."""
        held = torch.cat([torch.full((rois,), cells) for rois, cells in self.buckets])
        return int((self.cells(boxes).sort(1, descending=True).values > held.to(boxes.device)).sum())

    def _pooled(self, atlas: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor | None]:
        """``[N, C, R, S * S]``, and where its RoIs are sorted the row of each box among its N * R."""
        batch, rois = boxes.shape[:2]
        if len(self.buckets) == 1:
            return self._bucket(atlas, boxes, self.buckets[0][1]), None
        order = self.cells(boxes).topk(rois, 1).indices
        boxes = boxes.gather(1, order.unsqueeze(-1).expand(-1, -1, 4))
        parts = boxes.split([rows for rows, _ in self.buckets], 1)
        pooled = [self._bucket(atlas, part, cells) for part, (_, cells) in zip(parts, self.buckets, strict=True)]
        back = order.to(boxes.dtype).topk(rois, 1, largest=False).indices  # the inverse permutation
        rows = back + rois * torch.arange(batch, device=boxes.device).unsqueeze(1)
        return torch.cat(pooled, 2), rows.flatten()

    def _bucket(self, atlas: Tensor, boxes: Tensor, cells: int) -> Tensor:
        """``boxes [N, R, 4]`` to ``[N, C, R, S * S]``, K = ``cells`` for each bin."""
        corners, sides, table = self._in_level(boxes)
        samples = _samples(sides, self.output_size)
        fitted = _fit(_cells(samples), cells)  # [N, R, 2] columns and rows of cells
        number = torch.arange(cells, dtype=boxes.dtype, device=boxes.device)
        row = torch.floor(number / fitted[..., :1])  # [N, R, K]; past the last row the cells have no weight
        index = torch.stack([number - row * fitted[..., :1], row], 2)
        position, weight = self._along(corners, sides, samples, fitted, index, table[..., 1:3])
        position = (position + _column(table[..., 3:5]) + 0.5) * self.pixel - 1  # [N, R, 2, S, K]
        batch, rois, side = *boxes.shape[:2], self.output_size
        x, y = position.permute(0, 4, 1, 2, 3).unbind(3)  # [N, K, R, S]
        weight_x, weight_y = weight.permute(0, 4, 1, 2, 3).unbind(3)
        shape = (batch, cells, rois, side, side)
        grid = torch.stack([x.unsqueeze(3).expand(shape), y.unsqueeze(4).expand(shape)], -1)
        # The cells of a bin lie outermost, so that their sum runs over whole blocks of memory.
        sampled = F.grid_sample(atlas, grid.reshape(batch, cells, -1, 2), align_corners=False)
        weighted = sampled * (weight_y.unsqueeze(4) * weight_x.unsqueeze(3)).reshape(batch, 1, cells, -1)
        return weighted.sum(2).reshape(batch, -1, rois, side * side)

    def _in_level(self, boxes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Left top corners and sides ``[..., 2]``, x before y, in pixels of each box's level, whose first pixel has its
        centre at 0; and its row of the table ``[..., 5]``."""
        table = F.embedding(_levels(boxes, self.area_thresholds), self.level_table)
        # Rounded as roi_align rounds: that decides where ceil() falls.
        edges = boxes * table[..., :1] - 0.5
        return edges[..., :2], edges[..., 2:] - edges[..., :2], table

    def _along(
        self, corners: Tensor, sides: Tensor, samples: Tensor, cells: Tensor, index: Tensor, size: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Where the cells of each axis are sampled, and what they weigh.

        Args:
            corners, sides: ``[N, R, 2]`` of the RoIs, in pixels of their levels.
            samples, cells: ``[N, R, 2]`` of each bin.
            index: ``[N, R, 2, K]`` numbers of cells in their bin.
            size: ``[N, R, 2]`` width and height of the level.

        Returns:
            Positions, inside the level, and weights, ``[N, R, 2, S, K]`` both.
        """
        corners, sides, samples, cells, size = (_column(t) for t in (corners, sides, samples, cells, size))
        step = (sides / self.output_size / samples.clamp(min=1)).clamp(min=1e-6)
        first = corners + self.bins * (sides / self.output_size) + 0.5 * step  # [N, R, 2, S, 1]
        # Samples more than a pixel outside count as zero, as in roi_align.
        skipped = torch.ceil((-1 - first) / step).clamp(min=0)
        counted = (torch.minimum(torch.floor((size - first) / step) + 1, samples) - skipped).clamp(min=0)
        first = first + skipped * step
        pixels = torch.ceil((samples + 1) / cells)  # along a cell: 2, or more where the bucket is too small
        left = index.unsqueeze(3) * pixels - (first - torch.floor(first))  # of the cell, from the first sample

        # The ramp, sum over the samples x of max(0, p - x), has as its second difference what they weigh on pixel p:
        # max(0, 1 - |p - x|) each. Its first difference is the weight of all pixels up to p.
        p = torch.stack([left - 1, left, left + pixels - 1, left + pixels])
        passed = torch.minimum(torch.ceil(p / step).clamp(min=0), counted)
        before, at_left, at_right, after = (passed * p - step * (0.5 * passed * (passed - 1))).unbind(0)
        weight = (after - at_right) - (at_left - before)
        moment = (pixels - 1) * (after - at_right) - (at_right - at_left)  # about the left pixel, summed by parts
        position = first + left + moment / weight.clamp(min=1e-6)
        # Clamped as a cell: where it lies outside, both of its pixels are the one at the border.
        return torch.minimum(position.clamp(min=0), size - 1), weight / samples.clamp(min=1)


Pool = AtlasRoIAlign | PlaneRoIAlign | NodeRoIAlign | CellRoIAlign
Maps = Tensor | Sequence[Tensor]  # what they pool from: an atlas, planes, or levels


def most_cells(layout: AtlasLayout, scales: Sequence[float], side: int, area_thresholds: Sequence[float]) -> int:
    """The most cells per bin that any box inside the frame needs, for a pooled square of ``side``.

    A box of more than (g - 1) * side pixels of its level in height is narrower than the level's largest area allows.
    """
    most = 1
    for (height, width), scale, area in zip(layout.sizes, scales, [*area_thresholds, math.inf], strict=True):
        for samples in range(1, math.ceil(height / side) + 1):
            least = (samples - 1) * side
            widest = min(width, area * scale**2 / least) if least else width
            most = max(most, (samples // 2 + 1) * (math.ceil(widest / side) // 2 + 1))
    return most


def default_buckets(rois: int, side: int, most: int) -> Buckets:
    """Buckets for ``rois`` boxes of an image and a pooled square of ``side``; ``most`` as ``most_cells`` counts.

    With room above what 1000 proposals of random networks need, on noise as well: 0.4 % more than 12 cells, 21 % more
    than 9, 40 % more than 6. Those of a trained one are smaller (1 % more than 9, 23 % more than 6). Of 100 boxes for
    masks 11 need more than 4.
    """
    shares = ((0.02, most), (0.25, 12), (0.5, 9), (1.0, 6)) if side < 14 else ((0.15, most), (1.0, 4))
    if most <= shares[-1][1]:
        return [(rois, most)]
    ends = [math.ceil(share * rois) for share, _ in shares]
    sizes = [end - start for start, end in pairwise([0, *ends])]
    return [(size, min(cells, most)) for size, (_, cells) in zip(sizes, shares, strict=True) if size]


def _levels(boxes: Tensor, area_thresholds: Tensor) -> Tensor:
    """Level of each of ``boxes [..., 4]``, 0 for the finest."""
    area = (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])
    return (area.unsqueeze(-1) >= area_thresholds).sum(-1)


def _samples(sides: Tensor, output_size: int) -> Tensor:
    """Samples of a bin along an axis, for sides in pixels of the level."""
    return torch.ceil(sides / output_size).clamp(min=0)


def _cells(samples: Tensor) -> Tensor:
    """Cells of a bin along an axis."""
    return torch.floor(samples / 2) + 1


def _fit(wanted: Tensor, cells: int) -> Tensor:
    """Columns and rows of cells ``[..., 2]``, less than wanted where their product is above ``cells``."""
    columns, rows = wanted.unbind(-1)
    held = columns.new_tensor(cells)  # divided as a tensor: a number times 1 / rows may round below the quotient
    columns = torch.minimum(columns, torch.floor(held / rows).clamp(min=math.isqrt(cells)))
    return torch.stack([columns, torch.minimum(rows, torch.floor(held / columns))], -1)


def _column(t: Tensor) -> Tensor:
    """``[..., 2]`` to ``[..., 2, 1, 1]``."""
    return t.unsqueeze(-1).unsqueeze(-1)
