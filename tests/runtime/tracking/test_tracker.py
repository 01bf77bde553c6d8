"""Planted objects with known ways, seen at times that are even, uneven and missing."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np
import pytest

from wnlb.runtime.detections import Detections
from wnlb.runtime.errors import MissingDependency, WnlbError
from wnlb.runtime.tracking.tracker import BufferedIouTracker, TrackerOptions

FPS = 25.0
EVEN = [i / FPS for i in range(50)]


def frame(*rows: tuple[float, float, float], labels: Sequence[int] = ()) -> Detections:
    """Boxes of 60 x 40 with their left upper corner at x, y, each with a score; best first."""
    ordered = sorted(rows, key=lambda row: -row[2])
    boxes = np.array([(x, y, x + 60, y + 40) for x, y, _ in ordered], np.float32).reshape(-1, 4)
    scores = np.array([score for _, _, score in ordered], np.float32)
    return Detections(480, 640, boxes, scores, np.array(labels or [1] * len(rows), np.int32), None)


def crossing(at_s: float, weak: bool = False) -> Detections:
    """One goes right at 300 px/s in the upper half, another left at 200 px/s, and they pass each other."""
    return frame((20 + 300 * at_s, 100, 0.9), (560 - 200 * at_s, 120 if weak else 160, 0.3 if weak else 0.8))


def ids_of(times: Sequence[float], tracker: BufferedIouTracker | None = None) -> np.ndarray:
    """``[frames, 2]`` identities of the two that cross, the better one first."""
    tracker = tracker or BufferedIouTracker(TrackerOptions(FPS))
    found = [tracker.update(crossing(t), t).track_ids for t in times]
    return np.array([ids for ids in found if ids is not None])


def test_two_that_cross_keep_their_identities() -> None:
    ids = ids_of(EVEN)
    assert {tuple(row) for row in ids.tolist()} == {(1, 2)}  # of the first frame at once
    assert ids.dtype == np.int32


@pytest.mark.parametrize("kept", [lambda i: i % 3 == 0, lambda i: i < 12 or i > 24, lambda i: i % 7 < 4])
def test_dropped_frames_do_not_part_a_track(kept) -> None:
    """Every third frame, half a second missing, and bursts; an object moves 36 to 156 px in between, its box has 60."""
    ids = ids_of([t for i, t in enumerate(EVEN) if kept(i)])
    assert {tuple(row) for row in ids[3:].tolist()} == {(1, 2)}


def test_it_is_the_times_that_keep_them_together() -> None:
    """The same frames told as if none were missing lose the faster object where half a second is left out."""
    tracker, ids = BufferedIouTracker(TrackerOptions(FPS)), []
    for i, t in enumerate(t for i, t in enumerate(EVEN) if i < 12 or i > 24):
        found = tracker.update(crossing(t), i / FPS)
        assert found.track_ids is not None
        ids.append(found.track_ids[0])
    assert ids[11] == 1
    assert ids[-1] not in (0, 1)


def test_an_uneven_rate() -> None:
    rng = np.random.default_rng(0)
    ids = ids_of(np.cumsum(rng.uniform(0.3, 2.5, 30) / FPS).tolist())
    assert {tuple(row) for row in ids[2:].tolist()} == {(1, 2)}


def test_weak_detections_go_on_with_a_track_but_begin_none() -> None:
    tracker = BufferedIouTracker(TrackerOptions(FPS))
    for i in range(20):
        score = 0.9 if i < 5 else 0.15  # it drives into the dark
        found = tracker.update(frame((50 + 3 * i, 100, score), (400, 300, 0.4)), i / FPS)
    assert found.track_ids is not None
    by_place = dict(zip(found.boxes[:, 0].tolist(), found.track_ids.tolist(), strict=True))
    assert by_place == {107.0: 1, 400.0: 0}


def test_what_is_weaker_than_weak_is_left_alone() -> None:
    tracker = BufferedIouTracker(TrackerOptions(FPS))
    for i in range(6):
        found = tracker.update(frame((50, 100, 0.9 if i < 5 else 0.09)), i / FPS)
    assert found.track_ids is not None
    assert found.track_ids.tolist() == [0]


@pytest.mark.parametrize(("hidden_s", "same"), [(0.9, True), (1.3, False)])
@pytest.mark.parametrize("rate", [FPS, 5.0])  # the source's; a slow model sees every fifth frame
def test_hidden_objects_come_back_as_themselves_for_a_second(hidden_s: float, same: bool, rate: float) -> None:
    tracker, seen = BufferedIouTracker(TrackerOptions(FPS)), []
    for step in range(int(4 * rate)):
        at = step / rate
        there = not 1.5 < at < 1.5 + hidden_s
        found = tracker.update(frame((100, 100, 0.9)) if there else Detections.none(480, 640), at)
        assert found.track_ids is not None
        seen += found.track_ids.tolist()
    assert seen[-1] == (1 if same else 2)


def test_one_object_of_changing_class_is_one_track() -> None:
    tracker = BufferedIouTracker()
    for i in range(10):
        found = tracker.update(frame((100 + i, 100, 0.9), labels=[1 + i % 2]), i / FPS)
    assert found.track_ids is not None
    assert found.track_ids.tolist() == [1]


def test_a_clock_that_is_set_back_begins_anew_with_identities_of_its_own() -> None:
    tracker = BufferedIouTracker(TrackerOptions(FPS))
    first = ids_of(EVEN[:5], tracker)
    second = ids_of(EVEN[:5], tracker)
    assert first[-1].tolist() == [1, 2]
    assert {tuple(row) for row in second.tolist()} == {(3, 4)}


def test_rows_stay_and_nothing_is_no_failure() -> None:
    tracker = BufferedIouTracker()
    assert len(tracker.update(Detections.none(480, 640), 0.0)) == 0
    for i in range(1, 4):
        given = frame((300, 300, 0.8), (10, 10, 0.9), (500, 10, 0.2))
        found = tracker.update(given, i / FPS)
        np.testing.assert_array_equal(found.boxes, given.boxes)
    assert found.track_ids is not None
    assert found.track_ids[2] == 0
    assert sorted(found.track_ids[:2].tolist()) == [1, 2]
    kept = found.tracked()
    assert kept.scores.tolist() == pytest.approx([0.9, 0.8])
    assert len(tracker.update(Detections.none(480, 640), 1.0)) == 0


def test_options_that_make_no_sense() -> None:
    for wrong in ({"fps": 0}, {"fps": float("nan")}, {"sure_score": 0.05}, {"sure_score": 0.8}, {"lost_s": -1}):
        with pytest.raises(WnlbError, match="expected"):
            TrackerOptions(**wrong)


def test_without_the_library_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(MissingDependency, match=r"pip install 'wnlb-deploy\[track\]'"):
        BufferedIouTracker()
