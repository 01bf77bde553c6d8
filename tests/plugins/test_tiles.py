"""The tiles cover what the kernel promises, and could run: widths divide, and one stage fits into shared memory."""

from __future__ import annotations

import pytest

from wnlb.plugins.tiles import HEADS, ITEM_BYTES, SHARED_MEMORY, tiles_for


@pytest.mark.parametrize("dtype", list(ITEM_BYTES))
@pytest.mark.parametrize("arch", list(SHARED_MEMORY))
def test_every_head_has_tiles_that_fit(arch: int, dtype: str) -> None:
    for d in HEADS:
        for e in (d, d // 2):  # embedded and gaussian
            tiles = tiles_for(arch, d, e, dtype)
            assert tiles
            assert len(set(tiles)) == len(tiles)
            for tile in tiles:
                assert d % tile.piece == 0
                assert e % tile.value == 0
                columns = tile.block_n * (tile.piece + tile.value) * ITEM_BYTES[dtype]
                assert columns <= SHARED_MEMORY[arch]
                # The accumulator alone: at most half of the 255 registers that a thread can have.
                assert tile.block_m * tile.value / (32 * tile.warps) <= 128


def test_what_has_no_tiles() -> None:
    assert tiles_for(75, 128, 128, "float16") == ()
    assert tiles_for(87, 96, 96, "float16") == ()
    assert tiles_for(87, 2048, 1024, "float16") == ()
