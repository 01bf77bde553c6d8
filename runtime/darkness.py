"""How dark a picture is."""

from __future__ import annotations

import math

import cv2
import numpy as np
from numpy.typing import NDArray

# Mean linear luminance of a picture, 1 is a white one: a starless street, ..., dusk, daylight.
BIN_EDGES = (0.0, 0.015, 0.03, 0.06, 0.12, 1.0)
_LUMINANCE = np.array([0.0722, 0.7152, 0.2126])  # of linear B, G, R (ITU-R BT.709)
_LEVELS = np.arange(256) / 255
_ENOUGH = 1 << 16  # pixels of a picture whose mean is as good as that of all
_LINEAR = np.where(_LEVELS <= 0.04045, _LEVELS / 12.92, ((_LEVELS + 0.055) / 1.055) ** 2.4).astype(np.float32)


def linear_from_srgb(picture: NDArray[np.uint8]) -> NDArray[np.float32]:
    """uint8 sRGB to linear light from 0 to 1, float32 of the same shape (IEC 61966-2-1)."""
    return _LINEAR[picture]


def luminance(picture_bgr: NDArray[np.uint8]) -> float:
    """Mean linear luminance from 0 to 1 of a uint8 sRGB picture ``[h, w, 3]`` in BGR.

    Of a large picture, of 768x768 pixels or more, that of every third, fifth, ... row and column, so that 65,536 pixels
    are left at least: within 1.4 % of the mean of all, which is a third of a grey level, on photographs and night
    scenes at 1080p.
    """
    height, width = picture_bgr.shape[:2]
    step = max((math.isqrt(height * width // _ENOUGH) - 1) // 2 * 2 + 1, 1)  # odd, for patterns of two pixels
    some = np.ascontiguousarray(picture_bgr[min(step, height) // 2 :: step, min(step, width) // 2 :: step])
    histograms = [cv2.calcHist([some], [channel], None, [256], [0, 256]) for channel in range(3)]
    linear = np.reshape(histograms, (3, 256)) @ _LINEAR.astype(np.float64)
    return float(linear @ _LUMINANCE / (some.shape[0] * some.shape[1]))


def darkness_bin(value: float) -> str:
    """The name of the bin that a mean linear luminance falls into."""
    upper = next((i for i in range(1, len(BIN_EDGES) - 1) if value < BIN_EDGES[i]), len(BIN_EDGES) - 1)
    return f"{BIN_EDGES[upper - 1]:g}-{BIN_EDGES[upper]:g}"
