"""The sharpest picture of an object."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from wnlb.runtime.night.checked import number, text, whole

_SIDE = 96  # px of the longer side in which sharpness is compared
_SHOWN = 224  # px that the longer side has at most where it is shown
_MARGIN = 0.15  # of the box, on each side
_QUALITY = 82  # of JPEG
_WHITE, _GAIN = 235.0, 6.0  # what is brightest is shown so bright, by no larger factor


@dataclass(frozen=True)
class Shot:
    """One object as a frame showed it."""

    at_s: float  # since the record began
    label: int  # 1..C
    score: float
    sharpness: float
    jpeg: bytes  # of the object and a little around it, brightened

    def as_json(self) -> dict[str, Any]:
        return {**vars(self), "jpeg": base64.b64encode(self.jpeg).decode()}

    @classmethod
    def from_json(cls, values: dict[str, Any], classes: int) -> Shot:
        """Raises ValueError, KeyError or TypeError for what ``as_json`` did not write of so many classes."""
        return cls(
            number(values["at_s"]),
            whole(values["label"], 1, classes),
            number(values["score"], most=1),
            number(values["sharpness"]),
            base64.b64decode(text(values["jpeg"]), validate=True),
        )


def sharpness(frame_bgr: NDArray[np.uint8], box: NDArray[np.float32]) -> float:
    """Variance of the Laplacian (Pech-Pacheco et al., ICPR 2000) of what is in the box; 0 for a box without pixels.

    Every box is compared at one size, slightly smoothed: a large and well lit object is sharper than a small or dark
    one, and noise is not taken for detail.

    Args:
        frame_bgr: uint8 ``[h, w, 3]``.
        box: x1 y1 x2 y2 in its pixels.
    """
    cut = _cut(frame_bgr, box, 0.0)
    if not cut.size:
        return 0.0
    grey = cv2.GaussianBlur(cv2.cvtColor(_fitted(cut, _SIDE), cv2.COLOR_BGR2GRAY), (0, 0), 1.0)
    return float(cv2.Laplacian(grey, cv2.CV_32F).var())


def jpeg_of(frame_bgr: NDArray[np.uint8], box: NDArray[np.float32]) -> bytes:
    """The object and a little around it, so bright that it can be seen; arguments as ``sharpness``."""
    cut = _cut(frame_bgr, box, _MARGIN)
    shown = cut if max(cut.shape[:2]) <= _SHOWN else _fitted(cut, _SHOWN)
    gain = min(max(_WHITE / max(float(np.percentile(shown, 99)), 1.0), 1.0), _GAIN)
    _, data = cv2.imencode(".jpg", cv2.convertScaleAbs(shown, alpha=gain), [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
    return data.tobytes()


def _cut(frame: NDArray[np.uint8], box: NDArray[np.float32], margin: float) -> NDArray[np.uint8]:
    x1, y1, x2, y2 = (float(side) for side in box)
    more = margin * max(x2 - x1, y2 - y1)
    top, left = max(int(y1 - more), 0), max(int(x1 - more), 0)
    return frame[top : max(int(np.ceil(y2 + more)), top), left : max(int(np.ceil(x2 + more)), left)]


def _fitted(picture: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """The longer side as long as ``side``."""
    share = side / max(picture.shape[:2])
    size = (max(round(picture.shape[1] * share), 1), max(round(picture.shape[0] * share), 1))
    how = cv2.INTER_AREA if share < 1 else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(picture, size, interpolation=how), np.uint8)
