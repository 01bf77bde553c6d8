"""The pictures of the report."""

from __future__ import annotations

from typing import Any

from wnlb.runtime.latency import percentile
from wnlb.runtime.profile.report import Row, stage_names, stages_of
from wnlb.runtime.report.chart import LINE, SERIES, Chart, legend

LEAST_AP = 1.0  # that an axis spans: hundredths shall not look like much
_MARKERS = "osD^vPX*"
_STAGE_COLORS = {
    "prepare": "#9aa3b2",
    "input": "#b4bbc7",
    "stem": "#1d4ed8",
    "c2": "#2f6fe4",
    "c3": "#4c8df0",
    "c4": "#74a9f5",
    "c5": "#9cc3f8",
    "fpn": "#0f9f8f",
    "cells": "#c5a3e8",
    "mask features": "#f6b7d2",
    "masks": "#c2477f",
    "matrix nms": "#8e2f8a",
    "rpn": "#34b89c",
    "proposals": "#84cc5a",
    "box roi align": "#b68cf0",
    "box head": "#9061e8",
    "detections": "#7340d0",
    "mask roi align": "#f2a0c8",
    "mask head": "#e0609f",
    "paste": "#6f7888",
}
_BLOCKS = ("#f97316", "#fb8c3c", "#fca45f", "#fdbb84")  # what non-local blocks cost is what people look for
_REST = "#c9b458"


def charts_of(rows: list[Row], facts: dict[str, Any]) -> list[Chart]:
    """All that there are figures for."""
    measured = [row for row in rows if row.samples_ms][: len(SERIES)]
    staged = [row for row in measured if row.stages]
    floored = [row for row in staged if row.floor and row.backend in facts["peaks"]]
    found = []
    if any(_ap(row) is not None for row in measured):
        found.append(_pareto([row for row in measured if _ap(row) is not None]))
    if staged:
        found.append(_stages(staged))
    if measured:
        found += [_distribution(measured), _timeline(measured)]
    found += [_roofline(row, facts["peaks"][row.backend]) for row in floored]
    if any(len(row.accuracy["by_darkness"]) > 1 for row in measured if row.accuracy):
        found.append(_darkness([row for row in measured if row.accuracy]))
    found += _curves(facts["timeline"])
    return found


def pareto_front(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Of (latency, accuracy), those that no other beats in both, by latency."""
    front: list[tuple[float, float]] = []
    for latency, accuracy in sorted(points, key=lambda point: (point[0], -point[1])):
        if not front or accuracy > front[-1][1]:
            front.append((latency, accuracy))
    return front


def _ap(row: Row) -> float | None:
    mask = row.figure("mask_ap")
    return mask if mask is not None else row.figure("box_ap")


def _pareto(rows: list[Row]) -> Chart:
    truth = rows[0].accuracy["truth"] if rows[0].accuracy else ""
    kind = "mask" if rows[0].figure("mask_ap") is not None else "box"

    def draw(figure: Any, narrow: bool) -> None:
        axes = figure.subplots()
        points = [(row.parts["total"].p50, _ap(row) or 0.0) for row in rows]
        front = pareto_front(points)
        if len(front) > 1:
            axes.plot(*zip(*front, strict=True), color=LINE, linewidth=2, zorder=1)
        for i, (row, (latency, accuracy)) in enumerate(zip(rows, points, strict=True)):
            axes.plot([latency, row.parts["total"].p95], [accuracy] * 2, color=SERIES[i], linewidth=1, alpha=0.6)
            label = f"{_name(row)}: {latency:.0f} ms, AP {accuracy:.2f}"
            axes.plot(latency, accuracy, _MARKERS[i], color=SERIES[i], markersize=9, label=label, linestyle="none")
        axes.set(xlabel="latency of a frame, p50 ms (line: to p95)", ylabel=f"{kind} AP")
        axes.set_xlim(0)
        low, high = min(ap for _, ap in points), max(ap for _, ap in points)
        around = max(0.15 * (high - low), (LEAST_AP - (high - low)) / 2)
        axes.set_ylim(low - around, high + around)
        legend(figure, axes, 1 if narrow else 2)

    what = "labels" if truth == "labels" else "what the FP32 file finds"
    caption = f"Up and to the left is better; AP against {what}. The grey line joins what nothing else beats in both."
    return Chart("Accuracy against latency", caption, 3.6, draw)


def _stages(rows: list[Row]) -> Chart:
    names = stage_names(rows)

    def draw(figure: Any, narrow: bool) -> None:
        axes = figure.subplots()
        axes.grid(axis="y", visible=False)
        left = [0.0] * len(rows)
        for stage in names:
            widths = [stages_of(row).get(stage, 0.0) for row in rows]
            axes.barh(range(len(rows)), widths, 0.62, left, color=stage_color(stage), label=stage)
            for i, (row, ms) in enumerate(zip(rows, widths, strict=True)):
                share = ms / sum(stages_of(row).values())
                if share > (0.13 if narrow else 0.05):
                    axes.text(
                        left[i] + ms / 2,
                        i,
                        f"{100 * share:.0f} %",
                        ha="center",
                        va="center",
                        color="#ffffff",
                        fontsize=8,
                    )
            left = [start + ms for start, ms in zip(left, widths, strict=True)]
        axes.set_yticks(range(len(rows)), [_name(row, narrow) for row in rows])
        axes.invert_yaxis()
        axes.set_xlabel("ms of a frame")
        legend(figure, axes, 2 if narrow else 6)

    caption = "By the backend's own profiler, in runs apart. Orange: what the non-local blocks cost."
    return Chart("Stages", caption, 1.5 + 0.42 * len(rows) + 0.22 * len(names) / 2, draw)


def _distribution(rows: list[Row]) -> Chart:
    def draw(figure: Any, narrow: bool) -> None:
        axes = figure.subplots()
        axes.grid(axis="y", visible=False)
        for i, row in enumerate(rows):
            low, first, middle, third, high, late = (percentile(row.samples_ms, p) for p in (5, 25, 50, 75, 95, 99))
            axes.plot([low, high], [i, i], color=SERIES[i], linewidth=1.5)
            axes.barh(i, third - first, 0.5, first, color=SERIES[i], alpha=0.45)
            axes.plot([middle, middle], [i - 0.25, i + 0.25], color=SERIES[i], linewidth=2.5)
            axes.plot([late, max(row.samples_ms)], [i, i], "|", color=SERIES[i], markersize=9)
        axes.set_yticks(range(len(rows)), [_name(row, narrow) for row in rows])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_xlim(0)
        axes.set_xlabel("latency of a frame, ms")

    caption = "Box: the middle half, its line p50; whiskers p5 to p95; ticks p99 and the slowest."
    return Chart("Latency distribution", caption, 0.9 + 0.42 * len(rows), draw)


def _timeline(rows: list[Row]) -> Chart:
    def draw(figure: Any, narrow: bool) -> None:
        axes = figure.subplots()
        for i, row in enumerate(rows):
            every = -(-len(row.samples_ms) // 1500)  # points; more make a page slow
            axes.plot(
                row.samples_at_s[::every],
                row.samples_ms[::every],
                ".",
                color=SERIES[i],
                markersize=3.5,
                alpha=0.8,
                label=_name(row),
            )
        axes.set(xlabel="seconds since the measurement began", ylabel="ms")
        axes.set_ylim(0)
        legend(figure, axes, 1 if narrow else 3)

    return Chart("Timeline", "Each dot a frame. A slope is heat or another program.", 3.4, draw)


def _roofline(row: Row, peaks: dict[str, Any]) -> Chart:
    """Williams, Waterman, Patterson: Roofline, CACM 52(4), 2009."""
    stages = {stage: floor for stage, floor in row.floor.items() if floor["flops"] and row.stages.get(stage)}
    slowest = sorted(stages, key=lambda stage: -row.stages[stage])

    def draw(figure: Any, narrow: bool) -> None:
        axes = figure.subplots()
        intensity = {stage: floor["flops"] / max(floor["bytes"], 1) for stage, floor in stages.items()}
        span = [min(intensity.values()) / 3, max(intensity.values()) * 3]
        for i, (precision, peak) in enumerate(sorted(peaks["flops_per_s"].items())):
            ridge = peak / peaks["bytes_per_s"]
            along = [min(span[0], ridge), ridge, max(span[1], ridge)]
            reach = [min(x * peaks["bytes_per_s"], peak) / 1e9 for x in along]
            axes.loglog(along, reach, color=SERIES[i], linewidth=1.5, label=f"{precision}: {peak / 1e9:.0f} GFLOP/s")
        for stage in slowest:
            point = (intensity[stage], stages[stage]["flops"] / row.stages[stage] / 1e6)
            axes.plot(*point, "o", color=stage_color(stage), markersize=6)
        named = sorted(slowest[: 5 if narrow else 8], key=lambda stage: intensity[stage])
        for i, stage in enumerate(named):  # above and below in turn, for neighbours are near
            point = (intensity[stage], stages[stage]["flops"] / row.stages[stage] / 1e6)
            offset = (4, 5 if i % 2 else -12)
            axes.annotate(stage, point, xytext=offset, textcoords="offset points", fontsize=8)
        axes.set(xlabel="FLOPs for each byte moved", ylabel="GFLOP/s")
        legend(figure, axes, 1 if narrow else 3)

    memory = f"{peaks['bytes_per_s'] / 1e9:.0f} GB/s"
    caption = (
        f"Lines: the machine's measured peaks, memory at {memory}. Dots: stages; the distance to the line "
        "above is what a better kernel could gain. Above the slope: tensors that stayed in the cache."
    )
    return Chart(f"Roofline of {_name(row)}", caption, 4.2, draw)


def _darkness(rows: list[Row]) -> Chart:
    def draw(figure: Any, narrow: bool) -> None:
        axes = figure.subplots()
        for i, row in enumerate(rows):
            bins = row.accuracy["by_darkness"] if row.accuracy else {}
            figures = [bin_["mask_ap"] if bin_["mask_ap"] is not None else bin_["box_ap"] for bin_ in bins.values()]
            axes.plot(list(bins), figures, f"{_MARKERS[i]}-", color=SERIES[i], markersize=5, label=_name(row))
        axes.set(xlabel="mean linear luminance of the picture (left: darkest)", ylabel="AP")
        axes.set_ylim(0)
        legend(figure, axes, 1 if narrow else 3)

    return Chart("Accuracy by darkness", "Mask AP, or box AP where there are no masks.", 3.4, draw)


def _curves(timeline: list[dict[str, Any]]) -> list[Chart]:
    """Power, clock and temperature, what of it was measured."""
    curves: dict[str, list[tuple[str, list[float | None]]]] = {
        "W": [("power", [entry["total_watts"] for entry in timeline])],
        "MHz": [(what, [entry[f"{what.lower()}_mhz"] for entry in timeline]) for what in ("GPU", "CPU")],
        "degrees C": [
            (zone, [entry["celsius"].get(zone) for entry in timeline])
            for zone in sorted({zone for entry in timeline for zone in entry["celsius"]})
        ],
    }
    known = {unit: [(name, v) for name, v in lines if any(x is not None for x in v)] for unit, lines in curves.items()}
    known = {unit: lines for unit, lines in known.items() if lines}
    if not known:
        return []
    moments = [entry["at_s"] for entry in timeline]

    def draw(figure: Any, narrow: bool) -> None:
        for axes, (unit, lines) in zip(
            figure.subplots(len(known), sharex=True, squeeze=False)[:, 0], known.items(), strict=True
        ):
            for i, (name, values) in enumerate(lines[: len(SERIES)]):
                nan = [float("nan") if value is None else value for value in values]
                axes.plot(moments, nan, color=SERIES[i], linewidth=1.3, label=name)
            axes.set_ylabel(unit)
            axes.legend(fontsize=8, ncols=1 if narrow else 4, loc="lower left")
        axes.set_xlabel("seconds since the measurement began")

    return [Chart("Power, clocks, temperature", "From sysfs, while the models ran.", 0.6 + 1.8 * len(known), draw)]


def stage_color(stage: str) -> str:
    """The same for a stage in every picture; orange for non-local blocks."""
    if stage.endswith(" block"):
        return _BLOCKS[(int(stage[1]) - 2) % len(_BLOCKS)]
    return _STAGE_COLORS.get(stage, _REST)


def _name(row: Row, narrow: bool = False) -> str:
    """Without its suffix, the end of a long one; on narrow pictures broken into lines."""
    name = row.name.removesuffix(".onnx").removesuffix(".engine")
    most = 26 if narrow else 36
    name = name if len(name) <= most else f"...{name[3 - most :]}"
    return name.replace(".", "\n.").replace("\n.\n.\n.", "...") if narrow else name
