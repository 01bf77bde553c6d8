"""Pictures as they come, as uint8 BGR."""

from __future__ import annotations

import re
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from wnlb.runtime.errors import PictureError

PICTURE_SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".jp2"))
# Scan data has no 0xff but before 0x00 (stuffing) and d0..d7 (restarts): this is a segment, or d9, the end.
_JPEG_MARKER = re.compile(rb"\xff[\x02-\xcf\xd9-\xfe]")


def read_picture(path: Path | str) -> NDArray[np.uint8]:
    """Decode a picture to uint8 BGR ``[h, w, 3]``, turned as its EXIF orientation says.

    Grey, palette and CMYK pictures become colour, 16 bits become 8 (the upper ones), transparency is dropped.

    Raises:
        PictureError: the file cannot be read, is empty, truncated, or no picture.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise PictureError(f"picture {path} cannot be read: {error.strerror}") from error
    if not data:
        raise PictureError(f"picture {path} is empty (0 bytes)")
    if _is_truncated(data):
        raise PictureError(f"picture {path} is truncated: it ends after {len(data)} bytes, before its end marker")
    try:
        picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error as error:
        raise PictureError(f"picture {path} cannot be decoded: {error.err}") from error
    if picture is None or picture.size == 0:
        raise PictureError(f"picture {path} is damaged or of an unknown format; expected JPEG, PNG, TIFF, WebP or BMP")
    return np.asarray(picture, np.uint8)


def _is_truncated(data: bytes) -> bool:
    """Whether a JPEG or PNG lacks its end. OpenCV 5.0 refuses it, but others may fill the missing part with grey.

    The segments are walked: a thumbnail before the end, or a film that a telephone put after it, has end markers too.
    """
    if data.startswith(b"\xff\xd8"):
        return not _jpeg_ends(data)
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return not _png_ends(data)
    return False


def _jpeg_ends(data: bytes) -> bool:
    position = 2
    while found := _JPEG_MARKER.search(data, position):
        position = found.end()
        if data[position - 1] == 0xD9:
            return True
        position += int.from_bytes(data[position : position + 2], "big")
    return False


def _png_ends(data: bytes) -> bool:
    position = 8
    while kind := data[position + 4 : position + 8]:
        if kind == b"IEND":
            return True
        position += 12 + int.from_bytes(data[position : position + 4], "big")
    return False
