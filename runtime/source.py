"""Where frames come from: pictures, folders, globs, videos, cameras."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from wnlb.runtime.errors import PictureError
from wnlb.runtime.pictures import PICTURE_SUFFIXES, read_picture

LAST_CAMERA = 255


@dataclass(frozen=True, eq=False)
class Frame:
    """One frame of a source, or the reason why it could not be read."""

    name: str  # of the picture file, from the folder that all have in common; or VIDEO_000042
    pixels: NDArray[np.uint8] | None  # uint8 BGR [h, w, 3]
    error: str = ""


class PictureSource:
    """Picture files, one after the other. A file that cannot be read is a frame with an error."""

    is_video = False
    fps = 0.0

    def __init__(self, paths: list[Path]) -> None:
        common = Path(os.path.commonpath([path.parent for path in paths]))
        self.paths = {path.relative_to(common).as_posix(): path for path in paths}  # by the name of the frame

    def __len__(self) -> int:
        return len(self.paths)

    def __iter__(self) -> Iterator[Frame]:
        for name, path in self.paths.items():
            try:
                yield Frame(name, read_picture(path))
            except PictureError as error:
                yield Frame(name, None, str(error))


class VideoSource:
    """The frames of a video file or a camera."""

    is_video = True

    def __init__(self, where: str | int) -> None:
        self._what = f"camera {where}" if isinstance(where, int) else f"video {where}"
        self._capture = cv2.VideoCapture(where)
        if not self._capture.isOpened():
            self._capture.release()
            raise PictureError(f"{self._what} cannot be opened; check that it exists and that this OpenCV can read it")
        self._name = f"camera{where}" if isinstance(where, int) else Path(where).stem
        self.paths = {} if isinstance(where, int) else {self._name: Path(where)}
        frames = 0 if isinstance(where, int) else int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT))
        self._frames = max(frames, 0)
        self.fps = self._capture.get(cv2.CAP_PROP_FPS) or 25.0

    def release(self) -> None:
        """Close a source that nobody reads."""
        self._capture.release()

    def __len__(self) -> int:
        """As the container states it; 0 for cameras and where it does not."""
        return self._frames

    def __iter__(self) -> Iterator[Frame]:
        number = 0
        try:
            while True:
                read, pixels = self._capture.read()
                if not read:
                    break
                yield Frame(f"{self._name}_{number:06d}", np.asarray(pixels, np.uint8))
                number += 1
        finally:
            self._capture.release()
        if not number:
            raise PictureError(f"{self._what} holds no frame that can be decoded")


Source = PictureSource | VideoSource


def open_source(source: str) -> Source:
    """Open a picture, a folder of pictures, a glob pattern, a video file or a camera (its index).

    Raises:
        PictureError: there is nothing there.
    """
    if not source:  # an unset variable of a script; as a path it would be the working folder
        raise PictureError("source is empty; expected a picture, folder, glob, video or camera index")
    path = Path(source)
    if source.isdecimal() and not path.exists():
        if int(source) > LAST_CAMERA:
            raise PictureError(f"camera {source} is not there; expected an index from 0 to {LAST_CAMERA}")
        return VideoSource(int(source))
    if path.is_dir():
        pictures = sorted(p for p in path.iterdir() if p.suffix.lower() in PICTURE_SUFFIXES and p.is_file())
        if not pictures:
            raise PictureError(f"folder {source} holds no pictures; expected {', '.join(sorted(PICTURE_SUFFIXES))}")
        return PictureSource(pictures)
    if path.is_file():
        return PictureSource([path]) if path.suffix.lower() in PICTURE_SUFFIXES else VideoSource(source)
    matches = sorted(Path(match) for match in glob.glob(source, recursive=True) if Path(match).is_file())
    if not matches:
        raise PictureError(f"source {source} does not exist; expected a picture, folder, glob, video or camera index")
    return PictureSource(matches)
