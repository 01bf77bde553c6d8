"""A window on the desktop."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
from numpy.typing import NDArray

from wnlb.runtime.errors import WnlbError


def has_display() -> bool:
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


class Window:
    """Raises WnlbError where there is no display, or none that works."""

    def __init__(self, instead: str) -> None:
        if not has_display():
            raise WnlbError(f"--show needs a display, and DISPLAY is not set; {instead}")
        # Where the display does not answer, OpenCV's window library ends the process.
        probe = [sys.executable, "-c", "import cv2; cv2.namedWindow('wnlb'); cv2.waitKey(1)"]
        if subprocess.run(probe, capture_output=True, check=False).returncode:
            shown = os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
            raise WnlbError(f"--show cannot open a window on display {shown}; {instead}")

    def show(self, picture: NDArray[np.uint8], wait: bool = False) -> bool:
        """Show a picture, until a key is pressed if ``wait``; whether it was q."""
        import cv2

        cv2.imshow("wnlb", picture)
        return cv2.waitKey(0 if wait else 1) == ord("q")

    def refresh(self) -> bool:
        """Keep the window alive while there is nothing new; whether q was pressed."""
        import cv2

        return cv2.waitKey(1) == ord("q")

    def close(self) -> None:
        import cv2

        cv2.destroyAllWindows()
