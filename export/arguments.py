"""What the commands that write files have in common: how their options are read."""

from __future__ import annotations

import json
import re
from typing import Any

from wnlb.runtime.errors import WnlbError


def parse_batches(text: str) -> tuple[int | None, int]:
    """``min_batch`` and ``batch``: of ``"4"`` None and 4, of ``"1-8"`` 1 and 8. Raises WnlbError."""
    found = re.fullmatch(r"(?:(\d{1,9})-)?(\d{1,9})", text, re.ASCII)
    if not found:
        raise WnlbError(f"batch is {text!r}; expected a number of frames such as 4, or the fewest and the most: 1-8")
    return (int(found[1]) if found[1] else None), int(found[2])


def parse_bytes(text: str) -> int:
    """``"256MiB"`` to bytes. Raises WnlbError."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(KiB|MiB|GiB)?", text, re.IGNORECASE)
    if not found:
        raise WnlbError(f"attention memory is {text!r}; expected a size such as 256MiB or 1GiB")
    return int(float(found[1]) * 1024 ** ["", "kib", "mib", "gib"].index((found[2] or "").lower()))


def parse_setting(text: str) -> tuple[str, Any]:
    """``"mean=[1,2,3]"`` to its name and value, JSON or text. Raises WnlbError."""
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise WnlbError(f"--set got {text!r}; expected NAME=VALUE")
    try:
        return name.strip(), json.loads(value)
    except ValueError:
        return name.strip(), value.strip()
