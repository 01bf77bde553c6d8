"""How dark planted pictures are."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from wnlb.runtime.darkness import darkness_bin, luminance


def of_all(picture: NDArray[np.uint8]) -> float:
    """The definition, in float64, of every pixel."""
    level = picture / 255
    linear = np.where(level <= 0.04045, level / 12.92, ((level + 0.055) / 1.055) ** 2.4)
    return float((linear @ [0.0722, 0.7152, 0.2126]).mean())


def test_luminance_is_that_of_float64() -> None:
    rng = np.random.default_rng(5)
    for shape in ((1, 1, 3), (7, 5, 3), (200, 300, 3), (767, 768, 3)):
        picture = rng.integers(0, 256, shape, np.uint8)
        for frame in (picture, picture[::-1, ::-1], picture // 9):
            assert luminance(frame) == pytest.approx(of_all(frame), rel=1e-7)  # the curve is kept in float32


def test_luminance_of_a_large_picture_is_that_of_some_of_its_pixels() -> None:
    """Smooth darkness with two lamps, a pattern of two pixels, and a strip that is thinner than the step."""
    rng = np.random.default_rng(3)
    night = cv2.resize(rng.integers(0, 40, (54, 96, 3), np.uint8), (1920, 1080), interpolation=cv2.INTER_CUBIC)
    for corner in ((300, 211), (1500, 640)):
        cv2.circle(night, corner, 23, (180, 230, 255), -1)
    assert luminance(night) == pytest.approx(of_all(night), rel=0.014)
    assert luminance(night) != luminance(night[1:, 1:])  # it is of some
    chequered = np.zeros((1080, 1920, 3), np.uint8)
    chequered[::2, ::2] = chequered[1::2, 1::2] = 200
    assert luminance(chequered) == pytest.approx(of_all(chequered), rel=1e-3)
    strip = night.reshape(1, -1, 3)
    assert luminance(strip) == pytest.approx(of_all(strip), rel=0.014)
    assert luminance(strip.transpose(1, 0, 2)) == luminance(strip)


def test_luminance_and_bins_of_planted_pictures() -> None:
    assert luminance(np.full((4, 4, 3), 255, np.uint8)) == pytest.approx(1)
    assert luminance(np.full((4, 4, 3), 188, np.uint8)) == pytest.approx(0.5, abs=0.005)  # middle grey of sRGB
    blue = np.zeros((4, 4, 3), np.uint8)
    blue[..., 0] = 255
    assert luminance(blue) == pytest.approx(0.0722, abs=1e-4)
    assert [darkness_bin(v) for v in (0, 0.0149, 0.015, 0.05, 0.5, 1.0)] == [
        *("0-0.015", "0-0.015", "0.015-0.03", "0.03-0.06", "0.12-1", "0.12-1")
    ]
