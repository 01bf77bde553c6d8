"""Where frames come from: pictures, folders, globs, videos, cameras."""

from __future__ import annotations

import contextlib
import glob
import math
import os
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from wnlb.runtime.depth import check_bits, common_bits, doubt
from wnlb.runtime.errors import PictureError, PictureWarning, WnlbError
from wnlb.runtime.files import name_for_opencv
from wnlb.runtime.pictures import OTHER_SUFFIXES, PICTURE_SUFFIXES, highest_of, read_picture
from wnlb.runtime.text_file import read_lines

LAST_CAMERA = 255
PICTURES_FPS = 25.0  # of pictures that are frames of something
LOOKED_AT = 16  # pictures of a source, for the bits of its camera


@dataclass(frozen=True, eq=False)
class Frame:
    """One frame of a source, or the reason why it could not be read."""

    name: str  # of the picture file, from the folder that all have in common; or VIDEO_000042
    pixels: NDArray[np.uint8] | None  # uint8 BGR [h, w, 3]
    error: str = ""
    at_s: float = 0.0  # when it was captured: seconds, of a camera by the machine's clock; of pictures 25 are a second


class PictureSource:
    """Picture files, one after the other. A file that cannot be read is a frame with an error.

    Args:
        paths: at least one; two that are the same are one.
        bits: that values of 16-bit files have; 0: found out from some of them, and told by a PictureWarning.
    """

    is_video = False
    fps = 0.0

    def __init__(self, paths: list[Path], bits: int = 0) -> None:
        places = [Path(os.path.abspath(path)) for path in paths]  # a list may hold both kinds, and ..
        self.folder = Path(os.path.commonpath([place.parent for place in places]))
        # By the name of the frame.
        self.paths = {
            place.relative_to(self.folder).as_posix(): path for place, path in zip(places, paths, strict=True)
        }
        self._bits = check_bits(bits)
        self._found: int | None = None

    def __len__(self) -> int:
        return len(self.paths)

    def __iter__(self) -> Iterator[Frame]:
        found = self.bits_found()
        for number, (name, path) in enumerate(self.paths.items()):
            at_s = number / PICTURES_FPS
            try:
                yield Frame(name, read_picture(path, self._bits, found), at_s=at_s)
            except PictureError as error:
                yield Frame(name, None, str(error), at_s)

    def bits_found(self) -> int:
        """What some of the pictures, taken evenly, prove of all; 0 where none of them has more than 8 bits, or where
        they were given.
        """
        if self._bits or self._found is not None:
            return self._found or 0
        paths = list(self.paths.values())
        some = paths[:: -(-len(paths) // LOOKED_AT)]
        ranges = [found for path in some if (found := highest_of(path)) is not None and found.highest]
        bits, highest = common_bits(ranges), max((found.highest for found in ranges), default=0)
        if ranges and not bits:
            warnings.warn(doubt(highest, self.folder), PictureWarning, stacklevel=1)
        elif 0 < bits < 16:
            white = f"16-bit pictures in {self.folder} hold {bits} bits, their white is {highest}: read as such"
            warnings.warn(f"{white} (predict and run: --bits 16 reads them as 16)", PictureWarning, stacklevel=1)
        self._found = (bits or 16) if ranges else 0
        return self._found


class VideoSource:
    """The frames of a video file or a camera."""

    is_video = True

    def __init__(self, where: str | int) -> None:
        self._what = f"camera {where}" if isinstance(where, int) else f"video {where}"
        self._capture = cv2.VideoCapture(where if isinstance(where, int) else name_for_opencv(where))
        if not self._capture.isOpened():
            self._capture.release()
            raise PictureError(f"{self._what} cannot be opened; {_why_not(where)}")
        self._name = f"camera{where}" if isinstance(where, int) else Path(where).stem
        self.paths = {} if isinstance(where, int) else {self._name: Path(where)}
        frames = 0 if isinstance(where, int) else int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT))
        self._frames = max(frames, 0)
        fps = float(self._capture.get(cv2.CAP_PROP_FPS))
        self.fps = fps if 0 < fps < math.inf else 25.0  # not of NaN either
        self.position = 0  # of the frame that would be read next

    def release(self) -> None:
        """Close a source that nobody reads."""
        self._capture.release()

    def __len__(self) -> int:
        """As the container states it; 0 for cameras and where it does not."""
        return self._frames

    def count_left(self) -> int:
        """How many frames there are from ``position`` on, by decoding them all: the source is at its end then."""
        first = self.position
        while self._capture.grab():
            self.position += 1
        return self.position - first

    def __iter__(self) -> Iterator[Frame]:
        try:
            yield from self.between(self.position, None)
        finally:
            self._capture.release()
        if not self.position:
            raise PictureError(f"{self._what} holds no frame that can be decoded")

    def between(self, first: int, stop: int | None) -> Iterator[Frame]:
        """The frames from ``first`` on, before ``stop``, as far as there are any.

        What lies before is decoded and left out: to seek is inexact in many containers. There is no way back
        (``position``).
        """
        at_s = -math.inf
        while self.position < first and self._capture.grab():
            self.position += 1
        while self.position >= first and (stop is None or self.position < stop):
            read, pixels = self._capture.read()
            if not read:
                break
            at_s = self._time_of(self.position, at_s)
            self.position += 1
            yield Frame(f"{self._name}_{self.position - 1:06d}", np.asarray(pixels, np.uint8), at_s=at_s)

    def _time_of(self, number: int, last_s: float) -> float:
        """Of the frame just read: as the file states it, for rates vary; where it states none, by its rate."""
        if not self.paths:
            return time.perf_counter()
        stated = float(self._capture.get(cv2.CAP_PROP_POS_MSEC)) / 1e3
        return stated if last_s < stated < math.inf else max(number, last_s * self.fps + 1) / self.fps


def _why_not(where: str | int) -> str:
    """What may be wrong with a video or camera that OpenCV does not open, which tells no reasons itself."""
    if isinstance(where, int):
        return "check that it is plugged in and that no other program uses it"
    path = Path(where)
    if not path.is_file():
        return "check that it exists and that this OpenCV can read it"
    if not path.stat().st_size:
        return "it is empty (0 bytes)"
    return (
        "it is cut short, damaged, or no video that this OpenCV can read; of pictures "
        f"{', '.join(sorted(PICTURE_SUFFIXES))} are read"
    )


Source = PictureSource | VideoSource


def open_source(source: str, bits: int = 0) -> Source:
    """Open a picture, a folder of pictures, a glob pattern, a video file or a camera (its index).

    Pictures that a folder holds in formats that are not read from it are told by a PictureWarning.

    Args:
        bits: that values of 16-bit pictures have, 8 to 16; 0: found out.

    Raises:
        PictureError: there is nothing there.
        WnlbError: ``bits`` is out of range.
    """
    check_bits(bits)
    if not source:  # an unset variable of a script; as a path it would be the working folder
        raise PictureError("source is empty; expected a picture, folder, glob, video or camera index")
    path = Path(source)
    if "://" in source and not path.exists():
        raise PictureError(
            f"source {source.partition('://')[0]}://... is an address; 'wnlb run' opens those of streams"
        )
    if source.isdecimal() and not path.exists():
        if int(source) > LAST_CAMERA:
            raise PictureError(f"camera {source} is not there; expected an index from 0 to {LAST_CAMERA}")
        return VideoSource(int(source))
    files = files_of(source)
    if path.is_file() and path.suffix.lower() not in PICTURE_SUFFIXES:
        return VideoSource(source)
    return PictureSource(files, bits)


def files_of(source: str) -> list[Path]:
    """The files of a folder of pictures or a glob pattern, sorted; or the one that it is.

    Raises:
        PictureError: there is nothing there.
    """
    path = Path(source)
    if path.is_dir():
        return _pictures_in(path)
    if path.is_file():
        return [path]
    matches = sorted({Path(match) for match in _matching(source) if os.path.isfile(match)})
    if not matches:
        raise PictureError(f"source {source} does not exist; expected a picture, folder, glob, video or camera index")
    return matches


def listed_pictures(path: Path, folder: Path | None = None) -> list[Path]:
    """The pictures of a text file that has the path of one on each line.

    Args:
        folder: that they start from; None: that of the list.

    Raises:
        WnlbError: the list cannot be read, or is empty.
    """
    paths = [listed_path(folder or path.parent, line) for _, line in read_lines(path, "list of pictures")]
    if not paths:
        raise WnlbError(f"list of pictures {path} is empty; expected the path of a picture on each line")
    return paths


def listed_path(folder: Path, name: str) -> Path:
    """A path that a file of lists names, from this folder; of one made on Windows as well."""
    path, turned = folder / name, folder / name.replace("\\", "/")
    return turned if turned.exists() and not path.exists() else path


def _pictures_in(folder: Path) -> list[Path]:
    """The pictures of a folder, not of those in it."""
    files = sorted(path for path in folder.iterdir() if path.is_file())
    pictures = [path for path in files if path.suffix.lower() in PICTURE_SUFFIXES]
    others = Counter(path.suffix.lower() for path in files if path.suffix.lower() in OTHER_SUFFIXES)
    left_out = ", ".join(f"{count} {suffix}" for suffix, count in sorted(others.items()))
    if not pictures:
        held = f" ({left_out}: save them as PNG or JPEG, or name a video by itself)" if left_out else ""
        inside = f"; '{folder}/**/*' goes into its folders" if any(path.is_dir() for path in folder.iterdir()) else ""
        raise PictureError(
            f"folder {folder} holds no pictures{held}; expected {', '.join(sorted(PICTURE_SUFFIXES))}{inside}"
        )
    if left_out:
        warnings.warn(
            f"folder {folder}: left out {left_out}; of a folder {', '.join(sorted(PICTURE_SUFFIXES))} are read",
            PictureWarning,
            stacklevel=1,
        )
    return pictures


def _matching(pattern: str) -> Iterator[str]:
    """As ``glob.glob`` with ``recursive``, but for links that lead back: two of them give that one 2^40 ways to go."""
    before, stars, after = pattern.partition("**")
    if not stars or (before and not before.endswith("/")) or (after and not after.startswith("/")):
        yield from glob.glob(pattern)  # in a name two stars are one
        return
    for start in glob.glob(before) if before else [""]:
        for folder in _folders(start):
            yield from _matching(os.path.join(glob.escape(folder), after.lstrip("/") or "*"))


def _folders(start: str) -> Iterator[str]:
    """A folder and all in it, through links too, but not back into one that the way already leads through."""
    waiting = [(start, frozenset({_identity(start or ".")}))]
    while waiting:
        folder, above = waiting.pop()
        yield folder
        with contextlib.suppress(OSError), os.scandir(folder or ".") as entries:
            for entry in entries:
                if not entry.name.startswith(".") and entry.is_dir() and (here := _identity(entry.path)) not in above:
                    waiting.append((os.path.join(folder, entry.name), above | {here}))


def _identity(folder: str) -> tuple[int, int]:
    found = os.stat(folder)
    return found.st_dev, found.st_ino
