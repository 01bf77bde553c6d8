"""Masks of the frame, computed at a quarter of the input's size, in the pixels of the frame that they belong to."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wnlb.runtime.contract import FRAME_SHARE
from wnlb.runtime.detections import Mask
from wnlb.runtime.geometry import Placement

# Pixels of an axis at a time: few cells make them, and products stay so small that BLAS does not call other threads,
# which costs more than it brings (OpenBLAS: from 2^18 multiplications on).
_BLOCK = 16


def paste_frame_masks(
    values: NDArray[np.floating], boxes: NDArray[np.float32], placement: Placement, how: str
) -> tuple[Mask, ...]:
    """Binary masks in the pixels of the frame, each cropped to what it can cover: empty where nothing is set.

    All values are enlarged bilinearly, cut to the picture, resized bilinearly to the frame (both with centres at + 0.5
    and the nearest value beyond the border: PyTorch's ``interpolate``), and are above 0 where the mask is. "enlarged":
    by 4, to the size of the input (mmdet/models/dense_heads/solov2_head.py). "cut": only as far as the padding takes to
    be cut on whole values (1, 2 or 4), and set in pixels x1 <= x < x2, y1 <= y < y2 of their box alone, by the pixels'
    numbers (ultralytics/utils/ops.py, ``process_mask_native``).

    Enlarging and resizing are products of matrices, of which only the part is computed that covers the values above 0,
    and the box. In float32, as in both frameworks.

    Args:
        values: ``[D, H/4, W/4]`` of the input H x W, above 0 inside.
        boxes: ``[D, 4]`` x1 y1 x2 y2 in frame pixels; of "cut".
        how: ``Conventions.mask_paste``.
    """
    height, width = values.shape[1:]
    enlarged, limits = FRAME_SHARE, [(0, 0, placement.frame_width, placement.frame_height)] * len(values)
    if how == "cut":
        padding = (FRAME_SHARE * height - placement.height) | (FRAME_SHARE * width - placement.width)
        enlarged = FRAME_SHARE // math.gcd(FRAME_SHARE, padding | padding // 2)
        limits = [(math.ceil(x1), math.ceil(y1), math.ceil(x2), math.ceil(y2)) for x1, y1, x2, y2 in boxes.tolist()]
    rows = _resampling(height, enlarged, placement.top, placement.height, placement.frame_height)
    columns = _resampling(width, enlarged, placement.left, placement.width, placement.frame_width)
    return tuple(_paste(mask, rows, columns, limit) for mask, limit in zip(values, limits, strict=True))


def extents(masks: Sequence[Mask]) -> NDArray[np.float32]:
    """``[D, 4]`` x1 y1 x2 y2 in frame pixels: the edges of what is set; 0 0 0 0 where nothing is."""
    boxes = np.zeros((len(masks), 4), np.float32)
    for mask, box in zip(masks, boxes, strict=True):
        columns, rows = (np.flatnonzero(mask.pixels.any(axis)) for axis in (0, 1))
        if len(columns):
            box[:] = mask.x + columns[0], mask.y + rows[0], mask.x + columns[-1] + 1, mask.y + rows[-1] + 1
    return boxes


@dataclass(frozen=True, eq=False)
class _Resampling:
    """From the cells of an axis to the pixels of the frame."""

    weights: NDArray[np.float32]  # [pixels, cells]; in a row one to four that are not 0, side by side

    @functools.cached_property
    def cells(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """First and last cell that each pixel is made of. Both ascend."""
        touched = self.weights > 0
        return touched.argmax(1), touched.shape[1] - 1 - touched[:, ::-1].argmax(1)

    def pixels(self, first: int, last: int) -> tuple[int, int]:
        """First and one past the last pixel that are made of any of the cells from ``first`` to ``last``."""
        firsts, lasts = self.cells
        return int(np.searchsorted(lasts, first)), int(np.searchsorted(firsts, last, side="right"))

    def span(self, start: int, stop: int) -> slice:
        """The cells that these pixels are made of."""
        firsts, lasts = self.cells
        return slice(int(firsts[start]), int(lasts[stop - 1]) + 1)

    def blocks(self, start: int, stop: int) -> Iterator[tuple[slice, NDArray[np.float32], slice]]:
        """Pixels, from 0 at ``start``, a few at a time; their weights; and the cells, from 0 at the first of all."""
        first = self.span(start, stop).start
        for i in range(start, stop, _BLOCK):
            end = min(i + _BLOCK, stop)
            cells = self.span(i, end)
            own = slice(cells.start - first, cells.stop - first)
            yield slice(i - start, end - start), self.weights[i:end, cells], own


def _paste(
    mask: NDArray[np.floating], rows: _Resampling, columns: _Resampling, limit: tuple[int, int, int, int]
) -> Mask:
    above = mask > 0
    in_rows, in_columns = (np.flatnonzero(above.any(axis)) for axis in (1, 0))
    if not len(in_rows):
        return Mask(0, 0, np.zeros((0, 0), bool))
    top, bottom = rows.pixels(in_rows[0], in_rows[-1])
    left, right = columns.pixels(in_columns[0], in_columns[-1])
    left, top, right, bottom = max(left, limit[0]), max(top, limit[1]), min(right, limit[2]), min(bottom, limit[3])
    if left >= right or top >= bottom:
        return Mask(0, 0, np.zeros((0, 0), bool))
    cells = mask[rows.span(top, bottom), columns.span(left, right)].astype(np.float32, copy=False)
    values = np.empty((len(cells), right - left), np.float32)
    for pixels, weights, own in columns.blocks(left, right):
        values[:, pixels] = cells[:, own] @ weights.T
    inside = np.empty((bottom - top, right - left), bool)
    for pixels, weights, own in rows.blocks(top, bottom):
        np.greater(weights @ values[own], 0, out=inside[pixels])
    return Mask(left, top, inside)


@functools.lru_cache(maxsize=16)
def _resampling(cells: int, enlarged: int, start: int, size: int, pixels: int) -> _Resampling:
    """Cells enlarged, cut to the picture (its first pixel and its size, in pixels of the input), resized to pixels."""
    share = FRAME_SHARE // enlarged  # of the input, a side of an enlarged value
    weights = _bilinear(cells, cells * enlarged)[start // share :][: size // share]
    weights = _bilinear(len(weights), pixels) @ weights
    return _Resampling(weights.astype(np.float32))


def _bilinear(source: int, target: int) -> NDArray[np.float64]:
    """``[target, source]`` weights of PyTorch's ``interpolate``, bilinear, ``align_corners=False``."""
    at = np.clip((np.arange(target) + 0.5) * (source / target) - 0.5, 0, source - 1)
    return np.maximum(1 - np.abs(at[:, None] - np.arange(source)), 0)
