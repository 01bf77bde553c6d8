"""The pictures of a labelled set, in the frame of its labels.

A camera that was held sideways stores the picture as its sensor saw it, and an EXIF tag that tells how to turn it. Some
tools label what is stored (so COCO, and whatever reads pictures without the tag), others what one sees. The size in the
labels tells which, but for square pictures and those that are upside down or mirrored: these follow the others of
their set, and where none tells, they are read as they are stored.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wnlb.calibration.labels.labels import Image, Labels
from wnlb.runtime.errors import PictureError, WnlbError
from wnlb.runtime.pictures import read_picture

# EXIF is a small TIFF file, so many bytes after what JPEG, PNG and WebP mark it with.
_MARKS = ((b"Exif\0\0", 6), (b"eXIf", 4), (b"EXIF", 8))
_TIFF = {b"II*\0": "little", b"MM\0*": "big"}
_ORIENTATION = 0x0112
_SIDEWAYS = 5  # from here on the orientations swap height and width


class LabelledPictures:
    """Reads the pictures of ``labels.images`` from a folder, each as its labels see it.

    ``notes``: one line where the size does not tell how pictures are to be turned.
    """

    def __init__(self, labels: Labels, folder: Path) -> None:
        self._folder = folder
        self._paths = {image.id: _path(folder, image.file_name) for image in labels.images}
        turns = {image.id: orientation(self._paths[image.id]) for image in labels.images}
        self._turned = {image.id: turn for image in labels.images if (turn := turns[image.id]) > 1}
        unclear = [image for image in labels.images if self._is_unclear(image)]
        self._follow_exif = bool(unclear) and self._are_labels_of_what_is_seen(labels)
        self.notes: tuple[str, ...] = ()
        if unclear:
            how = (
                "turned, as the labels of the others are"
                if self._follow_exif
                else "read as they are stored, not turned"
            )
            self.notes = (
                f"{len(unclear)} picture(s) with an EXIF orientation and a size that does not tell whether the labels "
                f"follow it (the first: {unclear[0].file_name}): {how}",
            )

    def __call__(self, image: Image) -> NDArray[np.uint8]:
        """uint8 BGR ``[image.height, image.width, 3]``. Raises PictureError: unreadable, or of another size."""
        seen = self.as_seen(image)
        turn = self._turned.get(image.id, 1)
        stored = as_stored(seen, turn)
        first, second = (seen, stored) if self._follow_exif or not self._is_unclear(image) else (stored, seen)
        for picture in (first, second):
            if picture.shape[:2] == (image.height, image.width):
                return picture
        got = f"{seen.shape[1]}x{seen.shape[0]}"
        raise PictureError(
            f"picture {self._paths[image.id]} is {got}; its annotations say {image.width}x{image.height}: give the "
            "pictures that were labelled, or correct the sizes"
        )

    def as_seen(self, image: Image) -> NDArray[np.uint8]:
        """Turned as EXIF says, whatever the labels do: as the pictures are read that models are calibrated on."""
        return read_picture(self._paths[image.id])

    def check_all_there(self) -> None:
        """Raise WnlbError where the folder lacks some of them."""
        missing = [path for path in self._paths.values() if not _is_file(path)]
        if missing:
            raise WnlbError(
                f"{len(missing)} of {len(self._paths)} pictures are not in {self._folder}; the first: "
                f"{missing[0].relative_to(self._folder)}; give the folder that the names in the annotations start from"
            )

    def _is_unclear(self, image: Image) -> bool:
        turn = self._turned.get(image.id, 1)
        return 1 < turn < _SIDEWAYS or (turn >= _SIDEWAYS and image.height == image.width)

    def _are_labels_of_what_is_seen(self, labels: Labels) -> bool:
        """By the first picture that lies on its side."""
        for image in labels.images:
            if self._turned.get(image.id, 1) >= _SIDEWAYS and image.height != image.width:
                try:
                    height, width = read_picture(self._paths[image.id]).shape[:2]
                except PictureError:
                    continue
                if {height, width} == {image.height, image.width}:
                    return height == image.height
        return False


def orientation(path: Path) -> int:
    """The EXIF orientation of a picture file, 1 to 8; 1 where it says none. Never raises."""
    try:
        data = path.read_bytes()
    except OSError:
        return 1  # told when it is read
    tiff = _exif_of(data)
    order: Any = _TIFF.get(tiff[:4], "big")

    def number(at: int, size: int) -> int:
        return int.from_bytes(tiff[at : at + size], order)

    directory = number(4, 4)
    for i in range(number(directory, 2)):
        at = directory + 2 + 12 * i
        if number(at, 2) == _ORIENTATION:
            value = number(at + 8, 2)
            return value if 1 <= value <= 8 else 1
    return 1


def _exif_of(data: bytes) -> bytes:
    """A picture file from its EXIF data on, or all of it where it is a TIFF file; nothing where it has no EXIF."""
    if data.startswith(b"\xff\xd8"):
        data = data[: data.find(b"\xff\xda")]  # the scan; a film or a second picture may follow
    starts = [0, *(at + skip for mark, skip in _MARKS if (at := data.find(mark)) >= 0)]
    return next((data[start:] for start in starts if data[start : start + 4] in _TIFF), b"")


def as_stored(seen: NDArray[Any], turn: int) -> NDArray[Any]:
    """Undo an EXIF orientation: from a picture ``[h, w, ...]`` as one sees it to the rows and columns of its file."""
    sideways = np.swapaxes(seen, 0, 1)
    stored = {
        2: seen[:, ::-1],
        3: seen[::-1, ::-1],
        4: seen[::-1],
        5: sideways,
        6: sideways[::-1],  # turned clockwise to be seen
        7: sideways[::-1, ::-1],
        8: sideways[:, ::-1],
    }.get(turn, seen)
    return np.ascontiguousarray(stored)


def _path(folder: Path, name: str) -> Path:
    """Where a picture is; also where Windows wrote its name, with ``\\`` between folders."""
    path = folder / name
    return path if _is_file(path) else folder / name.replace("\\", "/")


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that is too long
        return False
