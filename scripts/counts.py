"""Numbers on the command lines of scripts: refused where they are read, not where they are missed."""

from __future__ import annotations

import argparse
from collections.abc import Callable


def from_(least: int, most: int | None = None) -> Callable[[str], int]:
    """A type for argparse: whole numbers from ``least`` up, or to ``most``."""
    expected = f"a whole number from {least} " + ("up" if most is None else f"to {most}")

    def number(text: str) -> int:
        try:
            found = int(text)
        except ValueError:
            found = None
        if found is None or found < least or (most is not None and found > most):
            raise argparse.ArgumentTypeError(f"{text!r}; expected {expected}")
        return found

    return number
