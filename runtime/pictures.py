"""Pictures as they come, as uint8 BGR."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from wnlb.runtime.errors import PictureError

PICTURE_SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".jp2"))


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
    return picture


def _is_truncated(data: bytes) -> bool:
    """Whether a JPEG or PNG lacks its end. OpenCV fills the missing part with grey and says nothing."""
    if data.startswith(b"\xff\xd8"):  # the end marker must follow the last start of scan
        return data.rfind(b"\xff\xd9") < data.rfind(b"\xff\xda")
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return b"IEND" not in data[-1024:]
    return False
