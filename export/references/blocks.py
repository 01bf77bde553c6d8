"""Non-local blocks over a state dict: the weighted one (wNLB), and mmcv's ``NonLocal2d``.

    y_i = sum_j f(x_i, x_j) g(x_j),     f one of

    embedded      exp(theta_i . phi_j) / sum_j exp(theta_i . phi_j)
    gaussian      the same of x itself instead of theta and phi
    dot           theta_i . phi_j / P,     P positions
    concatenate   relu(W_f [theta_i, phi_j]) / P

Wang, Girshick, Gupta, He: "Non-local Neural Networks", CVPR 2018, equations 2 to 6; the weighted block: Lin,
Anantrasirichai, Bull, ICASSP 2025, and its code (wnlb.py). mmcv: mmcv/cnn/bricks/non_local.py, 2.1.0.
"""

from __future__ import annotations

import torch
from torch import Tensor

from wnlb.export.references.layers import conv, norm
from wnlb.export.references.weights import Weights

ROW_ELEMENTS = 16 * 1024 * 1024  # of the P x P matrix f at a time: 128 MiB in float64


def is_block(weights: Weights, path: str) -> bool:
    """Whether the module at ``path`` is a non-local block, of either kind."""
    return _is_weighted(weights, path) or f"{path}.conv_out.conv.weight" in weights


def block(weights: Weights, path: str, x: Tensor, mode: str, scaled: bool) -> Tensor:
    """The block at ``path``, of either kind.

    Args:
        x: ``[N, C, H, W]``.
        mode: "embedded" or "dot", for a block with theta and phi alone: the two have the same weights.
        scaled: for ``NonLocal2d``, its ``use_scale``.

    Returns:
        ``[N, C, H, W]``.
    """
    return _weighted(weights, path, x, mode) if _is_weighted(weights, path) else _mmcv(weights, path, x, mode, scaled)


def _is_weighted(weights: Weights, path: str) -> bool:
    return f"{path}.g.weight" in weights and f"{path}.W_z.0.weight" in weights


def _weighted(weights: Weights, path: str, x: Tensor, mode: str) -> Tensor:
    """z = (1 - w) x + w BN(W_z y), the logits not scaled; without a ``w``, x + BN(W_z y)."""
    names = ("theta", "phi", "g", "W_f.0")
    y = _aggregated(weights, x, [f"{path}.{name}" for name in names], mode, scaled=False)
    z = norm(weights, f"{path}.W_z.1", conv(weights, f"{path}.W_z.0", y))
    w = weights.get(f"{path}.w")
    return x + z if w is None else (1 - w) * x + w * z


def _mmcv(weights: Weights, path: str, x: Tensor, mode: str, scaled: bool) -> Tensor:
    """x + BN(conv_out y), the logits of "embedded" divided by sqrt(d) where ``scaled``."""
    names = ("theta", "phi", "g", "concat_project")
    y = _aggregated(weights, x, [f"{path}.{name}.conv" for name in names], mode, scaled)
    return x + norm(weights, f"{path}.conv_out.bn", conv(weights, f"{path}.conv_out.conv", y))


def _aggregated(weights: Weights, x: Tensor, names: list[str], mode: str, scaled: bool) -> Tensor:
    """y as ``[N, d, H, W]``; ``names`` of theta, phi, g and W_f tell what there is."""
    theta_name, phi_name, g_name, f_name = names

    def positions(x: Tensor) -> Tensor:
        return x.flatten(2).transpose(1, 2)  # [N, d, H, W] -> [N, P, d]

    g = positions(conv(weights, g_name, x))
    if f"{theta_name}.weight" not in weights:
        theta = phi = positions(x)
        pair = _softmax
    elif f"{f_name}.weight" not in weights:
        theta, phi = positions(conv(weights, theta_name, x)), positions(conv(weights, phi_name, x))
        pair = {"embedded": _softmax, "dot": _product}[mode]
        theta = theta / theta.shape[2] ** 0.5 if scaled and mode == "embedded" else theta
    else:  # W_f [theta_i, phi_j] + bias = (W_f[:d] theta_i + bias) + W_f[d:] phi_j
        theta, phi = positions(conv(weights, theta_name, x)), positions(conv(weights, phi_name, x))
        w_f, bias = weights[f"{f_name}.weight"].flatten(), weights.get(f"{f_name}.bias")
        theta = theta @ w_f[: theta.shape[2], None] + (0 if bias is None else bias)  # [N, P, 1]
        phi = phi @ w_f[phi.shape[2] :, None]
        pair = _relu_of_sum
    rows = max(ROW_ELEMENTS // g.shape[1], 1)
    y = torch.cat([pair(part, phi) @ g for part in theta.split(rows, 1)], 1)
    return y.transpose(1, 2).unflatten(2, x.shape[2:])


def _softmax(theta: Tensor, phi: Tensor) -> Tensor:
    return (theta @ phi.transpose(1, 2)).softmax(2)


def _product(theta: Tensor, phi: Tensor) -> Tensor:
    return theta @ phi.transpose(1, 2) / phi.shape[1]


def _relu_of_sum(theta: Tensor, phi: Tensor) -> Tensor:
    return (theta + phi.transpose(1, 2)).relu() / phi.shape[1]
