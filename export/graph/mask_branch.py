"""The mask head as it is deployed: each box's mask of its own class, in one of two forms that compute the same."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wnlb.export.graph.adaptive_roi_align import Maps, Pool
from wnlb.export.graph.winograd import WinogradConvolutions, plain_convolutions
from wnlb.runtime.errors import GraphError


class MaskBranch(nn.Module):
    """From the maps that ``pool`` takes to probabilities ``[N, D, 2S, 2S]`` of each box's own class.

    No constant of the file holds D, so that an engine may compute fewer rows: it is the -1 of all reshapes.
    S is the side of the pooled square. The other classes are not computed. ``conv5_mask``, a transposed convolution
    with stride 2 and kernel 2, is four 1 x 1 convolutions, one for each pixel of a 2 x 2 cell. The cells are laid out
    after the last projection, when one channel is left.
    """

    own_weight: Tensor  # [C + 1, c] of the last projection
    own_bias: Tensor  # [C + 1, 1]

    def __init__(self, pool: Pool, head: Any, predictor: Any) -> None:
        super().__init__()
        _check_upsampling(predictor.conv5_mask)
        self.pool, self.head = pool, head
        self.cells = _as_cells(predictor.conv5_mask)
        projection = predictor.mask_fcn_logits
        self.register_buffer("own_weight", projection.weight.detach().flatten(1), persistent=False)
        self.register_buffer("own_bias", projection.bias.detach().unsqueeze(1), persistent=False)

    def forward(self, maps: Maps, boxes: Tensor, labels: Tensor, found: Tensor) -> Tensor:
        """``found``, bool ``[N, D]``, tells which rows count; the others may hold anything."""
        x = torch.relu(self.cells(self.head(self.pool(maps, boxes))))  # [N*D, 4*c, S, S]
        channels, height, width = x.shape[1:]
        own = labels.flatten()
        weight = F.embedding(own, self.own_weight).unsqueeze(1)  # [N*D, 1, c]
        cells = x.reshape(-1, 4, channels // 4, height * width)
        logits = weight.unsqueeze(1) @ cells + F.embedding(own, self.own_bias).unsqueeze(-1).unsqueeze(-1)
        logits = logits.reshape(-1, 2, 2, height, width).permute(0, 3, 1, 4, 2)
        return logits.sigmoid().reshape(labels.shape[0], -1, 2 * height, 2 * width)


class RowsMaskBranch(nn.Module):
    """``MaskBranch`` for a CPU: its convolutions as fewer matrix products, maps as ``[S^2, K, c]`` from end to end.

    K is how many rows count, in all images: ONNX Runtime takes a number that depends on the data, and an empty frame
    costs nothing. All classes are projected, for that is one product; the box's own is taken afterwards.
    """

    cell_weight: Tensor  # [c, 4*c]
    cell_bias: Tensor  # [4*c]
    class_weight: Tensor  # [c, C + 1]
    class_bias: Tensor  # [C + 1]

    def __init__(self, pool: Pool, head: Any, predictor: Any) -> None:
        super().__init__()
        _check_upsampling(predictor.conv5_mask)
        self.side, self.pool = pool.output_size, PixelsFirst(pool)
        self.head = WinogradConvolutions(plain_convolutions(head), pool.output_size)
        layers: dict[str, Any] = {"cell": _as_cells(predictor.conv5_mask), "class": predictor.mask_fcn_logits}
        for name, layer in layers.items():
            self.register_buffer(f"{name}_weight", layer.weight.detach().flatten(1).T.contiguous(), persistent=False)
            self.register_buffer(f"{name}_bias", layer.bias.detach().clone(), persistent=False)

    def forward(self, maps: Maps, boxes: Tensor, labels: Tensor, found: Tensor) -> Tensor:
        """As ``MaskBranch``; the rows of an image that were found come before its others."""
        rows = row_count(found.sum(0) > 0)  # R, of the image with the most
        pooled, own = self.pool(maps, boxes.narrow(1, 0, rows)), labels.narrow(1, 0, rows).flatten()
        if found.shape[0] != 1:  # those that were found, K of N * R
            which = _places(found.flatten(), row_count(found.flatten()))  # among N * D
            own = labels.flatten().index_select(0, which)
            pooled = pooled.index_select(1, which - which // found.shape[1] * (found.shape[1] - rows))
        masks = self._masks(self.head(pooled), own)
        place = found.flatten().cumsum(0) * found.flatten()
        masks = F.pad(masks, (0, 0, 0, 0, 1, 0)).index_select(0, place)  # rows that were not found have the zeros
        return masks.reshape(*labels.shape, *masks.shape[1:])

    def _masks(self, x: Tensor, labels: Tensor) -> Tensor:
        """``x [S^2, K, c]`` and ``labels [K]`` to probabilities ``[K, 2S, 2S]``."""
        side, (hidden, classes) = self.side, self.class_weight.shape
        cells = torch.relu(x.view(-1, x.shape[2]) @ self.cell_weight + self.cell_bias)
        logits = cells.view(-1, hidden) @ self.class_weight + self.class_bias
        own = labels.reshape(1, -1, 1, 1).expand(side * side, -1, 4, 1)
        logits = logits.view(side * side, -1, 4, classes).gather(3, own)
        logits = logits.view(side, side, -1, 2, 2).permute(2, 0, 3, 1, 4)  # [K, S, 2, S, 2]
        return logits.sigmoid().contiguous().view(-1, 2 * side, 2 * side)


class PixelsFirst(nn.Module):
    """RoIs of boxes ``[N, R, 4]``, pooled as ``[S * S, N * R, C]``.

    A module for the names of its nodes, which tell what time RoIAlign takes.
    """

    def __init__(self, pool: Pool) -> None:
        super().__init__()
        self.pool: Any = pool

    def forward(self, maps: Maps, boxes: Tensor) -> Tensor:
        return self.pool.pixels_first(maps, boxes)


def _places(found: Tensor, count: Any) -> Tensor:
    """Where the K = ``count`` true ones of ``found [D]`` are, ``[K]``.

    Number k is at the first place that has more than k of them up to it.
    """
    up_to = found.cumsum(0)
    return (up_to <= torch.arange(count, device=found.device).unsqueeze(1)).sum(1)


def row_count(found: Tensor) -> Any:
    """How many of ``found [D]`` are true; what PyTorch's exporter has to know of that number is told."""
    rows = found.sum().item()
    torch._check(rows >= 0)
    torch._check(rows <= found.shape[0])
    return rows


def _check_upsampling(conv: Any) -> None:
    if conv.kernel_size != (2, 2) or conv.stride != (2, 2) or conv.padding != (0, 0):
        raise GraphError(f"the mask predictor upsamples by {conv}; expected kernel 2, stride 2, no padding")


def _as_cells(conv: Any) -> nn.Conv2d:
    """``ConvTranspose2d(c_in, c, 2, 2)`` as a 1 x 1 convolution to 4*c channels, in the order (dy, dx, c)."""
    cells = nn.Conv2d(conv.in_channels, 4 * conv.out_channels, 1)
    cells.weight = nn.Parameter(conv.weight.permute(2, 3, 1, 0).reshape(-1, conv.in_channels, 1, 1).detach(), False)
    cells.bias = nn.Parameter(conv.bias.repeat(4).detach(), False)
    return cells
