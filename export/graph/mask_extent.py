"""Boxes of masks of the frame."""

from __future__ import annotations

import torch
from torch import Tensor

STRIDE = 4  # px of the input that a cell of a mask covers
TINY = 1e-9


def mask_extents(masks: Tensor, limit: Tensor, threshold: float) -> Tensor:
    """Where each mask, linear between the centres of its cells, passes the threshold: the box around it.

    Along each axis a mask is the most of its rows, or columns, that lie in the picture. A mask without a cell above the
    threshold in the picture has the box 0 0 0 0.

    Args:
        masks: ``[N, D, h, w]``, of a frame of 4h x 4w px.
        limit: ``[N, 1, 4]``, width, height, width, height of the picture in px.

    Returns:
        ``[N, D, 4]`` x1 y1 x2 y2 in px of the frame, within the picture.
    """
    width, height = (STRIDE * torch.ceil(limit[..., i : i + 1] / STRIDE) for i in (0, 1))  # [N, 1, 1], whole cells
    columns, rows = (STRIDE * torch.arange(size, dtype=masks.dtype) for size in (masks.shape[3], masks.shape[2]))
    across = torch.where(rows.unsqueeze(1) < height.unsqueeze(3), masks, 0).amax(2)  # [N, D, w]
    down = torch.where(columns < width.unsqueeze(3), masks, 0).amax(3)  # [N, D, h]
    x1, x2 = _ends(across, columns < width, threshold)
    y1, y2 = _ends(down, rows < height, threshold)
    return torch.minimum(torch.stack([x1, y1, x2, y2], -1), limit)


def _ends(profile: Tensor, there: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """``profile [N, D, n]`` to its first and last passing of the threshold in px, ``[N, D]``, by cells that are
    ``there`` alone; 0 and 0 where it never does.

    From a cell above the threshold to a neighbour that is not, the passing is a share of the way; to one that is, or
    would be at the frame's edge, the neighbour's centre or the edge: neither is an end of the mask.
    """
    cells = profile.shape[2]
    inside = (profile > threshold) & there
    mirrored = 2 * threshold - profile  # half of the way: the edge of the frame
    before = torch.cat([mirrored[..., :1], profile[..., :-1]], -1).clamp(max=threshold)
    after = torch.cat([profile[..., 1:], mirrored[..., -1:]], -1).clamp(max=threshold)
    above = profile - threshold
    centre = torch.arange(cells, dtype=profile.dtype) + 0.5
    first = centre - above / (profile - before).clamp(min=TINY)
    last = centre + above / (profile - after).clamp(min=TINY)
    from_end = torch.where(inside, cells - first, 0).amax(2)
    end = torch.where(inside, last, 0).amax(2)
    return STRIDE * (cells - from_end) * (from_end > 0), STRIDE * end
