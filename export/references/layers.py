"""Convolutions, norms and fully connected layers over a state dict."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from wnlb.export.references.weights import Weights
from wnlb.runtime.errors import CheckpointError

EPS = 1e-5  # of every norm in both frameworks, but for a backbone whose configuration says otherwise
GROUPS = 32  # of every GroupNorm in both frameworks, but for a head whose configuration says otherwise


def conv(weights: Weights, path: str, x: Tensor, stride: int = 1) -> Tensor:
    """``[N, C, H, W]`` to ``[N, C', H/stride, W/stride]``: kernel, padding (the same) and groups from the shapes."""
    weight = weights[f"{path}.weight"]  # [C', C / groups, k, k]
    groups, padding = x.shape[1] // weight.shape[1], weight.shape[2] // 2
    return F.conv2d(x, weight, weights.get(f"{path}.bias"), stride, padding, groups=groups)


def norm(weights: Weights, path: str, x: Tensor, eps: float = EPS, groups: int = GROUPS) -> Tensor:
    """Batch norm, real or frozen, by its running statistics; GroupNorm where there are none."""
    scale, shift = weights[f"{path}.weight"], weights[f"{path}.bias"]
    if f"{path}.running_mean" in weights:
        mean, variance = weights[f"{path}.running_mean"], weights[f"{path}.running_var"]
        return F.batch_norm(x, mean, variance, scale, shift, eps=eps)
    return F.group_norm(x, groups, scale, shift, eps)


def normed_conv(
    weights: Weights, path: str, norms: tuple[str, ...], x: Tensor, stride: int = 1, eps: float = EPS
) -> Tensor:
    """The convolution at ``path``, and the norm at that of the paths ``norms`` which is there, if one is."""
    x = conv(weights, path, x, stride)
    found = [name for name in norms if f"{name}.weight" in weights]
    if not found and f"{path}.bias" not in weights:
        raise CheckpointError(f"checkpoint has neither a bias nor a norm for {path}; expected {' or '.join(norms)}")
    return norm(weights, found[0], x, eps) if found else x


def linear(weights: Weights, path: str, x: Tensor) -> Tensor:
    """``[R, C]`` to ``[R, C']``."""
    return F.linear(x, weights[f"{path}.weight"], weights.get(f"{path}.bias"))


def up_conv(weights: Weights, path: str, x: Tensor) -> Tensor:
    """The mask heads' transposed convolution, 2 x 2 by stride 2: ``[R, C, h, w]`` to ``[R, C', 2h, 2w]``."""
    return F.conv_transpose2d(x, weights[f"{path}.weight"], weights.get(f"{path}.bias"), stride=2)
