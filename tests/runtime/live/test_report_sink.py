"""``wnlb run --report`` on planted videos and cameras, and ``wnlb report``."""

from __future__ import annotations

import builtins
import errno
import itertools
import os
import re
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest

from wnlb.runtime.cli import main
from wnlb.runtime.detections import Detections
from wnlb.runtime.errors import WnlbError
from wnlb.runtime.live.feed import Feed
from wnlb.runtime.live.report_sink import ReportSink
from wnlb.runtime.live.stream import Result
from wnlb.runtime.night.page import PAGE
from wnlb.runtime.night.record import FILE, Record


@pytest.fixture
def drive(tmp_path: Path) -> Path:
    """Ten seconds at two frames a second, brighter and brighter."""
    writer = cv2.VideoWriter(str(tmp_path / "drive.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 2, (48, 32))
    for number in range(20):
        writer.write(np.full((32, 48, 3), 12 * number, np.uint8))
    writer.release()
    return tmp_path / "drive.avi"


def test_a_video_is_recorded_at_its_own_time(
    wnlb: Callable[..., Any], planted_model_path: Path, drive: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "a" / "night"
    ran = wnlb("run", planted_model_path, drive, "--every-frame", "--report", folder, "--score-threshold", "0.3")
    assert (ran.code, ran.err) == (0, "")
    assert sorted(path.name for path in folder.iterdir()) == [FILE, "report.html"]
    record = Record.read(folder)
    assert record.facts["source"] == "drive"
    seen = {start: (spell.frames, spell.most[1]) for start, spell in record.spells}
    # The planted lamp is as bright as the frame: from 30 % of white, frame 7, on.
    assert seen == {float(s): (2, int(12 * (2 * s + 1) >= 0.3 * 255)) for s in range(10)}
    light = [spell.luminance / spell.frames for _, spell in record.spells]
    assert light == sorted(light)
    assert "drive" in (folder / "report.html").read_text()
    (folder / "report.html").unlink()
    again = wnlb("report", folder)
    assert (again.code, again.out) == (0, f"wrote {folder / 'report.html'}\n")


def result(detections: Detections | None = None) -> Result:
    now = time.perf_counter()
    pixels = np.full((32, 48, 3), 90, np.uint8)
    return Result(0, "camera0", pixels, detections or Detections.none(32, 48), now - 0.02, now, {})


def sink_of(folder: Path, model: str = "m.engine", names: tuple[str, ...] = ("lamp",), dropped: int = 0) -> ReportSink:
    """Of a camera that drops more and more frames."""
    counts = itertools.count(dropped)
    state = SimpleNamespace(dropped=0, reconnects=1)

    def told() -> Any:
        state.dropped = next(counts)
        return state

    stream: Any = SimpleNamespace(feed=Feed("camera0", lambda: None, live=True), state=told)  # type: ignore[arg-type]
    return ReportSink(folder, {"source": "camera0", "model": model}, names, stream)


def test_a_camera_that_is_started_again_goes_on(tmp_path: Path) -> None:
    for run in range(2):
        sink = sink_of(tmp_path)
        for _ in range(3):
            assert sink.add(result(), None)
        sink.close(failed=run == 0)
    record = Record.read(tmp_path)
    spells = [spell for _, spell in record.spells]
    assert (record.runs, sum(spell.frames for spell in spells)) == (2, 6)
    assert sum(spell.reconnects for spell in spells) == 2
    assert sum(spell.dropped for spell in spells) == 2  # counted after the first frame (none) and at the end
    assert record.ended_s < 60
    assert "watched in 2 runs" in (tmp_path / PAGE).read_text()


def test_a_clock_that_was_set_back_does_not_turn_the_record_back(tmp_path: Path) -> None:
    ahead = Record(
        {"source": "camera0", "model": "m.engine"}, ("lamp",), datetime.now().astimezone() + timedelta(days=9)
    )
    ahead.add(100.0, np.zeros((8, 8, 3), np.uint8), Detections.none(8, 8), 1.0)
    ahead.write(tmp_path)
    sink = sink_of(tmp_path)
    sink.add(result(), None)
    sink.close(failed=False)
    assert 99 < Record.read(tmp_path).ended_s < 160


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"model": "other.engine"}, "holds a record of model m.engine, not other.engine; choose another folder"),
        ({"names": ("cat",)}, "holds a record of classes ('lamp',), not ('cat',)"),
    ],
)
def test_another_record_is_not_written_over(tmp_path: Path, asked: dict[str, Any], message: str) -> None:
    sink_of(tmp_path).close(failed=False)
    before = (tmp_path / FILE).read_bytes()
    with pytest.raises(WnlbError, match=re.escape(message)):
        sink_of(tmp_path, **asked)
    assert (tmp_path / FILE).read_bytes() == before


def test_a_damaged_record_is_put_aside(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As a power cut could leave it: the camera must run, whatever the night before was."""
    (tmp_path / FILE).write_text("")
    sink = sink_of(tmp_path)
    sink.add(result(), None)
    sink.close(failed=False)
    assert capsys.readouterr().err.endswith("it is record.damaged.json now, and a new one is begun\n")
    assert (tmp_path / "record.damaged.json").read_text() == ""
    assert Record.read(tmp_path).runs == 1


def test_a_disk_that_is_full_for_a_while_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("wnlb.runtime.live.report_sink._WRITTEN_S", 0.0)
    sink = sink_of(tmp_path)
    with monkeypatch.context() as full:
        full.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))))
        assert sink.add(result(), None)
    assert capsys.readouterr().err.count("No space left on device; tried again in a minute\n") == 1
    assert not list(Record.read(tmp_path).spells)
    assert sink.add(result(), None)
    assert Record.read(tmp_path).spells.at(0).frames == 2  # as after a power cut
    sink.close(failed=False)


def test_without_matplotlib_the_record_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sink = sink_of(tmp_path)
    sink.add(result(), None)
    real: Callable[..., Any] = builtins.__import__

    def without(name: str, *arguments: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *arguments)

    with monkeypatch.context() as bare:
        bare.setattr(builtins, "__import__", without)
        sink.close(failed=False)
    assert f"pip install 'wnlb-deploy[plots]'; then: wnlb report {tmp_path}\n" in capsys.readouterr().err
    assert main(["report", str(tmp_path)]) == 0
    assert (tmp_path / PAGE).exists()


def test_refusals(wnlb_here: Callable[..., Any], planted_model_path: Path, drive: Path, tmp_path: Path) -> None:
    assert "holds no record.json; expected the folder of" in wnlb_here("report", tmp_path).refused()
    (tmp_path / FILE).write_text("{}")
    assert "is no record of 'wnlb run --report'" in wnlb_here("report", tmp_path).refused()
    words = ["run", planted_model_path, drive, "--report", drive]
    assert "drive.avi is a file; choose another" in wnlb_here(*words).refused()
