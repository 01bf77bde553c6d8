"""A video file that is whole or not there."""

from __future__ import annotations

import contextlib
import math
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from wnlb.runtime.errors import WnlbError
from wnlb.runtime.files import atomic_path

SUFFIXES = (".mp4", ".mov", ".mkv", ".avi")


class VideoFile:
    """Writes frames as MPEG-4; the file appears when it is closed, if there was a frame.

    It has the size of the first frame. Frames of another size, as a camera may give after it was opened again, are
    scaled to fit, with black borders.

    Raises:
        WnlbError: the file cannot be written, or this OpenCV has no encoder.
    """

    def __init__(self, path: Path, fps: float) -> None:
        if path.suffix.lower() not in SUFFIXES:
            raise WnlbError(f"video {path} has the suffix {path.suffix or 'none'!r}; expected {', '.join(SUFFIXES)}")
        self.path = path
        self.fps = min(max(fps, 1.0), 240.0) if math.isfinite(fps) else 25.0
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
                self._writer = None
                with self._file:  # takes the temporary file away
                    raise WnlbError(f"video {self.path} cannot be written; check folder, suffix and OpenCV's codecs")
        self._writer.write(frame_bgr if size == self._size else _fitted(frame_bgr, self._size))
        self._frames += 1

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


def _fitted(frame: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    height, width = frame.shape[:2]
    scale = min(size[0] / width, size[1] / height)
    inner = (max(int(width * scale), 1), max(int(height * scale), 1))
    canvas = np.zeros((size[1], size[0], 3), np.uint8)
    canvas[: inner[1], : inner[0]] = cv2.resize(frame, inner)
    return canvas
