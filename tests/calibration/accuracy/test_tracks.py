"""Figures of planted tracks, against those that TrackEval 1.3.0 gave for the same; and the command."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import astuple, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from planted_tracks import planted_tracks

from wnlb.calibration.accuracy.tracks import VideoTracks, by_video, score_tracks
from wnlb.calibration.labels.labels import Labels
from wnlb.runtime.detections import Detections
from wnlb.runtime.errors import WnlbError

# HOTA, DetA, AssA, IDF1, MOTA, switches of TrackEval's metrics (combine_sequences, combine_classes_det_averaged).
TRACKEVAL = {
    "first": {
        "box": (47.374773, 54.769939, 41.005633, 68.327402, 72.60274, 3),
        "mask": (47.279554, 54.652021, 40.945771, 67.615658, 71.232877, 3),
    },
    "second": {
        "box": (38.571241, 44.642866, 33.367884, 51.879699, 48.630137, 3),
        "mask": (38.143491, 44.245806, 32.910065, 51.879699, 48.630137, 3),
    },
    "both": {
        "box": (43.156503, 49.638147, 37.553369, 60.329068, 60.616438, 6),
        "mask": (42.906791, 49.373445, 37.32218, 59.963437, 59.931507, 6),
    },
}
LIGHT = {1: [0.001, 0.019], 2: [0.2, 0.2]}  # bins 0-0.015 and 0.12-1


def test_figures_are_trackevals() -> None:
    labels, results = planted_tracks()
    found = score_tracks(by_video(labels), results, LIGHT, "model")
    assert list(found.by_darkness) == ["0-0.015", "0.12-1"]
    parts = {"first": found.by_darkness["0-0.015"], "second": found.by_darkness["0.12-1"], "both": found.overall}
    for name, accuracy in parts.items():
        assert astuple(accuracy.box) == pytest.approx(TRACKEVAL[name]["box"], abs=1e-5), name
        assert accuracy.mask is not None
        assert astuple(accuracy.mask) == pytest.approx(TRACKEVAL[name]["mask"], abs=1e-5), name
    assert [(part.videos, part.tracks) for part in parts.values()] == [(1, 5), (1, 5), (2, 10)]


def test_the_order_of_images_and_the_names_of_identities_do_not_matter() -> None:
    labels, results = planted_tracks()
    shuffled = replace(labels, images=labels.images[::-1])
    renamed = [{**e, "track_id": 1000 - e["track_id"]} if "track_id" in e else e for e in reversed(results)]
    found = score_tracks(by_video(shuffled), renamed, LIGHT, "model")
    assert astuple(found.overall.box) == pytest.approx(TRACKEVAL["both"]["box"], abs=1e-5)


def test_what_is_perfect_and_what_finds_nothing() -> None:
    labels, _ = planted_tracks()
    perfect = [
        {
            "image_id": a.image_id,
            "category_id": a.category_id,
            "bbox": list(a.bbox),
            "score": 1.0,
            "segmentation": a.segmentation.rle if a.segmentation else None,
            "track_id": a.extra["track_id"],
        }
        for a in labels.annotations
    ]
    found = score_tracks(by_video(labels), perfect, LIGHT, "perfect").overall
    assert astuple(found.box) == pytest.approx((100, 100, 100, 100, 100, 0))
    nothing = score_tracks(by_video(labels), [], LIGHT, "blind").overall
    assert astuple(nothing.box) == (0, 0, 0, 0, 0, 0)


def test_boxes_alone() -> None:
    labels, results = planted_tracks()
    without = [{key: value for key, value in entry.items() if key != "segmentation"} for entry in results]
    found = score_tracks(by_video(labels), without, LIGHT, "boxes").overall
    assert found.mask is None
    assert astuple(found.box) == pytest.approx(TRACKEVAL["both"]["box"], abs=1e-5)


class Told:
    """A tracker that remembers what it is told."""

    def __init__(self, fps: float) -> None:
        self.fps, self.times = fps, list[float]()

    def update(self, detections: Detections, at_s: float) -> Detections:
        self.times.append(at_s)
        return detections


def test_trackers_are_told_the_times_of_their_own_video() -> None:
    labels, _ = planted_tracks()
    every_third = by_video(labels.part(labels.images[::3]))
    made: list[Told] = []

    def make(fps: float) -> Told:
        made.append(Told(fps))
        return made[-1]

    tracks = VideoTracks(every_third, make)
    for image in every_third.images:
        tracks.update(image, 0.5, Detections.none(160, 160))
    assert [told.fps for told in made] == [10, 10]
    for told in made:
        assert told.times == pytest.approx(np.arange(10) * 0.3)
    assert {video: len(values) for video, values in tracks.light.items()} == {1: 10, 2: 10}


def test_sets_that_are_no_videos_are_refused() -> None:
    labels, _ = planted_tracks()
    first, entry = labels.images[0], labels.annotations[0]
    for wrong in (
        replace(labels, extra={}),
        replace(labels, extra={"videos": [{"id": 1}]}),
        replace(labels, extra={"videos": "two"}),
        replace(labels, images=(replace(first, extra={"video_id": 9, "frame_id": 0}),)),
        replace(labels, images=(replace(first, extra={"video_id": 1, "frame_id": "0"}),)),
        replace(labels, images=(replace(first, extra={"video_id": [1], "frame_id": 0}),)),
        replace(labels, images=(replace(first, extra={"video_id": 1, "frame_id": 10**400}),)),
        replace(labels, images=(first, replace(first, id=-1))),
        replace(labels, extra={"videos": [{"id": [1], "fps": 5}, {"id": 1, "fps": float("nan")}, 7]}),
        replace(labels, annotations=(replace(entry, extra={}),)),
        replace(labels, annotations=(replace(entry, extra={"track_id": 2**70}),)),
    ):
        with pytest.raises(WnlbError, match="expected COCO-VID"):
            by_video(wrong)


def test_videos_that_cannot_be_meant_are_left_out() -> None:
    labels, _ = planted_tracks()
    odd = replace(labels, extra={"videos": [*labels.extra["videos"], {"id": 3}, {"fps": 1}, None]})
    kept = by_video(odd)
    assert kept.extra["videos"] == labels.extra["videos"]
    VideoTracks(kept)


@pytest.fixture
def drive(tmp_path: Path) -> Path:
    """A light that goes on: frames for the small model, with one object and its identity."""
    labels, _ = planted_tracks()
    images = tuple(image for image in labels.images if image.extra["video_id"] == 1)[:4]
    part: Labels = labels.part(images)
    for image in images:
        cv2.imwrite(str(tmp_path / image.file_name), np.full((160, 160, 3), 40, np.uint8))
    (tmp_path / "a.json").write_text(json.dumps(part.document()))
    return tmp_path


def test_command(brief_model_path: Path, drive: Path, wnlb_here: Callable[..., Any]) -> None:
    words = ["evaluate", brief_model_path, "--annotations", drive / "a.json", "--images", drive, "--track"]
    ran = wnlb_here(*words, "--baseline", brief_model_path, "-o", drive / "out")
    assert ran.code == 0, ran.err
    assert "Tracks of 1 videos with 5 objects" in ran.out
    assert "| luminance" in ran.out.partition("HOTA / IDF1 / MOTA")[2]
    assert (drive / "out" / "report.md").read_text().rstrip() == ran.out.rstrip()
    told = json.loads(wnlb_here(*words, "--smooth", "0.2", "--json").out)["tracks"]
    assert told[0]["overall"]["videos"] == 1
    assert told[0]["overall"]["box"].keys() >= {"hota", "idf1", "mota"}
    refused = wnlb_here("evaluate", brief_model_path, "--images", drive, "--track", "--baseline", brief_model_path)
    assert "--track needs --annotations" in refused.refused()
    refused = wnlb_here(*words[:-1], "--smooth", "0.2")
    assert "--smooth averages over tracks; add --track" in refused.refused()
