"""The report as one page."""

from __future__ import annotations

from html import escape
from typing import Any

from wnlb.runtime.profile.charts import charts_of
from wnlb.runtime.profile.report import EXPLANATIONS, Row, notes, origin, tables
from wnlb.runtime.report.page import cards, header, listed, picture, section, table, warnings
from wnlb.runtime.report.page import page as whole


def page(rows: list[Row], facts: dict[str, Any]) -> str:
    """HTML. Raises MissingDependency without matplotlib."""
    parts = [_header(facts), _cards(rows)]
    pictures = [picture(chart, f"c{i}") for i, chart in enumerate(charts_of(rows, facts))]
    found = [section(title, " ".join(EXPLANATIONS[title]), table(*cells)) for title, cells in tables(rows)]
    parts += [*pictures[:1], *found[:1], *pictures[1:], *found[1:]]
    return whole("wnlb profile", [*parts, warnings(notes(rows, facts)), _origin(rows, facts)])


def _header(facts: dict[str, Any]) -> str:
    machine = facts["machine"]
    where = ", ".join(machine[key] for key in ("Jetson", "GPU", "processor") if key in machine)
    frames = f"{facts['frames']['count']} frames of {facts['frames']['source']}"
    measured = f"Measured {facts['created']} by wnlb {facts['tool_version']}, on {frames}."
    return header("Profile", f"{where}. {measured}")


def _cards(rows: list[Row]) -> str:
    """What a reader looks for first."""
    measured = [row for row in rows if "total" in row.parts]
    if not measured:
        return ""
    fastest = min(measured, key=lambda row: row.parts["total"].p50)
    figures = [(f"{fastest.parts['total'].p50:.1f} ms", f"the fastest, p50: {fastest.name}")]
    figures.append((f"{fastest.frames_per_second:.1f}", "frames a second with it"))
    judged = [row for row in measured if row.figure("box_ap") is not None]
    if judged:
        kind = "mask" if all(row.figure("mask_ap") is not None for row in judged) else "box"
        best = max(judged, key=lambda row: row.figure(f"{kind}_ap") or 0.0)
        figures.append((f"{best.figure(f'{kind}_ap'):.2f}", f"the best {kind} AP: {best.name}"))
        if fastest in judged and fastest is not best:
            lost = (best.figure(f"{kind}_ap") or 0.0) - (fastest.figure(f"{kind}_ap") or 0.0)
            figures.append((f"{lost:.2f}", f"{kind} AP less with the fastest"))
    return cards(figures)


def _origin(rows: list[Row], facts: dict[str, Any]) -> str:
    machine = listed((key, value) for key, value in facts["machine"].items())
    files = listed((row.name, origin(row)) for row in rows)
    command = f"<pre><code>{escape(facts['command'])}</code></pre>"
    return section("How to measure it again", "", f"{command}{machine}<h2>Files</h2>{files}")
