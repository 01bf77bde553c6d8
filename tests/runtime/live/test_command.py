"""``wnlb run`` on videos whose frames are known, and on cameras that fail on purpose."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from wnlb.runtime.cli import main
from wnlb.runtime.errors import PictureError
from wnlb.runtime.live import command as run_command
from wnlb.runtime.live import outputs
from wnlb.runtime.live.feed import Feed


@pytest.fixture
def drive(tmp_path: Path) -> Path:
    """Twelve frames, brighter and brighter, at 60 a second."""
    return video(tmp_path / "drive.avi", 12, 60)


def video(path: Path, frames: int, fps: float) -> Path:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), fps, (48, 32))
    for number in range(frames):
        writer.write(np.full((32, 48, 3), 20 * (number % 12), np.uint8))
    writer.release()
    return path


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_frame_to_every_output(
    wnlb: Callable[..., Any], planted_model_path: Path, drive: Path, tmp_path: Path
) -> None:
    outputs = ["--jsonl", tmp_path / "o.jsonl", "--coco", tmp_path / "o.json", "--video", tmp_path / "o.mp4"]
    ran = wnlb("run", planted_model_path, drive, *outputs, "--every-frame", "--score-threshold", "0.3")
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.startswith("12 frames, 0 dropped for newer ones\nONNX Runtime")
    assert re.search(r"^p95 +\d+\.\d$", ran.out, re.MULTILINE)
    written = lines(tmp_path / "o.jsonl")
    assert [line["frame"] for line in written] == list(range(12))
    assert written[3]["name"] == "drive_000003"
    assert written[3].keys() >= {"latency_ms", "prepare", "infer", "paste"}
    captured = [datetime.fromisoformat(line["captured"]) for line in written]
    assert captured == sorted(captured)
    assert abs(datetime.now(timezone.utc) - captured[-1]) < timedelta(minutes=1)
    for number, line in enumerate(written):  # the planted lamp is as bright as the frame, the cat half as bright
        brightness = 20 * number / 255
        expected = ["lamp"] * (brightness >= 0.3) + ["dark cat"] * (brightness / 2 >= 0.3)
        assert [found["class"] for found in line["detections"]] == expected
    assert written[11]["detections"][0]["segmentation"]["size"] == [32, 48]
    document = json.loads((tmp_path / "o.json").read_text())
    assert len(document["images"]) == 12
    assert len(document["annotations"]) == sum(len(line["detections"]) for line in written)
    capture = cv2.VideoCapture(str(tmp_path / "o.mp4"))
    assert (capture.get(cv2.CAP_PROP_FRAME_COUNT), capture.get(cv2.CAP_PROP_FPS)) == (12, 60)


def test_a_video_is_played_and_a_folder_gives_every_picture(
    wnlb: Callable[..., Any], planted_model_path: Path, drive: Path, tmp_path: Path
) -> None:
    ran = wnlb("run", planted_model_path, drive, "--jsonl", "-")
    numbers = [json.loads(line)["frame"] for line in ran.out.splitlines()]
    assert numbers == sorted(set(numbers))
    done, dropped = re.findall(r"(\d+) frames?, (\d+) dropped", ran.err)[0]
    assert (int(done), int(done) + int(dropped)) == (len(numbers), 12)
    for name, value in (("b.png", 255), ("a.png", 0)):
        cv2.imwrite(str(tmp_path / name), np.full((8, 12, 3), value, np.uint8))
    (tmp_path / "c.png").write_bytes(b"broken")
    ran = wnlb("run", planted_model_path, tmp_path, "--jsonl", "-", "--quiet")
    assert [json.loads(line)["name"] for line in ran.out.splitlines()] == ["a.png", "b.png"]
    assert ran.code == 3
    assert re.fullmatch(r"wnlb run: picture .*c\.png is damaged .*\n", ran.err)


def test_a_video_that_drops_keeps_its_speed_and_lines_are_added(
    wnlb: Callable[..., Any], planted_model_path: Path, drive: Path, tmp_path: Path
) -> None:
    for _ in range(2):
        words = ["--video", tmp_path / "o.mp4", "--jsonl", tmp_path / "o.jsonl", "--quiet"]
        assert wnlb("run", planted_model_path, drive, *words).code == 0
    last = lines(tmp_path / "o.jsonl")[-1]["frame"]
    capture = cv2.VideoCapture(str(tmp_path / "o.mp4"))
    assert (capture.get(cv2.CAP_PROP_FRAME_COUNT), capture.get(cv2.CAP_PROP_FPS)) == (last + 1, 60)
    assert [line["frame"] for line in lines(tmp_path / "o.jsonl")].count(0) == 2


def test_a_full_disk_leaves_no_broken_video(planted_model_path: Path, tmp_path: Path) -> None:
    source = video(tmp_path / "long.avi", 200, 30)

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))

    words = ["run", planted_model_path, source, "--every-frame", "--quiet", "--video", tmp_path / "o.mp4"]
    command = [sys.executable, "-m", "wnlb.runtime.cli", *map(str, words)]
    ran = subprocess.run(command, preexec_fn=limit, capture_output=True, text=True, timeout=300)
    assert (ran.returncode, ran.stderr.count("\n")) == (2, 1)
    assert "could not be written whole" in ran.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["long.avi"]


@pytest.mark.parametrize(("stated", "told"), [(300, True), (12, False)])
def test_a_file_that_ends_early_is_told(
    planted_model_path: Path, drive: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, stated: int, told: bool
) -> None:
    open_feed = run_command.open_feed
    monkeypatch.setattr(run_command, "open_feed", lambda *words: replace(open_feed(*words), frames=stated))
    assert main(["run", str(planted_model_path), str(drive), "--every-frame", "--jsonl", "-", "--quiet"]) == 0
    assert ("drive ended after 12 of the 300 frames" in capsys.readouterr().err) == told


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_closes_everything(planted_model_path: Path, tmp_path: Path, number: int) -> None:
    source = video(tmp_path / "long.avi", 3000, 30)
    words = ["run", planted_model_path, source, "--jsonl", tmp_path / "o.jsonl", "--video", tmp_path / "o.mp4"]
    command = [sys.executable, "-m", "wnlb.runtime.cli", *map(str, words), "--serve", "127.0.0.1:0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stderr
    assert process.stdout
    announced = process.stderr.readline()
    url = re.findall(r"http://127\.0\.0\.1:\d+/", announced)[0]
    assert "on this machine only" in announced
    with urllib.request.urlopen(f"{url}frame.jpg", timeout=120) as answer:  # waits for a frame
        assert answer.status in (200, 204)
    while not (tmp_path / "o.jsonl").read_text().count("\n") > 3:
        assert process.poll() is None
    process.send_signal(number)
    out, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (0, "")
    done = int(out.split()[0])
    assert len(lines(tmp_path / "o.jsonl")) == done
    frames = cv2.VideoCapture(str(tmp_path / "o.mp4")).get(cv2.CAP_PROP_FRAME_COUNT)
    assert frames == lines(tmp_path / "o.jsonl")[-1]["frame"] + 1


class Unplugged:
    """Gives two frames of another size each time it is opened; when one was drawn the user presses Ctrl-C, once."""

    opened, pressed, drawn = 0, False, threading.Event()

    def __init__(self) -> None:
        type(self).opened += 1
        if self.opened == 2:
            raise PictureError("camera0 cannot be opened")
        self._left = 2

    def read(self) -> tuple[bool, Any]:
        self._left -= 1
        if self._left < 0 and self.opened > 3 and not self.pressed:
            type(self).pressed = self.drawn.wait(120)
            os.kill(os.getpid(), signal.SIGINT)
        return self._left >= 0, np.full((32 + 2 * self.opened, 48, 3), 255, np.uint8)

    def release(self) -> None:
        pass


def test_an_unplugged_camera_is_told_and_comes_back(
    planted_model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("wnlb.runtime.live.stream.BACK_OFF", (0.0, 0.0))
    monkeypatch.setattr(run_command, "open_feed", lambda source, mode: Feed("camera0", Unplugged, live=True))
    before, draw = signal.getsignal(signal.SIGINT), run_command.draw

    def told(*words: Any) -> Any:
        Unplugged.drawn.set()
        return draw(*words)

    monkeypatch.setattr(run_command, "draw", told)
    assert main(["run", str(planted_model_path), "0", "--video", str(tmp_path / "o.mp4")]) == 0
    printed = capsys.readouterr()
    assert "wnlb run: camera0 gives no more frames; opening it again\n" in printed.err
    assert "wnlb run: camera0 is back\n" in printed.err
    assert re.search(r"reconnected \d+ times?", printed.out)
    assert cv2.VideoCapture(str(tmp_path / "o.mp4")).get(cv2.CAP_PROP_FRAME_HEIGHT) > 33
    assert signal.getsignal(signal.SIGINT) is before


def test_without_an_output_it_is_shown(
    planted_model_path: Path, drive: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(outputs, "DEFAULT_PAGE", "127.0.0.1:0")
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    assert main(["run", str(planted_model_path), str(drive)]) == 0
    assert "live page at http://127.0.0.1:" in capsys.readouterr().err


def test_a_full_disk_leaves_whole_lines(
    wnlb_here: Callable[..., Any], planted_model_path: Path, drive: Path, tmp_path: Path
) -> None:
    log, limits = tmp_path / "o.jsonl", resource.getrlimit(resource.RLIMIT_FSIZE)
    log.write_text('{"frame": 0, "of": "the night before"}\n')
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        ran = wnlb_here("run", planted_model_path, drive, "--every-frame", "--jsonl", log, "--quiet")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert ran.refused() == f"wnlb run: error: {log} cannot be written: File too large"
    assert 1 < len(lines(log)) < 12
    assert 500 < len(log.read_bytes()) < 1000
    assert log.read_text().endswith("\n")


def test_refusals(wnlb_here: Callable[..., Any], planted_model_path: Path, drive: Path, tmp_path: Path) -> None:
    (tmp_path / "bare.engine").write_bytes(b"engine")
    for words, message in (
        ([tmp_path / "no.onnx", drive], "expected an .onnx or .engine file"),
        ([planted_model_path, tmp_path / "no.mp4"], "does not exist"),
        ([planted_model_path, ""], "source is empty"),
        ([planted_model_path, drive, "--coco", tmp_path / "no" / "o.json"], "no does not exist"),
        (
            [planted_model_path, "0", "--coco", "o.json"],
            "--coco is for sources with an end, camera0 has none; use --jsonl",
        ),
        ([planted_model_path, "rtsp://a/b", "--every-frame"], "--every-frame is for sources with an end"),
        ([planted_model_path, "rtsp://me:secret@a/b?password=x", "--every-frame"], "end, a_b has none; leave it out"),
        ([planted_model_path, "ftp://me:secret@a/b.mp4"], "source ftp://a/b.mp4 is an address of ftp; expected rtsp,"),
        ([planted_model_path, "63"], "camera 63 cannot be opened"),
        ([planted_model_path, "9" * 20], "expected an index from 0 to 255"),
        ([planted_model_path, drive, "--camera", "1280x720"], "a mode can be asked of cameras only"),
        ([planted_model_path, drive, "--threads", "9" * 11], "0 (one per core) to 1024"),
        ([planted_model_path, drive, "--video", tmp_path / "o.gif"], "expected .mp4, .mov, .mkv, .avi"),
        ([planted_model_path, drive, "--jsonl", drive], "is the source, the model or another output"),
        ([planted_model_path, drive, "--video", drive], "is the source, the model or another output"),
        ([planted_model_path, drive, "--coco", planted_model_path], "is the source, the model or another output"),
        ([planted_model_path, drive, "--jsonl", "x", "--coco", "./x"], "is the source, the model or another output"),
        ([planted_model_path, drive, "--coco", "/dev/null"], "is no file"),
        ([planted_model_path, drive, "--camera", "720p"], "expected WIDTHxHEIGHT"),
        ([planted_model_path, drive, "--threads", "-1"], "threads is -1"),
        ([planted_model_path, drive, "--score-threshold", "2"], "score threshold is 2.0"),
        ([planted_model_path, drive, "--show"], "--show needs a display, and DISPLAY is not set; leave it out, or use"),
        ([planted_model_path, drive, "--serve", "8080"], "expected HOST:PORT"),
        ([planted_model_path, drive, "--jsonl", tmp_path / "no" / "o"], "cannot be written"),
        ([planted_model_path, drive, "--video", tmp_path / "no" / "o.mp4"], "does not exist"),
        ([planted_model_path, drive, "--trust", planted_model_path], "--trust is for engines"),
        ([tmp_path / "bare.engine", drive], "has no manifest bare.engine.json"),
    ):
        assert message in wnlb_here("run", *words).refused(), words
