"""Inputs, oracle and peers of one non-local attention, ``[B, d, N]``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from wnlb.runtime.geometry import parse_size

SIZES = ("416x608", "800x1344")  # 600x400, padded, is 416x608
LEVELS = {"c2": (4, 128), "c3": (8, 256), "c4": (16, 512), "c5": (32, 1024)}  # stride, head of a ResNet-50


@dataclass(frozen=True)
class Shape:
    size: str
    level: str
    batch: int
    d: int
    n: int

    @property
    def flops(self) -> float:
        """Of both products, a multiply-add as two."""
        return 4.0 * self.batch * self.n * self.n * self.d


def shapes(sizes: Sequence[str], batch: int, levels: dict[str, tuple[int, int]] = LEVELS) -> list[Shape]:
    found = []
    for size in sizes:
        height, width = parse_size(size)
        for level, (stride, d) in levels.items():
            found.append(Shape(size, level, batch, d, (height // stride) * (width // stride)))
    return found


def draw(
    batch: int, d: int, e: int, n: int, dtype: torch.dtype, device: str, seed: int, spread: float = 1.5
) -> list[Tensor]:
    """Query, key ``[B, d, N]`` and value ``[B, e, N]``; the logits have the standard deviation ``spread``."""
    generator = torch.Generator(device).manual_seed(seed)
    scale = (spread**2 / d) ** 0.25
    parts = [torch.randn((batch, c, n), device=device, generator=generator) for c in (d, d, e)]
    return [(part * factor).to(dtype) for part, factor in zip(parts, (scale, scale, 1.0), strict=True)]


def exact(inputs: list[Tensor], rows: Tensor) -> Tensor:
    """Those query positions in float64, ``[B, e, R]``."""
    return inputs[2].double() @ _logits(inputs, rows).softmax(2).transpose(1, 2)


def decided(inputs: list[Tensor], rows: Tensor) -> Tensor:
    """Bool ``[B, 1, R]``: one key stands out by so much that no rounding of float32 logits of 1e4 makes another win."""
    first, second = _logits(inputs, rows).topk(2, 2).values.unbind(2)
    return (first - second > 30).unsqueeze(1)


def _logits(inputs: list[Tensor], rows: Tensor) -> Tensor:
    return inputs[0][:, :, rows].double().transpose(1, 2) @ inputs[1].double()


def some_rows(n: int, device: str, at_most: int = 512) -> Tensor:
    return torch.linspace(0, n - 1, min(at_most, n), device=device).long()


def errors(got: Tensor, expected: Tensor, rows: Tensor, counts: Tensor | None = None) -> tuple[float, float]:
    """Largest and root mean square error at those positions, both relative to the root mean square of what is right.

    NaN, also of elements that were poisoned and not written, gives NaN, also where a position does not count.
    """
    apart = got[:, :, rows].double() - expected
    if counts is not None:
        apart = apart * counts
    norm = expected.square().mean().sqrt()
    return float(apart.abs().max() / norm), float(apart.square().mean().sqrt() / norm)


def tokens(inputs: list[Tensor]) -> list[Tensor]:
    """``[B, 1, N, d]``, the layout that PyTorch likes best. Peers are not charged for it."""
    return [t.transpose(1, 2).unsqueeze(1).contiguous() for t in inputs]


def channels_first(output: Tensor) -> Tensor:
    return output.squeeze(1).transpose(1, 2)


def peers(inputs: list[Tensor]) -> dict[str, Callable[[], Tensor]]:
    """Name to an action that returns ``[B, e, N]`` or a view of it."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    laid_out = tokens(inputs)
    query, key, value = inputs

    def backend(kind: SDPBackend) -> Callable[[], Tensor]:
        def action() -> Tensor:
            with sdpa_kernel(kind):
                return channels_first(F.scaled_dot_product_attention(*laid_out, scale=1.0))

        return action

    kinds = {
        "flash": SDPBackend.FLASH_ATTENTION,
        "efficient": SDPBackend.EFFICIENT_ATTENTION,
        "cudnn": SDPBackend.CUDNN_ATTENTION,
        "math": SDPBackend.MATH,
    }
    found = {f"sdpa {name}": backend(kind) for name, kind in kinds.items()}
    found["matmul/softmax"] = lambda: value @ torch.softmax(query.transpose(1, 2) @ key, -1).transpose(1, 2)
    return found


def flex(inputs: list[Tensor]) -> Callable[[], Tensor]:
    """FlexAttention, compiled."""
    from torch.nn.attention.flex_attention import flex_attention

    torch.compiler.reset()
    laid_out, compiled = tokens(inputs), torch.compile(flex_attention, dynamic=False)
    return lambda: channels_first(compiled(*laid_out, scale=1.0))
