"""Pictures with more than 8 bits: which of their values is white, and how they become 8 bits.

A camera of 12 bits puts its values into 16-bit files as they are, white at 4095: read as 16 bits they are black.
Whether they are that cannot be seen in one dark picture. So a file's own word is taken first (PNM's maximum, TIFF's
bits, PNG's sBIT), then a proof: white that is clipped lies at 2^bits - 1. Else 16 bits are read, and it is told where
no value lies above a quarter of white.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wnlb.runtime.errors import PictureError, WnlbError

BITS = (8, 16)  # that can be asked for
CAMERA_BITS = (8, 10, 12, 14)  # that a proof is looked for
DARK = 1 << 14  # a 16-bit picture without a value from here on may be one of fewer bits
_CLIPPED = 2  # pixels at white that prove it: one may be by chance
_PNM = re.compile(rb"P[1-7]\s+(?:#[^\n]*\s+)*\d+\s+(?:#[^\n]*\s+)*\d+\s+(?:#[^\n]*\s+)*(\d+)\s")
_PNG, _TIFF = b"\x89PNG\r\n\x1a\n", {b"II*\0": "<", b"MM\0*": ">"}
_FLOAT, _SIGNED = 3, 2  # TIFF's SampleFormat


@dataclass(frozen=True)
class Header:
    """What a file says of its pixels before they are decoded."""

    deep: bool = False  # more than 8 bits a value, in a format whose values OpenCV gives as they are
    bits: int = 0  # of a value's range, where the file states it: white is 2^bits - 1
    white: int = 0  # where the file states it as such (PNM)
    significant: int = 0  # PNG's sBIT: a hint, for writers differ in where they put these bits
    pages: int = 1
    inverted: bool = False  # TIFF's white is zero, in a depth in which OpenCV does not turn it
    kind: str = ""  # a TIFF's, in words
    is_odd: bool = False  # of a kind that OpenCV may not be able to read


def read_header(data: bytes) -> Header:
    """The header of an encoded PNG, TIFF, PNM or WebP; of others, and of damaged ones, one that says nothing."""
    try:
        if data.startswith(_PNG):
            return _png(data)
        if data[:4] in _TIFF:
            return _tiff(data, _TIFF[data[:4]])
    except (struct.error, IndexError, KeyError):
        return Header()
    if found := _PNM.match(data[:4096]):
        return Header() if data[:2] in (b"P1", b"P4") else Header(int(found[1]) > 255, white=int(found[1]))
    if data[:4] == b"RIFF" and data[8:16] == b"WEBPVP8X" and data[20:21] and data[20] & 2:
        return Header(pages=2)
    return Header()


@dataclass(frozen=True, eq=False)
class Range:
    """What values a picture of more than 8 bits holds."""

    values: NDArray[np.uint16]

    @cached_property
    def highest(self) -> int:
        return int(self.values.max(initial=0))

    @cached_property
    def proven_bits(self) -> int:
        """Of a camera whose clipped white is in the picture, 16 where it fills 16 bits; else 0.

        Values may be multiples of a step (8 bits that were moved up into 12): white is then one step below the end.
        """
        if not self.highest or self.highest >= DARK:
            return 16 if self.highest else 0
        together = int(np.bitwise_or.reduce(self.values, axis=None))
        end = self.highest + (together & -together)
        bits = end.bit_length() - 1
        clipped = np.count_nonzero(self.values == self.highest) >= _CLIPPED
        few_levels = end >> (together & -together).bit_length() - 1 < 256
        return bits if end == 1 << bits and bits in CAMERA_BITS and clipped and not few_levels else 0

    def is_right_aligned(self, bits: int) -> bool:
        """Whether values of so many bits lie at the lower end, and not, scaled up, at the upper one."""
        if self.highest >= 1 << bits:
            return False
        scale = (1 << bits) - 1
        own = np.rint(self.values * (scale / 65535.0)).astype(np.uint32)  # which they would be scaled of
        shifted = (self.values >> (16 - bits) << (16 - bits)) == self.values
        scaled = np.rint(own * (65535.0 / scale)) == self.values
        return not (shifted.all() or scaled.all())


def common_bits(ranges: Sequence[Range]) -> int:
    """What pictures of one camera prove together: 16, 8, 10, 12 or 14; 0 where nothing is proven."""
    highest = max((one.highest for one in ranges), default=0)
    bits = max((one.proven_bits for one in ranges), default=0)
    return bits if not highest >> bits else 0


def doubt(highest: int, folder: Path) -> str:
    """What to say of 16-bit pictures whose highest value is so low."""
    bits = next(bits for bits in CAMERA_BITS if not highest >> bits)
    return (
        f"16-bit pictures in {folder} hold no value above {(1 << bits) - 1}: read as 16 bits they are dark; if "
        f"they come from a camera of {bits} bits, say --bits {bits} to predict or run (--bits 16: they are right)"
    )


def check_bits(bits: int) -> int:
    """Raises WnlbError for what is no count of bits; 0 stands for unknown."""
    if bits and not BITS[0] <= bits <= BITS[1]:
        raise WnlbError(f"bits are {bits}; expected {BITS[0]} to {BITS[1]}, what the camera gives: 10, 12, 14 or 16")
    return bits


def to_8_bits(values: NDArray[np.uint16], bits: int) -> NDArray[np.uint8]:
    """The upper 8 of so many bits. Raises PictureError where a value needs more of them."""
    highest = int(values.max(initial=0))
    if highest >> bits:
        needed = highest.bit_length()
        raise PictureError(f"holds the value {highest}, which needs {needed} bits, not {bits}; say --bits {needed}")
    return (values >> (bits - 8)).astype(np.uint8)


def from_float(values: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Floating point from 0, black, to 1, white, as 8 bits. Raises PictureError for what lies elsewhere."""
    if not np.isfinite(values).all():
        raise PictureError("holds floating point, some of it NaN or infinite; expected 0, black, to 1, white")
    low, high = float(values.min(initial=0)), float(values.max(initial=0))
    if low < 0 or high > 1:
        raise PictureError(
            f"holds floating point from {low:g} to {high:g}; expected 0, black, to 1, white: scale it, or save 16 bits"
        )
    return np.rint(values * 255).astype(np.uint8)


def _png(data: bytes) -> Header:
    depth, colour = data[24], data[25]
    significant, pages, position = 0, 1, 33
    while (kind := data[position + 4 : position + 8]) not in (b"IDAT", b"IEND", b""):
        if kind == b"sBIT":
            length = struct.unpack_from(">I", data, position)[0]
            bits = data[position + 8 : position + 8 + length]
            significant = max(bits[: len(bits) - (colour in (4, 6))])  # without that of the transparency
        if kind == b"acTL":
            pages = struct.unpack_from(">I", data, position + 8)[0]
        position += 12 + struct.unpack_from(">I", data, position)[0]
    return Header(depth == 16, significant=significant if depth == 16 and 8 <= significant < 16 else 0, pages=pages)


def _tiff(data: bytes, order: str) -> Header:
    position = struct.unpack_from(order + "I", data, 4)[0]
    first, pages, seen = _directory(data, order, position), 0, set[int]()
    while position and position not in seen and len(seen) < 10_000:
        seen.add(position)
        tags, position = _directory(data, order, position)
        pages += not tags.get(254, 0) & 1  # 254: a reduced version of another page, as for a preview
    tags = first[0]
    bits, form, inverted = tags.get(258, 1), tags.get(339, 1), tags.get(262) == 0
    kinds = {_FLOAT: "floating point", _SIGNED: "signed"}
    kind = f"TIFF with {bits} bits of {kinds.get(form, 'unsigned')}"
    deep = bits > 8 and form in (1, _SIGNED)
    packed = 16 if deep and bits < 16 else 0  # OpenCV moves them up
    odd = bits not in (1, 2, 4, 8, 16) or form != 1
    return Header(deep, packed, pages=max(pages, 1), inverted=deep and inverted, kind=kind, is_odd=odd)


def _directory(data: bytes, order: str, position: int) -> tuple[dict[int, int], int]:
    """The first value of each tag whose value is whole numbers, and where the next directory lies."""
    count = struct.unpack_from(order + "H", data, position)[0]
    tags = {}
    for entry in range(position + 2, position + 2 + 12 * count, 12):
        tag, kind, length = struct.unpack_from(order + "HHI", data, entry)
        form = {3: "H", 4: "I"}.get(kind)
        if form and length:
            inside = length * struct.calcsize(form) <= 4
            place = entry + 8 if inside else struct.unpack_from(order + "I", data, entry + 8)[0]
            tags[tag] = struct.unpack_from(order + form, data, place)[0]
    return tags, struct.unpack_from(order + "I", data, position + 2 + 12 * count)[0]
