"""What was found in one frame."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

MASK_THRESHOLD = 0.5
_ROWS = 64  # of a frame whose values are computed at a time, so that they stay in the cache


@dataclass(frozen=True, eq=False)
class Mask:
    """The part of a frame-sized binary mask that can be set: ``pixels`` with its corner at (x, y) of the frame."""

    x: int
    y: int
    pixels: NDArray[np.bool_]  # [h, w]


@dataclass(frozen=True, eq=False)
class Detections:
    """Detections of one frame, best first, in the pixels of that frame. Also valid with none.

    Raises ValueError where the arrays do not fit each other.
    """

    height: int  # of the frame
    width: int
    boxes: NDArray[np.float32]  # [D, 4] x1 y1 x2 y2
    scores: NDArray[np.float32]  # [D]
    labels: NDArray[np.int32]  # [D], 1..C
    masks: tuple[Mask, ...] | None  # D of them; None where the model has no masks
    track_ids: NDArray[np.int32] | None = None  # [D], identities from 1 up, 0 of none; None where nothing was tracked

    def __post_init__(self) -> None:
        rows = len(self.scores)
        if self.boxes.shape != (rows, 4) or self.scores.shape != (rows,) or self.labels.shape != (rows,):
            raise ValueError(
                f"boxes {self.boxes.shape}, scores {self.scores.shape} and labels {self.labels.shape} do not fit; "
                "expected [D, 4], [D] and [D]"
            )
        if self.track_ids is not None and self.track_ids.shape != (rows,):
            raise ValueError(f"track_ids {self.track_ids.shape} for {rows} detections; expected [D]")
        if self.masks is None:
            return
        if len(self.masks) != rows:
            raise ValueError(f"{len(self.masks)} masks for {rows} detections")
        for mask in self.masks:
            h, w = mask.pixels.shape
            if mask.x < 0 or mask.y < 0 or mask.x + w > self.width or mask.y + h > self.height:
                raise ValueError(f"mask at ({mask.x}, {mask.y}) of {w}x{h} leaves the {self.width}x{self.height} frame")

    def __len__(self) -> int:
        return len(self.scores)

    @classmethod
    def none(cls, height: int, width: int) -> Detections:
        """Of a frame in which there is nothing."""
        return cls(height, width, np.empty((0, 4), np.float32), np.empty(0, np.float32), np.empty(0, np.int32), ())

    def above(self, score_threshold: float) -> Detections:
        """Those that score ``score_threshold`` or more."""
        return self.at(np.arange(int((self.scores >= score_threshold).sum())))  # best first

    def tracked(self) -> Detections:
        """Those that belong to a track; all where nothing was tracked."""
        return self if self.track_ids is None else self.at(np.flatnonzero(self.track_ids))

    def at(self, rows: NDArray[np.integer]) -> Detections:
        """Those at these places, in this order."""
        masks = None if self.masks is None else tuple(self.masks[i] for i in rows)
        tracks = None if self.track_ids is None else self.track_ids[rows]
        boxes, scores, labels = self.boxes[rows], self.scores[rows], self.labels[rows]
        return Detections(self.height, self.width, boxes, scores, labels, masks, tracks)

    def full_masks(self) -> Iterator[NDArray[np.bool_]]:
        """Each mask as bool ``[height, width]``, one at a time."""
        for mask in self.masks or ():
            full = np.zeros((self.height, self.width), bool)
            h, w = mask.pixels.shape
            full[mask.y : mask.y + h, mask.x : mask.x + w] = mask.pixels
            yield full


def paste_masks(
    probabilities: NDArray[np.float32], boxes: NDArray[np.floating], height: int, width: int, how: str
) -> tuple[Mask, ...]:
    """Binary masks in the pixels of the frame, each cropped to what it can cover.

    "resized": torchvision's ``paste_masks_in_image``, above 0.5. "sampled": ``_do_paste_mask`` of mmdetection
    (mmdet/models/roi_heads/mask_heads/fcn_mask_head.py) and detectron2 (layers/mask_ops.py): a pixel is set where the
    bilinear value at its centre is 0.5 or more. The mask's M x M cells fill the box, outside it is 0; a box without
    extent has none.

    Args:
        probabilities: ``[D, M, M]`` inside each box.
        boxes: ``[D, 4]`` x1 y1 x2 y2 in frame pixels, inside the frame; float32 for "resized", as in torchvision.
            "sampled" computes in float64, and boxes of that precision keep it.
        height, width: of the frame, pixels.
        how: ``Conventions.mask_paste``; masks of the frame are pasted by ``wnlb.runtime.frame_masks``.
    """
    if how == "sampled":
        return tuple(_sample(mask, box, height, width) for mask, box in zip(probabilities, boxes.tolist(), strict=True))
    size = probabilities.shape[-1] if len(boxes) else 1
    # A border of one zero pixel, and the boxes grown to match (torchvision's expand_masks and expand_boxes).
    padded = np.pad(probabilities, ((0, 0), (1, 1), (1, 1)))
    half = (boxes[:, 2:] - boxes[:, :2]) * np.float32(0.5) * np.float32((size + 2) / size)
    center = (boxes[:, 2:] + boxes[:, :2]) * np.float32(0.5)
    corners = np.concatenate([center - half, center + half], 1).astype(np.int64)  # towards zero, as torchvision
    return tuple(_resize(mask, corner, height, width) for mask, corner in zip(padded, corners.tolist(), strict=True))


def _resize(mask: NDArray[np.float32], box: list[int], height: int, width: int) -> Mask:
    x1, y1, x2, y2 = box
    w, h = max(x2 - x1 + 1, 1), max(y2 - y1 + 1, 1)
    left, top = min(max(x1, 0), width), min(max(y1, 0), height)
    right, bottom = max(min(x1 + w, width), left), max(min(y1 + h, height), top)
    resized = cv2.resize(mask, (w, h), interpolation=cv2.INTER_LINEAR)
    return Mask(left, top, resized[top - y1 : bottom - y1, left - x1 : right - x1] > MASK_THRESHOLD)


def _sample(mask: NDArray[np.float32], box: list[float], height: int, width: int) -> Mask:
    """A bilinear value is a product of matrices: weights of rows, mask, weights of columns."""
    x1, y1, x2, y2 = box
    if x2 <= x1 or y2 <= y1:
        return Mask(0, 0, np.zeros((0, 0), bool))
    # Half a pixel and more beside the box all values are below 0.5.
    left, top, right, bottom = math.floor(x1), math.floor(y1), min(math.ceil(x2), width), min(math.ceil(y2), height)
    rows = _weights(top, bottom, y1, y2, len(mask))
    columns = mask.astype(np.float64) @ _weights(left, right, x1, x2, len(mask)).T  # [M, w]
    pixels = np.empty((bottom - top, right - left), bool)
    for i in range(0, len(rows), _ROWS):
        np.greater_equal(rows[i : i + _ROWS] @ columns, MASK_THRESHOLD, out=pixels[i : i + _ROWS])
    return Mask(left, top, pixels)


def _weights(first: int, last: int, low: float, high: float, cells: int) -> NDArray[np.float64]:
    """``[last - first, cells]``: the weight of each cell at the centre of each pixel; the box is from low to high."""
    at = (np.arange(first, last) + 0.5 - low) / (high - low) * 2 - 1  # -1 .. 1 over the box, as both frameworks have it
    at = (at + 1) * (cells / 2) - 0.5  # PyTorch's grid_sample, align_corners=False: the centre of cell i is at i
    return np.maximum(1 - np.abs(at[:, None] - np.arange(cells)), 0)
