"""A video file that is whole or not there."""

from __future__ import annotations

import contextlib
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from wnlb.runtime.errors import WnlbError
from wnlb.runtime.files import atomic_path


class VideoFile:
    """Writes frames as MPEG-4; the file appears when it is closed, if there was a frame.

    It has the size of the first frame. Frames of another size, as a camera may give after it was opened again, are
    scaled to fit, with black borders.

    Raises:
        WnlbError: the file cannot be written, or this OpenCV has no encoder.
    """

    def __init__(self, path: Path, fps: float) -> None:
        self.path, self.fps = path, fps
        self._size = (0, 0)
        self._writer: cv2.VideoWriter | None = None
        self._file = contextlib.ExitStack()

    def write(self, frame_bgr: NDArray[np.uint8]) -> None:
        """Add a frame, uint8 ``[h, w, 3]``."""
        size = (frame_bgr.shape[1], frame_bgr.shape[0])
        if self._writer is None:
            temporary = self._file.enter_context(atomic_path(self.path))
            self._size = size
            self._writer = cv2.VideoWriter(str(temporary), cv2.VideoWriter.fourcc(*"mp4v"), self.fps, size)
            if not self._writer.isOpened():
                self._writer = None
                with self._file:  # takes the temporary file away
                    raise WnlbError(f"video {self.path} cannot be written; check folder, suffix and OpenCV's codecs")
        self._writer.write(frame_bgr if size == self._size else _fitted(frame_bgr, self._size))

    def close(self) -> None:
        """May be called more than once."""
        if self._writer is not None:
            self._writer.release()
            self._writer = None
            self._file.close()


def _fitted(frame: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    height, width = frame.shape[:2]
    scale = min(size[0] / width, size[1] / height)
    inner = (max(int(width * scale), 1), max(int(height * scale), 1))
    canvas = np.zeros((size[1], size[0], 3), np.uint8)
    canvas[: inner[1], : inner[0]] = cv2.resize(frame, inner)
    return canvas
