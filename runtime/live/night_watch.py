"""Whether a camera sees the darkness that a model's INT8 ranges were calibrated on."""

from __future__ import annotations

from collections import deque

import numpy as np
from numpy.typing import NDArray

from wnlb.runtime.darkness import luminance

MARGIN = 1.25  # factor of luminance beyond the calibrated ones that is no other night yet
_PAUSE = 1.0  # seconds between two looks
_LOOKS = 30  # newest, of which the most must lie beyond


class NightWatch:
    """Says once, and once again after it was otherwise, that frames are darker or brighter than any calibrated on.

    Args:
        calibrated: ``Contract.calibrated_luminance``; None: it never says anything.
    """

    def __init__(self, calibrated: tuple[float, float] | None) -> None:
        self._calibrated = calibrated
        self._looks: deque[float] = deque(maxlen=_LOOKS)
        self._next = -np.inf
        self._told = False

    def about(self, picture_bgr: NDArray[np.uint8], at: float) -> str:
        """What to say at ``at``, seconds of a clock that grows; "" for nothing. At most one look a second."""
        if self._calibrated is None or at < self._next:
            return ""
        self._next = at + _PAUSE
        self._looks.append(luminance(picture_bgr))
        beyond = sum(is_beyond(look, self._calibrated) for look in self._looks)
        before, self._told = self._told, beyond > _LOOKS // 2 or (self._told and beyond > 0)
        if before or not self._told:
            return ""
        low, high = self._calibrated
        return (
            f"the frames have a mean luminance of {np.median(self._looks):.2g}; INT8 was calibrated on pictures of "
            f"{low:.2g} to {high:.2g}: convert the model again with --images that hold such frames"
        )


def is_beyond(value: float, calibrated: tuple[float, float]) -> bool:
    """Whether a luminance lies outside the calibrated ones, by more than ``MARGIN``."""
    low, high = calibrated
    return value * MARGIN < low or value > high * MARGIN
