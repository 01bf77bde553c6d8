"""Non-local attention without an N x N matrix: one Triton kernel.

    y[:, i] = sum_j softmax_j(q[:, i] . k[:, j]) v[:, j]

``q`` and ``k`` are ``[B, d, N]``, ``v`` and ``y`` ``[B, e, N]``, as a 1x1 convolution leaves them (channels first,
N = H*W positions); e = d in ``embedded`` blocks, d / 2 in ``gaussian`` ones. The logits are not scaled. Softmax and
sums are float32: online normalisation as in Dao, "FlashAttention-2: Faster Attention with Better Parallelism and Work
Partitioning", ICLR 2024, after Milakov, Gimelshein, "Online normalizer calculation for softmax", 2018.

Limits: d and e powers of two from 16; float16, bfloat16 or float32 (as three TF32 products); d * N below 2^31 elements
for one image; any N. A head of 512 or 1024 channels does not fit into the registers and the shared memory of one block:
each program computes all logits of its rows, reducing over d in pieces, and ``VALUE`` of the e output channels.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from wnlb.plugins.tiles import PORTABLE, Tile, tiles_for
from wnlb.runtime.errors import WnlbError

DTYPES = (torch.float16, torch.bfloat16, torch.float32)


@triton.jit
def _logits(q, q_ptr, k_ptr, rows, columns, row_ok, column_ok, N, D: tl.constexpr, PIECE: tl.constexpr):
    """float32 ``[M, N']`` of rows against columns."""
    if PIECE == D:
        channels = tl.arange(0, D)[:, None]
        k = tl.load(k_ptr + channels * N + columns[None, :], mask=column_ok[None, :], other=0.0)
        logits = tl.dot(tl.trans(q), k, input_precision="tf32x3")
    else:
        logits = tl.zeros([rows.shape[0], columns.shape[0]], tl.float32)
        for start in range(0, D, PIECE):
            channels = start + tl.arange(0, PIECE)[:, None]
            part = tl.load(q_ptr + channels * N + rows[None, :], mask=row_ok[None, :], other=0.0)
            k = tl.load(k_ptr + channels * N + columns[None, :], mask=column_ok[None, :], other=0.0)
            logits = tl.dot(tl.trans(part), k, logits, input_precision="tf32x3")
    return logits


@triton.jit
def _accumulate(
    total, peak, weight, q, q_ptr, k_ptr, v_ptr, rows, row_ok, start, N,
    D: tl.constexpr, PIECE: tl.constexpr, VALUE: tl.constexpr, BLOCK_N: tl.constexpr, TAIL: tl.constexpr,
):  # fmt: skip
    """One block of keys more: rescale what was summed up to the new peak, then add."""
    columns = start + tl.arange(0, BLOCK_N)
    inside = columns < N if TAIL else tl.full([BLOCK_N], True, tl.int1)
    logits = _logits(q, q_ptr, k_ptr, rows, columns, row_ok, inside, N, D, PIECE)
    if TAIL:
        logits = tl.where(inside[None, :], logits, float("-inf"))
    higher = tl.maximum(peak, tl.max(logits, 1))
    # The peak is taken off before the factor log2(e): one fused multiply-add would leave a rounding of the largest
    # logit, and a key that outweighs all others would have another weight than 1.
    shrink = tl.exp2((peak - higher) * 1.4426950408889634)
    p = tl.exp2((logits - higher[:, None]) * 1.4426950408889634)
    weight = weight * shrink + tl.sum(p, 1)
    channels = tl.arange(0, VALUE)[:, None]
    v = tl.load(v_ptr + channels * N + columns[None, :], mask=inside[None, :], other=0.0)
    total = tl.dot(p.to(v.dtype), tl.trans(v), total * shrink[:, None], input_precision="tf32x3")
    return total, higher, weight


@triton.jit
def non_local_attention_kernel(
    q_ptr, k_ptr, v_ptr, y_ptr, N,
    D: tl.constexpr, PIECE: tl.constexpr, VALUE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Grid ``(ceil(N / BLOCK_M), e / VALUE, B)``."""
    image = tl.program_id(2).to(tl.int64)
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    row_ok = rows < N
    q_ptr += image * D * N
    k_ptr += image * D * N
    slice_of_image = (image * tl.num_programs(1) + tl.program_id(1)) * VALUE * N
    v_ptr += slice_of_image
    y_ptr += slice_of_image

    q = tl.zeros([PIECE, BLOCK_M], q_ptr.dtype.element_ty)
    if PIECE == D:  # the rows' channels stay; otherwise they are read again piece by piece
        q = tl.load(q_ptr + tl.arange(0, D)[:, None] * N + rows[None, :], mask=row_ok[None, :], other=0.0)
    peak = tl.full([BLOCK_M], float("-inf"), tl.float32)
    weight = tl.zeros([BLOCK_M], tl.float32)
    total = tl.zeros([BLOCK_M, VALUE], tl.float32)
    whole = N // BLOCK_N * BLOCK_N
    for start in range(0, whole, BLOCK_N):
        total, peak, weight = _accumulate(
            total, peak, weight, q, q_ptr, k_ptr, v_ptr, rows, row_ok, start, N, D, PIECE, VALUE, BLOCK_N, False
        )
    if whole < N:
        total, peak, weight = _accumulate(
            total, peak, weight, q, q_ptr, k_ptr, v_ptr, rows, row_ok, whole, N, D, PIECE, VALUE, BLOCK_N, True
        )
    y = (total / weight[:, None]).to(y_ptr.dtype.element_ty)
    channels = tl.arange(0, VALUE)
    tl.store(y_ptr + channels[None, :] * N + rows[:, None], y, mask=row_ok[:, None])


def non_local_attention(query: Tensor, key: Tensor, value: Tensor, tile: Tile | None = None) -> Tensor:
    """Launch the kernel.

    Args:
        query, key: contiguous ``[B, d, N]``.
        value: contiguous ``[B, e, N]`` of the same type and device.
        tile: how the work is cut; None takes one that fits every architecture.

    Returns:
        ``[B, e, N]``, a new tensor of the same type.

    Raises:
        WnlbError: shapes, types or devices differ or are not supported.
    """
    _check(query, key, value)
    batch, d, n = query.shape
    tile = tile or tiles_for(PORTABLE, d, value.shape[1], str(query.dtype).removeprefix("torch."))[0]
    y = torch.empty_like(value)
    grid = (triton.cdiv(n, tile.block_m), value.shape[1] // tile.value, batch)
    non_local_attention_kernel[grid](
        query, key, value, y, n,
        D=d, PIECE=tile.piece, VALUE=tile.value, BLOCK_M=tile.block_m, BLOCK_N=tile.block_n,
        num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    return y


def _check(query: Tensor, key: Tensor, value: Tensor) -> None:
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        if tensor.ndim != 3 or (tensor.shape[0], tensor.shape[2]) != (query.shape[0], query.shape[-1]):
            raise WnlbError(f"{name} is {tuple(tensor.shape)}; expected [B, channels, N], B and N as in query")
        if tensor.dtype != query.dtype or tensor.device != query.device:
            raise WnlbError(f"{name} is {tensor.dtype} on {tensor.device}; query is {query.dtype} on {query.device}")
        if not tensor.is_contiguous():
            raise WnlbError(f"{name} is not contiguous; expected [B, channels, N] with positions next to one another")
        channels = tensor.shape[1]
        if channels < 16 or channels & (channels - 1):
            raise WnlbError(f"{name} has {channels} channels; expected a power of two from 16")
    if key.shape != query.shape:
        raise WnlbError(f"key is {tuple(key.shape)}; expected the shape of query, {tuple(query.shape)}")
    if query.dtype not in DTYPES:
        raise WnlbError(f"query is {query.dtype}; expected float16, bfloat16 or float32")
    if 0 in query.shape or max(query.shape[1], value.shape[1]) * query.shape[2] >= 2**31:
        raise WnlbError(f"query is {tuple(query.shape)}; expected at least one element and d * N below 2^31")
