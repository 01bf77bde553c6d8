"""Frames that are on the GPU already, prepared there by PyTorch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from wnlb.runtime.errors import MissingDependency, PictureError
from wnlb.runtime.geometry import Geometry, Placement

if TYPE_CHECKING:
    import torch


def is_on_device(frame: object) -> bool:
    """Whether a frame is an array on a CUDA device: of PyTorch, CuPy, Numba, a video decoder."""
    return hasattr(frame, "__cuda_array_interface__")


def as_tensor(frame: object) -> torch.Tensor:
    """The same memory as a tensor. Raises MissingDependency where PyTorch is not installed."""
    try:
        import torch
    except ImportError as error:
        raise MissingDependency("frames on the GPU are prepared by PyTorch, which is not installed") from error
    return frame if isinstance(frame, torch.Tensor) else torch.as_tensor(frame, device="cuda")


def prepare_tensor(frame_bgr: torch.Tensor, geometry: Geometry, out: torch.Tensor) -> Placement:
    """What ``Geometry.prepare`` does, on the tensor's device: within one grey level of it, with nearest the same.

    Antialiased, 13 % of the values of noise differ, by one: Pillow rounds between x and y, and this does not. (PyTorch
    2.14 on the CPU computes something else where the resized frame is one pixel wide.)

    Args:
        frame_bgr: uint8 ``[h, w, 3]``, on any device.
        out: uint8 RGB ``[height, width, 3]`` of the geometry, on the same device, written to.

    Raises:
        PictureError: the frame is something else.
    """
    import torch
    from torch.nn import functional

    if frame_bgr.dtype != torch.uint8 or frame_bgr.ndim != 3 or frame_bgr.shape[2] != 3 or not frame_bgr.numel():
        raise PictureError(f"frame is {frame_bgr.dtype} {list(frame_bgr.shape)}; expected torch.uint8 [h, w, 3] in BGR")
    placement = geometry.place(*frame_bgr.shape[:2])
    size = (placement.height, placement.width)
    resized = frame_bgr
    if size != tuple(frame_bgr.shape[:2]):
        if geometry.interpolation == "nearest":
            ys, xs = (
                _nearest(source, wanted, frame_bgr.device)
                for source, wanted in zip(frame_bgr.shape[:2], size, strict=True)
            )
            resized = frame_bgr[ys][:, xs]
        else:
            planes = frame_bgr.permute(2, 0, 1)[None].float()
            smooth = geometry.interpolation == "antialiased"
            planes = functional.interpolate(planes, size, mode="bilinear", align_corners=False, antialias=smooth)
            resized = planes[0].permute(1, 2, 0).round().clamp(0, 255).to(torch.uint8)
    padding = torch.tensor(geometry.pad_rgb, dtype=torch.uint8, device=out.device)
    rows, columns = placement.rows, placement.columns
    out[: rows.start] = padding
    out[rows.stop :] = padding
    out[rows, : columns.start] = padding
    out[rows, columns.stop :] = padding
    out[rows, columns] = resized.flip(2)
    return placement


def synchronize(tensor: torch.Tensor) -> None:
    """Wait until what was written to a tensor is there for other streams."""
    import torch

    if tensor.is_cuda:
        torch.cuda.current_stream(tensor.device).synchronize()


def _nearest(source: int, wanted: int, device: Any) -> torch.Tensor:
    """Which of ``source`` pixels OpenCV's INTER_NEAREST takes for each of ``wanted``."""
    import torch

    positions = torch.arange(wanted, dtype=torch.float64, device=device) * (1.0 / (wanted / source))
    return positions.floor().long().clamp(max=source - 1)
