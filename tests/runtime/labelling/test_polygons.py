from __future__ import annotations

import cv2
import numpy as np
import pytest

from wnlb.runtime.coco import encode_mask
from wnlb.runtime.detections import Mask
from wnlb.runtime.labelling.polygons import polygons_of

HEIGHT, WIDTH = 120, 160


def polygons(pixels: np.ndarray) -> list[np.ndarray]:
    counts = encode_mask(Mask(0, 0, pixels.astype(bool)), *pixels.shape)["counts"]
    return polygons_of(counts, *pixels.shape, (3, 4, 5, 6))


def drawn(parts: list[np.ndarray]) -> np.ndarray:
    """As readers of YOLO's and labelme's polygons draw them: whole pixels, the outline too."""
    canvas = np.zeros((HEIGHT, WIDTH), np.uint8)
    for part in parts:
        cv2.fillPoly(canvas, [part.astype(np.int32)], 1)
    return canvas.astype(bool)


def blob(seed: int) -> np.ndarray:
    """One part without holes: what lies around the centre in smoothed noise."""
    noise = cv2.GaussianBlur(np.random.default_rng(seed).normal(size=(HEIGHT, WIDTH)), (0, 0), 6)
    noise[50:70, 70:90] += 1
    parts, numbers = cv2.connectedComponents((noise > 0.02).astype(np.uint8), connectivity=8)
    assert parts > 1
    contours, _ = cv2.findContours(
        (numbers == numbers[60, 80]).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE
    )
    canvas = np.zeros((HEIGHT, WIDTH), np.uint8)
    cv2.fillPoly(canvas, [max(contours, key=len)], 1)
    return canvas.astype(bool)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
class TestPolygons:
    def test_rectangles_come_back_exactly(self) -> None:
        pixels = np.zeros((HEIGHT, WIDTH), bool)
        pixels[10:31, 5:160] = True
        (part,) = polygons(pixels)
        assert sorted(map(tuple, part)) == [(5.5, 10.5), (5.5, 30.5), (159.5, 10.5), (159.5, 30.5)]
        np.testing.assert_array_equal(drawn([part]), pixels)

    @pytest.mark.parametrize("seed", range(5))
    def test_any_shape_within_a_pixel_and_with_few_points(self, seed: int) -> None:
        pixels = blob(seed)
        (part,) = polygons(pixels)
        again = drawn([part])
        assert (again & pixels).sum() / (again | pixels).sum() > 0.97
        edge = cv2.dilate(pixels.astype(np.uint8), np.ones((3, 3))) - cv2.erode(
            pixels.astype(np.uint8), np.ones((3, 3))
        )
        assert not ((again != pixels) & (edge == 0)).any()
        contours, _ = cv2.findContours(pixels.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        assert len(part) < len(contours[0]) / 2

    def test_parts_the_largest_first_and_thin_ones_have_an_inside(self) -> None:
        pixels = np.zeros((HEIGHT, WIDTH), bool)
        pixels[3, 7] = pixels[20, 10:40] = pixels[50:60, 50:70] = True
        parts = polygons(pixels)
        assert [len(part) >= 3 and cv2.contourArea(part.astype(np.float32)) > 0 for part in parts] == [True] * 3
        assert parts[0].min(0).tolist() == [50.5, 50.5]
        np.testing.assert_array_equal(drawn(parts), pixels)

    def test_a_mask_of_no_pixel_gives_its_box(self) -> None:
        (part,) = polygons(np.zeros((HEIGHT, WIDTH), bool))
        assert (part.min(0).tolist(), part.max(0).tolist()) == ([3, 4], [8, 10])
