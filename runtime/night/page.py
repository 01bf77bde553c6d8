"""The page of a night."""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Iterator
from datetime import datetime
from html import escape

from wnlb.runtime.night.charts import charts_of
from wnlb.runtime.night.record import Record
from wnlb.runtime.night.shot import Shot
from wnlb.runtime.night.spell import Spell
from wnlb.runtime.report.page import cards, header, listed, picture, section, table
from wnlb.runtime.report.page import page as whole

PAGE = "report.html"
_OPEN = 24  # pictures of objects; the others are behind a click


def page(record: Record) -> str:
    """HTML that needs nothing else. Raises MissingDependency without matplotlib."""
    total = Spell()
    for _, spell in record.spells:
        total.absorb(spell)
    span = f"{_time(record.began, 0)} to {_time(record.moment(record.ended_s), record.ended_s)}"
    parts = [header("The night", f"{record.facts.get('source', '')}, {span}."), _cards(record, total)]
    charts = [picture(chart, f"n{i}") for i, chart in enumerate(charts_of(record))]
    parts += [*charts[:1], _classes(record, total), _shots(record), *charts[1:]]
    return whole("wnlb: the night", [*parts, section("What it was made with", "", listed(_facts(record)))])


def _cards(record: Record, total: Spell) -> str:
    given = total.frames + total.dropped
    figures = [(_span(record.ended_s), f"watched{f' in {record.runs} runs' * (record.runs > 1)}")]
    figures.append((f"{total.frames:,}", "frames with a result"))
    if record.tracks_seen:
        figures.append((f"{record.tracks_seen:,}", "objects followed"))
    if total.frames:
        figures.append((f"{total.luminance / total.frames:.3f}", f"mean luminance; {total.darkest:.4f} at its darkest"))
        figures.append((f"{total.latency_ms(95):.0f} ms", "from a frame to its masks, p95"))
        figures.append((f"{100 * total.dropped / given:.1f} %", "of the frames dropped for newer ones"))
    if total.reconnects:
        figures.append((f"{total.reconnects}", f"time{'s' * (total.reconnects != 1)} lost and found again"))
    return cards(figures)


def _classes(record: Record, total: Spell) -> str:
    if not total.objects:
        return section("Objects", "", "<p>Nothing was found.</p>")
    tracked = Counter(track.label for track in record.tracks.values())
    named = ["class", *(["objects"] if tracked else []), "first seen", "last seen", "most at once", "mean in view"]
    rows = []
    for label, count in total.objects.most_common():
        at = [start for start, spell in record.spells if spell.objects[label]]
        cells = [record.class_names[label - 1], *([f"{tracked[label]:,}"] if tracked else [])]
        cells += [_time(record.moment(at[0]), record.ended_s), _time(record.moment(at[-1]), record.ended_s)]
        rows.append([*cells, str(total.most[label]), f"{count / total.frames:.2f}"])
    caption = f"Times to {_span(record.spells.seconds)}, the length of a bin of this record."
    forgotten = record.tracks_seen - len(record.tracks)
    if forgotten:
        caption += f" Objects: of the {len(record.tracks):,} longest in view; {forgotten:,} shorter ones are left out."
    return section("By class", caption, table(named, rows))


def _shots(record: Record) -> str:
    shown = list(_tracked(record)) or list(_untracked(record))
    if not shown:
        return ""
    figures = [
        f"<figure><img alt='{escape(name)}' src='data:image/jpeg;base64,{base64.b64encode(shot.jpeg).decode()}'>"
        f"<figcaption>{escape(name)} {shot.score:.2f}<br>{escape(when)}</figcaption></figure>"
        for name, when, shot in shown
    ]
    body = f'<div class="shots">{"".join(figures[:_OPEN])}</div>'
    if more := figures[_OPEN:]:
        body += f'<details><summary>{len(more)} more</summary><div class="shots">{"".join(more)}</div></details>'
    of = "each object, the longest in view of each class first" if record.tracks_seen else "each class, over the time"
    return section("The sharpest picture", f"Of {of}; brightened.", body)


def _tracked(record: Record) -> Iterator[tuple[str, str, Shot]]:
    for _, track in record.tracks_in_turn():
        if track.shot:
            seen = (
                f"{_time(record.moment(track.first_s), record.ended_s)}, {_span(track.last_s - track.first_s)} in view"
            )
            yield record.class_names[track.label - 1], seen, track.shot


def _untracked(record: Record) -> Iterator[tuple[str, str, Shot]]:
    for _, shots in record.shots:
        for _, shot in sorted(shots.items()):
            yield record.class_names[shot.label - 1], _time(record.moment(shot.at_s), record.ended_s), shot


def _facts(record: Record) -> Iterator[tuple[str, str]]:
    yield from record.facts.items()
    yield "began", record.began.isoformat(sep=" ", timespec="seconds")
    yield "ended", record.moment(record.ended_s).isoformat(sep=" ", timespec="seconds")


def _time(moment: datetime, span_s: float) -> str:
    """Of the day; with the date where the whole is longer than a day or this is its beginning."""
    dated = span_s == 0 or span_s > 86400
    return moment.strftime("%Y-%m-%d %H:%M:%S" if dated else "%H:%M:%S")


def _span(seconds: float) -> str:
    """``"7 h 05 min"``, ``"3 min 20 s"`` or ``"12 s"``."""
    whole_s = round(seconds)
    if whole_s >= 3600:
        return f"{whole_s // 3600} h {whole_s % 3600 // 60:02d} min"
    return f"{whole_s // 60} min {whole_s % 60:02d} s" if whole_s >= 60 else f"{whole_s} s"
