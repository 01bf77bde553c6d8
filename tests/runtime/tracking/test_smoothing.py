"""Planted tracks with masks and scores that flicker, jump, move, grow and leave the frame."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from wnlb.runtime.detections import Detections, Mask
from wnlb.runtime.errors import WnlbError
from wnlb.runtime.tracking.smoothing import SmoothedTracker, _Path

HEIGHT, WIDTH = 120, 160
UNEVEN = np.cumsum([0.0, 0.04, 0.04, 0.2, 0.01, 0.13, 0.4, 0.04]).tolist()


class Known:
    """A tracker whose identities are in the detections already."""

    def update(self, detections: Detections, at_s: float) -> Detections:
        return detections


def disc(cx: float, cy: float, radius: float) -> np.ndarray:
    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    return (x - cx) ** 2 + (y - cy) ** 2 <= radius**2


def seen(*rows: tuple[int, float, Sequence[float], np.ndarray]) -> Detections:
    """Track, score, box and mask of the whole frame; best first. Masks are kept as the part around their box."""
    masks = []
    for _, _, (x1, y1, x2, y2), full in rows:
        left, top, right, bottom = max(int(x1) - 1, 0), max(int(y1) - 1, 0), min(int(x2) + 2, WIDTH), int(y2) + 2
        masks.append(Mask(left, top, full[top:bottom, left:right]))
    boxes = np.array([box for _, _, box, _ in rows], np.float32).reshape(-1, 4)
    scores = np.array([score for _, score, _, _ in rows], np.float32)
    tracks = np.array([track for track, *_ in rows], np.int32)
    return Detections(HEIGHT, WIDTH, boxes, scores, np.ones(len(rows), np.int32), tuple(masks), tracks)


def round_at(cx: float, cy: float, radius: float = 20, score: float = 0.9, track: int = 1) -> Detections:
    return seen((track, score, (cx - radius, cy - radius, cx + radius, cy + radius), disc(cx, cy, radius)))


def full_mask(detections: Detections) -> np.ndarray:
    return next(detections.full_masks())


def iou(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / (a | b).sum())


def test_scores_are_the_weighted_average_of_the_past() -> None:
    scores = np.random.default_rng(0).uniform(0.1, 1, len(UNEVEN))
    tracker, half_life = SmoothedTracker(Known(), 0.15), 0.15
    for i, at in enumerate(UNEVEN):
        found = tracker.update(round_at(60, 60, score=float(scores[i])), at)
        times = np.array(UNEVEN[: i + 1])
        own = 1 - 0.5 ** (np.diff(times, prepend=-np.inf) / half_life)  # 1 of the first, which has no past
        expected = (0.5 ** ((at - times) / half_life) * own * scores[: i + 1]).sum()
        assert found.scores[0] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("frames", [1, 2, 7, 40])
def test_it_is_the_time_that_counts_and_not_the_frames(frames: int) -> None:
    """Half a second after a step, of which 0.25 s count half, three quarters are reached, by 1 frame or by 40."""
    tracker, rng = SmoothedTracker(Known(), 0.25), np.random.default_rng(frames)
    tracker.update(round_at(60, 60, score=0.2), 0.0)
    for at in [*np.sort(rng.uniform(0.01, 0.49, frames - 1)).tolist(), 0.5]:
        found = tracker.update(round_at(60, 60, score=1.0), at)
    assert found.scores[0] == pytest.approx(0.2 + 0.75 * 0.8, abs=1e-6)


def test_a_mask_that_flickers_is_steady() -> None:
    """A piece that is missing from every fourth frame stays; one that is gone for good leaves after the half-life."""
    whole, box = disc(60, 60, 20), (40, 40, 80, 80)
    part = whole.copy()
    part[40:55] = False
    tracker = SmoothedTracker(Known(), 0.1)
    for i in range(20):
        found = tracker.update(seen((1, 0.9, box, part if i % 4 == 3 else whole)), 0.04 * i)
        assert (full_mask(found) == whole).all()
    for i in range(20, 26):
        found = tracker.update(seen((1, 0.9, box, part)), 0.04 * i)
        away = 0.04 * (i - 18) > 0.1 + 0.04  # the last but one was a part already
        assert (full_mask(found) == part).all() or not away
    assert (full_mask(found) == part).all()


@pytest.mark.parametrize("step", [(0, 0), (7, 0), (-5, 3), (12.5, -0.75)])
def test_a_mask_that_moves_is_taken_along(step: tuple[float, float]) -> None:
    """Without its box's motion, the past of an object that moves 12 px a frame would smear its mask."""
    x, y = (100.0 if step[0] < 0 else 30.0), 60.0
    tracker, least = SmoothedTracker(Known(), 0.2), 1.0
    for i in range(8):
        given = round_at(x + i * step[0], y + i * step[1])
        least = min(least, iou(full_mask(tracker.update(given, 0.04 * i)), full_mask(given)))
    assert least == 1 if step == (0, 0) or step[0] % 1 == 0 else least > 0.97


def test_a_mask_that_grows_is_taken_along() -> None:
    tracker = SmoothedTracker(Known(), 0.2)
    for i in range(8):
        given = round_at(80, 60, 12 + 3 * i)
        assert iou(full_mask(tracker.update(given, 0.04 * i)), full_mask(given)) > 0.96


@pytest.mark.parametrize("speed", [0.0, 60.0])
def test_a_box_that_trembles_does_not_make_the_mask_tremble(speed: float) -> None:
    """Boxes, and their masks with them, off by a pixel or two in each frame; the object stands, or moves evenly."""
    rng, tracker = np.random.default_rng(1), SmoothedTracker(Known(), 0.3)
    errors: list[tuple[int, int]] = []
    changes: list[tuple[int, int]] = []
    last = (disc(30, 60, 20),) * 2
    for i in range(40):
        x, y = 30 + speed * 0.04 * i, 60.0
        given = round_at(x + rng.normal(0, 1.5), y + rng.normal(0, 1.5), 20 + rng.normal(0, 1))
        found = tracker.update(given, 0.04 * i)
        masks = (full_mask(given), full_mask(found))
        if i >= 20:
            true = disc(x, y, 20)
            errors.append((int((masks[0] ^ true).sum()), int((masks[1] ^ true).sum())))
            changes.append((int((masks[0] ^ last[0]).sum()), int((masks[1] ^ last[1]).sum())))
        last = masks
    as_found, smoothed = np.mean(errors, 0)
    assert smoothed < 0.65 * as_found
    as_found, smoothed = np.mean(changes, 0)
    assert smoothed < (0.35 if speed == 0 else 0.75) * as_found  # of what moves, edges change by themselves


def test_the_path_is_the_weighted_least_squares_line() -> None:
    rng, path = np.random.default_rng(2), _Path()
    boxes = rng.uniform(0, 100, (len(UNEVEN), 4)).astype(np.float32)
    for i, (box, elapsed) in enumerate(zip(boxes, np.diff(UNEVEN, prepend=0.0).tolist(), strict=True)):
        before, now = path.add(box, elapsed, 0.5 ** (elapsed / 0.2))
        if i == 0:
            np.testing.assert_array_equal(now, boxes[0])
            continue
        times = np.array(UNEVEN[: i + 1]) - UNEVEN[i]
        weights = np.sqrt(0.5 ** (-times / 0.2))
        line = np.polyfit(times, boxes[: i + 1].astype(np.float64), 1, w=weights)
        np.testing.assert_allclose(now, line[1], atol=1e-6)
        np.testing.assert_allclose(before, line[1] - elapsed * line[0], atol=1e-6)


def test_a_track_that_leaves_the_frame_or_comes_back_from_far() -> None:
    """The past may come to lie outside of the frame; what is found then stands alone."""
    tracker = SmoothedTracker(Known(), 0.3)
    for i, x in enumerate((150.0, 100.0, 50.0, 5.0, 150.0, 5.0, 80.0)):
        given = round_at(x, 60)
        found = tracker.update(given, 0.1 * i)  # Detections refuse a mask that leaves the frame
        assert (full_mask(found) <= disc(x, 60, 200)).all()


def test_what_belongs_to_no_track_stays_and_rows_follow_the_new_scores() -> None:
    box, other, third = (10, 10, 50, 50), (60, 10, 100, 50), (110, 10, 150, 50)
    masks = [disc(30, 30, 20), disc(80, 30, 20), disc(130, 30, 20)]
    tracker = SmoothedTracker(Known(), 1.0)
    tracker.update(seen((1, 0.9, box, masks[0]), (2, 0.4, other, masks[1])), 0.0)
    found = tracker.update(seen((2, 0.95, other, masks[1]), (0, 0.6, third, masks[2]), (1, 0.3, box, masks[0])), 0.1)
    assert found.track_ids is not None
    assert found.track_ids.tolist() == [1, 0, 2]  # 0.9 falls slowly, 0.4 grows slowly
    assert found.scores[1] == np.float32(0.6)
    assert (np.diff(found.scores) <= 0).all()
    np.testing.assert_array_equal(found.boxes, np.array([box, third, other], np.float32))
    for full, mask in zip(found.full_masks(), (masks[0], masks[2], masks[1]), strict=True):
        assert (full == mask).all()


def test_nothing_is_made_of_a_past_that_is_gone_or_of_another_clock() -> None:
    part = disc(60, 60, 20)
    part[:60] = False
    for later in (5.0, -5.0):  # 50 half-lives; a clock that was set back
        tracker = SmoothedTracker(Known(), 0.1)
        tracker.update(round_at(60, 60, score=0.1), 0.0)
        tracker.update(Detections.none(HEIGHT, WIDTH), later / 2)
        assert not tracker._past
        found = tracker.update(seen((1, 0.9, (40, 40, 80, 80), part)), later)
        assert found.scores[0] == np.float32(0.9)
        assert (full_mask(found) == part).all()


def test_odd_frames() -> None:
    """No detections, tracks or masks; a box without extent, a mask without pixels, objects at the frame's edges."""
    tracker = SmoothedTracker(Known(), 0.2)
    assert len(tracker.update(Detections.none(HEIGHT, WIDTH), 0.0)) == 0
    plain = round_at(60, 60)
    assert tracker.update(replace(plain, track_ids=None), 0.1).scores[0] == np.float32(0.9)
    unmasked = replace(plain, masks=None)
    assert tracker.update(unmasked, 0.2).masks is None
    empty = replace(plain, boxes=np.full((1, 4), 60, np.float32), masks=(Mask(0, 0, np.zeros((0, 0), bool)),))
    for at, given in enumerate(
        (plain, empty, plain, empty, empty, plain, round_at(5, 5), round_at(155, 60), unmasked), 1
    ):
        found = tracker.update(given, at)
        assert (found.masks is None) == (given.masks is None)
        assert len(found) == 1
    for wrong in (0, -1, float("nan"), float("inf")):
        with pytest.raises(WnlbError, match="expected a number above 0"):
            SmoothedTracker(Known(), wrong)
