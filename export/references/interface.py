"""What goes into a reference, beside the weights, and what comes out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wnlb.runtime.errors import WnlbError

Numbers = tuple[float, ...]


@dataclass(frozen=True)
class NetworkSettings:
    """What weights do not tell of backbone, neck and input; the defaults are mmdetection's for ``style="pytorch"``."""

    style: str = "pytorch"  # "pytorch": the stride lies in a unit's 3 x 3 convolution; "caffe": in its first 1 x 1
    adaptive_stride: int = 0  # of LIS's adaptive downsampling, 0: none; 2: the units' stride is 1
    channel_order: str = "rgb"  # of the network's input, of mean and std; or "bgr"
    mean: tuple[float, float, float] = (123.675, 116.28, 103.53)  # of 0..255
    std: tuple[float, float, float] = (58.395, 57.12, 57.375)
    norm_eps: float = 1e-5  # of the backbone's norms
    block_mode: str = "embedded"  # of non-local blocks with theta and phi alone; "dot" has the same weights
    non_local_scaled: bool = True  # mmcv's NonLocal2d divides embedded logits by sqrt(d)

    def __post_init__(self) -> None:
        for name, allowed in (
            ("style", ("pytorch", "caffe")),
            ("channel_order", ("rgb", "bgr")),
            ("adaptive_stride", (0, 1, 2)),
            ("block_mode", ("embedded", "dot")),
        ):
            if getattr(self, name) not in allowed:
                raise WnlbError(f"{name} is {getattr(self, name)!r}; expected {' or '.join(map(str, allowed))}")


@dataclass(frozen=True)
class Settings(NetworkSettings):
    """The same of a Mask R-CNN."""

    anchor_sizes: tuple[Numbers, ...] = ((32,), (64,), (128,), (256,), (512,))  # px at P2, P3, P4, P5, P6
    aspect_ratios: Numbers = (0.5, 1.0, 2.0)  # height / width
    pre_nms_top_n: int = 1000  # of each level
    post_nms_top_n: int = 1000
    rpn_nms_threshold: float = 0.7
    score_threshold: float = 0.05
    nms_threshold: float = 0.5
    detections: int = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.anchor_sizes) != 5:
            raise WnlbError(f"anchor sizes of {len(self.anchor_sizes)} levels; expected 5 (P2, P3, P4, P5, P6)")


@dataclass(frozen=True)
class SoloSettings(NetworkSettings):
    """The same of a SOLOv2; the defaults are those of mmdetection's configurations."""

    grids: tuple[int, ...] = (40, 36, 24, 16, 12)  # cells along each side, for P2 .. P6
    cell_strides: tuple[float, ...] = (8, 8, 16, 32, 32)  # a mask has more cells than that of its grid
    norm_groups: int = 32  # of the head's group norms
    cell_threshold: float = 0.1  # of scores, before masks are looked at
    nms_candidates: int = 500  # that enter Matrix NMS
    nms_sigma: float = 2.0
    score_threshold: float = 0.05  # of scores behind it
    detections: int = 100


@dataclass(frozen=True)
class Found:
    """What a reference finds in a batch of N frames; all in the dtype of the weights.

    Attributes:
        detections: for each image, best first: boxes ``[D, 4]`` (x1 y1 x2 y2 in pixels of the frame), scores ``[D]``,
            labels ``[D]`` (int64, from 1: both frameworks count from 0, our outputs from 1) and masks ``[D, 28, 28]``
            (probabilities inside the box, of the detection's own class); of SOLOv2 ``[D, H/4, W/4]``, of the frame.
        proposals: for each image the boxes of the RPN, best first, ``[R, 4]`` in pixels of the frame; of SOLOv2 none.
        pyramid: P2 .. P6, ``[N, C, h, w]`` each.
    """

    detections: list[dict[str, NDArray]]
    proposals: list[Tensor]
    pyramid: list[Tensor]


def content_sizes(frames: NDArray[np.uint8], content: NDArray[np.integer] | None) -> list[tuple[int, int]]:
    """(height, width) of the picture inside each frame; the whole frame where ``content`` is None."""
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3:
        raise WnlbError(f"frames are {frames.dtype} {list(frames.shape)}; expected uint8 [N, H, W, 3]")
    batch, height, width = frames.shape[:3]
    if height % 32 or width % 32:
        raise WnlbError(f"frames are {height} x {width}; expected multiples of 32")
    if content is None:
        return [(height, width)] * batch
    sizes = [(int(h), int(w)) for h, w in content]
    if len(sizes) != batch or not all(0 < h <= height and 0 < w <= width for h, w in sizes):
        raise WnlbError(f"content sizes are {sizes} for {batch} frames of {height} x {width}; expected one inside each")
    return sizes


def network_input(
    frames: NDArray[np.uint8], sizes: list[tuple[int, int]], settings: NetworkSettings, dtype: torch.dtype
) -> Tensor:
    """(frame - mean) / std inside the picture and exactly 0 outside: both frameworks pad what is normalised.

    Args:
        frames: uint8 RGB ``[N, H, W, 3]``.
        sizes: (height, width) of the picture in each frame, at its top left.

    Returns:
        ``[N, 3, H, W]``, channels in the order of ``settings``.
    """
    x = torch.from_numpy(frames).permute(0, 3, 1, 2).to(dtype)
    if settings.channel_order == "bgr":
        x = x.flip(1)
    mean, std = (torch.tensor(values, dtype=dtype).view(3, 1, 1) for values in (settings.mean, settings.std))
    x = (x - mean) / std
    padded = torch.zeros_like(x)
    for own, out, (height, width) in zip(x, padded, sizes, strict=True):
        out[:, :height, :width] = own[:, :height, :width]
    return padded
