"""How the attention kernel cuts its work, for each architecture, head size and type."""

from __future__ import annotations

from dataclasses import dataclass, replace

KIB = 1024

PORTABLE = 0  # in place of a compute capability: PTX for 8.0, which the driver compiles for any later GPU

# Shared memory that one block may have (CUDA C++ Programming Guide, table "Technical Specifications per Compute
# Capability"), by compute capability times ten. Of portable kernels: the least from 8.0 on.
SHARED_MEMORY = {
    80: 163 * KIB,  # A100
    86: 99 * KIB,  # RTX 30, A10, A40
    87: 163 * KIB,  # Jetson Orin
    89: 99 * KIB,  # RTX 40, L4, L40
    90: 227 * KIB,  # H100, H200
    100: 227 * KIB,  # B200
    110: 227 * KIB,  # Jetson Thor
    120: 99 * KIB,  # RTX 50
    PORTABLE: 99 * KIB,
}
HEADS = (32, 64, 128, 256, 512, 1024)
ITEM_BYTES = {"float16": 2, "bfloat16": 2, "float32": 4}


@dataclass(frozen=True)
class Tile:
    """One way to cut the work; each is a kernel of its own.

    A block handles ``block_m`` query positions and ``value`` channels of the output, walks over the keys ``block_n`` at
    a time, and reduces over ``piece`` channels of the head at a time.
    """

    block_m: int
    block_n: int
    piece: int
    value: int
    warps: int
    stages: int

    @property
    def name(self) -> str:
        return f"m{self.block_m}n{self.block_n}p{self.piece}v{self.value}w{self.warps}s{self.stages}"


# (block_m, block_n, piece, value, warps) by the matrix instructions of the architecture and the head size; the first is
# the best guess where nothing can be timed, and TensorRT times them all. Chosen so that nothing, or next to nothing,
# spills; see the table that ``python -m wnlb.plugins.build`` prints.
_MMA = {
    32: ((64, 64, 32, 32, 4), (128, 64, 32, 32, 8)),
    64: ((64, 64, 64, 64, 4), (128, 64, 64, 64, 8)),
    128: ((128, 32, 128, 128, 8), (64, 32, 64, 128, 8)),
    256: ((64, 32, 128, 256, 8), (128, 32, 128, 128, 8)),
    512: ((64, 32, 128, 256, 8), (64, 64, 64, 128, 8)),
    1024: ((64, 32, 128, 256, 8), (64, 64, 64, 128, 8)),
}
_WGMMA = {
    32: ((128, 64, 32, 32, 4), (128, 128, 32, 32, 8)),
    64: ((128, 64, 64, 64, 8), (128, 128, 64, 64, 8)),
    128: ((128, 64, 128, 128, 8), (64, 64, 128, 128, 4)),
    256: ((64, 64, 256, 256, 8), (64, 64, 128, 256, 8)),
    512: ((128, 64, 128, 256, 8), (64, 64, 128, 256, 8)),
    1024: ((128, 64, 128, 256, 8), (64, 64, 128, 256, 8)),
}
_TCGEN05 = {
    32: ((128, 64, 32, 32, 8), (128, 128, 32, 32, 8)),
    64: ((128, 64, 64, 64, 8), (128, 128, 64, 64, 8)),
    128: ((128, 64, 128, 128, 8), (128, 128, 128, 128, 8)),
    256: ((64, 64, 256, 256, 8), (64, 64, 128, 256, 8)),
    512: ((64, 64, 128, 256, 8), (64, 32, 128, 256, 8)),
    1024: ((64, 64, 128, 256, 8), (64, 32, 128, 256, 8)),
}
_HALF = {90: _WGMMA, 100: _TCGEN05, 110: _TCGEN05}
_FLOAT = {d: ((64, 32, 32, min(d, 128), 4 if d <= 64 else 8),) for d in HEADS}
_STAGES = 2


def tiles_for(arch: int, d: int, e: int, dtype: str) -> tuple[Tile, ...]:
    """The tiles that are built for ``d`` channels of query and key and ``e`` of value, the best guess first.

    Empty where there are none.
    """
    table = _FLOAT if dtype == "float32" else _HALF.get(arch, _MMA)
    if arch not in SHARED_MEMORY or d not in table:
        return ()
    tiles = [Tile(*row, stages=_STAGES) for row in table[d]]
    return tuple(
        dict.fromkeys(replace(tile, value=min(tile.value, e)) for tile in tiles if e % min(tile.value, e) == 0)
    )


def tile_for_any_n(d: int, e: int) -> Tile:
    """The tile whose kernel serves an N that is no multiple of 16: such loads cost registers, so it is a small one."""
    return Tile(64, 32, min(d, 64), min(e, 256), 8, _STAGES)
