"""Cameras and predictors that do what a test tells them, on night scenes that bear their numbers."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from wnlb.calibration.scenes.camera import Camera, expose
from wnlb.calibration.scenes.scene import make_scene
from wnlb.runtime.detections import Detections
from wnlb.runtime.errors import PictureError, WnlbError
from wnlb.runtime.live.feed import Feed

WAIT = 120  # seconds until a test that hangs fails


def night(number: int) -> np.ndarray:
    picture = expose(make_scene(5, number, 64, 96).light, Camera(30), np.random.default_rng(number))
    return np.ascontiguousarray(picture[..., ::-1])


SCENES = [night(number) for number in range(4)]


def numbered(number: int) -> np.ndarray:
    """A night scene that bears its number in its first two pixels."""
    frame = SCENES[number % len(SCENES)].copy()
    frame[0, 0] = number % 256, number // 256, 0
    return frame


def number_in(frame: np.ndarray) -> int:
    return int(frame[0, 0, 0]) + 256 * int(frame[0, 0, 1])


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


class Gate:
    """Opened for one passer at a time."""

    def __init__(self) -> None:
        self._passes, self._arrived = threading.Semaphore(0), threading.Semaphore(0)

    def arrive(self) -> None:
        self._arrived.release()
        assert self._passes.acquire(timeout=WAIT)

    def wait_for_one(self) -> None:
        assert self._arrived.acquire(timeout=WAIT)

    def open(self) -> None:
        self._passes.release()


class Scripted:
    """A capture that gives what it is told; ``None`` entries end it."""

    def __init__(self, frames: Iterator[Any] | list[Any], gate: Gate | None = None) -> None:
        self._frames, self._gate, self.released = iter(frames), gate, False

    def read(self) -> tuple[bool, Any]:
        if self._gate:
            self._gate.arrive()
        item = next(self._frames, None)
        if isinstance(item, Exception):
            raise item
        return item is not None, item

    def release(self) -> None:
        self.released = True


class Answering:
    """Stands for a predictor: finds nothing, and can be held back."""

    def __init__(self, gate: Gate | None = None, fails_at: int = -1) -> None:
        self.seen: list[int] = []
        self.times_ms = {"infer": 1.0}
        self._gate, self._fails_at = gate, fails_at

    def __call__(self, frame: np.ndarray) -> Detections:
        self.seen.append(number_in(frame))
        if self._gate:
            self._gate.arrive()
        if self.seen[-1] == self._fails_at:
            raise WnlbError("the GPU fell out")
        return Detections.none(*frame.shape[:2])


def feed(*captures: Any, live: bool = True, fps: float = 0) -> Feed:
    """Opens to one capture after the other; to an exception where that stands in the row."""
    row = iter(captures)

    def opened() -> Any:
        item = next(row, None)
        if item is None:
            raise PictureError("camera is gone")
        if isinstance(item, Exception):
            raise item
        return item

    return Feed("camera", opened, live, fps)
