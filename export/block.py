"""The weighted non-local block (wNLB).

    z = (1 - w) x + w BN(W_z y),      y_i = sum_j f(x_i, x_j) g(x_j)

Lin, Anantrasirichai, Bull: "Feature Denoising for Low-Light Instance Segmentation Using Weighted
Non-Local Blocks", ICASSP 2025; the pairwise functions ``f`` are those of Wang, Girshick, Gupta, He:
"Non-local Neural Networks", CVPR 2018 (equations 2 to 6). The logits are not scaled by 1/sqrt(d).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wnlb.runtime.errors import WnlbError

MODES = ("embedded", "gaussian", "dot", "concatenate")

# Rows of the N x N matrix that `concatenate` holds at a time at inference: 64 MiB of float32.
_CHUNK_ELEMENTS = 16 * 1024 * 1024


class WeightedNonLocalBlock(nn.Module):
    """A non-local block whose share in the output is learnt.

    ``weighted=False`` gives the plain non-local block, ``z = x + BN(W_z y)``, without ``w``.
    A fresh block is the identity: ``w``, and the scale and shift of its batch norm, start at zero.

    Args:
        channels: C, channels of input and output.
        mode: the pairwise function, one of ``MODES``.
        inner_channels: d, channels of theta, phi and g; half of ``channels`` by default.
        weighted: whether the block has the scalar ``w``.
    """

    def __init__(
        self,
        channels: int,
        mode: str = "embedded",
        inner_channels: int | None = None,
        weighted: bool = True,
    ) -> None:
        super().__init__()
        if mode not in MODES:
            raise WnlbError(f"block mode is {mode!r}; expected one of {', '.join(MODES)}")
        inner = inner_channels if inner_channels is not None else max(channels // 2, 1)
        if inner < 1:
            raise WnlbError(f"inner channels of a block are {inner}; expected at least 1")
        self.channels, self.inner_channels, self.mode = channels, inner, mode
        self.g = nn.Conv2d(channels, inner, 1)
        if mode != "gaussian":
            self.theta = nn.Conv2d(channels, inner, 1)
            self.phi = nn.Conv2d(channels, inner, 1)
        if mode == "concatenate":
            self.W_f = nn.Sequential(nn.Conv2d(2 * inner, 1, 1), nn.ReLU())
        norm = nn.BatchNorm2d(channels)
        nn.init.zeros_(norm.weight)
        nn.init.zeros_(norm.bias)
        self.W_z = nn.Sequential(nn.Conv2d(inner, channels, 1), norm)
        self.w = nn.Parameter(torch.zeros(1)) if weighted else None

    def forward(self, x: Tensor) -> Tensor:
        """``[N, C, H, W]`` float to the same shape."""
        y = self._aggregate(x).reshape(x.shape[0], self.inner_channels, *x.shape[2:])
        z = self.W_z(y)
        return x + z if self.w is None else (1 - self.w) * x + self.w * z

    def _aggregate(self, x: Tensor) -> Tensor:
        """``[N, C, H, W]`` to ``y`` as ``[N, d, H*W]``; no H*W x H*W matrix at inference."""
        value = self.g(x).flatten(2).transpose(1, 2)  # [N, HW, d]
        if self.mode == "gaussian":
            tokens = x.flatten(2).transpose(1, 2)
            return _softmax_attention(tokens, tokens, value).transpose(1, 2)
        query, key = self.theta(x).flatten(2).transpose(1, 2), self.phi(x).flatten(2).transpose(1, 2)  # [N, HW, d]
        if self.mode == "embedded":
            return _softmax_attention(query, key, value).transpose(1, 2)
        positions = value.shape[1]
        if self.mode == "dot":  # (theta phi^T) g = theta (phi^T g): N d^2 instead of N^2 d
            return (query @ (key.transpose(1, 2) @ value / positions)).transpose(1, 2)
        # W_f of the concatenation [theta_i, phi_j] is a_i + b_j.
        projection: Any = self.W_f[0]
        weight = projection.weight.flatten()
        a = query @ weight[: self.inner_channels] + projection.bias  # [N, HW]
        b = key @ weight[self.inner_channels :]
        return _relu_attention(a, b, value / positions).transpose(1, 2)


def _softmax_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """softmax(query key^T) value over ``[N, HW, d]``, unscaled, by a kernel without an HW x HW matrix.

    PyTorch's memory-efficient kernels want equal widths and contiguous rows; with anything else it
    silently falls back to the full matrix.
    """
    width = value.shape[2]
    value = F.pad(value, (0, query.shape[2] - width))
    query, key, value = (t.unsqueeze(1).contiguous() for t in (query, key, value))  # one head
    return F.scaled_dot_product_attention(query, key, value, scale=1.0).squeeze(1)[..., :width]


def _relu_attention(a: Tensor, b: Tensor, value: Tensor) -> Tensor:
    """sum_j relu(a_i + b_j) value_j for ``a, b [N, HW]`` and ``value [N, HW, d]``, some rows at a time."""
    rows = max(_CHUNK_ELEMENTS // b.numel(), 1)
    parts = [torch.relu(part.unsqueeze(2) + b.unsqueeze(1)) @ value for part in a.split(rows, dim=1)]
    return torch.cat(parts, dim=1)
