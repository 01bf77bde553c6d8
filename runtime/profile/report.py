"""What ``wnlb profile`` measured, for programs and for people."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from wnlb.runtime.profile.measure import Samples, Statistics, warnings_of
from wnlb.runtime.table import human_bytes, markdown_table, table

FORMAT = 1
# Of whole frames, by the host's clock; then trtexec's of engines, by the GPU's.
PARTS = ("total", "prepare", "infer", "paste", "latency", "h2d", "gpu", "d2h", "enqueue")
BRIEF = ("mask AP", "box AP", "p50 ms", "p95", "p99", "gpu p50", "frames/s", "joules/frame", "size", "memory")
Cells = tuple[list[str], list[list[str]]]  # header, rows


@dataclass
class Row:
    """One model as one backend runs it. Times are milliseconds, memory is bytes."""

    name: str  # of the file
    backend: str  # onnxruntime, tensorrt, tensorrt-rtx, triton
    precision: str = ""
    attention: str = ""  # standard or plugin
    sha256: str = ""
    bytes: int = 0
    batch: int = 1
    found: int = 0  # detections in the frames that stages are measured on
    description: str = ""  # of the backend
    made_by: str = ""  # the command
    build_seconds: float | None = None  # how long that took
    start_up_ms: float | None = None
    first_ms: float | None = None
    peak_bytes: int | None = None  # of host memory
    device_bytes: int | None = None  # of the GPU's memory
    parts: dict[str, Statistics] = field(default_factory=dict)
    stages: dict[str, float] = field(default_factory=dict)  # of one run, by the backend's own profiler
    floor: dict[str, dict[str, Any]] = field(default_factory=dict)  # by stage: ms, flops, bytes, bound
    accuracy: dict[str, Any] | None = None  # truth, images, objects, box_ap, mask_ap, by_darkness
    conditions: dict[str, Any] | None = None  # watts, joules a frame, temperatures, clocks during its turns
    samples_ms: list[float] = field(default_factory=list)  # totals, in the order of time
    samples_at_s: list[float] = field(default_factory=list)  # since the measurement began
    warnings: list[str] = field(default_factory=list)
    failure: str = ""  # why there are no numbers

    def take(self, samples: Samples, began: float) -> None:
        """Fill in what was measured since ``began``, by the clock of the samples."""
        self.failure = samples.failure
        if self.failure or not samples.times:
            return
        self.samples_ms = [round(time, 3) for time in samples.of("total")]
        self.samples_at_s = [round(moment - began, 3) for moment in samples.moments()]
        self.parts = {part: Statistics.of(samples.of(part)) for part in PARTS if samples.of(part)}
        self.warnings += warnings_of(samples.of("total"))
        enqueue, gpu = self.parts.get("enqueue"), self.parts.get("gpu")
        if enqueue and gpu and enqueue.p50 > gpu.p50:
            self.warnings.append("bound by the host: to enqueue takes longer than the GPU computes")

    @property
    def frames_per_second(self) -> float | None:
        """Of frames in turns, a batch counting as many."""
        return 1e3 * self.batch / self.parts["total"].mean if "total" in self.parts else None

    def figure(self, what: str) -> float | None:
        """``box_ap`` or ``mask_ap`` in percent; None where it was not measured."""
        return self.accuracy.get(what) if self.accuracy else None


def as_json(rows: list[Row], facts: dict[str, Any]) -> dict[str, Any]:
    """The report; ``format`` changes when an entry changes its meaning. README: "report.json".

    ``facts`` (machine, versions, plan, frames, command) stand beside ``rows``.
    """
    entries = [{**dataclasses.asdict(row), "frames_per_second": row.frames_per_second} for row in rows]
    return {"format": FORMAT, **facts, "rows": entries}


@dataclass(frozen=True)
class Column:
    """One column of the table: a figure of each row."""

    title: str
    figures: Sequence[float | None]
    best: str = "min"  # or max; "" where none is better
    form: str = "ms"  # ms, AP, bytes, s or number

    def cells(self) -> list[str]:
        """The best bears a star, unless all are as good."""
        known = {round(figure, 2) for figure in self.figures if figure is not None}
        best = {"min": min, "max": max}[self.best](known) if self.best and len(known) > 1 else None
        return [self._cell(figure, best) for figure in self.figures]

    def _cell(self, figure: float | None, best: float | None) -> str:
        if figure is None:
            return "-"
        shown = human_bytes(figure) if self.form == "bytes" else f"{figure:.{2 if self.form == 'AP' else 1}f}"
        return shown + ("*" if best is not None and round(figure, 2) == best else "")


def columns(rows: list[Row]) -> list[Column]:
    """Of the latency table; those that no row has are left out."""

    def part(name: str, point: str = "p50") -> list[float | None]:
        return [getattr(row.parts[name], point) if name in row.parts else None for row in rows]

    def entry(name: str) -> list[float | None]:
        return [None if getattr(row, name) is None else float(getattr(row, name)) for row in rows]

    truth = next((row.accuracy["truth"] for row in rows if row.accuracy), "labels")
    like = "" if truth == "labels" else " as FP32"
    found = [
        *(
            Column(f"{what} AP{like}", [row.figure(f"{what}_ap") for row in rows], "max", "AP")
            for what in ("mask", "box")
        ),
        Column("p50 ms", part("total")),
        *(Column(point, part("total", point)) for point in ("p90", "p95", "p99", "mean")),
        Column("std", part("total", "std"), ""),
        Column("infer p50", part("infer")),
        *(Column(f"{name} p50", part(name)) for name in ("h2d", "gpu", "d2h", "latency")),
        Column("frames/s", [row.frames_per_second for row in rows], "max"),
        Column("joules/frame", [(row.conditions or {}).get("joules_per_frame") for row in rows]),
        Column("size", [float(row.bytes) or None for row in rows], form="bytes"),
        Column("memory", entry("peak_bytes"), form="bytes"),
        Column("GPU memory", [value or None for value in entry("device_bytes")], form="bytes"),
        Column("start ms", entry("start_up_ms")),
        Column("first ms", entry("first_ms")),
        Column("made in s", entry("build_seconds")),
    ]
    return [column for column in found if any(figure is not None for figure in column.figures)]


def latency_cells(rows: list[Row], brief: bool = False) -> Cells:
    """Header and cells of the latency table; the best of each column bears a star. ``brief``: for a terminal."""
    found = [column for column in columns(rows) if not brief or column.title.removesuffix(" as FP32") in BRIEF]
    cells = [[row.name, row.precision or "-", *(column.cells()[i] for column in found)] for i, row in enumerate(rows)]
    return ["model", "precision", *(column.title for column in found)], cells


def stages_of(row: Row) -> dict[str, float]:
    """Milliseconds of a whole frame by stage: those of the network between preparation and pasting of masks."""
    if not row.stages:
        return {}
    around: dict[str, float] = {part: row.parts[part].mean for part in ("prepare", "paste") if part in row.parts}
    stages = {"prepare": 0.0, **row.stages, "paste": 0.0} if around else row.stages
    return {**stages, **around}


def stage_cells(rows: list[Row]) -> Cells:
    """Header and cells of the table of stages: milliseconds of each model, share of the whole, floor."""
    measured = [row for row in rows if row.stages]
    times = [stages_of(row) for row in measured]
    names = stage_names(measured)
    cells = []
    for stage in names:
        shown = []
        for row, ms in zip(measured, times, strict=True):
            floor = row.floor.get(stage)
            least = f" >= {floor['ms']:.1f}" if floor else ""
            shown.append(f"{ms[stage]:.1f} ({100 * ms[stage] / sum(ms.values()):.0f} %){least}" if stage in ms else "-")
        cells.append([stage, *shown])
    cells.append(["all", *(f"{sum(ms.values()):.1f}" for ms in times)])
    return ["stage, ms", *(row.name for row in measured)], cells


def stage_names(rows: list[Row]) -> list[str]:
    """All stages of the rows, in the order of the frame."""
    names = list(dict.fromkeys(stage for row in rows for stage in stages_of(row)))
    return sorted(names, key=lambda stage: stage == "paste")


def darkness_cells(rows: list[Row]) -> Cells:
    """Header and cells of AP by darkness: mask AP, or box AP where there are no masks."""
    measured = [(row.name, row.accuracy["by_darkness"]) for row in rows if row.accuracy]
    bins = measured[0][1] if measured else {}

    def cell(accuracy: dict[str, Any] | None) -> str:
        figure = accuracy and (accuracy["mask_ap"] if accuracy["mask_ap"] is not None else accuracy["box_ap"])
        return "-" if figure is None else f"{figure:.2f}"

    header = ["AP at luminance", *(f"{key} ({accuracy['images']})" for key, accuracy in bins.items())]
    return header, [[name, *(cell(own.get(key)) for key in bins)] for name, own in measured]


def notes(rows: list[Row], facts: dict[str, Any]) -> list[str]:
    """Failures and doubts, a line each; the same reason once."""
    events = facts["over_current_events"]
    lines = [f"{events} times current or voltage left their limits: the machine may have throttled"] if events else []
    failed: dict[str, list[str]] = {}
    for row in rows:
        if row.failure:
            failed.setdefault(row.failure, []).append(row.name)
    lines += [f"{_some(names)}: not measured: {reason}" for reason, names in failed.items()]
    return lines + [f"{row.name}: {warning}" for row in rows for warning in row.warnings]


def tables(rows: list[Row], brief: bool = False) -> list[tuple[str, Cells]]:
    """Title, header and cells of all tables that there is something for."""
    shown = [row for row in rows if row.parts or row.accuracy]
    found = [("Latency", latency_cells(shown, brief))] if shown else []
    if any(row.stages for row in rows):
        found.append(("Where the time goes", stage_cells(rows)))
    if any(row.accuracy for row in rows):
        found.append(("Accuracy by darkness", darkness_cells(rows)))
    return found


def _some(names: list[str]) -> str:
    """All of a few, two of many."""
    return ", ".join(names) if len(names) <= 3 else f"{', '.join(names[:2])} and {len(names) - 2} more"


def as_text(rows: list[Row], facts: dict[str, Any]) -> str:
    """For a terminal."""
    parts = [table(*cells) for _, cells in tables(rows, brief=True)]
    return "\n\n".join([*parts, *(["\n".join(notes(rows, facts))] if notes(rows, facts) else [])])


def as_markdown(rows: list[Row], facts: dict[str, Any]) -> str:
    """For a README."""
    lines = ["# Profile", "", "The best of each column bears a star.", ""]
    for title, cells in tables(rows):
        lines += [f"## {title}", "", *markdown_table(*cells), ""]
        lines += [f"{explanation}\n" for explanation in EXPLANATIONS[title]]
    lines += [f"- {note}" for note in notes(rows, facts)]
    lines += ["", "## Measured with", "", f"`{facts['command']}`", ""]
    lines += [f"- {key}: {value}" for key, value in facts["machine"].items()]
    lines += [f"- {row.name}: {origin(row)}" for row in rows]
    return "\n".join(lines) + "\n"


EXPLANATIONS = {
    "Latency": ["Whole frames: preparation, inference, masks in the frame."],
    "Where the time goes": [
        "By the backend's own profiler, in runs apart. Behind >=, the least that the machine's measured peaks allow: "
        "the work of the stage over the peak of its precision, or its least traffic over the bandwidth of memory."
    ],
    "Accuracy by darkness": ["Mask AP (box AP without masks) by mean linear luminance; in brackets how many pictures."],
}


def origin(row: Row) -> str:
    """What ran, and how it was made."""
    made = f", by '{row.made_by}'" if row.made_by else ""
    return f"{row.description or 'not run'}, {human_bytes(row.bytes)}, sha256 {row.sha256 or '-'}{made}"
