"""Detections in real time: capture, inference and output overlap, and the newest frame wins."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from wnlb.runtime.detections import Detections
from wnlb.runtime.errors import PictureError, Unavailable
from wnlb.runtime.latency import RecentTimes
from wnlb.runtime.live.feed import Capture, Feed, as_bgr, open_feed
from wnlb.runtime.overlap import Slot
from wnlb.runtime.predictor import Predictor

BACK_OFF = (0.5, 1.0, 2.0, 4.0, 8.0)  # seconds between tries to open a lost camera again
STALLED = 15.0  # seconds without a frame, and a camera counts as lost although its driver says nothing
ODD_FRAMES = 100  # so many in a row, and the camera counts as lost


@dataclass(frozen=True, eq=False)
class Result:
    """One frame and what was found in it."""

    number: int  # of the frame in its feed, from 0
    name: str
    pixels: NDArray[np.uint8]  # uint8 BGR [h, w, 3]
    detections: Detections
    captured_at: float  # seconds of time.perf_counter, when the frame was in memory
    done_at: float  # when its masks were there
    times_ms: dict[str, float]  # prepare, infer, paste
    counts: dict[str, Any] | None = None  # where objects are tracked: ``Tracks.counts`` after this frame

    @property
    def latency_ms(self) -> float:
        """From the frame in memory to its masks; what camera and driver take before is not in it."""
        return 1e3 * (self.done_at - self.captured_at)


@dataclass(frozen=True)
class StreamState:
    """Counts of a stream at one moment."""

    state: str  # starting, running, reconnecting, unserved (the model's server does not answer) or ended
    captured: int  # frames that the source gave
    dropped: int  # of these, for newer ones were there
    odd: int  # of these, no pictures
    unserved: int  # of these, for the model's server did not answer
    done: int  # results
    fps: float  # results a second
    latency_ms: dict[str, float]  # p50, p95, p99
    reconnects: int
    last_error: str
    silent_s: float  # since the newest frame


class Stream:
    """Results of a source, newest first in line, in the order of its frames.

        with Predictor("model.onnx") as predictor, Stream(predictor, "rtsp://camera/night") as stream:
            for result in stream:
                print(result.number, f"{result.latency_ms:.0f} ms", result.detections.scores)

    While a result is worked on outside, the next frame is in inference and newer ones are captured. A frame that is
    not in inference when a newer one comes is dropped. A live source that fails is opened again, for ever; and where
    the model's server does not answer, it is asked again with newer frames. The state tells of both. Iteration ends
    with the source, or with ``close`` from any thread.

    Args:
        predictor: used by a thread of the stream alone until the stream is closed; stays open.
        source: see ``open_feed``; or a feed.
        every_frame: drop none; a video file is then read as fast as it is inferred. Always so for pictures.
        on_change: told when the source is lost, when it is back, and of pictures that cannot be read; called by a
            thread of the stream.

    Raises:
        PictureError: the source is not there at the beginning, or gave no frame.
    """

    def __init__(
        self,
        predictor: Predictor,
        source: str | Feed,
        *,
        every_frame: bool = False,
        on_change: Callable[[str], None] = lambda message: None,
    ) -> None:
        self.feed = open_feed(source) if isinstance(source, str) else source
        self._predictor = predictor
        self._every_frame = every_frame or bool(self.feed.picture_names)
        self._stop = threading.Event()
        self._frames = Slot[_Captured](self._stop)
        self._results = Slot[Result](self._stop)
        self._recent = RecentTimes()
        self._counts = _Counts()
        self._on_change = on_change
        self._generation = 0  # of the capture thread: one that hangs is left to itself
        first = self.feed.open()
        self._inference = self._started(self._infer)
        self._capturing = self._started(self._capture, first, 0)
        if self.feed.live:
            self._started(self._watch)

    def __iter__(self) -> Iterator[Result]:
        return (result for result in self.results() if result is not None)

    def results(self, idle_s: float | None = None) -> Iterator[Result | None]:
        """Results as they come; and None whenever none came for ``idle_s`` seconds."""
        while True:
            result = self._results.take(idle_s)
            if result is None and (self._results.ended or self.stopped):
                break
            self._counts.done += result is not None
            yield result
        if self._counts.failure:
            raise self._counts.failure

    def state(self) -> StreamState:
        """May be called from any thread."""
        counts, now = self._counts, time.perf_counter()
        return StreamState(
            state="unserved" if counts.no_answer and counts.state == "running" else counts.state,
            captured=counts.captured,
            dropped=self._frames.dropped,
            odd=counts.odd,
            unserved=counts.unserved,
            done=counts.done,
            fps=self._recent.per_second(now),
            latency_ms=self._recent.percentiles(),
            reconnects=counts.reconnects,
            last_error=counts.no_answer or counts.last_error,
            silent_s=now - counts.last_frame,
        )

    @property
    def stopped(self) -> bool:
        return self._stop.is_set()

    def stop(self) -> None:
        """End the iteration; may be called from any thread and from a signal handler."""
        self._stop.set()
        self._frames.wake()
        self._results.wake()

    def close(self) -> None:
        """Stop, and wait for the threads; a camera that does not answer is left to end by itself."""
        self.stop()
        self._inference.join()  # it uses the predictor, which the caller may close now
        self._capturing.join(timeout=2)
        self._counts.state = "ended"

    def __enter__(self) -> Stream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _started(self, run: Callable[..., None], *arguments: Any) -> threading.Thread:
        """A thread whose error ends the stream and is raised where its results are read."""

        def guarded() -> None:
            try:
                run(*arguments)
            except BaseException as error:
                self._counts.failure = error
                self._results.end()
                self._frames.end()

        thread = threading.Thread(target=guarded, name=f"wnlb {run.__name__}", daemon=True)
        thread.start()
        return thread

    def _capture(self, capture: Capture | None, generation: int) -> None:
        waits = iter(BACK_OFF)
        while True:
            before = self._counts.captured
            lost = self._read(capture, generation) if capture else ""
            if capture:
                capture.release()
            if self._is_over(generation):
                return
            if not self.feed.live:
                break
            if self._counts.captured > before:
                waits = iter(BACK_OFF)
            if self._counts.state != "reconnecting":
                self._lost(lost)
            if self._stop.wait(next(waits, BACK_OFF[-1])) or self._is_over(generation):
                return
            try:
                capture = self.feed.open()
            except (PictureError, cv2.error) as error:
                capture, self._counts.last_error = None, str(error)
        self._frames.end()

    def _is_over(self, generation: int) -> bool:
        return self._stop.is_set() or generation != self._generation

    def _lost(self, reason: str) -> None:
        self._counts.state, self._counts.last_error = "reconnecting", reason
        self._on_change(f"{reason}; opening it again")

    def _watch(self) -> None:
        """Give a capture up that does not return: a driver or network that hangs says nothing."""
        while not self._stop.wait(min(STALLED / 4, 1)):
            silent = time.perf_counter() - self._counts.last_frame
            if self._counts.state in ("starting", "running") and silent > STALLED:
                self._generation += 1
                self._lost(f"{self.feed.name} gave nothing for {silent:.0f} s")
                self._capturing = self._started(self._capture, None, self._generation)

    def _read(self, capture: Capture, generation: int) -> str:
        """Put frames in line until the source ends or fails; why it did."""
        started, counts, odd_in_a_row = time.perf_counter(), self._counts, 0
        paced = self.feed.fps > 0 and not self._every_frame
        while not self._is_over(generation):
            number = counts.captured
            if paced and self._stop.wait(max(started + number / self.feed.fps - time.perf_counter(), 0)):
                break
            pixels = None
            try:
                read, raw = capture.read()
                pixels = as_bgr(raw, self.feed.bits)
            except PictureError as error:  # of a file among many
                read = True
                self._on_change(str(error))
            except cv2.error as error:
                return f"{self.feed.name}: {error.err}"
            if not read or self._is_over(generation):
                break
            counts.captured += 1
            if pixels is None:
                counts.odd, odd_in_a_row = counts.odd + 1, odd_in_a_row + 1
                if odd_in_a_row >= ODD_FRAMES and self.feed.live:
                    return f"{self.feed.name} gives frames that are no pictures"
                continue
            counts.last_frame, odd_in_a_row = time.perf_counter(), 0
            if counts.state == "reconnecting":
                counts.reconnects += 1
                self._on_change(f"{self.feed.name} is back")
            counts.state = "running"
            self._frames.put(_Captured(number, pixels, counts.last_frame), wait=self._every_frame)
        return f"{self.feed.name} gives no more frames"

    def _infer(self) -> None:
        done, waits, counts = 0, iter(BACK_OFF), self._counts
        while self._results.wait_free():  # so that the frame is the newest when the result is wanted
            frame = self._frames.take()
            if frame is None:
                break
            try:
                detections = self._predictor(frame.pixels)
            except Unavailable as error:
                if not self.feed.live:
                    raise
                counts.unserved += 1
                if not counts.no_answer:
                    self._on_change(f"{error}; trying again")
                counts.no_answer = str(error)
                self._stop.wait(next(waits, BACK_OFF[-1]))
                continue
            if counts.no_answer:
                self._on_change("the model answers again")
                counts.no_answer, waits = "", iter(BACK_OFF)
            now = time.perf_counter()
            name, times = self.feed.frame_name(frame.number), dict(self._predictor.times_ms)
            result = Result(frame.number, name, frame.pixels, detections, frame.at, now, times)
            self._recent.add(result.latency_ms, now)
            done += 1
            self._results.put(result, wait=True)
        if not self.stopped:
            counts.state = "ended"
            if not done and not counts.failure and not counts.unserved:
                counts.failure = PictureError(f"{self.feed.name} holds no frame that can be decoded")
        self._results.end()


@dataclass(frozen=True, eq=False)
class _Captured:
    number: int
    pixels: NDArray[np.uint8]
    at: float


@dataclass
class _Counts:
    """Each written by one thread."""

    state: str = "starting"
    captured: int = 0
    odd: int = 0
    unserved: int = 0
    no_answer: str = ""  # why the model does not answer now
    done: int = 0
    reconnects: int = 0
    last_error: str = ""
    last_frame: float = field(default_factory=time.perf_counter)
    failure: BaseException | None = None
