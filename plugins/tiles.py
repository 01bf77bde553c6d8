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
LOAD_BYTES = 16  # of the widest load: rows of N positions that are a multiple of it start where such a load may


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


# (block_m, block_n, piece, value, warps, stages) by the matrix instructions of the architecture and the head size; the
# first is the best guess where nothing can be timed, and TensorRT times them all. Chosen so that nothing, or next to
# nothing, spills; see the table that ``python -m wnlb.plugins.build`` prints. Those of SM 9.0 from 128 channels on, and
# of float32 there, are the fastest of 140 that an H200 was given (scripts/gpu_evidence, stage tiles).
_MMA = {
    32: ((64, 64, 32, 32, 4, 2), (128, 64, 32, 32, 8, 2)),
    64: ((64, 64, 64, 64, 4, 2), (128, 64, 64, 64, 8, 2)),
    128: ((128, 32, 128, 128, 8, 2), (64, 32, 64, 128, 8, 2)),
    256: ((64, 32, 128, 256, 8, 2), (128, 32, 128, 128, 8, 2)),
    512: ((64, 32, 128, 256, 8, 2), (64, 64, 64, 128, 8, 2)),
    1024: ((64, 32, 128, 256, 8, 2), (64, 64, 64, 128, 8, 2)),
}
_WGMMA = {
    32: ((128, 64, 32, 32, 4, 2), (128, 128, 32, 32, 8, 2)),
    64: ((128, 64, 64, 64, 8, 2), (128, 128, 64, 64, 8, 2)),
    128: ((128, 128, 128, 128, 8, 3), (128, 64, 128, 128, 8, 3)),
    256: ((128, 64, 256, 256, 8, 2), (64, 64, 256, 128, 4, 3)),
    512: ((64, 64, 128, 256, 8, 2), (64, 64, 128, 128, 8, 3)),
    1024: ((64, 64, 128, 256, 8, 2), (64, 64, 128, 128, 8, 3)),
}
_TCGEN05 = {
    32: ((128, 64, 32, 32, 8, 2), (128, 128, 32, 32, 8, 2)),
    64: ((128, 64, 64, 64, 8, 2), (128, 128, 64, 64, 8, 2)),
    128: ((128, 64, 128, 128, 8, 2), (128, 128, 128, 128, 8, 2)),
    256: ((64, 64, 256, 256, 8, 2), (64, 64, 128, 256, 8, 2)),
    512: ((64, 64, 128, 256, 8, 2), (64, 32, 128, 256, 8, 2)),
    1024: ((64, 64, 128, 256, 8, 2), (64, 32, 128, 256, 8, 2)),
}
_HALF = {90: _WGMMA, 100: _TCGEN05, 110: _TCGEN05}
_FLOAT_MMA = {d: ((64, 32, 32, min(d, 128), 4 if d <= 64 else 8, 2),) for d in HEADS}
_FLOAT = {90: {d: ((64, 64, 32, min(d, 128), 4, 2),) for d in HEADS}}


def tiles_for(arch: int, d: int, e: int, dtype: str) -> tuple[Tile, ...]:
    """The tiles that are built for ``d`` channels of query and key and ``e`` of value, the best guess first.

    Empty where there are none.
    """
    table = _FLOAT.get(arch, _FLOAT_MMA) if dtype == "float32" else _HALF.get(arch, _MMA)
    if arch not in SHARED_MEMORY or d not in table:
        return ()
    tiles = [Tile(*row) for row in table[d]]
    return tuple(
        dict.fromkeys(replace(tile, value=min(tile.value, e)) for tile in tiles if e % min(tile.value, e) == 0)
    )


def multiples(dtype: str) -> tuple[int, ...]:
    """What N may be a multiple of, so that rows start where loads of 16 or of 4 bytes may; last any N."""
    return tuple(dict.fromkeys((LOAD_BYTES // ITEM_BYTES[dtype], max(4 // ITEM_BYTES[dtype], 1), 1)))


def tile_for_narrow_loads(arch: int, d: int, e: int, dtype: str, multiple: int) -> Tile:
    """The tile whose kernel serves an N that only loads of ``multiple`` elements fit: those cost registers."""
    if dtype == "float32":
        return tiles_for(PORTABLE, d, e, dtype)[0]
    if arch == 90 and multiple > 1:
        return Tile(64, 64, min(d, 128), min(e, 256), 8, 2)
    return Tile(64, 32, min(d, 64), min(e, 256), 8, 2)
