"""torchvision's multi-level RoIAlign by one RoiAlign node, for files that are for a CPU alone.

TensorRT-RTX needs a GPU to parse that operator.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import roi_align

from wnlb.export.graph.static_ops import AtlasLayout


class PlaneRoIAlign(nn.Module):
    """torchvision's ``MultiScaleRoIAlign`` (``aligned=False``), over planes that hold the levels.

    P2 is a plane of its own. P3, P4 and P5 share a second one of its size, each with its last row and column repeated
    behind it, for there ``roi_align`` clamps. So all RoIs are rows of one node, in the order of the boxes: with a node
    for each level, the pooled squares, 50 MB, were copied once more.

    Points behind P2 count as zero, as in ``roi_align``. On the coarser levels there are none: only a box thinner than a
    pixel has them, and there it would be 196 times as long as wide, in a frame of more than 1568 px.

    Args:
        layout: sizes of P2 .. P5.
        scales: feature pixels per input pixel of each level.
        output_size: S, side of the pooled square.
        sampling_ratio: points per bin and axis.
        area_thresholds: input pixels^2 from which on a box belongs to the second, third, ... level.
    """

    area_thresholds: Tensor  # [L - 1]
    level_table: Tensor  # [L, 6] scale; x, y, x, y of the level in its plane; number of the plane

    def __init__(
        self,
        layout: AtlasLayout,
        scales: Sequence[float],
        output_size: int,
        sampling_ratio: int,
        area_thresholds: Sequence[float],
    ) -> None:
        super().__init__()
        self.output_size, self.sampling_ratio = output_size, sampling_ratio
        below, right = (side + 1 for side in layout.sizes[1])
        places = [(0, 0, 0), (0, 0, 1), (right, 0, 1), (0, below, 1)]
        table = [(scale, x, y, x, y, plane) for scale, (x, y, plane) in zip(scales, places, strict=True)]
        self.register_buffer("area_thresholds", torch.tensor(area_thresholds) * 1.0, persistent=False)
        self.register_buffer("level_table", torch.tensor(table) * 1.0, persistent=False)

    def planes(self, levels: Sequence[Tensor]) -> Tensor:
        """P2 .. P5 ``[N, C, h, w]`` to ``[2 N, C, height, width]`` of P2: that of all images first."""
        height, width = levels[0].shape[2:]
        p3, p4, p5 = (F.pad(level, (0, 1, 0, 1), mode="replicate") for level in levels[1:])
        p4 = F.pad(p4, (0, width - p3.shape[3] - p4.shape[3], 0, p3.shape[2] - p4.shape[2]))
        p5 = F.pad(p5, (0, width - p5.shape[3], 0, height - p3.shape[2] - p5.shape[2]))
        return torch.cat([levels[0], torch.cat([torch.cat([p3, p4], 3), p5], 2)])

    def forward(self, planes: Tensor, boxes: Tensor) -> Tensor:
        """``planes`` and ``boxes [N, R, 4]`` to ``[N * R, C, S, S]``."""
        area = (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])
        level = (area.unsqueeze(-1) >= self.area_thresholds).sum(-1)
        table = F.embedding(level, self.level_table)  # [N, R, 6]
        batch = boxes.shape[0]
        image = torch.arange(batch, dtype=boxes.dtype, device=boxes.device).reshape(-1, 1, 1)
        rois = torch.cat([table[..., 5:] * batch + image, boxes * table[..., :1] + table[..., 1:5]], -1).flatten(0, 1)
        return roi_align(planes, rois, self.output_size, 1.0, self.sampling_ratio)

    def pixels_first(self, planes: Tensor, boxes: Tensor) -> Tensor:
        """The same as ``[S * S, N * R, C]``."""
        return self(planes, boxes).flatten(2).permute(2, 0, 1)
