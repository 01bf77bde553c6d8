"""Where the results of a stream go."""

from __future__ import annotations

import contextlib
import io
import json
import time
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from wnlb.runtime.coco import CocoDocument, coco_results
from wnlb.runtime.contract import Contract
from wnlb.runtime.errors import WnlbError
from wnlb.runtime.files import atomic_path
from wnlb.runtime.live.page import LivePage
from wnlb.runtime.live.stream import Result, Stream
from wnlb.runtime.live.video_file import VideoFile
from wnlb.runtime.live.window import Window
from wnlb.runtime.tracking.mot import MotLines

CAMERA_FPS = 25.0  # of videos from cameras
LONGEST_PAUSE = 50  # frames that one overlay is repeated for


class Sink(Protocol):
    """Takes every result."""

    @property
    def wants_overlay(self) -> bool:
        """Whether ``add`` needs the frame with its detections drawn."""
        ...

    def add(self, result: Result, overlay: NDArray[np.uint8] | None) -> bool:
        """False where the user wants to end."""
        ...

    def close(self, failed: bool) -> None:
        """``failed``: an error ended the stream."""
        ...


class WindowSink:
    wants_overlay = True

    def __init__(self, instead: str) -> None:
        self._window = Window(instead)

    def idle(self) -> bool:
        """While no result comes; False where the user wants to end."""
        return not self._window.refresh()

    def add(self, result: Result, overlay: NDArray[np.uint8] | None) -> bool:
        assert overlay is not None
        return not self._window.show(overlay)

    def close(self, failed: bool) -> None:
        self._window.close()


class VideoSink:
    """Overlays at the speed of the source: one is repeated for frames that were dropped.

    Args:
        fps: of the file that is read; 0 for a camera, whose frames are put where they were captured.
    """

    wants_overlay = True

    def __init__(self, path: Path, fps: float) -> None:
        self._file, self._by_number = VideoFile(path, fps or CAMERA_FPS), fps > 0
        self._written, self._origin = 0, 0.0

    def add(self, result: Result, overlay: NDArray[np.uint8] | None) -> bool:
        assert overlay is not None
        place = self._place(result)
        # At least one of a file without speed; of a camera that was lost, its return follows at once.
        for _ in range(min(max(place + 1 - self._written, 0), LONGEST_PAUSE)):
            self._file.write(overlay)
        self._written = max(place + 1, self._written)
        return True

    def _place(self, result: Result) -> int:
        if self._by_number:
            return result.number
        if not self._written:
            self._origin = result.captured_at
        return round((result.captured_at - self._origin) * CAMERA_FPS)

    def close(self, failed: bool) -> None:
        self._file.close()


class JsonLinesSink:
    """One line of JSON for each frame: its number, name, time, latency, its detections as COCO results, and counts.

    Args:
        where: a file, to whose end lines are added, as to a log; or ``-`` for the standard output.
    """

    wants_overlay = False

    def __init__(self, where: str, contract: Contract) -> None:
        self._names, self._where = contract.class_names, where
        self._file: io.FileIO | None = None
        if where == "-":
            return
        try:
            self._file = io.FileIO(where, "a")  # without a buffer, so that nothing is tried again on closing
        except OSError as error:
            raise WnlbError(f"{where} cannot be written: {error.strerror}") from error
        self._end = self._file.tell() if self._file.seekable() else 0  # bytes, of whole lines

    def add(self, result: Result, overlay: NDArray[np.uint8] | None) -> bool:
        found = [
            {"class": self._names[entry["category_id"] - 1], **entry}
            for entry in coco_results(result.detections, result.number)
        ]
        times = {stage: round(ms, 2) for stage, ms in result.times_ms.items()}
        ago = timedelta(seconds=time.perf_counter() - result.captured_at)
        captured = (datetime.now(timezone.utc) - ago).isoformat(timespec="milliseconds")
        line = {"frame": result.number, "name": result.name, "captured": captured}
        line |= {"latency_ms": round(result.latency_ms, 2), **times}
        line |= {} if result.counts is None else {"counts": result.counts}
        self._write(json.dumps({**line, "detections": found}) + "\n")
        return True

    def _write(self, line: str) -> None:
        if self._file is None:
            print(line, end="", flush=True)
            return
        whole = line.encode()
        data = memoryview(whole)
        try:
            while data:
                data = data[self._file.write(data) :]
        except BrokenPipeError:
            raise
        except OSError as error:
            with contextlib.suppress(OSError):  # no half line in the log
                self._file.truncate(self._end)
            raise WnlbError(f"{self._where} cannot be written: {error.strerror}") from error
        self._end += len(whole)

    def close(self, failed: bool) -> None:
        if self._file is not None:
            self._file.close()


class CocoSink:
    """One COCO document, written at the end if there was no error; for sources that have an end.

    ``video``: see ``CocoDocument``.
    """

    wants_overlay = False

    def __init__(self, path: Path, contract: Contract, video: tuple[str, float] | None = None) -> None:
        if not path.parent.is_dir():
            raise WnlbError(f"folder {path.parent} does not exist; create it or choose another output")
        self._path, self._document = path, CocoDocument(contract.class_names, video)

    def add(self, result: Result, overlay: NDArray[np.uint8] | None) -> bool:
        self._document.add(result.name, result.detections, result.number)
        return True

    def close(self, failed: bool) -> None:
        if failed:
            return
        with atomic_path(self._path) as temporary:
            temporary.write_text(self._document.to_json())


class MotSink:
    """Tracks as MOTChallenge has them, written at the end if there was no error; for sources that have an end."""

    wants_overlay = False

    def __init__(self, path: Path) -> None:
        if not path.parent.is_dir():
            raise WnlbError(f"folder {path.parent} does not exist; create it or choose another output")
        self._path, self._lines = path, MotLines()

    def add(self, result: Result, overlay: NDArray[np.uint8] | None) -> bool:
        self._lines.add(result.number, result.detections)
        return True

    def close(self, failed: bool) -> None:
        if failed:
            return
        with atomic_path(self._path) as temporary:
            temporary.write_text(self._lines.to_text())


class PageSink:
    """The live page; overlays are drawn only while somebody looks."""

    def __init__(self, page: LivePage, stream: Stream) -> None:
        self._page = page
        self._counts: dict[str, Any] | None = None
        page.state = lambda: {**vars(stream.state()), "counts": self._counts}

    @property
    def wants_overlay(self) -> bool:
        return self._page.watched

    def add(self, result: Result, overlay: NDArray[np.uint8] | None) -> bool:
        self._counts = result.counts
        if overlay is not None:
            self._page.show(overlay, result.detections)
        return True

    def close(self, failed: bool) -> None:
        self._page.close()
