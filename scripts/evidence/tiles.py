"""Tiles that are in no table and might be faster, timed with what time is left: ``wnlb.plugins.tiles`` follows them."""

from __future__ import annotations

import itertools

from evidence.attention import LEVELS, SIZES, shapes
from evidence.fast import TINY, measure
from evidence.kernels import compile_what_compiles, name_of, rehearsed
from evidence.stage import Context, needs_gpu
from wnlb.plugins.build import Job
from wnlb.plugins.build import name_of as whole_name_of
from wnlb.plugins.tiles import SHARED_MEMORY, Tile, multiples, tiles_for
from wnlb.runtime.errors import MissingDependency

_KEPT = 8
_REGISTERS = 160  # of a thread, for what it accumulates


def run(context: Context) -> None:
    arch = needs_gpu(context)
    todo = shapes(("32x48",), 1, TINY) if context.rehearse else shapes(SIZES[::-1], 1, LEVELS)
    if arch not in SHARED_MEMORY:
        raise MissingDependency(f"SM {arch / 10:.1f} runs portable kernels")
    wanted = {(shape.d, next(m for m in multiples("float16") if shape.n % m == 0)) for shape in todo}
    jobs = [job for d, multiple in sorted(wanted) for job in candidates(arch, d, multiple)]
    context.fact("candidates", len(jobs))
    if context.rehearse:
        kernels = rehearsed(arch, ("float16",), (32, 64))[:2]
    else:
        kernels, refused = compile_what_compiles(jobs, context.left() / 2)
        context.fact("not compiled", {whole_name_of(job): reason for job, reason in refused.items()})
        kernels = [kernel for kernel in kernels if kernel.shared <= SHARED_MEMORY[arch] and kernel.stack == 0]
    context.fact("compiled without spills", len(kernels))
    for shape in todo:
        best = _best(context, shape.level)
        few = [kernel for kernel in kernels if not best or f"ours {name_of(kernel)}" in best]
        measure(context, shape, "float16", few, lambda inputs: {})


def _best(context: Context, level: str) -> list[str]:
    """The fastest at the level's first size: others are not timed at the second. Empty where there was none yet."""
    peers = next((row["peers"] for row in context.rows if row["level"] == level and "peers" in row), {})
    timed = {name: peer["ms"] for name, peer in peers.items() if "ms" in peer}
    return sorted(timed, key=lambda name: timed[name])[:_KEPT]


def candidates(arch: int, d: int, multiple: int) -> list[Job]:
    """float16 kernels for a head of ``d`` channels that fit the architecture and are in no table of it."""
    known = set(tiles_for(arch, d, d, "float16"))
    found: dict[Tile, None] = {}
    pieces = [piece for piece in (64, 128, 256) if piece <= d]
    values = [value for value in (128, 256) if value <= max(d, 128)]
    for m, n, piece, value, warps, stages in itertools.product(
        (64, 128), (32, 64, 128), pieces, values, (4, 8), (2, 3)
    ):
        tile = Tile(m, n, piece, min(value, d), warps, stages)
        shared = 2 * (stages * n * (piece + tile.value) + m * piece)  # bytes
        if shared <= SHARED_MEMORY[arch] and m * (tile.value + n) <= _REGISTERS * 32 * warps and tile not in known:
            found[tile] = None
    return [Job(arch, "float16", d, tile, multiple, tactic) for tactic, tile in enumerate(found, 1)]
