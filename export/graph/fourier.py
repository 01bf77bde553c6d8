"""Convolutions of small squares through the discrete Fourier transform, as matrix products only.

For a CPU: 360 products instead of 1764 for each 14 x 14 map and pair of channels, in operators that ONNX Runtime
runs near the speed of its matrix product. FP16, INT8 and a GPU's matrix units want the convolution itself.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from wnlb.runtime.errors import GraphError


class Transforms(NamedTuple):
    """3 x 3 convolution of an S x S map with zeros around it, as products of Fourier coefficients.

    A circle one longer than the map holds its zero border, for both ends share it. On it the convolution is a product
    of coefficients (convolution theorem; correlation, as neural networks count it). The map is real, so that
    U = (L + 1) / 2 of its L frequencies along y are enough (L odd); a complex product is three real ones (Gauss), so
    that there are V = 3 L products for each of them. All float64, maps row by row.
    """

    rows_in: NDArray  # [2U, S] along y: (real, imaginary) of each frequency
    columns_in: NDArray  # [V, 2S] along x, from the real and imaginary parts of a row to the factors of its products
    kernel: NDArray  # [U * V, 9] from the taps to the other factors
    columns_out: NDArray  # [2S, V]
    rows_out: NDArray  # [S, 2U]


def transforms(side: int) -> Transforms:
    """For maps of ``side`` x ``side``."""
    length = side + 1 + side % 2
    turn = 2 * np.pi / length
    places, taps, u, v = np.arange(side), np.arange(-1, 2), np.arange(length // 2 + 1), np.arange(length)
    cos_y, sin_y = np.cos(turn * np.outer(u, places)), np.sin(turn * np.outer(u, places))
    cos_x, sin_x = np.cos(turn * np.outer(v, places)), np.sin(turn * np.outer(v, places))
    # X = sum x exp(-i ...) = a + ib and W = sum w exp(+i ...) = c + id; their product is
    # (k1 - k3) + i (k1 + k2) with k1 = c (a + b), k2 = (d - c) a, k3 = (c + d) b.
    a, b = np.hstack([cos_x, sin_x]), np.hstack([-sin_x, cos_x])  # [L, 2S]
    angle = turn * (u[:, None, None, None] * taps[:, None] + v[:, None, None] * taps)  # [U, L, 3, 3]
    c, d = np.cos(angle), np.sin(angle)
    # y = 1 / L^2 sum over all frequencies of Re(Y exp(+i ...)); those of u > 0 stand for their conjugates as well.
    real, imaginary = np.vstack([cos_x.T, sin_x.T]), np.vstack([-sin_x.T, cos_x.T])  # [2S, L]
    share = np.where(u > 0, 2, 1)[:, None] / length**2
    return Transforms(
        rows_in=np.stack([cos_y, -sin_y], 1).reshape(-1, side),
        columns_in=np.stack([a + b, a, b]).reshape(-1, 2 * side),
        kernel=np.stack([c, d - c, c + d], 1).reshape(-1, 9),
        columns_out=np.hstack([real + imaginary, imaginary, -real]),
        rows_out=np.stack([share * cos_y, -share * sin_y], 1).reshape(-1, side).T,
    )


class FourierConvolutions(nn.Module):
    """3 x 3 convolutions, each followed by ReLU, of ``[S * S, R, C]`` to the same shape with their channels.

    Args:
        convolutions: with kernel 3, stride 1, padding 1 and a bias.
        side: S.
    """

    rows_in: Tensor
    columns_in: Tensor
    kernel: Tensor
    columns_out: Tensor
    rows_out: Tensor

    def __init__(self, convolutions: list[nn.Conv2d], side: int) -> None:
        super().__init__()
        self.side, self.count = side, len(convolutions)
        for name, matrix in transforms(side)._asdict().items():
            constant = torch.tensor(np.ascontiguousarray(matrix), dtype=torch.get_default_dtype())
            self.register_buffer(name, constant, persistent=False)
        for i, conv in enumerate(convolutions):
            # The file holds the nine taps; what they become has 40 times their size, and is made when a runtime loads.
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
        side, (pixels, _, channels), out = self.side, x.shape, taps.shape[2]
        u, v = self.rows_in.shape[0] // 2, self.columns_in.shape[0]
        weight = (self.kernel @ taps.flatten(1)).reshape(u * v, channels, out)
        lines = (self.rows_in @ x.view(side, -1)).view(u, 2 * side, -1)  # [U, 2S, R * C_in]
        products = (self.columns_in @ lines).view(u * v, -1, channels) @ weight  # [U * V, R, C_out]
        lines = self.columns_out @ products.view(u, v, -1)  # [U, 2S, R * C_out]
        return (self.rows_out @ lines.view(2 * u, -1)).view(pixels, -1, out)


def plain_convolutions(layers: Any) -> list[nn.Conv2d]:
    """The convolutions of ``layers``, each followed by ReLU, that ``FourierConvolutions`` computes.

    Raises GraphError where ``layers`` has anything else.
    """
    modules = [module for module in layers.modules() if not list(module.children())]
    convolutions, activations = modules[::2], modules[1::2]
    fits = len(convolutions) == len(activations) and all(isinstance(m, nn.ReLU) for m in activations)
    if not fits or not all(_is_plain(m) for m in convolutions):
        raise GraphError(
            "the mask head is more than 3 x 3 convolutions with bias and ReLU; a file for the target cpu needs that: "
            "export with --target gpu"
        )
    return [m for m in convolutions if isinstance(m, nn.Conv2d)]


def _is_plain(module: nn.Module) -> bool:
    same = {"kernel_size": (3, 3), "stride": (1, 1), "padding": (1, 1), "dilation": (1, 1), "groups": 1}
    has_bias = isinstance(module, nn.Conv2d) and module.bias is not None
    return has_bias and all(getattr(module, name) == value for name, value in same.items())
