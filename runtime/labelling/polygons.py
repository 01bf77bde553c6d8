"""Masks as polygons, for formats that know nothing else."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

_EPSILON = 0.7  # px: the steps of a slanting edge become a line, and nothing else changes


def polygons_of(counts: str, height: int, width: int, bbox: Sequence[float]) -> list[NDArray[np.float64]]:
    """The outlines of a mask's parts, the largest first; holes are lost.

    Args:
        counts: of COCO's compressed RLE, of a mask of ``height`` x ``width`` pixels.
        bbox: x y width height, taken for a mask of no pixel.

    Returns:
        Polygons ``[P, 2]`` of 3 points or more, x y in pixels of the picture, whose left top corner is 0 0. They lead
        through the centres of the mask's outermost pixels, at most 0.7 px beside them.
    """
    from pycocotools import mask as coco_mask

    rle = {"size": [height, width], "counts": counts}
    x, y, w, h = (int(v) for v in coco_mask.toBbox(rle))
    if not w or not h:
        return [_corners(*bbox)]
    pixels = np.ascontiguousarray(coco_mask.decode(rle)[y : y + h, x : x + w])
    found, _ = cv2.findContours(pixels, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    parts = sorted(found, key=cv2.contourArea, reverse=True)
    return [_simplified(np.asarray(part, np.int32).reshape(-1, 2)) + np.array([x + 0.5, y + 0.5]) for part in parts]


def _simplified(contour: NDArray[np.int32]) -> NDArray[np.float64]:
    simple = cv2.approxPolyDP(contour, _EPSILON, closed=True).reshape(-1, 2)
    if len(simple) >= 3:
        return simple.astype(np.float64)
    (left, top), (right, bottom) = contour.min(0) - 0.25, contour.max(0) + 0.25  # a line has no inside
    return _corners(left, top, right - left, bottom - top)


def _corners(x: float, y: float, w: float, h: float) -> NDArray[np.float64]:
    return np.array([[x, y], [x + w, y], [x + w, y + h], [x, y + h]], np.float64)
