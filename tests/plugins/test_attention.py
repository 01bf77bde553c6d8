"""The attention kernel in Triton's interpreter, on the CPU, against softmax attention in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from wnlb.plugins.attention import non_local_attention, non_local_attention_kernel
from wnlb.plugins.tiles import HEADS, Tile
from wnlb.runtime.errors import WnlbError

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def oracle(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """``[B, e, N]`` in float64."""
    logits = query.double().transpose(1, 2) @ key.double()
    return value.double() @ logits.softmax(2).transpose(1, 2)


def pytorch(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """PyTorch's attention at the same precision."""
    tokens = [t.transpose(1, 2).unsqueeze(1).contiguous() for t in (query, key, value)]
    return F.scaled_dot_product_attention(*tokens, scale=1.0).squeeze(1).transpose(1, 2)


def draw(d: int, n: int, dtype: torch.dtype, *, e: int = 0, batch: int = 1, spread: float = 1.5) -> list[Tensor]:
    """Query, key and value whose logits have the standard deviation ``spread``."""
    generator = torch.Generator().manual_seed(d * 1000 + n)
    shapes = ((batch, d, n), (batch, d, n), (batch, e or d, n))
    scales = ((spread**2 / d) ** 0.25, (spread**2 / d) ** 0.25, 1.0)
    parts = zip(shapes, scales, strict=True)
    return [(torch.randn(shape, generator=generator) * scale).to(DEVICE, dtype) for shape, scale in parts]


def assert_as_good_as_pytorch(inputs: list[Tensor], tile: Tile | None = None) -> None:
    expected = oracle(*inputs)
    got = non_local_attention(*inputs, tile)
    assert got.dtype == inputs[0].dtype
    assert got.isfinite().all()
    error = (got.double() - expected).abs()
    allowed = (pytorch(*inputs).double() - expected).abs()
    # One unit in the last place of the output where PyTorch happens to hit the value.
    floor = torch.finfo(inputs[0].dtype).eps * expected.abs().max()
    assert error.max() <= 2 * allowed.max() + floor
    assert error.square().mean().sqrt() <= 2 * allowed.square().mean().sqrt() + floor / 8


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("d", HEADS)
def test_each_head_size_and_type(d: int, dtype: torch.dtype) -> None:
    assert_as_good_as_pytorch(draw(d, 131, dtype))


@pytest.mark.parametrize("n", [1, 2, 31, 32, 33, 64, 65, 127, 257])
def test_any_number_of_positions(n: int) -> None:
    assert_as_good_as_pytorch(draw(64, n, torch.float16, batch=2))


def test_value_narrower_than_key_as_in_gaussian_blocks() -> None:
    assert_as_good_as_pytorch(draw(128, 75, torch.float16, e=64, batch=3))
    assert_as_good_as_pytorch(draw(1024, 49, torch.float32, e=512))


@pytest.mark.parametrize("dtype", DTYPES)
def test_huge_logits_do_not_overflow(dtype: torch.dtype) -> None:
    """Logits of about 1e4: softmax is nearly one-hot, and exp() of any of them overflows."""
    query, key, value = draw(128, 61, dtype, spread=1e4)
    assert (query.float().transpose(1, 2) @ key.float()).abs().max() > 2e4
    expected = oracle(query, key, value)
    got = non_local_attention(query, key, value)
    assert got.isfinite().all()
    # Where one logit stands out by more than float32's rounding of them, the answer is that value.
    logits = (query.double().transpose(1, 2) @ key.double()).topk(2, dim=2).values
    clear = (logits[..., 0] - logits[..., 1] > 30).unsqueeze(1).expand_as(expected)
    assert clear.float().mean() > 0.9
    assert torch.allclose(got[clear].double(), expected[clear], rtol=torch.finfo(dtype).eps * 2, atol=1e-6)


@pytest.mark.parametrize("spread", [1.5, 1e4])
def test_all_positions_of_c2_at_800x1344(spread: float) -> None:
    """67,200 keys for the first block of queries: the sums and the online maximum over the longest row there is."""
    n, d, rows = 200 * 336, 128, 16
    query, key, value = draw(d, n, torch.float16, spread=spread)
    got = torch.zeros_like(value)
    non_local_attention_kernel[(1, 1, 1)](
        query, key, value, got, n, D=d, PIECE=d, VALUE=d, BLOCK_M=rows, BLOCK_N=1024, num_warps=4, num_stages=2
    )
    logits = query[0, :, :rows].double().T @ key[0].double()
    expected = (logits.softmax(1) @ value[0].double().T).T
    assert got[0, :, :rows].isfinite().all()
    assert not got[0, :, rows:].any()
    tolerance = 2e-3 if spread < 10 else 2e-2  # two logits of 1e4 that nearly tie
    assert torch.allclose(got[0, :, :rows].double(), expected, atol=tolerance, rtol=tolerance)
    assert expected.std() > (0.005 if spread < 10 else 0.5)


def test_ties_share_the_weight() -> None:
    query, key, value = draw(32, 40, torch.float32)
    key[:] = key[:, :, :1]  # every key is the same
    got = non_local_attention(query, key, value)
    assert torch.allclose(got, value.mean(2, keepdim=True).expand_as(got), atol=1e-6)


def test_every_element_is_written_and_padding_does_not_leak() -> None:
    """Values of 1 must average to 1: a masked key that counted, or a row that was not written, would show."""
    query, key, value = draw(64, 97, torch.float16)
    got = non_local_attention(query, key, torch.ones_like(value))
    assert torch.equal(got, torch.ones_like(got))


@pytest.mark.parametrize(
    "tile",
    [Tile(16, 16, 64, 64, 4, 1), Tile(32, 64, 16, 32, 4, 1), Tile(128, 32, 64, 16, 4, 2), Tile(64, 128, 32, 64, 8, 2)],
    ids=lambda tile: tile.name,
)
def test_any_tile_computes_the_same(tile: Tile) -> None:
    assert_as_good_as_pytorch(draw(64, 150, torch.float16, batch=2), tile)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda q, k, v: (q[0], k, v), r"query is \(64, 40\); expected \[B, channels, N\]"),
        (lambda q, k, v: (q, k[:, :, :-1], v), r"key is \(1, 64, 39\)"),
        (lambda q, k, v: (q, k[:, :32].contiguous(), v), r"key is \(1, 32, 40\); expected the shape of query"),
        (lambda q, k, v: (q, k.half(), v), r"key is torch.float16 on cpu; query is torch.float32"),
        (lambda q, k, v: (q, k, v.transpose(1, 2).contiguous().transpose(1, 2)), "value is not contiguous"),
        (lambda q, k, v: (q, k, v[:, :48].contiguous()), "value has 48 channels; expected a power of two"),
        (lambda q, k, v: (q.double(), k.double(), v.double()), "query is torch.float64; expected float16"),
        (lambda q, k, v: (q[:, :, :0], k[:, :, :0], v[:, :, :0]), "expected at least one element"),
    ],
)
@pytest.mark.skipif(DEVICE != "cpu", reason="messages name the device")
def test_bad_input_is_named(change, message: str) -> None:
    with pytest.raises(WnlbError, match=message):
        non_local_attention(*change(*draw(64, 40, torch.float32)))
