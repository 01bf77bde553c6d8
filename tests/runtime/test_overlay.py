import itertools

import cv2
import numpy as np
import pytest

from wnlb.runtime.detections import Detections, Mask
from wnlb.runtime.overlay import class_color, draw

H, W = 300, 400
NAMES = ("lamp", "dark cat")
GREY = np.full((H, W, 3), 130, np.uint8)


def detections(*boxes: tuple[float, ...], labels=None, masks=None, size: tuple[int, int] = (H, W)) -> Detections:
    rows = len(boxes)
    return Detections(
        *size,
        np.array(boxes, np.float32).reshape(rows, 4),
        np.linspace(0.9, 0.5, rows).astype(np.float32),
        np.array(labels or [1] * rows, np.int32),
        masks,
    )


def has_color(pixel: np.ndarray, label: int) -> bool:
    """Whether this is a line's pixel: antialiased, so not the pure colour."""
    return bool(np.abs(pixel - np.array(class_color(label))).max() <= 30)


def test_nothing_found_changes_nothing():
    picture = draw(GREY, detections(masks=()), NAMES)
    np.testing.assert_array_equal(picture, GREY)
    assert not np.shares_memory(picture, GREY)


def test_draws_on_a_copy_and_near_the_detection_only():
    frame = np.random.default_rng(0).integers(0, 80, (H, W, 3), np.uint8)
    before = frame.copy()
    mask = Mask(110, 120, np.ones((60, 80), bool))
    picture = draw(frame, detections((100, 110, 200, 190), masks=(mask,)), NAMES)
    np.testing.assert_array_equal(frame, before)
    assert picture.dtype == np.uint8
    changed = (picture != frame).any(2)
    ys, xs = np.nonzero(changed)
    assert 0.5 < changed[110:190, 100:200].mean() < 1
    # A line on the edges of the box, and the label above it.
    assert ys.min() >= 110 - 25
    assert xs.min() >= 100 - 2
    assert ys.max() <= 190 + 2
    assert xs.max() <= 200 + 2


def test_a_mask_is_blended_with_the_colour_of_its_class():
    mask = Mask(110, 120, np.ones((60, 80), bool))
    picture = draw(GREY, detections((100, 110, 200, 190), labels=[2], masks=(mask,)), NAMES)
    inside = picture[130:170, 120:180].reshape(-1, 3)  # away from outline and label
    expected = 0.58 * 130 + 0.42 * np.array(class_color(2))
    assert np.abs(inside - expected).max() <= 1
    np.testing.assert_array_equal(picture[115, 150], GREY[115, 150])  # in the box, beside the mask


@pytest.mark.parametrize("density", [0.02, 0.5, 1.0])
@pytest.mark.parametrize("order", ["C", "F"])
def test_blending_is_that_of_float64_rounded_down(density, order):
    """At every value and place, whatever the memory of mask and frame looks like."""
    rng = np.random.default_rng(7)
    frame = rng.integers(0, 256, (W, H, 3), np.uint8).transpose(1, 0, 2)
    pixels = np.asarray(rng.random((100, 150)) < density, order=order)
    given = pixels.copy()
    picture = draw(frame, detections((1, 290, 4, 295), labels=[3], masks=(Mask(90, 120, pixels),)), NAMES * 2)
    np.testing.assert_array_equal(pixels, given)
    expected = frame.copy()
    inner = expected[120:220, 90:240]
    inner[pixels] = (inner[pixels].astype(np.float64) * (1 - 0.42) + np.array(class_color(3)) * 0.42).astype(np.uint8)
    outlines, _ = cv2.findContours(pixels.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(expected, outlines, -1, class_color(3), 1, cv2.LINE_AA, offset=(90, 120))
    np.testing.assert_array_equal(picture[:250], expected[:250])  # below are box and label


def test_an_empty_mask_leaves_the_box_drawn():
    picture = draw(GREY, detections((100, 110, 200, 190), masks=(Mask(0, 0, np.zeros((0, 0), bool)),)), NAMES)
    assert has_color(picture[150, 100], 1)
    np.testing.assert_array_equal(picture[150, 150], GREY[150, 150])


def test_the_best_is_on_top():
    box = (100, 110, 200, 190)
    for labels in ([1, 2], [2, 1]):
        picture = draw(GREY, detections(box, box, labels=labels), NAMES)
        assert has_color(picture[190, 150], labels[0])


def test_all_four_edges_of_a_box_that_fills_the_frame_are_seen():
    picture = draw(GREY, detections((0, 0, W, H)), NAMES)
    for y, x in ((H // 2, 0), (0, W - 50), (H // 2, W - 1), (H - 1, W // 2)):
        assert has_color(picture[y, x], 1)


def text_pixels(box: tuple[float, ...], size: tuple[int, int] = (H, W)) -> int:
    return int((draw(np.full((*size, 3), 130, np.uint8), detections(box, size=size), NAMES).max(2) < 120).sum())


@pytest.mark.parametrize(
    "box",
    [(0, 0, 40, 40), (W - 30, 0, W, 40), (0, H - 4, 40, H), (W - 4, H - 4, W, H), (0, 0, W, H), (W, H, W, H)],
    ids=["left top", "right top", "left bottom", "right bottom", "whole frame", "far corner"],
)
def test_the_whole_label_is_inside_the_picture(box):
    """As many dark pixels of text as for a box in the middle."""
    assert text_pixels((150, 100, 250, 200)) > 50
    assert text_pixels(box) == text_pixels((150, 100, 250, 200))


def test_the_whole_label_is_inside_a_low_picture():
    """There is room neither above the box nor below its upper edge."""
    assert text_pixels((150, 10, 250, 20), size=(20, W)) == text_pixels((150, 100, 250, 200))


def test_a_label_is_above_its_box_or_where_there_is_no_room_at_its_upper_edge():
    for upper, rows in ((100, range(80, 100)), (8, range(8, 30))):
        picture = draw(GREY, detections((150, upper, 250, 200)), NAMES)
        ys = np.nonzero((picture.max(2) < 120).any(1))[0]
        assert ys.min() in rows
        assert ys.max() in rows


@pytest.mark.parametrize("size", [(1, 1), (5, 200), (200, 5), (2000, 3000)])
def test_any_size_of_frame(size):
    frame = np.zeros((*size, 3), np.uint8)
    mask = Mask(0, 0, np.ones(size, bool))
    picture = draw(frame, detections((0, 0, size[1], size[0]), masks=(mask,), size=size), NAMES)
    assert picture.shape == frame.shape
    assert picture.any()


def test_colours_of_the_first_20_labels_are_far_apart():
    colors = np.array([class_color(label) for label in range(1, 21)])
    assert colors.min() >= 0
    assert colors.max() == 255  # bright, for dark pictures
    distances = [np.abs(a - b).max() for a, b in itertools.combinations(colors, 2)]
    assert min(distances) >= 20
    assert min(np.abs(a - b).max() for a, b in itertools.pairwise(colors)) >= 100
