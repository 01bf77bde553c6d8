"""The parts of a page."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from wnlb.runtime.report.chart import WIDTHS, Chart

_TEMPLATE = Path(__file__).with_name("page.html")


def page(title: str, parts: Iterable[str]) -> str:
    """The whole, of HTML parts."""
    return _TEMPLATE.read_text().replace("<!-- title -->", escape(title)).replace("<!-- report -->", "\n".join(parts))


def header(title: str, text: str) -> str:
    """The first part; ``text`` is plain."""
    return f"<header><h1>{escape(title)}</h1><p class='dim'>{escape(text)}</p></header>"


def cards(figures: Iterable[tuple[str, str]]) -> str:
    """What a reader looks for first: figures, and what each is."""
    shown = "".join(f"<div><b>{escape(figure)}</b><span>{escape(what)}</span></div>" for figure, what in figures)
    return f'<div class="cards">{shown}</div>'


def picture(chart: Chart, name: str) -> str:
    """A section. ``name``: unlike that of any other on the page. Raises MissingDependency without matplotlib."""
    return section(chart.title, chart.caption, "".join(chart.svg(width, name) for width in WIDTHS))


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Cells that end with * are the best of their kind."""
    lines = ["".join(f"<th>{escape(title)}</th>" for title in header)]
    lines += ["".join(map(_cell, row)) for row in rows]
    return f'<div class="scroll"><table>{"".join(f"<tr>{line}</tr>" for line in lines)}</table></div>'


def _cell(text: str) -> str:
    return f'<td class="best">{escape(text[:-1])}</td>' if text.endswith("*") else f"<td>{escape(text)}</td>"


def listed(entries: Iterable[tuple[str, str]]) -> str:
    """Names and what they stand for."""
    return f"<dl>{''.join(f'<dt>{escape(key)}</dt><dd>{escape(value)}</dd>' for key, value in entries)}</dl>"


def section(title: str, caption: str, body: str) -> str:
    """``body`` is HTML, the others are plain."""
    explained = f'<p class="caption">{escape(caption)}</p>' if caption else ""
    return f"<section><h2>{escape(title)}</h2>{explained}{body}</section>"


def warnings(notes: Iterable[str]) -> str:
    """A section, or nothing where there are none."""
    items = "".join(f"<li>{escape(note)}</li>" for note in notes)
    return section("To be known", "", f'<ul class="warn">{items}</ul>') if items else ""
