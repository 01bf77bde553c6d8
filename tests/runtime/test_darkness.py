"""How dark planted pictures are."""

from __future__ import annotations

import numpy as np
import pytest

from wnlb.runtime.darkness import darkness_bin, luminance


def test_luminance_is_that_of_float64() -> None:
    rng = np.random.default_rng(5)
    for shape in ((1, 1, 3), (7, 5, 3), (200, 300, 3)):
        picture = rng.integers(0, 256, shape, np.uint8)
        for frame in (picture, picture[::-1, ::-1], picture // 9):
            level = frame / 255
            linear = np.where(level <= 0.04045, level / 12.92, ((level + 0.055) / 1.055) ** 2.4)
            expected = (linear @ [0.0722, 0.7152, 0.2126]).mean()
            assert luminance(frame) == pytest.approx(expected, rel=1e-7)  # the curve is kept in float32


def test_luminance_and_bins_of_planted_pictures() -> None:
    assert luminance(np.full((4, 4, 3), 255, np.uint8)) == pytest.approx(1)
    assert luminance(np.full((4, 4, 3), 188, np.uint8)) == pytest.approx(0.5, abs=0.005)  # middle grey of sRGB
    blue = np.zeros((4, 4, 3), np.uint8)
    blue[..., 0] = 255
    assert luminance(blue) == pytest.approx(0.0722, abs=1e-4)
    assert [darkness_bin(v) for v in (0, 0.0149, 0.015, 0.05, 0.5, 1.0)] == [
        *("0-0.015", "0-0.015", "0.015-0.03", "0.03-0.06", "0.12-1", "0.12-1")
    ]
