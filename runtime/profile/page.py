"""The report as one page that needs nothing else: no network, no scripts."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from pathlib import Path
from typing import Any

from wnlb.runtime.profile.charts import WIDTHS, Chart, charts_of
from wnlb.runtime.profile.report import EXPLANATIONS, Cells, Row, notes, origin, tables

_TEMPLATE = Path(__file__).with_name("page.html")


def page(rows: list[Row], facts: dict[str, Any]) -> str:
    """HTML. Raises MissingDependency without matplotlib."""
    parts = [_header(facts), _cards(rows)]
    pictures = [_picture(chart, f"c{i}") for i, chart in enumerate(charts_of(rows, facts))]
    found = [_section(title, " ".join(EXPLANATIONS[title]), _table(cells)) for title, cells in tables(rows)]
    parts += [*pictures[:1], *found[:1], *pictures[1:], *found[1:]]
    if notes(rows, facts):
        items = "".join(f"<li>{escape(note)}</li>" for note in notes(rows, facts))
        parts.append(_section("To be known", "", f'<ul class="warn">{items}</ul>'))
    parts.append(_origin(rows, facts))
    return _TEMPLATE.read_text().replace("<!-- report -->", "\n".join(parts))


def _header(facts: dict[str, Any]) -> str:
    machine = facts["machine"]
    where = ", ".join(machine[key] for key in ("Jetson", "GPU", "processor") if key in machine)
    return (
        f"<header><h1>Profile</h1><p class='dim'>{escape(where)}. Measured {escape(facts['created'])} by wnlb "
        f"{escape(facts['tool_version'])}, on {facts['frames']['count']} frames of {escape(facts['frames']['source'])}."
        "</p></header>"
    )


def _cards(rows: list[Row]) -> str:
    """What a reader looks for first."""
    measured = [row for row in rows if "total" in row.parts]
    if not measured:
        return ""
    fastest = min(measured, key=lambda row: row.parts["total"].p50)
    cards = [(f"{fastest.parts['total'].p50:.1f} ms", f"the fastest, p50: {fastest.name}")]
    cards.append((f"{fastest.frames_per_second:.1f}", "frames a second with it"))
    judged = [row for row in measured if row.figure("box_ap") is not None]
    if judged:
        kind = "mask" if all(row.figure("mask_ap") is not None for row in judged) else "box"
        best = max(judged, key=lambda row: row.figure(f"{kind}_ap") or 0.0)
        cards.append((f"{best.figure(f'{kind}_ap'):.2f}", f"the best {kind} AP: {best.name}"))
        if fastest in judged and fastest is not best:
            lost = (best.figure(f"{kind}_ap") or 0.0) - (fastest.figure(f"{kind}_ap") or 0.0)
            cards.append((f"{lost:.2f}", f"{kind} AP less with the fastest"))
    shown = "".join(f"<div><b>{escape(figure)}</b><span>{escape(what)}</span></div>" for figure, what in cards)
    return f'<div class="cards">{shown}</div>'


def _picture(chart: Chart, name: str) -> str:
    return _section(chart.title, chart.caption, "".join(chart.svg(width, name) for width in WIDTHS))


def _table(cells: Cells) -> str:
    header, rows = cells
    lines = ["".join(f"<th>{escape(title)}</th>" for title in header)]
    lines += ["".join(map(_cell, row)) for row in rows]
    return f'<div class="scroll"><table>{"".join(f"<tr>{line}</tr>" for line in lines)}</table></div>'


def _cell(text: str) -> str:
    return f'<td class="best">{escape(text[:-1])}</td>' if text.endswith("*") else f"<td>{escape(text)}</td>"


def _origin(rows: list[Row], facts: dict[str, Any]) -> str:
    machine = _list((key, value) for key, value in facts["machine"].items())
    files = _list((row.name, origin(row)) for row in rows)
    command = f"<pre><code>{escape(facts['command'])}</code></pre>"
    return _section("How to measure it again", "", f"{command}{machine}<h2>Files</h2>{files}")


def _list(entries: Iterable[tuple[str, str]]) -> str:
    return f"<dl>{''.join(f'<dt>{escape(key)}</dt><dd>{escape(value)}</dd>' for key, value in entries)}</dl>"


def _section(title: str, caption: str, body: str) -> str:
    explained = f'<p class="caption">{escape(caption)}</p>' if caption else ""
    return f"<section><h2>{escape(title)}</h2>{explained}{body}</section>"
