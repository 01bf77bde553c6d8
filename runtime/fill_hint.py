"""A hint for inputs that frames leave empty: the network computes what is beside them all the same."""

from __future__ import annotations

from dataclasses import replace

from wnlb.runtime.geometry import Geometry, Placement

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
        then = filled(replace(self._geometry, height=height, width=width), frame_height, frame_width)
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

    Where it fills none well, up to twice as large: the one that it fills best. With a scale a frame grows no further
    than that, and it is the one that just holds it.
    """
    frame = (frame_height, frame_width)
    placement = geometry.place(*frame)
    longest = _multiple(max(placement.height, placement.width))
    shares = [side / max(frame) for side in range(longest, 2 * longest + 1, _STEP)]
    sizes = [(placement.height, placement.width), *((frame_height * share, frame_width * share) for share in shares)]
    inputs = [replace(geometry, height=_multiple(height), width=_multiple(width)) for height, width in sizes]
    inputs = [each for each in inputs if _holds(each.place(*frame), placement)]
    well = (each for each in inputs if filled(each, *frame) >= FILLED)
    best = next(well, None) or max(inputs, key=lambda each: filled(each, *frame))
    return best.height, best.width


def _holds(larger: Placement, smaller: Placement) -> bool:
    return larger.height >= smaller.height and larger.width >= smaller.width


def _multiple(side: float) -> int:
    return max(-int(-(side - 1e-6) // _STEP) * _STEP, _SMALLEST)
