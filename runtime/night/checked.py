"""What a record's file should hold; each raises ValueError for anything else."""

from __future__ import annotations

from datetime import datetime
from typing import Any

MOST_S = 1e9  # seconds, 31 years


def number(value: Any, least: float = 0.0, most: float = MOST_S) -> float:
    """Finite, and in the range."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value <= most:
        raise ValueError(f"{str(value)[:40]!r} is no number from {least:g} to {most:g}")
    return float(value)


def whole(value: Any, least: int = 0, most: int = 2**53) -> int:
    if type(value) is not int or not least <= value <= most:
        raise ValueError(f"{str(value)[:40]!r} is no whole number from {least} to {most}")
    return value


def text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{str(value)[:40]!r} is no text")
    return value


def moment(value: Any) -> datetime:
    """With its time zone, of this age."""
    found = datetime.fromisoformat(text(value))
    if found.tzinfo is None or not 1970 <= found.year <= 9000:
        raise ValueError(f"{value!r} is no moment with a time zone")
    return found
