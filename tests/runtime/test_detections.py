import re

import numpy as np
import pytest
import torch
from torchvision.models.detection.roi_heads import paste_masks_in_image

from wnlb.runtime.detections import Detections, Mask, paste_masks

SHAPE = (67, 101)  # primes: no accidental symmetry


def random_boxes(rng: np.random.Generator, count: int, shape: tuple[int, int]) -> np.ndarray:
    corners = np.sort(rng.random((count, 2, 2)), 1).reshape(count, 4)
    return (corners * [shape[1], shape[0], shape[1], shape[0]]).astype(np.float32)


def full(masks: tuple[Mask, ...], boxes: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    rows = len(boxes)
    found = Detections(*shape, boxes, np.ones(rows, np.float32), np.ones(rows, np.int32), masks)
    return np.array([*found.full_masks()]).reshape(rows, *shape)


def assert_as_torchvision(probabilities: np.ndarray, boxes: np.ndarray, shape: tuple[int, int]) -> None:
    ours = full(paste_masks(probabilities, boxes, *shape), boxes, shape)
    pasted = paste_masks_in_image(torch.from_numpy(probabilities)[:, None], torch.from_numpy(boxes), shape)
    pasted = pasted.numpy().reshape(len(boxes), *shape)
    # Both interpolate in float32, in another order: 1e-5 is a hundred roundings of 0.5.
    clear = np.abs(pasted - 0.5) > 1e-5
    assert clear.mean() > 0.99
    np.testing.assert_array_equal(ours[clear], (pasted > 0.5)[clear])


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


def test_a_planted_mask_lands_in_its_box():
    """The left half of a 28 x 28 box in whole pixels, set: exactly these pixels, up to the interpolated rim."""
    probabilities = np.zeros((1, 28, 28), np.float32)
    probabilities[0, :, :14] = 1
    boxes = np.array([[10, 20, 38, 48]], np.float32)
    (mask,) = full(paste_masks(probabilities, boxes, *SHAPE), boxes, SHAPE)
    ys, xs = np.nonzero(mask)
    # torchvision rounds the grown box down to whole pixels and adds one: each edge moves by one pixel at most.
    assert np.abs(np.array([xs.min(), xs.max() + 1, ys.min(), ys.max() + 1]) - [10, 24, 20, 48]).max() <= 1
    assert mask[21:47, 11:23].all()


def test_nothing_to_paste():
    assert paste_masks(np.empty((0, 28, 28), np.float32), np.empty((0, 4), np.float32), *SHAPE) == ()


def test_the_crop_holds_little_more_than_the_box():
    boxes = np.array([[30, 20, 58, 34]], np.float32)
    (mask,) = paste_masks(np.ones((1, 28, 28), np.float32), boxes, 4000, 6000)
    assert mask.pixels.shape[0] <= 14 + 3
    assert mask.pixels.shape[1] <= 28 + 4


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
        ({"masks": (Mask(0, 0, np.ones((6, 7), bool)),)}, "leaves the 7x5 frame"),
        ({"masks": (Mask(6, 0, np.ones((1, 2), bool)),)}, "leaves"),
        ({"masks": (Mask(-1, 0, np.ones((1, 2), bool)),)}, "leaves"),
        ({"masks": (Mask(0, 5, np.ones((1, 1), bool)),)}, "leaves"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(fields, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        detections(**fields)
