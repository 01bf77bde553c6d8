"""Every kernel of this GPU, and the portable ones, against float64: at most twice PyTorch's error, and all is written.

Fresh random inputs, numbers of positions that fill no block, logits of 1.5 and of 1e4; of the latter only the positions
count that one key decides, for two that nearly tie are a matter of rounding.
"""

from __future__ import annotations

import itertools
import time
from collections import Counter

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from evidence.attention import channels_first, decided, draw, errors, exact, some_rows, tokens
from evidence.kernels import kernels_of, launcher, rehearsed
from evidence.stage import NO_TIME, Context, first_line, needs_gpu
from wnlb.plugins.build import Built
from wnlb.plugins.tiles import PORTABLE
from wnlb.runtime.errors import MissingDependency, WnlbError

_PLAIN = 1.5
SPREADS = (_PLAIN, 1e4)
_POSITIONS, _REHEARSED = 1031, 37  # primes: the least N that are tried


def run(context: Context) -> None:
    arch = needs_gpu(context)
    seed = time.time_ns() % (1 << 31)
    context.fact("seed", seed)
    torch.backends.cuda.matmul.allow_tf32 = False
    found: Counter[str] = Counter()
    for source, which in (("machine code", arch), ("portable PTX", PORTABLE)):
        try:
            kernels = _rehearsed(which) if context.rehearse else kernels_of(context, which)
        except MissingDependency as error:
            context.add(source=source, refused=str(error))
            continue
        for kernel in sorted(kernels, key=lambda k: (k.job.dtype != "float16", k.job.d)):
            found[_one(context, source, kernel, seed)] += 1
    context.fact("kernels", sum(found.values()))
    context.fact("right", found["right"])
    if not found["right"]:
        raise WnlbError(f"no kernel was right, of {sum(found.values())}")


def _rehearsed(arch: int) -> list[Built]:
    return rehearsed(arch, ("float16", "float32"), (32,)) + rehearsed(arch, ("float16",), (512,))[:1]


def _one(context: Context, source: str, kernel: Built, seed: int) -> str:
    """One kernel on both spreads: "right", "wrong" or "refused"."""
    job, tile = kernel.job, kernel.job.tile
    least = _REHEARSED if context.rehearse else _POSITIONS
    n = next(n for n in itertools.count(least) if n % (2 * job.multiple) == job.multiple)  # no wider load would do
    what = {"source": source, "dtype": job.dtype, "d": job.d, "tile": tile.name, "multiple": job.multiple, "n": n}
    if context.left() <= 0:
        context.add(**what, refused=NO_TIME)
        return "refused"
    state = "right"
    try:
        launch = launcher(kernel, context.rehearse)
        for e in (width for width in (job.d, job.d // 2) if width % tile.value == 0):
            for spread in SPREADS:
                inputs = draw(2, job.d, e, n, getattr(torch, job.dtype), context.device, seed, spread)
                output = torch.full_like(inputs[2], float("nan"))
                launch(*inputs, output)
                rows = some_rows(n, context.device, at_most=n)
                expected = exact(inputs, rows)
                counts = decided(inputs, rows) if spread > _PLAIN else None
                with sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]):
                    peer = channels_first(F.scaled_dot_product_attention(*tokens(inputs), scale=1.0))
                ours, theirs = (errors(got, expected, rows, counts) for got in (output, peer))
                right = _as_good(ours, theirs, torch.finfo(inputs[0].dtype).eps)
                state = state if right else "wrong"
                context.add(
                    **what,
                    e=e,
                    spread=spread,
                    max_error=ours[0],
                    rms_error=ours[1],
                    pytorch_max_error=theirs[0],
                    pytorch_rms_error=theirs[1],
                    right=right,
                )
    except Exception as error:  # of compilers and drivers, each with its own exceptions
        context.add(**what, refused=first_line(error))
        return "refused"
    return state


def _as_good(ours: tuple[float, float], theirs: tuple[float, float], eps: float) -> bool:
    """At most twice PyTorch's errors, or a rounding of the output where PyTorch happens to hit it; NaN is never."""
    largest = ours[0] <= 2 * theirs[0] + 8 * eps  # outputs of up to 8 times the root mean square are rounded, too
    return largest and ours[1] <= 2 * theirs[1] + eps / 8
