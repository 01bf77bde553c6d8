"""From a picture to the network's input and from its masks back to the picture, as each framework does it.

For tests: the runtime has its own way, which is held against this one. Integer arithmetic where the libraries of the
frameworks have it, so that the pixels are equal and not only near.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

Picture = NDArray[np.uint8]  # RGB [H, W, 3]
Resize = Callable[[Picture, int, int], Picture]  # picture, height, width


def mmdet_size(height: int, width: int, short: int, long: int) -> tuple[int, int]:
    """(height, width) px within ``short`` and ``long`` px, sides rounded half up (mmcv/image/geometric.py).

    ``scale=(long, short)`` with ``keep_ratio=True`` in a configuration.
    """
    scale = min(long / max(height, width), short / min(height, width))
    return int(height * scale + 0.5), int(width * scale + 0.5)


def detectron2_size(height: int, width: int, short: int, long: int) -> tuple[int, int]:
    """The same by ResizeShortestEdge's own order of operations (data/transforms/augmentation_impl.py)."""
    scale = short / min(height, width)
    new_height, new_width = (short, scale * width) if height < width else (scale * height, short)
    if max(new_height, new_width) > long:
        scale = long / max(new_height, new_width)
        new_height, new_width = new_height * scale, new_width * scale
    return int(new_height + 0.5), int(new_width + 0.5)


def resized_by_opencv(picture: Picture, height: int, width: int) -> Picture:
    """``cv2.INTER_LINEAR`` of uint8 (imgproc/src/resize.cpp): of 2 x 2 pixels however far it shrinks, by 11 bits."""
    pixels = picture.astype(np.int64)
    (left, right), (w_left, w_right) = _opencv_weights(picture.shape[1], width)
    rows = pixels[:, left] * w_left[:, None] + pixels[:, right] * w_right[:, None]  # [H, width, 3], times 2^11
    (upper, lower), (w_upper, w_lower) = _opencv_weights(picture.shape[0], height)
    upper_part = w_upper[:, None, None] * (rows[upper] >> 4) >> 16
    lower_part = w_lower[:, None, None] * (rows[lower] >> 4) >> 16
    return ((upper_part + lower_part + 2) >> 2).astype(np.uint8)


def _opencv_weights(old: int, new: int) -> tuple[tuple[NDArray, NDArray], tuple[NDArray, NDArray]]:
    """Both pixels that each new pixel lies between, and their weights times 2^11."""
    at = ((np.arange(new) + 0.5) * (old / new) - 0.5).astype(np.float32)
    share = at - np.floor(at)
    first = np.floor(at).astype(int)
    pixels = first.clip(0, old - 1), (first + 1).clip(0, old - 1)
    return pixels, (np.rint((1 - share) * 2048).astype(int), np.rint(share * 2048).astype(int))


def resized_by_nearest(picture: Picture, height: int, width: int) -> Picture:
    """``cv2.INTER_NEAREST``, as LIS evaluates: the pixel at floor(i * old / new)."""
    rows, columns = (
        np.arange(new) * old // new for new, old in ((height, picture.shape[0]), (width, picture.shape[1]))
    )
    return picture[rows][:, columns]


def resized_by_pillow(picture: Picture, height: int, width: int) -> Picture:
    """``PIL.Image.resize`` with BILINEAR of uint8 (src/libImaging/Resample.c): antialiased, x before y."""
    pixels = _resampled(picture.astype(np.int64).swapaxes(0, 1), width).swapaxes(0, 1)
    return _resampled(pixels, height).astype(np.uint8)


def _resampled(pixels: NDArray[np.int64], new: int) -> NDArray[np.int64]:
    """The first axis by a triangle as wide as 2 new pixels, or 2 old ones if they are larger; weights of 22 bits."""
    old = len(pixels)
    scale = old / new
    reach = max(scale, 1.0)
    out = np.empty((new, *pixels.shape[1:]), np.int64)
    for i in range(new):
        centre = (i + 0.5) * scale
        first, last = max(int(centre - reach + 0.5), 0), min(int(centre + reach + 0.5), old)
        weights = (1 - np.abs(np.arange(first, last) + 0.5 - centre) / reach).clip(0)
        weights = np.floor(weights / weights.sum() * 2**22 + 0.5).astype(np.int64)
        out[i] = (np.tensordot(weights, pixels[first:last], 1) + 2**21) >> 22
    return out.clip(0, 255)


def framed(picture: Picture, height: int, width: int) -> Picture:
    """The picture at the top left of a black frame; a reference sets what is outside it to zero after normalisation."""
    frame = np.zeros((height, width, 3), np.uint8)
    frame[: picture.shape[0], : picture.shape[1]] = picture
    return frame


def prepared(picture: Picture, size: tuple[int, int], resize: Resize) -> tuple[Picture, tuple[int, int]]:
    """The network's frame of a picture.

    Args:
        picture: uint8 RGB ``[H, W, 3]``.
        size: (height, width) of the resized picture, by ``mmdet_size`` or ``detectron2_size``.
        resize: one of the functions of this module.

    Returns:
        uint8 RGB, padded at the right and bottom to multiples of 32, and ``size``.
    """
    height, width = (-(-side // 32) * 32 for side in size)
    return framed(resize(picture, *size), height, width), size


def pasted(
    boxes: NDArray, masks: NDArray, content: tuple[int, int], picture: tuple[int, int]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Boxes and masks in the pixels of the picture.

    A mask's 28 x 28 cells fill the box; a pixel of the picture belongs to it where the bilinear value at its centre,
    with 0 outside, is at least 0.5: mmdet/models/roi_heads/mask_heads/fcn_mask_head.py ``_do_paste_mask``, and
    detectron2/layers/mask_ops.py, of which that is a copy. detectron2 then drops detections with an empty box.

    Args:
        boxes: ``[D, 4]`` in pixels of the frame.
        masks: ``[D, 28, 28]`` probabilities.
        content: (height, width) of the resized picture in the frame.
        picture: (height, width) of the picture.

    Returns:
        Boxes ``[D, 4]``, scaled by a factor for x and one for y and clipped, and masks ``[D, height, width]``.
    """
    height, width = picture
    scale = np.array([width / content[1], height / content[0]] * 2)
    scaled = (boxes.astype(np.float64) * scale).clip(0, [width, height] * 2)
    out = np.zeros((len(boxes), height, width), bool)
    for (x1, y1, x2, y2), mask, own in zip(scaled, masks, out, strict=True):
        if x2 <= x1 or y2 <= y1:
            continue
        x = (torch.arange(width, dtype=torch.float64) + 0.5 - x1) / (x2 - x1) * 2 - 1  # -1 .. 1 over the box
        y = (torch.arange(height, dtype=torch.float64) + 0.5 - y1) / (y2 - y1) * 2 - 1
        grid = torch.stack([x.expand(height, width), y[:, None].expand(height, width)], 2)
        values = F.grid_sample(torch.from_numpy(mask.astype(np.float64))[None, None], grid[None], align_corners=False)
        own[:] = values[0, 0].numpy() >= 0.5
    return scaled, out
