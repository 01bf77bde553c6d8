"""Masks of the frame against PyTorch's interpolation of the whole, in the order of operations of both frameworks."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from wnlb.runtime.detections import Detections, Mask
from wnlb.runtime.frame_masks import extents, paste_frame_masks
from wnlb.runtime.geometry import Geometry, Placement

# Frames larger and smaller than the input, of odd padding, of none, a strip; and one that needs no resizing.
FRAMES = [(270, 480), (480, 270), (97, 101), (96, 128), (64, 96), (1, 300), (200, 9), (96, 126), (95, 128)]
HEIGHT, WIDTH = 96, 128


def smooth(count: int, seed: int) -> np.ndarray:
    """``[count, H/4, W/4]`` logits of random blobs, zero on average."""
    coarse = torch.randn(count, 1, 5, 7, generator=torch.Generator().manual_seed(seed))
    values = interpolate(coarse, (HEIGHT // 4, WIDTH // 4), mode="bicubic")[:, 0]
    return values.half().numpy()


def boxes_of(placement: Placement, count: int) -> np.ndarray:
    """Anywhere in the frame, some reaching its sides, one without extent."""
    rng = np.random.default_rng(count)
    corners = rng.uniform(-0.2, 1.2, (count, 2, 2)) * [placement.frame_width, placement.frame_height]
    boxes = np.concatenate([corners.min(1), corners.max(1)], 1)
    boxes[0, 2:] = boxes[0, :2]
    return np.clip(boxes, 0, [placement.frame_width, placement.frame_height] * 2).astype(np.float32)


def enlarged(values: np.ndarray, factor: int) -> Tensor:
    maps = torch.from_numpy(values.astype(np.float32))[None]
    return interpolate(maps, scale_factor=factor, mode="bilinear") if factor > 1 else maps


def as_mmdetection(values: np.ndarray, placement: Placement) -> np.ndarray:
    """Of probabilities in ``_predict_by_feat_single``: times 4, the picture's part, to the frame, above 0.5."""
    probabilities = enlarged(values, 4) + 0.5
    cut = probabilities[..., : placement.height, : placement.width]
    frame = (placement.frame_height, placement.frame_width)
    return (interpolate(cut, frame, mode="bilinear")[0] > 0.5).numpy()


def as_ultralytics(values: np.ndarray, boxes: np.ndarray, frame: tuple[int, int]) -> np.ndarray:
    """What the documentation of ``process_mask_native`` says, with slices of whole maps."""
    height, width = values.shape[1:]
    for factor in (1, 2, 4):
        share = min(height * factor / frame[0], width * factor / frame[1])
        full = min(4 * height / frame[0], 4 * width / frame[1])
        padding = [4 * side - max(round(of * full), 1) for side, of in zip((height, width), frame, strict=True)]
        if all(each % (4 // factor) == 0 and each // 2 % (4 // factor) == 0 for each in padding):
            break
    size = [max(round(side * share), 1) for side in frame]
    top, left = (round((side * factor - kept) / 2 - 0.1) for side, kept in zip((height, width), size, strict=True))
    cut = enlarged(values, factor)[..., top : top + size[0], left : left + size[1]]
    masks = (interpolate(cut, frame, mode="bilinear")[0] > 0).numpy()
    rows, columns = np.arange(frame[0])[:, None], np.arange(frame[1])
    inside = [(columns >= x1) & (columns < x2) & (rows >= y1) & (rows < y2) for x1, y1, x2, y2 in boxes]
    return masks & np.stack(inside)


def whole(masks: tuple[Mask, ...], placement: Placement) -> np.ndarray:
    """``[D, height, width]``; that ``Detections`` takes them is checked on the way."""
    rows = len(masks)
    boxes, labels = np.zeros((rows, 4), np.float32), np.ones(rows, np.int32)
    frame = placement.frame_height, placement.frame_width
    return np.stack([*Detections(*frame, boxes, np.ones(rows, np.float32), labels, masks).full_masks()])


def assert_but_for_rounding(ours: np.ndarray, expected: np.ndarray) -> None:
    """Two orders of float32 operations: a value of 1e-7 may fall on either side of 0."""
    assert (ours != expected).sum() <= 2, (ours != expected).sum()
    assert expected.any()
    assert not expected.all()


@pytest.mark.parametrize("frame", FRAMES, ids=str)
def test_as_mmdetection_pastes_masks_of_solov2(frame: tuple[int, int]) -> None:
    placement = Geometry(HEIGHT, WIDTH, size_rule="nearest").place(*frame)
    values = smooth(30, 1)
    ours = whole(paste_frame_masks(values, np.zeros((30, 4), np.float32), placement, "enlarged"), placement)
    assert_but_for_rounding(ours, as_mmdetection(values, placement))


@pytest.mark.parametrize("frame", FRAMES, ids=str)
def test_as_ultralytics_pastes_masks_of_the_frame(frame: tuple[int, int]) -> None:
    placement = Geometry(HEIGHT, WIDTH, size_rule="nearest even", padding="centre").place(*frame)
    values, boxes = smooth(30, 2), boxes_of(placement, 30)
    ours = whole(paste_frame_masks(values, boxes, placement, "cut"), placement)
    assert_but_for_rounding(ours, as_ultralytics(values, boxes, frame))
    assert not ours[0].any()


@pytest.mark.parametrize(("frame", "enlarging"), [((96, 112), 1), ((96, 126), 4), ((96, 124), 2)])
def test_all_three_enlargements_are_met(frame: tuple[int, int], enlarging: int) -> None:
    """The frames of above would not see one that is never chosen."""
    padding = WIDTH - frame[1]
    assert 4 // math.gcd(4, padding | padding // 2) == enlarging
    placement = Geometry(HEIGHT, WIDTH, size_rule="nearest even", padding="centre").place(*frame)
    values, boxes = smooth(30, 3), boxes_of(placement, 30)
    ours = whole(paste_frame_masks(values, boxes, placement, "cut"), placement)
    assert_but_for_rounding(ours, as_ultralytics(values, boxes, frame))


@pytest.mark.parametrize("how", ["cut", "enlarged"])
def test_a_mask_is_as_large_as_what_it_covers(how: str) -> None:
    """One cell set, of an input of the frame's size: its pixels and two around them; nothing set: nothing."""
    values = np.full((2, HEIGHT // 4, WIDTH // 4), -1, np.float16)
    values[0, 10, 20] = 1
    placement = Placement(HEIGHT, WIDTH, HEIGHT, WIDTH)
    one, none = paste_frame_masks(values, np.array([[0, 0, WIDTH, HEIGHT]] * 2, np.float32), placement, how)
    assert one.pixels.shape == (8, 8)  # a cell is mixed into the two pixels beside its own
    assert (one.x, one.y, one.pixels.sum()) == (78, 38, 12)  # its 4 x 4 but for the corners: of 5/8 x 5/8 its own
    assert none.pixels.size == 0
    assert paste_frame_masks(values[:0], np.zeros((0, 4), np.float32), placement, how) == ()


def test_extents_are_those_of_the_whole_masks() -> None:
    """Some rows and columns of a crop are empty, one crop is, and one has no pixels at all."""
    rng = np.random.default_rng(0)
    masks = [Mask(int(rng.integers(0, 20)), int(rng.integers(0, 20)), rng.random((9, 12)) > 0.97) for _ in range(20)]
    masks += [Mask(3, 4, np.zeros((5, 5), bool)), Mask(0, 0, np.zeros((0, 0), bool)), Mask(7, 2, np.ones((1, 1), bool))]
    boxes = extents(masks)
    assert boxes.dtype == np.float32
    scores, labels = np.zeros(len(masks), np.float32), np.ones(len(masks), np.int32)
    found = Detections(40, 50, boxes, scores, labels, tuple(masks))
    for box, full in zip(boxes, found.full_masks(), strict=True):
        y, x = np.nonzero(full)
        expected = [x.min(), y.min(), x.max() + 1, y.max() + 1] if len(x) else [0, 0, 0, 0]
        np.testing.assert_array_equal(box, expected)
    assert extents([]).shape == (0, 4)
