import re

import numpy as np
import pytest
import torch
from torchvision.models.detection.roi_heads import paste_masks_in_image

from wnlb.export.references.picture import pasted
from wnlb.runtime.detections import Detections, Mask, paste_masks
from wnlb.runtime.geometry import Placement

SHAPE = (67, 101)  # primes: no accidental symmetry
HOW = ["resized", "sampled"]


def random_boxes(rng: np.random.Generator, count: int, shape: tuple[int, int]) -> np.ndarray:
    corners = np.sort(rng.random((count, 2, 2)), 1).reshape(count, 4)
    return (corners * [shape[1], shape[0], shape[1], shape[0]]).astype(np.float32)


def full(masks: tuple[Mask, ...], boxes: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    rows = len(boxes)
    found = Detections(*shape, boxes, np.ones(rows, np.float32), np.ones(rows, np.int32), masks)
    return np.array([*found.full_masks()]).reshape(rows, *shape)


def assert_as_torchvision(probabilities: np.ndarray, boxes: np.ndarray, shape: tuple[int, int]) -> None:
    ours = full(paste_masks(probabilities, boxes, *shape, "resized"), boxes, shape)
    theirs = paste_masks_in_image(torch.from_numpy(probabilities)[:, None], torch.from_numpy(boxes), shape)
    theirs = theirs.numpy().reshape(len(boxes), *shape)
    # Both interpolate in float32, in another order: 1e-5 is a hundred roundings of 0.5.
    clear = np.abs(theirs - 0.5) > 1e-5
    assert clear.mean() > 0.99
    np.testing.assert_array_equal(ours[clear], (theirs > 0.5)[clear])


@pytest.mark.parametrize("shape", [SHAPE, (480, 640), (1, 1), (3, 500)])
def test_pastes_as_torchvision(shape):
    rng = np.random.default_rng(1)
    boxes = random_boxes(rng, 40, shape)
    assert_as_torchvision(rng.random((40, 28, 28), np.float32), boxes, shape)


H, W = SHAPE
BORDER_BOXES = {
    "whole frame": (0, 0, W, H),
    "left": (0, 20, 30, 40),
    "top": (20, 0, 50, 21.5),
    "right": (60.2, 20, W, 40),
    "bottom": (20, 30, 50, H),
    "corner": (W - 9.5, H - 7.3, W, H),
    "first pixel": (0, 0, 1, 1),
    "last pixel": (W - 1, H - 1, W, H),
    "sliver": (10.4, 0, 10.6, H),
    "tiny": (33.3, 44.4, 33.4, 44.5),
    "zero area": (20, 30, 20, 30),
    "zero width": (20.7, 10, 20.7, 50),
    "zero area at the origin": (0, 0, 0, 0),
    "zero area at the far corner": (W, H, W, H),
}


@pytest.mark.parametrize("box", BORDER_BOXES.values(), ids=BORDER_BOXES)
def test_pastes_boxes_at_the_border_as_torchvision(box):
    boxes = np.array([box], np.float32)
    assert_as_torchvision(np.random.default_rng(2).random((1, 28, 28), np.float32), boxes, SHAPE)
    assert_as_torchvision(np.ones((1, 28, 28), np.float32), boxes, SHAPE)


@pytest.mark.parametrize("how", HOW)
def test_a_planted_mask_lands_in_its_box(how):
    """The left half of a 28 x 28 box in whole pixels, set: exactly these pixels, up to the interpolated rim."""
    probabilities = np.zeros((1, 28, 28), np.float32)
    probabilities[0, :, :14] = 1
    boxes = np.array([[10, 20, 38, 48]], np.float32)
    (mask,) = full(paste_masks(probabilities, boxes, *SHAPE, how), boxes, SHAPE)
    ys, xs = np.nonzero(mask)
    # torchvision rounds the grown box down to whole pixels and adds one: each edge moves by one pixel at most.
    slack = 1 if how == "resized" else 0
    assert np.abs(np.array([xs.min(), xs.max() + 1, ys.min(), ys.max() + 1]) - [10, 24, 20, 48]).max() <= slack
    assert mask[21:47, 11:23].all()


@pytest.mark.parametrize("how", HOW)
def test_nothing_to_paste(how):
    assert paste_masks(np.empty((0, 28, 28), np.float32), np.empty((0, 4), np.float32), *SHAPE, how) == ()


@pytest.mark.parametrize("how", HOW)
def test_the_crop_holds_little_more_than_the_box(how):
    boxes = np.array([[30, 20, 58, 34]], np.float32)
    (mask,) = paste_masks(np.ones((1, 28, 28), np.float32), boxes, 4000, 6000, how)
    assert mask.pixels.shape[0] <= 14 + 3
    assert mask.pixels.shape[1] <= 28 + 4


def assert_as_sampled(placement: Placement, probabilities: np.ndarray, boxes: np.ndarray) -> None:
    """``boxes`` in pixels of the input. Not one pixel differs: both compute in float64."""
    shape = placement.frame_height, placement.frame_width
    in_frame = placement.boxes_to_frame(boxes.astype(np.float64))
    ours = full(paste_masks(probabilities, in_frame, *shape, "sampled"), in_frame, shape)
    scaled, expected = pasted(boxes, probabilities, (placement.height, placement.width), shape)
    np.testing.assert_array_equal(in_frame, scaled)
    np.testing.assert_array_equal(ours, expected)


def kinds_of_masks(rng: np.random.Generator, count: int) -> list[np.ndarray]:
    """Noise; saturated, which is 0.5 at the very rim of the box; none; a disc with a soft rim."""
    far = np.hypot(*(np.mgrid[:28, :28] - 13.5))
    disc = np.broadcast_to(1 / (1 + np.exp(far - 9)), (count, 28, 28))
    noise = rng.random((count, 28, 28), np.float32)
    return [noise, np.ones_like(noise), np.zeros_like(noise), disc.astype(np.float32)]


FRAMES_AND_CONTENTS = [
    (SHAPE, SHAPE),
    ((240, 320), (75, 100)),
    ((75, 100), (225, 300)),  # a third: boxes in thirds of a pixel end at half pixels
    ((108, 192), (75, 133)),
    ((1, 1), (64, 64)),
    ((3, 500), (1, 96)),
    ((500, 3), (96, 1)),
]


@pytest.mark.parametrize(("frame", "content"), FRAMES_AND_CONTENTS)
def test_samples_as_mmdetection_and_detectron2(frame, content):
    rng = np.random.default_rng(3)
    boxes = random_boxes(rng, 10, content)
    spread = boxes * 1.4 - np.float32(0.2) * np.float32(max(content))  # outside in part or altogether
    for placed in (boxes, spread, np.round(boxes * 2) / 2, np.round(boxes)):
        for probabilities in kinds_of_masks(rng, len(boxes)):
            assert_as_sampled(Placement(*frame, *content), probabilities, placed)


@pytest.mark.parametrize("box", BORDER_BOXES.values(), ids=BORDER_BOXES)
def test_samples_boxes_at_the_border(box):
    rng = np.random.default_rng(2)
    for probabilities in kinds_of_masks(rng, 1):
        assert_as_sampled(Placement(*SHAPE, *SHAPE), probabilities, np.array([box], np.float32))


def test_a_saturated_mask_is_its_box_up_to_the_corners():
    """A pixel whose centre lies on an edge has half of the mask, which is enough; on a corner a quarter, which is not.

    One just outside has less than half.
    """
    boxes = np.array([[10.5, 20.5, 38.5, 48.5], [10.51, 20.51, 38.49, 48.49], [40, 50, 41, 51]])
    ones = np.ones((3, 28, 28), np.float32)
    on, beside, one = full(paste_masks(ones, boxes, *SHAPE, "sampled"), boxes, SHAPE)
    expected = np.zeros(SHAPE, bool)
    expected[20:49, 10:39] = True
    expected[[20, 20, 48, 48], [10, 38, 10, 38]] = False
    np.testing.assert_array_equal(on, expected)
    expected[[20, 48]] = expected[:, [10, 38]] = False
    np.testing.assert_array_equal(beside, expected)
    assert np.argwhere(one).tolist() == [[50, 40]]


def test_samples_as_a_loop_over_pixels():
    """Bilinear between the centres of the cells, with 0 outside, pixel by pixel."""
    rng = np.random.default_rng(4)
    masks = rng.random((6, 5, 5), np.float32)
    boxes = random_boxes(rng, 6, (23, 31)).astype(np.float64)
    for mask, (x1, y1, x2, y2), ours in zip(
        masks, boxes, full(paste_masks(masks, boxes, 23, 31, "sampled"), boxes, (23, 31)), strict=True
    ):
        padded = np.pad(mask.astype(np.float64), 1)
        for row in range(23):
            for column in range(31):
                v, u = (row + 0.5 - y1) / (y2 - y1) * 5 + 0.5, (column + 0.5 - x1) / (x2 - x1) * 5 + 0.5
                value = 0.0
                if 0 <= v < 6 and 0 <= u < 6:
                    (i, v), (j, u) = (int(v), v % 1), (int(u), u % 1)
                    cells = padded[i : i + 2, j : j + 2]
                    value = np.array([1 - v, v]) @ cells @ np.array([1 - u, u])
                assert ours[row, column] == (value >= 0.5)


def detections(rows: int = 1, **fields: object) -> Detections:
    arrays = {
        "boxes": np.zeros((rows, 4), np.float32),
        "scores": np.ones(rows, np.float32),
        "labels": np.ones(rows, np.int32),
        "masks": None,
    }
    return Detections(**{"height": 5, "width": 7, **arrays, **fields})


def test_full_masks():
    pixels = np.array([[True, False], [True, True]])
    found = detections(2, masks=(Mask(5, 3, pixels), Mask(0, 0, np.zeros((0, 0), bool))))
    first, second = found.full_masks()
    expected = np.zeros((5, 7), bool)
    expected[3:, 5:] = pixels
    np.testing.assert_array_equal(first, expected)
    np.testing.assert_array_equal(second, np.zeros((5, 7), bool))
    assert len(found) == 2
    assert list(detections().full_masks()) == []


def test_rows_are_taken_with_all_that_belongs_to_them():
    pixels = [np.full((1, 1), i > 0) for i in range(3)]
    masks = tuple(Mask(i, 0, each) for i, each in enumerate(pixels))
    scores = np.array([0.9, 0.5, 0.2], np.float32)
    found = detections(3, scores=scores, masks=masks, track_ids=np.array([4, 0, 2], np.int32))
    kept = found.tracked()
    assert kept.track_ids.tolist() == [4, 2]
    assert [mask.x for mask in kept.masks] == [0, 2]
    assert kept.scores.tolist() == scores[[0, 2]].tolist()
    assert found.above(0.5).track_ids.tolist() == [4, 0]
    untracked = detections(2)
    assert untracked.tracked() is untracked
    assert untracked.above(0.5).track_ids is None
    assert len(detections(0, track_ids=np.zeros(0, np.int32)).tracked()) == 0


def test_no_detections_are_valid():
    for masks in (None, ()):
        assert len(detections(0, masks=masks)) == 0


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"boxes": np.zeros((2, 4), np.float32)}, "(2, 4)"),
        ({"boxes": np.zeros(4, np.float32)}, "(4,)"),
        ({"labels": np.ones(3, np.int32)}, "(3,)"),
        ({"scores": np.ones((1, 1), np.float32)}, "(1, 1)"),
        ({"masks": ()}, "0 masks for 1"),
        ({"track_ids": np.ones(2, np.int32)}, "track_ids (2,) for 1"),
        ({"masks": (Mask(0, 0, np.ones((6, 7), bool)),)}, "leaves the 7x5 frame"),
        ({"masks": (Mask(6, 0, np.ones((1, 2), bool)),)}, "leaves"),
        ({"masks": (Mask(-1, 0, np.ones((1, 2), bool)),)}, "leaves"),
        ({"masks": (Mask(0, 5, np.ones((1, 1), bool)),)}, "leaves"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(fields, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        detections(**fields)
