"""Where the results of a stream go."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Protocol, TextIO

import numpy as np
from numpy.typing import NDArray

from wnlb.runtime.coco import CocoDocument, coco_results
from wnlb.runtime.contract import Contract
from wnlb.runtime.errors import WnlbError
from wnlb.runtime.files import atomic_path
from wnlb.runtime.live_page import LivePage
from wnlb.runtime.stream import Result, Stream
from wnlb.runtime.video_file import VideoFile
from wnlb.runtime.window import Window


class Sink(Protocol):
    """Takes every result."""

    @property
    def wants_overlay(self) -> bool:
        """Whether ``add`` needs the frame with its detections drawn."""
        ...

    def add(self, result: Result, overlay: NDArray[np.uint8] | None) -> bool:
        """False where the user wants to end."""
        ...

    def close(self) -> None: ...


class WindowSink:
    wants_overlay = True

    def __init__(self, instead: str) -> None:
        self._window = Window(instead)

    def add(self, result: Result, overlay: NDArray[np.uint8] | None) -> bool:
        assert overlay is not None
        return not self._window.show(overlay)

    def close(self) -> None:
        self._window.close()


class VideoSink:
    wants_overlay = True

    def __init__(self, path: Path, fps: float) -> None:
        self._file = VideoFile(path, fps)

    def add(self, result: Result, overlay: NDArray[np.uint8] | None) -> bool:
        assert overlay is not None
        self._file.write(overlay)
        return True

    def close(self) -> None:
        self._file.close()


class JsonLinesSink:
    """One line of JSON for each frame: number, name, latency, and its detections as COCO results.

    Args:
        where: a file to write, or ``-`` for the standard output.
    """

    wants_overlay = False

    def __init__(self, where: str, contract: Contract) -> None:
        self._names = contract.class_names
        try:
            self._file: TextIO = sys.stdout if where == "-" else open(where, "w")  # noqa: SIM115
        except OSError as error:
            raise WnlbError(f"{where} cannot be written: {error.strerror}") from error

    def add(self, result: Result, overlay: NDArray[np.uint8] | None) -> bool:
        found = [
            {"class": self._names[entry["category_id"] - 1], **entry}
            for entry in coco_results(result.detections, result.number)
        ]
        times = {stage: round(ms, 2) for stage, ms in result.times_ms.items()}
        line = {"frame": result.number, "name": result.name, "latency_ms": round(result.latency_ms, 2), **times}
        print(json.dumps({**line, "detections": found}), file=self._file, flush=True)
        return True

    def close(self) -> None:
        if self._file is not sys.stdout:
            self._file.close()


class CocoSink:
    """One COCO document, written at the end; for sources that have one."""

    wants_overlay = False

    def __init__(self, path: Path, contract: Contract) -> None:
        self._path, self._document = path, CocoDocument(contract.class_names)

    def add(self, result: Result, overlay: NDArray[np.uint8] | None) -> bool:
        self._document.add(result.name, result.detections)
        return True

    def close(self) -> None:
        with atomic_path(self._path) as temporary:
            temporary.write_text(self._document.to_json())


class PageSink:
    """The live page; overlays are drawn only while somebody looks."""

    def __init__(self, page: LivePage, stream: Stream) -> None:
        self._page = page
        page.state = lambda: vars(stream.state())

    @property
    def wants_overlay(self) -> bool:
        return self._page.watched

    def add(self, result: Result, overlay: NDArray[np.uint8] | None) -> bool:
        if overlay is not None:
            self._page.show(overlay, result.detections)
        return True

    def close(self) -> None:
        self._page.close()
