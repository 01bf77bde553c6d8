"""A hint for inputs that frames leave empty: the network computes what is beside them all the same."""

from __future__ import annotations

from wnlb.runtime.geometry import Geometry

FILLED = 0.7  # share of the input that a frame should fill
_WORTH = 0.5  # share that another size should bring at least
_STEP, _SMALLEST = 32, 64  # px, of an export's sizes


class FillHint:
    """Says once, of the first frame that fills too little of a model's input, which size would fit it."""

    def __init__(self, geometry: Geometry) -> None:
        self._geometry, self._told = geometry, False

    def about(self, frame_height: int, frame_width: int) -> str:
        """The hint, one line; empty where there is none, or it was given before. Sizes in pixels."""
        now = filled(self._geometry, frame_height, frame_width)
        if self._told or now >= FILLED:
            return ""
        height, width = fitting_size(self._geometry, frame_height, frame_width)
        then = filled(Geometry(height, width), frame_height, frame_width)
        if then < max(1.1 * now, _WORTH):  # a strip of a picture, for which no size is good
            return ""
        self._told = True
        return (
            f"a frame of {frame_width}x{frame_height} pixels fills {100 * now:.0f} % of the input, the rest is "
            f"computed for nothing; it would fill {100 * then:.0f} % of a file exported with --size {height}x{width}"
        )


def filled(geometry: Geometry, frame_height: int, frame_width: int) -> float:
    """The share of the input that such a frame fills, from 0 to 1."""
    placement = geometry.place(frame_height, frame_width)
    return placement.height * placement.width / (geometry.height * geometry.width)


def fitting_size(geometry: Geometry, frame_height: int, frame_width: int) -> tuple[int, int]:
    """The smallest input, height and width, that such a frame fills, at least as large in it as in ``geometry``.

    Where it fills none well, up to twice as large: the one that it fills best.
    """
    placement = geometry.place(frame_height, frame_width)
    longest = max(placement.height, placement.width)
    sizes = []
    for side in range(_multiple(longest), 2 * _multiple(longest) + 1, _STEP):
        scale = side / max(frame_height, frame_width)
        size = _multiple(frame_height * scale), _multiple(frame_width * scale)
        if filled(Geometry(*size), frame_height, frame_width) >= FILLED:
            return size
        sizes.append(size)
    return max(sizes, key=lambda size: filled(Geometry(*size), frame_height, frame_width))


def _multiple(side: float) -> int:
    return max(-int(-(side - 1e-6) // _STEP) * _STEP, _SMALLEST)
