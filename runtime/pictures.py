"""Pictures as they come, as uint8 BGR."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from wnlb.runtime.depth import DARK, Header, Range, doubt, from_float, read_header, to_8_bits
from wnlb.runtime.errors import PictureError, PictureWarning

_AVIF = (".avif",) if re.search(r"AVIF:\s+(?!NO)", cv2.getBuildInformation()) else ()
_READ = ".jpg .jpeg .jpe .jfif .png .bmp .dib .tif .tiff .webp .ppm .pgm .pbm .pnm .jp2"
# What cameras and telephones write, and people have in their folders, and OpenCV does not read or reads as a film.
_OTHERS = (
    ".heic .heif .hif .avif .jxl .gif .raw .dng .nef .nrw .arw .cr2 .cr3 .raf .orf .rw2 .pef .srw .exr .hdr .pfm .tga"
)
PICTURE_SUFFIXES = frozenset((*_READ.split(), *_AVIF))
OTHER_SUFFIXES = frozenset(_OTHERS.split()) - PICTURE_SUFFIXES
_FLOATS = (np.float32, np.float64)
# Scan data has no 0xff but before 0x00 (stuffing) and d0..d7 (restarts): this is a segment, or d9, the end.
_JPEG_MARKER = re.compile(rb"\xff[\x02-\xcf\xd9-\xfe]")


def read_picture(path: Path | str, bits: int = 0, otherwise: int = 0) -> NDArray[np.uint8]:
    """Decode a picture to uint8 BGR ``[h, w, 3]``, turned as its EXIF orientation says.

    Grey, palette and CMYK pictures become colour, transparency is dropped, of several pages the first is read. Of more
    than 8 bits the upper 8 are kept (``wnlb.runtime.depth``); floating point is 0, black, to 1, white.

    Args:
        bits: that values of 16-bit files have, 8 to 16; 0: as the file states.
        otherwise: where the file does not state it; 0: 16, with a PictureWarning where the picture is so dark that
            they may be fewer.

    Raises:
        PictureError: the file cannot be read, is empty, truncated, or no picture, or holds values out of range.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise PictureError(f"picture {path} cannot be read: {error.strerror}") from error
    return decode_picture(data, path, bits, otherwise)


def decode_picture(data: bytes, path: Path | str, bits: int = 0, otherwise: int = 0) -> NDArray[np.uint8]:
    """As ``read_picture``, of the bytes of a file; ``path`` is its name in messages."""
    if not data:
        raise PictureError(f"picture {path} is empty (0 bytes)")
    if _is_truncated(data):
        raise PictureError(f"picture {path} is truncated: it ends after {len(data)} bytes, before its end marker")
    header = read_header(data)
    decoded = _decoded(data, header, path)
    if header.pages > 1:
        _warn(f"pictures in {Path(path).parent} hold several pages or frames; the first of each is read")
    try:
        if np.issubdtype(decoded.dtype, np.floating):
            return from_float(decoded)
        if decoded.dtype != np.uint8:
            return _from_deep(np.asarray(np.maximum(decoded, 0), np.uint16), header, bits, otherwise, Path(path).parent)
    except PictureError as error:
        raise PictureError(f"picture {path} {error}") from error
    if 0 < header.white < 255:
        decoded = np.minimum(np.rint(decoded * (255 / header.white)), 255)
    return np.asarray(decoded, np.uint8)


def highest_of(path: Path | str) -> Range | None:
    """The values of a picture of more than 8 bits whose file does not state what its white is; None for others."""
    try:
        data = Path(path).read_bytes()
        header = read_header(data)
        if not header.deep or _stated(header, None) or _is_truncated(data):
            return None
        values = _decoded(data, header, path)
    except (OSError, PictureError):
        return None
    whole = np.issubdtype(values.dtype, np.integer) and values.dtype != np.uint8
    return Range(np.maximum(values, 0).astype(np.uint16)) if whole and not header.significant else None


def _decoded(data: bytes, header: Header, path: Path | str) -> NDArray[Any]:
    """BGR ``[h, w, 3]``, in the depth of the file where that is not 8 bits."""
    buffer = np.frombuffer(data, np.uint8)
    flags = cv2.IMREAD_COLOR | (cv2.IMREAD_ANYDEPTH if header.deep or header.is_odd else 0)
    try:
        picture = cv2.imdecode(buffer, flags)
        if picture is None and header.is_odd:  # one channel of floating point
            picture = cv2.imdecode(buffer, cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise PictureError(f"picture {path} cannot be decoded: {error.err}") from error
    readable = picture is not None and picture.size > 0 and picture.dtype in (np.uint8, np.uint16, np.int16, *_FLOATS)
    if not readable and header.is_odd:
        raise PictureError(
            f"picture {path} is a {header.kind}, which cannot be read; expected 8 or 16 bits, or 32 of floating point"
        )
    if picture is None or not readable:
        raise PictureError(f"picture {path} is damaged or of an unknown format; expected JPEG, PNG, TIFF, WebP or BMP")
    if header.inverted and picture.dtype == np.uint16:
        picture = np.iinfo(np.uint16).max - picture
    if picture.ndim == 2 or picture.shape[2] == 1:
        picture = np.repeat(picture.reshape(*picture.shape[:2], 1), 3, axis=2)
    return np.asarray(picture[..., :3])


def _from_deep(
    values: NDArray[np.uint16], header: Header, bits: int, otherwise: int, folder: Path
) -> NDArray[np.uint8]:
    bits = bits or _stated(header, values) or otherwise
    if header.white > 255 and bits == header.white.bit_length() and header.white & (header.white + 1):
        return np.asarray(np.minimum(np.rint(values * (255 / header.white)), 255), np.uint8)
    if not bits:
        bits, highest = 16, int(values.max(initial=0))
        if 0 < highest < DARK:
            _warn(doubt(highest, folder))
    return to_8_bits(values, bits)


def _stated(header: Header, values: NDArray[np.uint16] | None) -> int:
    """The bits of a file that states them; 0 where it does not. Writers who know no better state 65535 for PNM."""
    if header.bits or 255 < header.white < 65535:
        return header.bits or header.white.bit_length()
    if header.significant and values is not None:
        return header.significant if Range(values).is_right_aligned(header.significant) else 16
    return 0


def _warn(message: str) -> None:
    """Told once by the filters of ``warnings``, which know a message by its text."""
    warnings.warn(message, PictureWarning, stacklevel=1)


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
