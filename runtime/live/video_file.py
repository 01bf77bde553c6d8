"""A video file that is whole or not there."""

from __future__ import annotations

import contextlib
import math
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from wnlb.runtime.errors import WnlbError
from wnlb.runtime.files import atomic_path, name_for_opencv

SUFFIXES = (".mp4", ".mov", ".mkv", ".avi")
UNKNOWN_FPS = 25.0  # of a container that states no rate
RATES = (0.01, 1000.0)  # of cameras, time lapse to slow motion; what lies outside is a container's clock
LARGEST_CLOCK = 65535  # MPEG-4 counts time in ticks of 16 bits (ISO 14496-2, vop_time_increment_resolution)


def mpeg4_rate(fps: float) -> float:
    """The rate nearest to ``fps`` frames a second that MPEG-4 can hold as OpenCV writes it.

    OpenCV counts a second in ticks of ``fps * 10^n``, with the smallest n that is exact to 0.001; MPEG-4 takes no
    more than 65,535 of them. So 66.667 becomes 66.67: 0.005 off at most, a frame in 13,000. What is no rate (0, NaN)
    becomes 25; what no camera gives becomes 1 or 240.
    """
    if not math.isfinite(fps) or fps <= 0:
        return UNKNOWN_FPS
    if not RATES[0] <= fps <= RATES[1]:
        return min(max(fps, 1.0), 240.0)
    digits = next(n for n in (3, 2, 1, 0) if round(fps * 10**n) <= LARGEST_CLOCK)
    return round(fps, digits)


class VideoFile:
    """Writes frames as MPEG-4; the file appears when it is closed, if there was a frame.

    It has the size of the first frame, and the rate of ``mpeg4_rate``. Frames of another size, as a camera may give
    after it was opened again, are scaled to fit, with black borders.

    Raises:
        WnlbError: the file cannot be written, or this OpenCV has no encoder.
    """

    def __init__(self, path: Path, fps: float) -> None:
        if path.suffix.lower() not in SUFFIXES:
            raise WnlbError(f"video {path} has the suffix {path.suffix or 'none'!r}; expected {', '.join(SUFFIXES)}")
        name_for_opencv(path)
        self.path = path
        self.fps = mpeg4_rate(fps)
        self._size = (0, 0)
        self._frames = 0
        self._writer: cv2.VideoWriter | None = None
        self._file = contextlib.ExitStack()

    def write(self, frame_bgr: NDArray[np.uint8]) -> None:
        """Add a frame, uint8 ``[h, w, 3]``."""
        size = (frame_bgr.shape[1], frame_bgr.shape[0])
        if self._writer is None:
            self._temporary = self._file.enter_context(atomic_path(self.path))
            self._size = size
            self._writer = cv2.VideoWriter(str(self._temporary), cv2.VideoWriter.fourcc(*"mp4v"), self.fps, size)
            if not self._writer.isOpened():
                self.discard()
                raise WnlbError(
                    f"video {self.path} of {size[0]}x{size[1]} at {self.fps:g} frames a second cannot be written; "
                    "check folder, suffix, size (MPEG-4 holds 8191 at most) and OpenCV's codecs"
                )
        self._writer.write(frame_bgr if size == self._size else _fitted(frame_bgr, self._size))
        self._frames += 1

    def discard(self) -> None:
        """Close without a file: what was written is taken away."""
        if self._writer is not None:
            self._writer.release()
            self._writer = None
        with contextlib.suppress(_Discarded), self._file:
            raise _Discarded

    def close(self) -> None:
        """May be called more than once. Raises WnlbError where the file is not whole; it does not appear then."""
        if self._writer is None:
            return
        self._writer.release()  # which tells no errors
        self._writer = None
        with self._file:
            written = cv2.VideoCapture(str(self._temporary))
            frames = int(written.get(cv2.CAP_PROP_FRAME_COUNT)) if written.isOpened() else 0
            written.release()
            if frames < self._frames:
                kept = f"{frames} of {self._frames} frames"
                raise WnlbError(f"video {self.path} could not be written whole, {kept}; is the disk full?")


class _Discarded(Exception):
    """Ends ``atomic_path`` without the file."""


def _fitted(frame: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    height, width = frame.shape[:2]
    scale = min(size[0] / width, size[1] / height)
    inner = (max(int(width * scale), 1), max(int(height * scale), 1))
    canvas = np.zeros((size[1], size[0], 3), np.uint8)
    canvas[: inner[1], : inner[0]] = cv2.resize(frame, inner)
    return canvas
