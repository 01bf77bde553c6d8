"""``--track`` in ``wnlb predict`` and ``wnlb run``, on a lamp that gets weak for longer than a lost track is kept."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from wnlb.calibration.accuracy.tracks import by_video
from wnlb.calibration.labels.reader import read_labels
from wnlb.runtime import source
from wnlb.runtime.source import open_source

# The planted lamp scores as bright as the frame is, its cat half of that, which begins no track.
SCORES = [0.9] * 10 + [0.35] * 15 + [0.9] * 5
SHOWN = [number for number, score in enumerate(SCORES) if score > 0.5]
ZONES = ["--zone", "yard=0,20 24,20 24,30 0,30", "--zone", "5,28 40,28"]


@pytest.fixture
def drive(tmp_path: Path) -> Path:
    writer = cv2.VideoWriter(str(tmp_path / "drive.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 10, (48, 32))
    for score in SCORES:
        writer.write(np.full((32, 48, 3), round(255 * score), np.uint8))
    writer.release()
    return tmp_path / "drive.avi"


def assert_is_coco_vid(path: Path) -> None:
    document = json.loads(path.read_text())
    assert document["videos"] == [{"id": 1, "name": "drive", "fps": 10.0, "width": 48, "height": 32}]
    assert [image["frame_id"] for image in document["images"]] == list(range(len(SCORES)))
    frames = {image["id"]: image["frame_id"] for image in document["images"]}
    assert [frames[entry["image_id"]] for entry in document["annotations"]] == SHOWN
    for entry in document["annotations"]:
        assert (entry["track_id"], entry["instance_id"], entry["video_id"], entry["category_id"]) == (1, 1, 1, 1)
    assert len(by_video(read_labels(path)).images) == len(SCORES)  # evaluate takes it as truth


def assert_is_mot(path: Path) -> None:
    rows = [line.split(",") for line in path.read_text().splitlines()]
    assert [(int(row[0]), int(row[1])) for row in rows] == [(number + 1, 1) for number in SHOWN]
    np.testing.assert_allclose(np.array(rows[0][2:6], float), (4, 8, 16, 16))


def test_predict(wnlb: Callable[..., Any], planted_model_path: Path, drive: Path, tmp_path: Path) -> None:
    """What is weak holds the identity over 1.5 s, and is not given out."""
    ran = wnlb("predict", planted_model_path, drive, "-o", tmp_path / "out", "--track", *ZONES)
    assert (ran.code, ran.err) == (0, "")
    assert "\nobjects: lamp 1\nyard: entered none\nline 2: left none; right none\n" in ran.out
    assert "overlays, detections.json and tracks.txt are in" in ran.out
    assert_is_coco_vid(tmp_path / "out" / "detections.json")
    assert_is_mot(tmp_path / "out" / "tracks.txt")


def test_smoothed(wnlb_here: Callable[..., Any], planted_model_path: Path, drive: Path, tmp_path: Path) -> None:
    """10 frames a second, a half-life of 0.2 s: 0.35 after 0.9 is 0.74, 0.63, 0.54, 0.49, and 0.9 after that 0.51."""
    words = ["--track", "--smooth", "0.2", "--quiet"]
    assert wnlb_here("predict", planted_model_path, drive, "-o", tmp_path / "out", *words).code == 0
    document = json.loads((tmp_path / "out" / "detections.json").read_text())
    frames = [entry["image_id"] - 1 for entry in document["annotations"]]
    assert frames == [*range(13), *range(25, 30)]
    assert document["annotations"][10]["score"] == pytest.approx(0.35 + (0.9 - 0.35) * 0.5**0.5, abs=0.01)


def test_run(wnlb_here: Callable[..., Any], planted_model_path: Path, drive: Path, tmp_path: Path) -> None:
    files = {name: tmp_path / f"o.{name}" for name in ("jsonl", "coco", "mot")}
    words = [word for name, path in files.items() for word in (f"--{name}", path)]
    words += ["--video", tmp_path / "o.mp4", "--report", tmp_path / "night"]
    ran = wnlb_here("run", planted_model_path, drive, "--every-frame", "--track", *ZONES, *words)
    assert ran.code == 0, ran.err
    assert re.search(r"\b1\b.{0,80}objects followed", (tmp_path / "night" / "report.html").read_text(), re.DOTALL)
    assert "\nobjects: lamp 1\n" in ran.out
    assert_is_coco_vid(files["coco"])
    assert_is_mot(files["mot"])
    lines = [json.loads(line) for line in files["jsonl"].read_text().splitlines()]
    for number, line in enumerate(lines):
        assert [found["track_id"] for found in line["detections"]] == [1] * (number in SHOWN)
        yard, across = line["counts"]["zones"]
        assert yard == {"name": "yard", "inside": {"lamp": 1} if number in SHOWN else {}, "entered": {}}
        assert across == {"name": "line 2", "left": {}, "right": {}}
        assert line["counts"]["seen"] == {"lamp": 1}


def test_pictures_are_frames(wnlb_here: Callable[..., Any], planted_model_path: Path, tmp_path: Path) -> None:
    for number in range(3):
        cv2.imwrite(str(tmp_path / f"{number}.png"), np.full((32, 48, 3), 230, np.uint8))
    assert wnlb_here("predict", planted_model_path, tmp_path, "-o", tmp_path / "out", "--track").code == 0
    document = json.loads((tmp_path / "out" / "detections.json").read_text())
    assert document["videos"][0]["fps"] == 25
    assert [entry["track_id"] for entry in document["annotations"]] == [1, 1, 1]


def test_refusals(wnlb_here: Callable[..., Any], planted_model_path: Path, drive: Path, tmp_path: Path) -> None:
    for command, words, message in (
        ("predict", ["--zone", "0,0 9,9"], "--zone counts tracks; add --track"),
        ("predict", ["--track", "--zone", "0,0"], "expected [NAME=]X,Y X,Y"),
        ("predict", ["--smooth", "0.2"], "--smooth averages over tracks; add --track"),
        ("predict", ["--track", "--smooth", "0"], "--smooth is 0; expected seconds above 0"),
        ("run", ["--zone", "0,0 9,9"], "--zone counts tracks; add --track"),
        ("run", ["--track", "--smooth", "nan"], "--smooth is nan; expected seconds above 0"),
        (
            "run",
            ["--track", "--zone", "0,90 9,90", "--mot", tmp_path / "o.txt"],
            "zone line 1 lies beside the frames, which are of 48x32 pixels",
        ),
        ("run", ["--mot", tmp_path / "o.txt"], "--mot writes tracks; add --track"),
        ("run", ["--track", "--mot", tmp_path / "no" / "o.txt"], "does not exist"),
        ("run", ["--track", "--mot", drive], "is the source, the model or another output"),
    ):
        output = ["-o", tmp_path / "out"] if command == "predict" else []
        assert message in wnlb_here(command, planted_model_path, drive, *output, *words).refused(), words
    live = wnlb_here("run", planted_model_path, "rtsp://a/b", "--track", "--mot", tmp_path / "o.txt").refused()
    assert "--mot is for sources with an end, a_b has none; use --jsonl" in live
    assert not any((tmp_path / name).exists() for name in ("out", "o.txt"))


class Uneven:
    """A capture of frames with these times, in ms."""

    def __init__(self, times: list[float]) -> None:
        self._times, self._at = times, -1

    def isOpened(self) -> bool:
        return True

    def get(self, what: int) -> float:
        facts = {cv2.CAP_PROP_FPS: 10.0, cv2.CAP_PROP_FRAME_COUNT: len(self._times)}
        return facts[what] if what in facts else self._times[self._at]

    def read(self) -> tuple[bool, Any]:
        self._at += 1
        return self._at < len(self._times), np.zeros((8, 8, 3), np.uint8)

    def release(self) -> None:
        pass


@pytest.mark.parametrize(
    ("stated", "expected"),
    [
        ([0, 40, 240, 250, 1000], [0, 0.04, 0.24, 0.25, 1.0]),  # a rate that varies
        ([0, 0, 0, 0, 0], [0, 0.1, 0.2, 0.3, 0.4]),  # a container that states no times: by its rate
        ([0, 100, float("nan"), 300, 250], [0, 0.1, 0.2, 0.3, 0.4]),
        ([500, 500, 900, 0, 0], [0.5, 0.6, 0.9, 1.0, 1.1]),  # times grow whatever it states
    ],
)
def test_frames_of_a_video_have_the_times_that_it_states(
    stated: list[float], expected: list[float], monkeypatch: pytest.MonkeyPatch, drive: Path
) -> None:
    monkeypatch.setattr(source.cv2, "VideoCapture", lambda name: Uneven(stated))
    assert [frame.at_s for frame in open_source(str(drive))] == pytest.approx(expected)
