"""The non-local block as it is deployed: folded, and without a full N x N matrix."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from wnlb.export.block import WeightedNonLocalBlock
from wnlb.plugins.tiles import HEADS
from wnlb.runtime.errors import WnlbError
from wnlb.runtime.table import human_bytes, table

_SOFTMAX = ("embedded", "gaussian")  # modes


@dataclass(frozen=True)
class AttentionPlan:
    """What one block costs, known before anything is built.

    N is the number of positions (H x W of its level). FLOPs count a multiply-add as two, for one image.
    """

    level: str
    mode: str
    form: str  # "standard", "plugin", "multi-head" (ONNX Runtime's operator), or "removed" where w is exactly 0
    height: int
    width: int
    channels: int
    inner_channels: int
    key_channels: int
    chunks: int  # pieces that the standard form processes the queries in
    flops: int
    matrix_bytes: int  # the N x N matrix in float32 that the plain form would hold
    chunk_bytes: int  # what a chunk of it holds

    @property
    def positions(self) -> int:
        return self.height * self.width


class BlockSizes(Protocol):
    """What is planned by: of a ``WeightedNonLocalBlock``, or of a block that was found in a file."""

    @property
    def channels(self) -> int: ...

    @property
    def inner_channels(self) -> int: ...

    @property
    def mode(self) -> str: ...

    @property
    def w(self) -> Any: ...


def plan_attention(
    level: str,
    block: BlockSizes,
    height: int,
    width: int,
    batch: int,
    memory_bytes: int,
    form: str = "standard",
    multi_head: bool = False,
) -> AttentionPlan:
    """Choose the form of one block.

    Args:
        level: its name, "c2" or "p2" ... "p5".
        height, width: positions of its feature map.
        batch: images per run, which share ``memory_bytes``.
        memory_bytes: what one chunk of the attention matrix may take in float32.
        form: one of ``options.ATTENTION_FORMS``. ``auto`` takes the plugin where it has a kernel and the matrix
            has to be cut into chunks; whole, matrix products are faster (an H200: three times at c4).
        multi_head: the standard form of a softmax that has to be cut is ONNX Runtime's own operator instead.

    Raises:
        WnlbError: ``form`` is ``plugin`` and the plugin does not compute this block.
    """
    n, c, d = height * width, block.channels, block.inner_channels
    removed = block.w is not None and block.w.item() == 0
    key = {"gaussian": c, "concatenate": 1}.get(block.mode, d)
    chunks, flops, matrix, chunk = 1, 0, 0, 0
    if not removed:
        projected = {"gaussian": d, "concatenate": d + 2}.get(block.mode, 3 * d)
        flops = 2 * n * c * projected + 2 * n * d * c
        if block.mode == "dot":
            flops += 4 * n * d * d
        else:
            flops += 2 * n * n * (key + d)
            matrix = 4 * n * n
            rows = max(memory_bytes // (4 * n * batch), 1)
            rows = max(rows // 64 * 64, min(rows, 64))  # whole tiles where the budget has them
            chunks = math.ceil(n / min(rows, n))
            chunk = 4 * n * math.ceil(n / chunks) * batch
    reason = _no_plugin(block.mode, key, d, n)
    if form == "plugin" and reason and not removed:
        raise WnlbError(f"attention of {level} cannot be the plugin: {reason}; choose standard or auto for it")
    if form == "auto":
        form = "plugin" if chunks > 1 and not reason else "standard"
    if form == "standard" and multi_head and chunks > 1 and block.mode in _SOFTMAX:
        form = "multi-head"
    form = "removed" if removed else form
    return AttentionPlan(level, block.mode, form, height, width, c, d, key, chunks, flops, matrix, chunk)


def plan_table(plans: Sequence[AttentionPlan]) -> str:
    """What each block costs."""
    rows = [
        (
            plan.level,
            plan.form,
            plan.positions,
            plan.inner_channels,
            f"{plan.flops / 1e9:.2f}",
            human_bytes(plan.matrix_bytes),
            plan.chunks,
            human_bytes(plan.chunk_bytes),
        )
        for plan in plans
    ]
    columns = ("level", "form", "N", "d", "GFLOP", "N x N matrix", "chunks", "held at once")
    return table(columns, rows)


def _no_plugin(mode: str, key: int, d: int, positions: int) -> str:
    """Why the plugin does not compute a block; empty where it does."""
    if mode not in _SOFTMAX:
        return f"it is made for softmax, and the standard form of mode {mode} is already cheaper"
    if key not in HEADS or d not in (key, key // 2):
        return f"it has kernels for {', '.join(map(str, HEADS))} channels, not for {key} of query and {d} of value"
    if key * positions >= 2**31:
        return f"{key} channels at {positions} positions are more than 2^31 elements"
    return ""


class DeployedBlock(nn.Module):
    """``z = (1 - w) x + conv(y)``: BN and ``w`` folded into ``W_z``, 1/N folded into ``g``.

    1/N goes into ``g`` rather than behind the product, so that no partial sum outgrows FP16. In
    ``concatenate``, theta and phi shrink to the one channel that their half of ``W_f`` reads.
    """

    def __init__(self, block: WeightedNonLocalBlock, plan: AttentionPlan) -> None:
        super().__init__()
        self.mode, self.plan = block.mode, plan
        self.rows = math.ceil(plan.positions / plan.chunks)
        weight = 1.0 if block.w is None else block.w.item()
        self.residual = 1.0 if block.w is None else 1.0 - weight
        self.W_z = _scaled(fold_batch_norm(*block.W_z), weight)
        self.g = block.g
        if block.mode in ("dot", "concatenate"):
            self.g = _scaled(block.g, 1 / plan.positions)
        if block.mode in ("embedded", "dot"):
            self.theta, self.phi = block.theta, block.phi
        if block.mode == "concatenate":
            projection: Any = block.W_f[0]
            halves = projection.weight.flatten().split(block.inner_channels)
            self.theta = _projected(block.theta, halves[0], projection.bias)
            self.phi = _projected(block.phi, halves[1])

    def forward(self, x: Tensor) -> Tensor:
        """``[N, C, H, W]`` to the same shape."""
        value = self.g(x).flatten(2).transpose(1, 2)  # [N, HW, d]
        query = (x if self.mode == "gaussian" else self.theta(x)).flatten(2).transpose(1, 2)  # [N, HW, k]
        key = (x if self.mode == "gaussian" else self.phi(x)).flatten(2)  # [N, k, HW]
        if self.mode == "dot":
            y = query @ (key @ value)
        elif self.rows >= query.shape[1]:
            y = self._rows(query, key, value)
        else:
            y = torch.cat([self._rows(part, key, value) for part in query.split(self.rows, 1)], 1)
        y = y.transpose(1, 2).reshape(x.shape[0], -1, *x.shape[2:])
        if self.residual == 1.0:
            return x + self.W_z(y)
        return self.residual * x + self.W_z(y)

    def _rows(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        if self.mode == "concatenate":
            return torch.relu(query + key) @ value
        return torch.softmax(query @ key, -1) @ value


def fold_batch_norm(conv: Any, norm: Any) -> nn.Conv2d:
    """The convolution that equals ``norm(conv(x))`` for a (frozen) batch norm in evaluation mode."""
    scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    bias = conv.bias if conv.bias is not None else torch.zeros_like(norm.bias)
    return _convolution(conv, conv.weight * scale[:, None, None, None], (bias - norm.running_mean) * scale + norm.bias)


def _scaled(conv: Any, factor: float) -> nn.Conv2d:
    return _convolution(conv, conv.weight * factor, conv.bias * factor)


def _projected(conv: Any, weight: Tensor, bias: Tensor | None = None) -> nn.Conv2d:
    """The 1 x 1 convolution to one channel that equals ``weight . conv(x) + bias``."""
    kernel = torch.einsum("o,oikl->ikl", weight, conv.weight).unsqueeze(0)
    constant = (weight @ conv.bias).reshape(1)
    return _convolution(conv, kernel, constant if bias is None else constant + bias)


def _convolution(like: nn.Conv2d, weight: Tensor, bias: Tensor) -> nn.Conv2d:
    """A convolution with the stride, padding, dilation and groups of ``like`` and these weights."""
    conv = copy.deepcopy(like)
    conv.out_channels = weight.shape[0]
    conv.weight, conv.bias = (nn.Parameter(t.detach(), requires_grad=False) for t in (weight, bias))
    return conv
