"""From a frame to the input of a model, and from its boxes back to the frame."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from wnlb.runtime.antialiased import resized_antialiased
from wnlb.runtime.errors import PictureError, WnlbError

_Float = TypeVar("_Float", np.float32, np.float64)
_OPENCV = {"bilinear": cv2.INTER_LINEAR, "nearest": cv2.INTER_NEAREST}


@dataclass(frozen=True)
class Placement:
    """Where one frame lies in the model's input; both sizes in pixels."""

    frame_height: int
    frame_width: int
    height: int  # of the resized frame
    width: int
    top: int = 0  # rows of padding above it
    left: int = 0  # columns of padding beside it

    @property
    def rows(self) -> slice:
        """Of the input, which the resized frame fills."""
        return slice(self.top, self.top + self.height)

    @property
    def columns(self) -> slice:
        """Of the input, which the resized frame fills."""
        return slice(self.left, self.left + self.width)

    def boxes_to_frame(self, boxes_xyxy: NDArray[_Float]) -> NDArray[_Float]:
        """``[D, 4]`` x1 y1 x2 y2 in input pixels to frame pixels, clipped to the frame, in the boxes' precision."""
        frame, resized, corner = self._sides(boxes_xyxy.dtype)
        return np.clip((boxes_xyxy - corner) * (frame / resized), 0, frame)

    def boxes_to_input(self, boxes_xyxy: NDArray[_Float]) -> NDArray[_Float]:
        """``[D, 4]`` x1 y1 x2 y2 in frame pixels to input pixels, in the boxes' precision."""
        frame, resized, corner = self._sides(boxes_xyxy.dtype)
        return boxes_xyxy * (resized / frame) + corner

    def _sides(self, kind: np.dtype[_Float]) -> tuple[NDArray[_Float], NDArray[_Float], NDArray[_Float]]:
        """Width, height, width, height of the frame and of the resized one; and left, top, left, top of that."""
        frame = np.array([self.frame_width, self.frame_height] * 2, kind)
        return frame, np.array([self.width, self.height] * 2, kind), np.array([self.left, self.top] * 2, kind)


@dataclass(frozen=True)
class Geometry:
    """How frames become inputs. One object for both directions, for inference and for calibration.

    ``fit`` keeps the aspect ratio and pads with ``pad_rgb``: right and bottom, or with ``padding`` "centre" on all
    sides, an odd pixel right or below (ultralytics' ``LetterBox``, data/augment.py). A frame becomes as large as
    ``scale`` (long and short edge, px) allows, as its framework makes it, where the input holds that; else, and without
    ``scale``, as large as the input (height x width) allows. ``stretch`` makes every frame as large as ``scale`` (width
    and height, px) where the input holds that, and else as the input, side by side.

    ``size_rule`` says how ``fit`` rounds: "down" as torchvision (``GeneralizedRCNNTransform``), "nearest" half up as
    mmdetection (mmcv/image/geometric.py), "nearest, short side first" the same in the order of operations of detectron2
    (``ResizeShortestEdge``, data/transforms/augmentation_impl.py), "nearest even" half to even as ultralytics.

    Interpolation: "bilinear" and "nearest" are OpenCV's without antialiasing, as torchvision resizes for detection, and
    mmdetection; "antialiased" is Pillow's bilinear, as detectron2 does.
    """

    height: int
    width: int
    resize: str = "fit"
    interpolation: str = "bilinear"
    pad_rgb: tuple[int, int, int] = (0, 0, 0)
    scale: tuple[int, int] | None = None
    size_rule: str = "down"
    padding: str = "corner"

    def place(self, frame_height: int, frame_width: int) -> Placement:
        """Placement of a frame of this size."""
        if self.resize == "stretch":
            width, height = self.scale or (self.width, self.height)
            return self._placed(frame_height, frame_width, min(height, self.height), min(width, self.width))
        height, width = self._size_in_scale(frame_height, frame_width)
        if height > self.height or width > self.width:
            height, width = self._size_in_input(frame_height, frame_width)
        return self._placed(frame_height, frame_width, height, width)

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
            resized = self._resized(frame_bgr, placement)
        rows, columns = placement.rows, placement.columns
        out[: rows.start] = out[rows.stop :] = self.pad_rgb
        out[rows, : columns.start] = out[rows, columns.stop :] = self.pad_rgb
        out[rows, columns] = cv2.cvtColor(resized, cv2.COLOR_BGR2RGB)
        return out, placement

    def _placed(self, frame_height: int, frame_width: int, height: int, width: int) -> Placement:
        centred = self.padding == "centre"
        top, left = ((self.height - height) // 2, (self.width - width) // 2) if centred else (0, 0)
        return Placement(frame_height, frame_width, height, width, top, left)

    def _size_in_scale(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) px of a resized frame, whatever the input holds."""
        if self.scale is None:
            return self._size_in_input(height, width)
        long, short = self.scale
        if self.size_rule != "nearest, short side first":
            share = min(long / max(height, width), short / min(height, width))
            return self._rounded(height * share), self._rounded(width * share)
        share = short / min(height, width)
        sides = (short, share * width) if height < width else (share * height, short)
        share = min(long / max(sides), 1.0)
        return self._rounded(sides[0] * share), self._rounded(sides[1] * share)

    def _size_in_input(self, height: int, width: int) -> tuple[int, int]:
        share = min(self.height / height, self.width / width)
        return min(self._rounded(height * share), self.height), min(self._rounded(width * share), self.width)

    def _rounded(self, side: float) -> int:
        if self.size_rule == "nearest even":
            return max(round(side), 1)
        # 1e-6: a side that fits exactly must not lose a pixel to rounding.
        return max(int(side + (1e-6 if self.size_rule == "down" else 0.5)), 1)

    def _resized(self, frame_bgr: NDArray[np.uint8], placement: Placement) -> NDArray[np.uint8]:
        if self.interpolation == "antialiased":
            return resized_antialiased(frame_bgr, placement.height, placement.width)
        size = (placement.width, placement.height)
        return np.asarray(cv2.resize(frame_bgr, size, interpolation=_OPENCV[self.interpolation]), np.uint8)


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
