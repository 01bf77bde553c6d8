"""Damaged files: seeded changes of a good one's bytes."""

from __future__ import annotations

import random


def mutated(data: bytes, rng: random.Random, most: int = 0) -> bytes:
    """A copy with one to three kinds of damage: bits, bytes, runs that are lost, doubled or overwritten, an early end.

    Args:
        most: beyond this many bytes at either end nothing is changed (a file's weights in its middle); 0: everywhere.
    """
    changed = bytearray(data)
    for _ in range(rng.randint(1, 3)):
        end = rng.random() < 0.5
        place = rng.randrange(len(changed) or 1)
        if most and most < place < len(changed) - most:
            place = (len(changed) - 1 - place % most) if end else place % most
        length = rng.choice((1, 2, 4, 8, 64))
        match rng.randrange(7):
            case 0 if place < len(changed):
                changed[place] ^= 1 << rng.randrange(8)
            case 1:
                changed[place : place + 1] = bytes([rng.randrange(256)])
            case 2:
                changed[place : place + length] = rng.randbytes(length)
            case 3:
                del changed[place : place + length]
            case 4:
                changed[place:place] = changed[place : place + length]
            case 5:
                changed[place : place + length] = bytes(length)
            case _:
                del changed[place if rng.random() < 0.1 else len(changed) - rng.randrange(1, 9) :]
    return bytes(changed)
