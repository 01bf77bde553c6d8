"""Pillow's antialiased bilinear resizing of uint8 pictures, pixel for pixel, by NumPy and OpenCV.

``PIL.Image.resize`` with BILINEAR (Pillow, src/libImaging/Resample.c), which detectron2 prepares its frames with::

    centre = (i + 0.5) * old / new                 # of new pixel i, in old pixels
    reach = max(old / new, 1)
    weight[k] = 1 - |k + 0.5 - centre| / reach     # of old pixels k within reach; normalised, rounded to 22 bits
    new[i] = floor(sum(weight[k] * old[k]) + 0.5)

along x and then along y, rounded to uint8 between: as Pillow up to 12. Pillow 13 takes y first where that is less work
(of frames for detection, tall ones that shrink), which makes a grey level of difference. A sum is a multiple of 2^-22
below 2^8: products of matrices in float64 are exact, in whichever order they add.
"""

from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

_BITS = 22
# New rows of one product: a band of them needs few old rows, and both stay in the cache. 1920x1080 to 1333x750 on one
# core of a Xeon with AVX-512: 12 ms, as with 4; 20 ms with 16. Pillow: 12 ms. Rows added one by one in int32: 18 ms.
_BAND = 8


def resized_antialiased(picture: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """A uint8 picture ``[h, w, 3]`` with ``height`` rows and ``width`` columns."""
    pixels = np.ascontiguousarray(picture)
    if width != pixels.shape[1]:
        pixels = _transposed(_resampled(_transposed(pixels), width))
    return pixels if height == pixels.shape[0] else _resampled(pixels, height)


def _transposed(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.asarray(cv2.transpose(pixels), np.uint8)


def _resampled(pixels: NDArray[np.uint8], new: int) -> NDArray[np.uint8]:
    """``[old, n, 3]`` to ``[new, n, 3]``."""
    rows = pixels.reshape(len(pixels), -1)
    out = np.empty((new, rows.shape[1]), np.uint8)
    for start, first, weights in _bands(len(rows), new):
        band = weights @ rows[first : first + weights.shape[1]].astype(np.float64)
        band += 0.5
        out[start : start + len(weights)] = band  # rounded down; at most 255.5
    return out.reshape(new, *pixels.shape[1:])


@lru_cache(maxsize=16)
def _bands(old: int, new: int) -> tuple[tuple[int, int, NDArray[np.float64]], ...]:
    """First new row, first old row and weights ``[new rows, old rows]`` of each band."""
    return tuple(_band(start, min(start + _BAND, new), old, new) for start in range(0, new, _BAND))


def _band(start: int, stop: int, old: int, new: int) -> tuple[int, int, NDArray[np.float64]]:
    """In the order of Pillow's own operations, on which the last bit of a weight depends."""
    scale = old / new
    reach = max(scale, 1.0)
    centres = (np.arange(start, stop)[:, None] + 0.5) * scale
    first = np.maximum((centres - reach + 0.5).astype(np.int64), 0)
    last = np.minimum((centres + reach + 0.5).astype(np.int64), old)
    at = np.arange(first[0, 0], last[-1, 0])
    weights = np.maximum(1 - np.abs((at - centres + 0.5) * (1 / reach)), 0) * ((at >= first) & (at < last))
    weights /= np.cumsum(weights, 1)[:, -1:]  # added one by one
    return start, int(first[0, 0]), np.floor(weights * 2**_BITS + 0.5) / 2**_BITS
