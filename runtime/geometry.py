"""From a frame to the input of a model, and from its boxes back to the frame."""

from __future__ import annotations

import re
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from wnlb.runtime.errors import PictureError, WnlbError

_INTERPOLATION = {"bilinear": cv2.INTER_LINEAR, "nearest": cv2.INTER_NEAREST}


@dataclass(frozen=True)
class Placement:
    """Where one frame lies in the model's input; both sizes in pixels."""

    frame_height: int
    frame_width: int
    height: int  # of the resized frame, which starts at the input's left top corner
    width: int

    def boxes_to_frame(self, boxes_xyxy: NDArray[np.float32]) -> NDArray[np.float32]:
        """``[D, 4]`` x1 y1 x2 y2 in input pixels to frame pixels, clipped to the frame."""
        frame = np.array([self.frame_width, self.frame_height] * 2, np.float32)
        return np.clip(boxes_xyxy * (frame / self._resized), 0, frame).astype(np.float32)

    def boxes_to_input(self, boxes_xyxy: NDArray[np.float32]) -> NDArray[np.float32]:
        """``[D, 4]`` x1 y1 x2 y2 in frame pixels to input pixels."""
        frame = np.array([self.frame_width, self.frame_height] * 2, np.float32)
        return (boxes_xyxy * (self._resized / frame)).astype(np.float32)

    @property
    def _resized(self) -> NDArray[np.float32]:
        return np.array([self.width, self.height] * 2, np.float32)


@dataclass(frozen=True)
class Geometry:
    """How frames become inputs. One object for both directions, for inference and for calibration.

    ``fit`` scales by ``min(height / frame_height, width / frame_width)``, rounds down as torchvision
    does, and pads right and bottom with ``pad_rgb``; ``stretch`` fills the input. Interpolation is
    OpenCV's without antialiasing, as torchvision resizes for detection.
    """

    height: int
    width: int
    resize: str = "fit"
    interpolation: str = "bilinear"
    pad_rgb: tuple[int, int, int] = (0, 0, 0)

    def place(self, frame_height: int, frame_width: int) -> Placement:
        """Placement of a frame of this size."""
        if self.resize == "stretch":
            return Placement(frame_height, frame_width, self.height, self.width)
        scale = min(self.height / frame_height, self.width / frame_width)
        # 1e-6: a side that fits exactly must not lose a pixel to rounding.
        height = min(max(int(frame_height * scale + 1e-6), 1), self.height)
        width = min(max(int(frame_width * scale + 1e-6), 1), self.width)
        return Placement(frame_height, frame_width, height, width)

    def prepare(
        self, frame_bgr: NDArray[np.uint8], out: NDArray[np.uint8] | None = None
    ) -> tuple[NDArray[np.uint8], Placement]:
        """uint8 BGR ``[h, w, 3]`` to uint8 RGB ``[height, width, 3]``, written into ``out`` if given.

        Raises:
            PictureError: the frame is not uint8 ``[h, w, 3]`` with at least one pixel.
        """
        check_frame(frame_bgr)
        placement = self.place(*frame_bgr.shape[:2])
        if out is None:
            out = np.empty((self.height, self.width, 3), np.uint8)
        resized = frame_bgr
        if (placement.height, placement.width) != frame_bgr.shape[:2]:
            size = (placement.width, placement.height)
            resized = np.asarray(
                cv2.resize(frame_bgr, size, interpolation=_INTERPOLATION[self.interpolation]), np.uint8
            )
        out[placement.height :] = self.pad_rgb
        out[: placement.height, placement.width :] = self.pad_rgb
        out[: placement.height, : placement.width] = cv2.cvtColor(resized, cv2.COLOR_BGR2RGB)
        return out, placement


def check_frame(frame_bgr: object) -> None:
    """Raises PictureError unless ``frame_bgr`` is a uint8 array ``[h, w, 3]`` with at least one pixel."""
    if not isinstance(frame_bgr, np.ndarray):
        raise PictureError(f"frame is {type(frame_bgr).__name__}; expected a NumPy array, uint8 [h, w, 3] in BGR")
    if frame_bgr.dtype != np.uint8 or frame_bgr.ndim != 3 or frame_bgr.shape[2] != 3 or frame_bgr.size == 0:
        raise PictureError(
            f"frame is {frame_bgr.dtype} {list(frame_bgr.shape)}; expected uint8 [h, w, 3] in BGR, not empty"
        )


def parse_size(text: str) -> tuple[int, int]:
    """``"416x608"`` to height and width in pixels. Raises WnlbError."""
    found = re.fullmatch(r"(\d+)x(\d+)", text)
    if not found:
        raise WnlbError(f"size is {text!r}; expected HEIGHTxWIDTH in pixels, e.g. 416x608")
    return int(found[1]), int(found[2])
