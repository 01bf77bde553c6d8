"""Pillow's resizing without Pillow: against Pillow itself, and against loops."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from wnlb.export.references.picture import resized_by_pillow
from wnlb.runtime.antialiased import resized_antialiased

# Frames as they come, ties (halves, thirds), primes, one axis alone, one pixel, extreme aspect ratios.
SIZES = [
    ((480, 640), (800, 1067)),
    ((1080, 1920), (750, 1333)),
    ((256, 384), (128, 192)),
    ((255, 384), (85, 128)),
    ((97, 101), (61, 89)),
    ((64, 96), (64, 31)),
    ((64, 96), (31, 96)),
    ((64, 96), (64, 96)),
    ((1, 1), (64, 96)),
    ((90, 70), (1, 1)),
    ((3, 2000), (1, 133)),
    ((2000, 3), (133, 1)),
    ((2, 500), (7, 2)),
    ((7, 5), (230, 310)),
]


def noise(height: int, width: int) -> np.ndarray:
    """Half of it black and white, which are farthest from each other."""
    rng = np.random.default_rng(height * 7919 + width)
    picture = rng.integers(0, 256, (height, width, 3), np.uint8)
    picture[: height // 2] = (picture[: height // 2] > 127) * 255
    return picture


def by_pillow(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    """In two calls: in one, Pillow 13 takes y before x where that is less work."""
    wide = Image.fromarray(picture).resize((width, picture.shape[0]), Image.Resampling.BILINEAR)
    return np.asarray(wide.resize((width, height), Image.Resampling.BILINEAR))


@pytest.mark.parametrize(("old", "new"), SIZES)
def test_equals_pillow(old: tuple[int, int], new: tuple[int, int]) -> None:
    picture = noise(*old)
    ours = resized_antialiased(picture, *new)
    assert ours.dtype == np.uint8
    np.testing.assert_array_equal(ours, by_pillow(picture, *new))
    if picture.size < 1e5:
        np.testing.assert_array_equal(ours, resized_by_pillow(picture, *new))


def test_equals_pillow_at_random_sizes() -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        (height, width), new = rng.integers(1, 200, 2).tolist(), rng.integers(1, 200, 2).tolist()
        picture = noise(height, width)
        np.testing.assert_array_equal(resized_antialiased(picture, *new), by_pillow(picture, *new))


def test_every_weight_is_pillows() -> None:
    """A white row in black at each place shows one column of weights, to the eight bits that it has."""
    for old, new in ((53, 37), (37, 53), (211, 10), (10, 211)):
        picture = np.repeat(np.eye(old, dtype=np.uint8)[..., None] * 255, 3, 2)
        np.testing.assert_array_equal(resized_antialiased(picture, new, old), by_pillow(picture, new, old))


def test_a_uniform_picture_stays_uniform() -> None:
    for level in (0, 1, 127, 255):
        picture = np.full((41, 67, 3), level, np.uint8)
        assert (resized_antialiased(picture, 29, 83) == level).all()


def test_views_are_taken() -> None:
    picture = noise(80, 120)
    for view in (picture[::-1], picture[:, ::-1], picture[..., ::-1], picture[::2, 10:], picture.transpose(1, 0, 2)):
        expected = by_pillow(np.ascontiguousarray(view), 33, 57)
        np.testing.assert_array_equal(resized_antialiased(view, 33, 57), expected)
