"""What ``wnlb profile`` measured, for programs and for people."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from wnlb.runtime.profile.measure import Samples, Statistics, warnings_of
from wnlb.runtime.table import human_bytes, markdown_table, table

FORMAT = 1
PARTS = ("total", "prepare", "infer", "paste")


@dataclass
class Row:
    """One model as one backend runs it."""

    model: str  # name of the file
    sha256: str
    bytes: int
    precision: str = ""
    batch: int = 1
    backend: str = ""
    start_up_ms: float | None = None
    first_ms: float | None = None
    peak_bytes: int | None = None  # of host memory
    parts: dict[str, Statistics] = field(default_factory=dict)
    stages: dict[str, float] = field(default_factory=dict)  # milliseconds of one run, by the backend's own profiler
    samples_ms: list[float] = field(default_factory=list)  # totals, in the order of time
    warnings: list[str] = field(default_factory=list)
    failure: str = ""  # why there are no numbers

    def take(self, samples: Samples) -> None:
        """Fill in what was measured."""
        self.failure = samples.failure
        if self.failure or not samples.times:
            return
        self.samples_ms = [round(time, 3) for time in samples.of("total")]
        self.parts = {part: Statistics.of(samples.of(part)) for part in PARTS if samples.of(part)}
        self.warnings += warnings_of(samples.of("total"))

    @property
    def frames_per_second(self) -> float | None:
        """Of frames in turns, a batch counting as many."""
        return 1e3 * self.batch / self.parts["total"].mean if "total" in self.parts else None


def as_json(rows: list[Row], facts: dict[str, Any]) -> dict[str, Any]:
    """The report; ``format`` changes when an entry changes its meaning.

    Times are milliseconds, memory is bytes. ``facts`` (machine, versions, plan, frames, command) stand beside ``rows``.
    """
    entries = [{**dataclasses.asdict(row), "frames_per_second": row.frames_per_second} for row in rows]
    return {"format": FORMAT, **facts, "rows": entries}


def latency_cells(rows: list[Row]) -> tuple[list[str], list[list[str]]]:
    """Header and cells of the latency table; the best of each column bears a star."""
    header = ["model", "precision", "p50 ms", "p90", "p95", "p99", "mean", "std", "infer p50", "frames/s", "memory"]
    values: list[list[float | None]] = []
    for row in rows:
        total, infer = row.parts.get("total"), row.parts.get("infer")
        if total is None:
            values.append([None] * 9)
            continue
        numbers = [total.p50, total.p90, total.p95, total.p99, total.mean, total.std, infer.p50 if infer else None]
        values.append([*numbers, row.frames_per_second, float(row.peak_bytes) if row.peak_bytes else None])
    cells = []
    for row, numbers in zip(rows, values, strict=True):
        shown = [_cell(value, [other[i] for other in values], i) for i, value in enumerate(numbers)]
        cells.append([row.model, row.precision or "-", *shown])
    return header, cells


def stage_cells(rows: list[Row]) -> tuple[list[str], list[list[str]]]:
    """Header and cells of the table of stages: milliseconds of each model, and the share of the whole."""
    measured = [row for row in rows if row.stages]
    names = list(dict.fromkeys(stage for row in measured for stage in row.stages))
    cells = []
    for stage in names:
        shown = []
        for row in measured:
            ms, whole = row.stages.get(stage), sum(row.stages.values())
            shown.append("-" if ms is None else f"{ms:.1f} ({100 * ms / whole:.0f} %)")
        cells.append([stage, *shown])
    cells.append(["all", *(f"{sum(row.stages.values()):.1f}" for row in measured)])
    return ["stage, ms", *(row.model for row in measured)], cells


def notes(rows: list[Row]) -> list[str]:
    """Failures and doubts, a line each."""
    lines = [f"{row.model}: not measured: {row.failure}" for row in rows if row.failure]
    return lines + [f"{row.model}: {warning}" for row in rows for warning in row.warnings]


def as_text(rows: list[Row]) -> str:
    """For a terminal."""
    parts = [table(*latency_cells(rows))]
    if any(row.stages for row in rows):
        parts.append(table(*stage_cells(rows)))
    return "\n\n".join([*parts, *(["\n".join(notes(rows))] if notes(rows) else [])])


def as_markdown(rows: list[Row], facts: dict[str, Any]) -> str:
    """For a README."""
    lines = ["# Latency", "", *markdown_table(*latency_cells(rows)), ""]
    lines += ["Whole frames: preparation, inference, masks in the frame. The best of each column bears a star.", ""]
    if any(row.stages for row in rows):
        lines += ["## Where the time goes", "", *markdown_table(*stage_cells(rows)), ""]
    lines += [f"- {note}" for note in notes(rows)]
    lines += ["", "## Measured with", "", f"`{facts['command']}`", ""]
    lines += [f"- {key}: {value}" for key, value in facts["machine"].items()]
    lines += [
        f"- {row.model}: {row.backend or 'not run'}, {human_bytes(row.bytes)}, sha256 {row.sha256}" for row in rows
    ]
    return "\n".join(lines) + "\n"


def _cell(value: float | None, column: list[float | None], index: int) -> str:
    if value is None:
        return "-"
    known = [other for other in column if other is not None]
    best = max(known) if index == 7 else min(known)
    star = "*" if len(known) > 1 and value == best and index != 5 else ""
    return (human_bytes(value) if index == 8 else f"{value:.1f}") + star
