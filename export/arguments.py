"""What the commands that write files have in common: how their options are read, and plans told."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from wnlb.runtime.errors import WnlbError
from wnlb.runtime.table import human_bytes, table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from wnlb.export.graph.attention import AttentionPlan


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


def plan_table(plans: Sequence[AttentionPlan]) -> str:
    """What each block costs."""
    rows = [
        (
            plan.level,
            plan.form,
            plan.positions,
            plan.inner_channels,
            f"{plan.flops / 1e9:.2f}",
            human_bytes(plan.matrix_bytes),
            plan.chunks,
            human_bytes(plan.chunk_bytes),
        )
        for plan in plans
    ]
    columns = ("level", "form", "N", "d", "GFLOP", "N x N matrix", "chunks", "held at once")
    return table(columns, rows)
