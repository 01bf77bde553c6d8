"""Anchors, deltas, levels and adaptive RoIAlign of the references, by hand and by loops."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from wnlb.export.references.boxes import anchors, by_anchor, clipped, decoded, levels, not_empty, pooled


def boxes_of(*values: tuple[float, ...]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_anchors_are_centred_on_the_corner_of_a_cell_and_not_rounded() -> None:
    shapes = [(32 / ratio**0.5, 32 * ratio**0.5) for ratio in (0.5, 1.0, 2.0)]
    found = anchors(shapes, 4, torch.zeros(1, 8, 2, 3, dtype=torch.float64))
    assert found.shape == (2 * 3 * 3, 4)
    w, h = 16 * math.sqrt(2), 8 * math.sqrt(2)  # half sizes: torchvision rounds the 22.63 to 23
    last = boxes_of((8 - w, 4 - h, 8 + w, 4 + h), (8 - 16, 4 - 16, 8 + 16, 4 + 16), (8 - h, 4 - w, 8 + h, 4 + w))
    torch.testing.assert_close(found[-3:], last)
    torch.testing.assert_close(found[3:6], last - boxes_of((4, 4, 4, 4)))  # second cell of the first row


def test_maps_and_anchors_have_one_order() -> None:
    maps = torch.arange(2 * 4 * 2 * 3).reshape(1, 8, 2, 3)  # two anchors of four numbers
    rows = by_anchor(maps, 2)
    assert rows.shape == (12, 4)
    for row, (y, x, a) in enumerate((y, x, a) for y in range(2) for x in range(3) for a in range(2)):
        assert rows[row].tolist() == maps[0, 4 * a : 4 * a + 4, y, x].tolist()


@pytest.mark.parametrize(("clamped", "smallest"), [("both", 16 / 1000), ("above", math.exp(-9))])
def test_deltas_are_clamped_as_the_framework_does(clamped: str, smallest: float) -> None:
    box = boxes_of((10, 20, 30, 60), (10, 20, 30, 60))
    found = decoded(box, boxes_of((0.5, -0.25, -9, -9), (0, 0, 9, 9)), clamped)
    w, h = 10 * smallest, 20 * smallest
    torch.testing.assert_close(found[0], boxes_of((30 - w, 30 - h, 30 + w, 30 + h))[0])
    w, h = 10 * 62.5, 20 * 62.5
    torch.testing.assert_close(found[1], boxes_of((20 - w, 40 - h, 20 + w, 40 + h))[0])


def test_boxes_are_clipped_to_height_and_width() -> None:
    found = clipped(boxes_of((-5, -6, 50, 70), (45, 1, 60, 2)), (30, 40))
    assert found.tolist() == [[0, 0, 40, 30], [40, 1, 40, 2]]
    assert not_empty(found).tolist() == [True, False]


@pytest.mark.parametrize("epsilon", [1e-6, 1e-8])
def test_levels_change_at_112_224_and_448(epsilon: float) -> None:
    sides = (1e-3, 111.9, 112, 223.9, 224, 447.9, 448, 2000)
    found = levels(boxes_of(*((5, 5, 5 + side, 5 + side) for side in sides)), epsilon)
    assert found.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


def test_only_the_larger_epsilon_lifts_a_box_that_is_hardly_too_small() -> None:
    box = boxes_of((0, 0, 448 * (1 - 1e-7), 448))  # log2 is 5e-8 to 7e-8 below the step
    assert (levels(box, 1e-6).item(), levels(box, 1e-8).item()) == (3, 2)


def test_an_empty_box_lies_on_the_finest_level() -> None:
    assert levels(boxes_of((3, 3, 3, 9)), 1e-8).tolist() == [0]


def _by_loops(level: Tensor, box: list[float], stride: int, size: int) -> Tensor:
    """He et al., 2017, section 3: samples at the middle of the cells of a grid in each bin, and their mean."""
    x1, y1, x2, y2 = (side / stride - 0.5 for side in box)
    channels, height, width = level.shape
    per_bin = [math.ceil((x2 - x1) / size), math.ceil((y2 - y1) / size)]
    out = torch.zeros(channels, size, size, dtype=level.dtype)
    for i in range(size):
        for j in range(size):
            for p in range(per_bin[1]):
                for q in range(per_bin[0]):
                    y = y1 + (y2 - y1) / size * (i + (p + 0.5) / per_bin[1])
                    x = x1 + (x2 - x1) / size * (j + (q + 0.5) / per_bin[0])
                    if y < -1 or y > height or x < -1 or x > width:
                        continue
                    y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
                    top, left = int(y), int(x)
                    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
                    v, u = y - top, x - left
                    upper = level[:, top, left] * (1 - u) + level[:, top, right] * u
                    lower = level[:, bottom, left] * (1 - u) + level[:, bottom, right] * u
                    out[:, i, j] += upper * (1 - v) + lower * v
    return out / (per_bin[0] * per_bin[1])


def test_each_box_is_pooled_from_its_level_with_as_many_samples_as_it_has_cells() -> None:
    """Among them boxes of P4 and P5, of one and of twelve samples a bin, and beyond the edge of the level."""
    torch.manual_seed(0)
    pyramid = [torch.randn(1, 2, 640 // s, 960 // s, dtype=torch.float64) for s in (4, 8, 16, 32)]
    boxes = [
        [10.5, 20.25, 14.5, 30.0],
        [100.0, 50.0, 230.0, 90.0],
        [1.0, 300.0, 955.0, 322.0],
        [200.0, 100.0, 500.0, 330.0],
        [0.0, 0.0, 960.0, 640.0],
        [430.0, 120.0, 959.0, 638.0],
    ]
    level = levels(boxes_of(*boxes), 1e-6)
    assert level.tolist() == [0, 0, 1, 2, 3, 3]
    for size in (7, 14):
        found = pooled(pyramid, boxes_of(*boxes), level, size)
        for own, box, k in zip(found, boxes, level.tolist(), strict=True):
            torch.testing.assert_close(own, _by_loops(pyramid[k][0], box, 4 << k, size))
    assert pooled(pyramid, torch.zeros(0, 4).double(), torch.zeros(0).long(), 7).shape == (0, 2, 7, 7)
