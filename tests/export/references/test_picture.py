"""Pictures to frames and masks to pictures: pixel by pixel what OpenCV and Pillow make, and the paste by loops."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from PIL import Image

from wnlb.export.references.picture import (
    detectron2_size,
    mmdet_size,
    pasted,
    prepared,
    resized_by_nearest,
    resized_by_opencv,
    resized_by_pillow,
)

SIZES = [
    ((400, 600), (405, 608)),
    ((333, 517), (392, 608)),
    ((333, 517), (100, 155)),
    ((800, 1200), (400, 600)),
    ((7, 5), (23, 31)),
    ((31, 23), (7, 5)),
    ((1, 1), (4, 4)),
]


@pytest.mark.parametrize(("old", "new"), SIZES)
def test_resizes_as_the_libraries(old: tuple[int, int], new: tuple[int, int]) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (*old, 3), dtype=np.uint8)
    turned = new[::-1]
    np.testing.assert_array_equal(resized_by_opencv(picture, *new), cv2.resize(picture, turned))
    np.testing.assert_array_equal(
        resized_by_nearest(picture, *new), cv2.resize(picture, turned, interpolation=cv2.INTER_NEAREST)
    )
    pillow = np.asarray(Image.fromarray(picture).resize(turned, Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(resized_by_pillow(picture, *new), pillow)


def test_sizes_are_rounded_half_up_within_both_limits() -> None:
    assert mmdet_size(333, 517, 416, 608) == (392, 608)  # 391.6 would be 391 by torchvision's rule
    assert mmdet_size(517, 333, 416, 608) == (608, 392)
    assert mmdet_size(100, 100, 416, 608) == (416, 416)
    assert detectron2_size(400, 600, 400, 608) == (400, 600)
    assert detectron2_size(333, 517, 400, 608) == (392, 608)
    assert detectron2_size(480, 640, 800, 1333) == (800, 1067)
    assert detectron2_size(640, 480, 800, 1333) == (1067, 800)


def test_a_frame_is_padded_at_the_right_and_bottom_to_whole_cells() -> None:
    picture = np.full((10, 20, 3), 7, np.uint8)
    frame, size = prepared(picture, (33, 64), resized_by_opencv)
    assert (frame.shape, size) == ((64, 64, 3), (33, 64))
    assert (frame[:33] == 7).all()
    assert not frame[33:].any()


def test_masks_are_pasted_at_the_centres_of_pixels() -> None:
    """Bilinear between the centres of the mask's cells, half outside at the rim of the box; x and y scaled apart."""
    rng = np.random.default_rng(1)
    masks = rng.random((3, 28, 28))
    boxes = np.array([[4.0, 6.0, 20.0, 30.0], [-3.0, 5.0, 70.0, 12.0], [8.0, 8.0, 8.0, 20.0]])
    found, pixels = pasted(boxes, masks, (40, 60), (30, 50))
    expected = (boxes * np.array([50 / 60, 30 / 40] * 2)).clip(0, [50, 30] * 2)
    np.testing.assert_allclose(found, expected)
    assert pixels.shape == (3, 30, 50)
    assert not pixels[2].any()  # empty
    for (x1, y1, x2, y2), mask, own in zip(expected[:2], masks, pixels, strict=False):
        padded = np.pad(mask, 1)
        for row in range(30):
            for column in range(50):
                v = (row + 0.5 - y1) / (y2 - y1) * 28 - 0.5 + 1
                u = (column + 0.5 - x1) / (x2 - x1) * 28 - 0.5 + 1
                value = 0.0
                if 0 <= v < 29 and 0 <= u < 29:
                    i, j, v, u = int(v), int(u), v % 1, u % 1
                    upper = padded[i, j] * (1 - u) + padded[i, j + 1] * u
                    lower = padded[i + 1, j] * (1 - u) + padded[i + 1, j + 1] * u
                    value = upper * (1 - v) + lower * v
                assert abs(value - 0.5) < 1e-9 or own[row, column] == (value >= 0.5)


def test_nothing_is_pasted_of_nothing() -> None:
    boxes, pixels = pasted(np.zeros((0, 4)), np.zeros((0, 28, 28)), (40, 60), (30, 50))
    assert (boxes.shape, pixels.shape) == ((0, 4), (0, 30, 50))
