"""How files are damaged; the same generator gives the same file."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from random import Random
from typing import Any

ODD_VALUES: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    -1,
    1,
    3,
    2**31,
    10**30,
    0.5,
    -0.0,
    1e308,
    float("nan"),
    float("inf"),
    "",
    " ",
    "0",
    "320.0",
    "name",
    "NaN",
    "\0",
    "ä" * 9,
    [],
    [[]],
    [0],
    ["x", 1],
    {},
    {"a": 1},
    [[1, 2, 3, 4]],
    [None],
)


def mutated(data: bytes, rng: Random, most: int = 0) -> bytes:
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


def damaged_bytes(path: Path, rng: Random) -> bytes:
    """``mutated``, nearer to the ends of a large file: headers and tables are where readers go wrong."""
    return mutated(path.read_bytes(), rng, most=0 if rng.random() < 0.5 else 512)


def damaged_json(path: Path, rng: Random) -> bytes:
    """One to three values replaced by odd ones, left out, doubled or renamed; now and then bytes as well."""
    if rng.random() < 0.1:
        return damaged_bytes(path, rng)
    content = json.loads(path.read_text())
    for _ in range(rng.randint(1, 3)):
        content = _changed(content, rng)
    return json.dumps(content).encode()


def _changed(content: Any, rng: Random) -> Any:
    """Walk down to any depth, and change what is there."""
    odd = copy.deepcopy(rng.choice(ODD_VALUES))
    if not isinstance(content, (dict, list)) or not content or rng.random() < 0.08:
        return odd
    keys = list(content) if isinstance(content, dict) else list(range(len(content)))
    key = rng.choice(keys)
    kind = rng.randrange(10)
    if kind < 7:
        content[key] = _changed(content[key], rng)
    elif kind == 7:
        del content[key]
    elif kind == 8 and isinstance(content, dict):
        content[f"{key}_"] = content.pop(key)
    elif isinstance(content, list):
        content.append(copy.deepcopy(content[key]))
    else:
        content[key] = odd
    return content
