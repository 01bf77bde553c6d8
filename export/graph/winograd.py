"""Convolutions of small squares by Winograd's minimal filtering, as matrix products only.

S. Winograd, Arithmetic Complexity of Computations, 1980; A. Lavin and S. Gray, Fast Algorithms for Convolutional Neural
Networks, CVPR 2016. For a CPU: 441 products instead of 1764 for each 14 x 14 map and pair of channels, in operators
that ONNX Runtime runs near the speed of its matrix product. FP16, INT8 and a GPU's matrix units want the convolution
itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from wnlb.runtime.errors import GraphError

TILE = 5  # outputs of a tile along an axis
# Where the polynomials of input and kernel are multiplied, and at infinity. These err the least in float32 among those
# tried: 4e-6 of the maps' spread after four layers of 256 channels, the convolution itself 4e-7.
_POINTS = tuple(Fraction(*p) for p in ((1, 4), (-1, 4), (4, 5), (-4, 5), (2, 1), (-2, 1)))
_TAPS = 3
POINTS = len(_POINTS) + 1  # of a tile along an axis, that at infinity too


class Transforms(NamedTuple):
    """3 x 3 convolution of an S x S map with zeros around it, by T x T tiles of 5 x 5 outputs: P = 7 points an axis.

    All float64, for one axis; maps have the points before the tiles. The same for both axes, one after the other.
    """

    into: NDArray  # [P * T, S] from the map to values at the points
    kernel: NDArray  # [P, 3] from the taps
    back: NDArray  # [S, P * T]


def transforms(side: int) -> Transforms:
    """For maps of ``side`` x ``side``. A tile reads one pixel of each neighbour; beyond the map there are zeros."""
    points, tiles = POINTS, -(-side // TILE)
    into, back = np.zeros((points, tiles, side + 2 * TILE)), np.zeros((side + 2 * TILE, points, tiles))
    of_input, of_kernel, of_output = minimal_filtering()
    for tile in range(tiles):  # in a map with one pixel before it
        first = tile * TILE
        into[:, tile, first : first + points] = of_input
        back[first : first + TILE, :, tile] = of_output
    return Transforms(into[..., 1 : side + 1].reshape(-1, side), of_kernel, back[:side].reshape(side, -1))


def minimal_filtering() -> tuple[NDArray, NDArray, NDArray]:
    """Lavin and Gray's B^T ``[P, P]``, G ``[P, 3]`` and A^T ``[5, P]``: y = A^T (G w * B^T x), correlation; P = 7.

    Toom and Cook's product of polynomials by their values at P - 1 points and at infinity, transposed: A and G take
    those values, and B^T has the coefficients of the polynomials that are zero at all points but one.
    """
    rows = [_with_roots(p for p in _POINTS if p != point) for point in _POINTS]
    scales = [math.prod((point - p for p in _POINTS if p != point), start=Fraction(1)) for point in _POINTS]
    of_input = [[*row, Fraction(0)] for row in rows] + [_with_roots(_POINTS)]
    of_kernel = [[point**k / scale for k in range(_TAPS)] for point, scale in zip(_POINTS, scales, strict=True)]
    of_output = [[point**k for k in range(TILE)] for point in _POINTS]
    at_infinity = [[Fraction(k == size - 1) for k in range(size)] for size in (_TAPS, TILE)]
    matrices = of_input, [*of_kernel, at_infinity[0]], [*of_output, at_infinity[1]]
    inputs, kernel, output = (np.array(matrix, np.float64) for matrix in matrices)
    return inputs, kernel, output.T


def _with_roots(roots: Iterable[Fraction]) -> list[Fraction]:
    """Coefficients of the product of all (x - root), the constant first."""
    found = [Fraction(1)]
    for root in roots:
        found = [a - root * b for a, b in zip([Fraction(0), *found], [*found, Fraction(0)], strict=True)]
    return found


class WinogradConvolutions(nn.Module):
    """3 x 3 convolutions, each followed by ReLU, of ``[S * S, R, C]`` to the same shape with their channels.

    Args:
        convolutions: with kernel 3, stride 1, padding 1 and a bias.
        side: S.
    """

    into: Tensor
    kernel: Tensor  # [P * P, 9]
    back: Tensor

    def __init__(self, convolutions: list[nn.Conv2d], side: int) -> None:
        super().__init__()
        self.side, self.count = side, len(convolutions)
        into, kernel, back = transforms(side)
        for name, matrix in (("into", into), ("kernel", np.kron(kernel, kernel)), ("back", back)):
            constant = torch.tensor(np.ascontiguousarray(matrix), dtype=torch.get_default_dtype())
            self.register_buffer(name, constant, persistent=False)
        for i, conv in enumerate(convolutions):
            # The file holds the nine taps; what they become has five times their size, made when a runtime loads.
            taps = conv.weight.detach().permute(2, 3, 1, 0).flatten(0, 1)  # [9, C_in, C_out]
            self.register_buffer(f"taps{i}", taps.contiguous(), persistent=False)
            if conv.bias is not None:
                self.register_buffer(f"bias{i}", conv.bias.detach().clone(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = x.contiguous()
        for i in range(self.count):
            x = torch.relu(self._convolve(x, self.get_buffer(f"taps{i}")) + self.get_buffer(f"bias{i}"))
        return x

    def _convolve(self, x: Tensor, taps: Tensor) -> Tensor:
        """``[S * S, R, C_in]`` and ``[9, C_in, C_out]`` to ``[S * S, R, C_out]``, for any R.

        In views R is the -1, so that the file's constants do not hold it.
        """
        side, channels, out = self.side, x.shape[2], taps.shape[2]
        points, lines = POINTS, self.into.shape[0]  # P and P * T
        weight = (self.kernel @ taps.flatten(1)).view(points, 1, points, channels, out)
        values = self.into @ (self.into @ x.view(side, -1)).view(lines, side, -1)  # [P * T, P * T, R * C_in]
        products = values.view(points, lines // points, points, -1, channels) @ weight  # [P, T, P, T * R, C_out]
        columns = self.back @ products.view(lines, lines, -1)  # [P * T, S, R * C_out]
        return (self.back @ columns.view(lines, -1)).view(side * side, -1, out)


def plain_convolutions(layers: Any) -> list[nn.Conv2d]:
    """The convolutions of ``layers``, each followed by ReLU, that ``WinogradConvolutions`` computes.

    Raises GraphError where ``layers`` has anything else.
    """
    modules = [module for module in layers.modules() if not list(module.children())]
    convolutions, activations = modules[::2], modules[1::2]
    fits = len(convolutions) == len(activations) and all(isinstance(m, nn.ReLU) for m in activations)
    if not fits or not all(is_plain(m) for m in convolutions):
        raise GraphError(
            "the mask head is more than 3 x 3 convolutions with bias and ReLU; a file for the target cpu needs that: "
            "export with --target gpu"
        )
    return [m for m in convolutions if isinstance(m, nn.Conv2d)]


def is_plain(module: nn.Module) -> bool:
    """Whether it is a 3 x 3 convolution of all channels with stride 1, padding 1 and a bias."""
    same = {"kernel_size": (3, 3), "stride": (1, 1), "padding": (1, 1), "dilation": (1, 1), "groups": 1}
    has_bias = isinstance(module, nn.Conv2d) and module.bias is not None
    return has_bias and all(getattr(module, name) == value for name, value in same.items())
