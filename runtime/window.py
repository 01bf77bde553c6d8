"""A window on the desktop."""

from __future__ import annotations

import os

import cv2
import numpy as np
from numpy.typing import NDArray

from wnlb.runtime.errors import WnlbError


def has_display() -> bool:
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


class Window:
    """Raises WnlbError where there is no display."""

    def __init__(self, instead: str) -> None:
        if not has_display():
            raise WnlbError(f"--show needs a display, and DISPLAY is not set; {instead}")

    def show(self, picture: NDArray[np.uint8], wait: bool = False) -> bool:
        """Show a picture, until a key is pressed if ``wait``; whether it was q."""
        cv2.imshow("wnlb", picture)
        return cv2.waitKey(0 if wait else 1) == ord("q")

    def close(self) -> None:
        cv2.destroyAllWindows()
