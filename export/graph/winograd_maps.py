"""3 x 3 convolutions of whole maps by Winograd's minimal filtering, in files for a CPU; see ``winograd``.

A map is cut into tiles of 5 x 5 outputs, and the windows of 7 x 7 pixels that these see are copied out of it. Pixels
are rows of all channels, so that copies are of whole rows and every step is one matrix product: both axes are
transformed at once, by 49 x 49 and 25 x 49 numbers. 49 products per tile and pair of channels take the place of 225.

Measured (a Xeon with AVX-512, ONNX Runtime 1.32.0, processor's time against the convolution's): 256 channels of
80 x 80 0.63, of 40 x 40 0.69, of 20 x 20 1.14; 128 channels of 80 x 80 0.85, which the change of layout around them,
in a whole file, takes back.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from wnlb.export.graph.winograd import POINTS, TILE, is_plain, minimal_filtering

# With less it is not faster: the weights are read for too little, or transformed is as much as is multiplied.
LEAST_TILES, LEAST_CHANNELS = 48, 256
_MOST_TILES = 512  # at once, so that what lies between the steps stays below 26 MB for 256 channels
_Shape = tuple[int, int]  # height, width


def tile_count(shapes: Sequence[_Shape]) -> int:
    """Tiles of all maps together."""
    return sum(-(-height // TILE) * -(-width // TILE) for height, width in shapes)


class TiledConvolution(nn.Module):
    """A 3 x 3 convolution with padding 1 of several maps at once, from rows to rows.

    Args:
        conv: ``is_plain``.
        maps: the row that each pixel of a map is, ``[h, w]`` each.
        empty: a row of zeros.
    """

    into: Tensor  # [49, 49]
    kernel: Tensor  # [49, 9]
    back: Tensor  # [25, 49]
    taps: Tensor  # [9, C_in, C_out]
    bias: Tensor  # [C_out]

    def __init__(self, conv: nn.Conv2d, maps: Sequence[NDArray], empty: int) -> None:
        super().__init__()
        for name, matrix in zip(("into", "kernel", "back"), minimal_filtering(), strict=True):
            constant = torch.tensor(np.kron(matrix, matrix), dtype=torch.get_default_dtype())
            self.register_buffer(name, constant, persistent=False)
        # The file holds the nine taps; what they become has five times their size, made when a runtime loads.
        taps = conv.weight.detach().permute(2, 3, 1, 0).flatten(0, 1).contiguous()
        self.register_buffer("taps", taps, persistent=False)
        bias: Any = conv.bias
        self.register_buffer("bias", bias.detach().clone(), persistent=False)
        windows = np.concatenate([_windows(numbers, empty) for numbers in maps], 1)  # [49, R]
        parts = np.array_split(windows, -(-windows.shape[1] // _MOST_TILES), 1)
        self.parts = len(parts)
        for i, part in enumerate(parts):
            self.register_buffer(f"windows{i}", torch.from_numpy(part.flatten()), persistent=False)
        self.maps = _outputs([part.shape[1] for part in parts], [numbers.shape for numbers in maps])  # as ``maps``

    def forward(self, rows: Tensor) -> Tensor:
        """``[N, M, C_in]`` to ``[N, 25 R, C_out]``; some of these are no pixels of a map."""
        channels, out = self.taps.shape[1:]
        weight = (self.kernel @ self.taps.flatten(1)).view(-1, channels, out)
        tiles = []
        for i in range(self.parts):
            index = self.get_buffer(f"windows{i}")
            count = len(index) // POINTS**2
            windows = rows.index_select(1, index).view(-1, POINTS**2, count * channels)
            values = (self.into @ windows).view(-1, POINTS**2, count, channels)
            products = (values @ weight).view(-1, POINTS**2, count * out)
            tiles.append((self.back @ products).view(-1, TILE**2 * count, out))
        return (torch.cat(tiles, 1) if len(tiles) > 1 else tiles[0]) + self.bias


class TiledMap(nn.Module):
    """The convolution of one map, ``[N, C_in, h, w]`` to ``[N, C_out, h, w]``."""

    order: Tensor  # [h * w]

    def __init__(self, conv: nn.Conv2d, shape: _Shape) -> None:
        super().__init__()
        self.shape, self.tiled = shape, TiledConvolution(conv, [_numbers(0, shape)], shape[0] * shape[1])
        self.register_buffer("order", torch.from_numpy(self.tiled.maps[0].flatten()), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        rows = self.tiled(_with_zeros([_rows(x)]))
        return _map(rows.index_select(1, self.order), self.shape)


class TiledRpnHead(nn.Module):
    """torchvision's ``RPNHead``, its convolutions of all levels at once.

    Args:
        head: of which ``can_tile_head``.
        shapes: of P2 .. P6.
    """

    weight: Tensor  # [C, A + 4 A]
    bias: Tensor  # [A + 4 A]
    order: Tensor  # [pixels of all levels]

    def __init__(self, head: Any, shapes: Sequence[_Shape]) -> None:
        super().__init__()
        self.shapes, sizes = list(shapes), [height * width for height, width in shapes]
        starts = [sum(sizes[:i]) for i in range(len(sizes))]
        self.places = list(zip(starts, sizes, strict=True))
        maps, empty = [_numbers(*own) for own in zip(starts, shapes, strict=True)], sum(sizes)
        self.convolutions = nn.ModuleList()
        for layer in head.conv:
            tiled = TiledConvolution(layer[0], maps, empty)
            self.convolutions.append(tiled)
            maps, empty = tiled.maps, TILE**2 * tile_count(shapes)
        self.register_buffer("order", torch.from_numpy(np.concatenate([m.flatten() for m in maps])), persistent=False)
        last = [head.cls_logits, head.bbox_pred]
        self.anchors = head.cls_logits.out_channels
        weight = torch.cat([conv.weight.detach().flatten(1) for conv in last])
        self.register_buffer("weight", weight.T.contiguous(), persistent=False)
        self.register_buffer("bias", torch.cat([conv.bias.detach() for conv in last]), persistent=False)

    def forward(self, levels: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """As torchvision's: logits ``[N, A, h, w]`` and deltas ``[N, 4 A, h, w]`` of each level."""
        parts = [_rows(level) for level in levels]
        for convolution in self.convolutions:
            parts = [torch.relu(convolution(_with_zeros(parts)))]
        both = (parts[0] @ self.weight + self.bias).index_select(1, self.order)
        own = [_map(both.narrow(1, *at), shape) for at, shape in zip(self.places, self.shapes, strict=True)]
        return [maps[:, : self.anchors] for maps in own], [maps[:, self.anchors :] for maps in own]


def tile_outputs(fpn: Any, shapes: Sequence[_Shape]) -> None:
    """Put ``TiledMap`` into the place of the FPN's convolutions behind the sums, where that is faster, in place."""
    for i, (layer, shape) in enumerate(zip(fpn.layer_blocks, shapes, strict=False)):
        inside = [module for module in layer if not isinstance(module, nn.Identity)]  # a folded norm
        if len(inside) == 1 and _pays(inside[0], [shape]):
            fpn.layer_blocks[i] = nn.Sequential(TiledMap(inside[0], shape))


def can_tile_head(head: Any, shapes: Sequence[_Shape]) -> bool:
    """Whether ``TiledRpnHead`` computes an ``RPNHead``, and is faster."""
    layers = [list(layer) for layer in head.conv]
    return all(len(own) == 2 and _pays(own[0], shapes) and isinstance(own[1], nn.ReLU) for own in layers)


def _pays(conv: Any, shapes: Sequence[_Shape]) -> bool:
    """Whether ``TiledConvolution`` computes a layer, and faster."""
    plain = is_plain(conv) and min(conv.in_channels, conv.out_channels) >= LEAST_CHANNELS
    return plain and tile_count(shapes) >= LEAST_TILES


def _rows(x: Tensor) -> Tensor:
    """``[N, C, h, w]`` to ``[N, h * w, C]``."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)


def _with_zeros(parts: Sequence[Tensor]) -> Tensor:
    """``[N, ..., C]`` one after the other, and a row of zeros: ONNX Runtime's Pad would copy them with one thread."""
    return torch.cat([*parts, parts[0][:, :1] * 0], 1)


def _map(rows: Tensor, shape: _Shape) -> Tensor:
    """``[N, h * w, C]`` to ``[N, C, h, w]``."""
    return rows.unflatten(1, shape).permute(0, 3, 1, 2)


def _numbers(start: int, shape: _Shape) -> NDArray:
    return start + np.arange(shape[0] * shape[1]).reshape(shape)


def _windows(numbers: NDArray, empty: int) -> NDArray:
    """``[49, tiles]``: the rows that each tile of a map reads; beyond the map it reads ``empty``."""
    height, width = (-(-side // TILE) * TILE for side in numbers.shape)
    around = np.full((height + 2, width + 2), empty)
    around[1 : numbers.shape[0] + 1, 1 : numbers.shape[1] + 1] = numbers
    seen = np.lib.stride_tricks.sliding_window_view(around, (POINTS, POINTS))[::TILE, ::TILE]
    return seen.transpose(2, 3, 0, 1).reshape(POINTS**2, -1)


def _outputs(parts: Sequence[int], shapes: Sequence[_Shape]) -> list[NDArray]:
    """The row of each pixel of each map among those that come out, of so many tiles at once."""
    starts = TILE**2 * np.cumsum([0, *parts])
    rows = [
        start + np.arange(TILE**2 * tiles).reshape(TILE**2, -1) for start, tiles in zip(starts, parts, strict=False)
    ]
    numbers, maps, first = np.concatenate(rows, 1), [], 0
    for height, width in shapes:
        down, across = -(-height // TILE), -(-width // TILE)
        own = numbers[:, first : first + down * across].reshape(TILE, TILE, down, across)
        maps.append(own.transpose(2, 0, 3, 1).reshape(TILE * down, TILE * across)[:height, :width])
        first += down * across
    return maps
