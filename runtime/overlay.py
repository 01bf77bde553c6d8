"""Detections drawn over their frame."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from wnlb.runtime.detections import Detections

_FONT = cv2.FONT_HERSHEY_SIMPLEX
_MASK_OPACITY = 0.42


def class_color(label: int) -> tuple[int, int, int]:
    """A bright BGR colour for a label from 1 up; neighbouring labels differ most (golden-ratio hues)."""
    red, green, blue = colorsys.hsv_to_rgb((0.13 + 0.618034 * (label - 1)) % 1, 0.72, 1.0)
    return round(255 * blue), round(255 * green), round(255 * red)


def track_color(track_id: int) -> tuple[int, int, int]:
    """A bright BGR colour for an identity; two that follow one another differ most."""
    return class_color(track_id + 4)  # so that the first track and the first class differ


def color_of(detections: Detections, i: int) -> tuple[int, int, int]:
    """Of one detection: that of its identity, of its class where it has none."""
    track = 0 if detections.track_ids is None else int(detections.track_ids[i])
    return track_color(track) if track else class_color(int(detections.labels[i]))


def draw(frame_bgr: NDArray[np.uint8], detections: Detections, class_names: Sequence[str]) -> NDArray[np.uint8]:
    """A copy of the frame with what ``draw_on`` draws."""
    picture = frame_bgr.copy()
    draw_on(picture, detections, class_names)
    return picture


def draw_on(picture: NDArray[np.uint8], detections: Detections, class_names: Sequence[str]) -> None:
    """Masks, their outlines, boxes, names and scores, readable on dark pictures, drawn into a frame.

    What belongs to a track has its number beside the name, and its colour instead of that of the class.

    Args:
        picture: uint8 BGR ``[h, w, 3]``, of the size that ``detections`` have.
        class_names: label 1 is the first.
    """
    side = max(picture.shape[:2])
    thickness = max(round(side / 500), 1)
    scale = max(side / 1400, 0.35)
    for i in reversed(range(len(detections))):  # the best on top
        color = color_of(detections, i)
        if detections.masks is not None:
            _draw_mask(picture, detections.masks[i].x, detections.masks[i].y, detections.masks[i].pixels, color)
        x1, y1, x2, y2 = (round(float(v)) for v in detections.boxes[i])
        corner = (min(x2, picture.shape[1] - 1), min(y2, picture.shape[0] - 1))  # the frame's edge is past its pixels
        cv2.rectangle(picture, (x1, y1), corner, color, thickness, cv2.LINE_AA)
    for i in reversed(range(len(detections))):
        name = class_names[int(detections.labels[i]) - 1]
        number = f" {detections.track_ids[i]}" if detections.track_ids is not None and detections.track_ids[i] else ""
        text = f"{name}{number} {detections.scores[i]:.2f}"
        _draw_label(picture, text, detections.boxes[i], color_of(detections, i), scale)


def _draw_mask(
    picture: NDArray[np.uint8], x: int, y: int, pixels: NDArray[np.bool_], color: tuple[int, int, int]
) -> None:
    if not pixels.any():
        return
    h, w = pixels.shape
    mask = np.ascontiguousarray(pixels).view(np.uint8)
    part = picture[y : y + h, x : x + w]
    cv2.copyTo(cv2.LUT(part, _blended(color)), mask, part)
    outlines, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(picture, outlines, -1, color, 1, cv2.LINE_AA, offset=(x, y))


def _blended(color: tuple[int, int, int]) -> NDArray[np.uint8]:
    """``[1, 256, 3]``: what each value of each channel becomes under a mask of this colour."""
    values = np.arange(256)[:, None] * (1 - _MASK_OPACITY) + np.array(color) * _MASK_OPACITY
    return values.astype(np.uint8)[None]


def _draw_label(
    picture: NDArray[np.uint8], text: str, box: NDArray[np.float32], color: tuple[int, int, int], scale: float
) -> None:
    """Dark text on a plate of the class colour, above the box where there is room and inside the picture."""
    (width, height), baseline = cv2.getTextSize(text, _FONT, scale, 1)
    pad = max(round(3 * scale), 1)
    x = max(min(round(float(box[0])), picture.shape[1] - width - 2 * pad), 0)
    top = round(float(box[1])) - height - baseline - 2 * pad
    if top < 0:
        top = min(round(float(box[1])), picture.shape[0] - height - baseline - 2 * pad)
    top = max(top, 0)
    bottom = top + height + baseline + 2 * pad
    cv2.rectangle(picture, (x, top), (x + width + 2 * pad, bottom), color, -1)
    weight = max(round(scale * 1.6), 1)
    cv2.putText(picture, text, (x + pad, bottom - baseline - pad), _FONT, scale, (0, 0, 0), weight, cv2.LINE_AA)
