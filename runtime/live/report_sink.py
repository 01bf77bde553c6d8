"""``wnlb run --report``: the record of a night, and its page."""

from __future__ import annotations

import os
import sys
import time
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wnlb.runtime.errors import MissingDependency, WnlbError
from wnlb.runtime.files import atomic_path, make_folder
from wnlb.runtime.live.stream import Result, Stream
from wnlb.runtime.night.page import PAGE, page
from wnlb.runtime.night.record import FILE, Record
from wnlb.runtime.sensors import find_sensors

_COUNTED_S, _SENSED_S, _WRITTEN_S = 1.0, 5.0, 60.0  # seconds between looks at counters, sensors, and writes


class ReportSink:
    """Everything that comes goes into a record, on the disk each minute; the page is written at the end.

    The record of a camera that is there is continued, if it is of the same model: the machine may be started again in
    the night. Of a video file the times are those in the file, from the start of the run on.

    Args:
        folder: made where it is not there.
        facts: of the record; ``source`` and ``model`` among them.

    Raises:
        WnlbError: the folder cannot be written, or holds another record.
    """

    wants_overlay = False

    def __init__(self, folder: Path, facts: dict[str, str], class_names: tuple[str, ...], stream: Stream) -> None:
        make_folder(folder)
        now = datetime.now().astimezone()
        self._folder, self._stream, self._sensors = folder, stream, find_sensors()
        goes_on = stream.feed.live and (folder / FILE).exists()
        before = _continued(folder, facts, class_names) if goes_on else None
        self._record = before or Record(facts, class_names, now)
        # A clock that was set back in between does not turn the record's time back.
        self._before_s = max((now - self._record.began) / timedelta(seconds=1), self._record.ended_s)
        self._started = time.perf_counter()
        self._next_count = self._next_sense = 0.0
        self._next_write = _WRITTEN_S
        self._dropped = self._reconnects = 0
        self._record.write(folder)  # what cannot be written is told now, not in the morning

    def add(self, result: Result, overlay: NDArray[np.uint8] | None) -> bool:
        fps = self._stream.feed.fps
        at_s = self._before_s + (result.number / fps if fps else result.captured_at - self._started)
        self._record.add(at_s, result.pixels, result.detections, result.latency_ms)
        passed = time.perf_counter() - self._started
        if passed >= self._next_count:
            self._next_count = passed + _COUNTED_S
            self._count(at_s)
        if passed >= self._next_sense:
            self._next_sense = passed + _SENSED_S
            self._record.add_reading(at_s, self._sensors.read())
        if passed >= self._next_write:
            self._next_write = passed + _WRITTEN_S
            self._write()
        return True

    def close(self, failed: bool) -> None:
        self._count(self._record.ended_s)
        self._record.write(self._folder)
        try:
            text = page(self._record)
        except MissingDependency as error:
            print(
                f"wnlb run: no page of {self._folder / FILE}: {error}; then: wnlb report {self._folder}",
                file=sys.stderr,
            )
            return
        with atomic_path(self._folder / PAGE) as temporary:
            temporary.write_text(text)

    def _count(self, at_s: float) -> None:
        state = self._stream.state()
        self._record.add_losses(at_s, state.dropped - self._dropped, state.reconnects - self._reconnects)
        self._dropped, self._reconnects = state.dropped, state.reconnects

    def _write(self) -> None:
        """A disk that is full for a while does not end the night."""
        try:
            self._record.write(self._folder)
        except WnlbError as error:
            print(f"wnlb run: {error}; tried again in a minute", file=sys.stderr)


def _continued(folder: Path, facts: dict[str, str], class_names: tuple[str, ...]) -> Record | None:
    """The record that is there; None for a damaged one, which is put aside: a camera that is started again must run."""
    try:
        record = Record.read(folder)
    except WnlbError as error:
        aside = (folder / FILE).with_suffix(".damaged.json")
        os.replace(folder / FILE, aside)
        print(f"wnlb run: {error}; it is {aside.name} now, and a new one is begun", file=sys.stderr)
        return None
    for what, expected, got in (
        *((key, record.facts.get(key), facts[key]) for key in ("source", "model")),
        ("classes", record.class_names, class_names),
    ):
        if expected != got:
            raise WnlbError(f"--report {folder} holds a record of {what} {expected}, not {got}; choose another folder")
    record.facts = facts
    record.runs += 1
    return record
