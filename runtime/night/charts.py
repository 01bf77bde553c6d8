"""The pictures of a night: what was seen when, how dark it was, and how the machine kept up."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

from wnlb.runtime.darkness import BIN_EDGES
from wnlb.runtime.night.bins import Bins
from wnlb.runtime.night.record import Record
from wnlb.runtime.night.spell import Spell
from wnlb.runtime.report.chart import LINE, SERIES, Chart, legend

_MOST_CLASSES = 10  # that are drawn, the most seen
_DRAWN = 240  # spells at most: more points than a page shows
_PERCENTILES = (50, 95, 99)


def charts_of(record: Record) -> list[Chart]:
    """All that there is something to draw for."""
    spells = _drawn(record.spells)
    if not any(spell.frames for _, spell in spells):
        return []
    found = [_seen(record, spells)] if any(spell.objects for _, spell in spells) else []
    found += [_darkness(record, spells), _speed(record, spells)]
    if any(spell.watts or spell.celsius for _, spell in spells):
        found.append(_heat(record, spells))
    return found


class _Line:
    """Values over time as steps, broken where nothing was recorded."""

    def __init__(self, record: Record, spells: Sequence[tuple[float, Spell]], seconds: float) -> None:
        self.times: list[datetime] = []
        self._spells: list[Spell | None] = []
        before = -math.inf
        for start, spell in spells:
            if start > before + 1.5 * seconds and self._spells:
                self.times.append(record.moment(before + seconds))
                self._spells.append(None)
            self.times.append(record.moment(start))
            self._spells.append(spell)
            before = start
        self.times.append(record.moment(before + seconds))
        self._spells.append(self._spells[-1])

    def values(self, of: Callable[[Spell], float | None]) -> list[float]:
        found = [None if spell is None else of(spell) for spell in self._spells]
        return [math.nan if value is None else value for value in found]


def _drawn(spells: Bins[Spell]) -> Bins[Spell]:
    """The same in fewer bins."""
    drawn: Bins[Spell] = Bins(_DRAWN, spells.seconds, Spell, Spell.absorb)
    for start, spell in spells:
        drawn.at(start).absorb(spell)
    return drawn


def _mean_of(label: int) -> Callable[[Spell], float | None]:
    return lambda spell: spell.objects[label] / spell.frames if spell.frames else None


def _most_of(label: int) -> Callable[[Spell], float | None]:
    return lambda spell: spell.most[label] if spell.frames else None


def _seen(record: Record, spells: Bins[Spell]) -> Chart:
    total: Counter[int] = Counter()
    for _, spell in spells:
        total.update(spell.objects)
    labels = [label for label, _ in total.most_common(_MOST_CLASSES)]
    line = _Line(record, list(spells), spells.seconds)

    def draw(figure: Any, narrow: bool) -> None:
        rows = figure.subplots(len(labels), sharex=True, squeeze=False)[:, 0]
        for i, (axes, label) in enumerate(zip(rows, labels, strict=True)):
            color = SERIES[i % len(SERIES)]
            most = line.values(_most_of(label))
            axes.fill_between(
                line.times, line.values(_mean_of(label)), step="post", color=color, alpha=0.55, linewidth=0
            )
            axes.step(line.times, most, where="post", color=color, linewidth=0.9)
            axes.set_ylim(0, max(1.0, *(value for value in most if value == value)) * 1.15)
            axes.locator_params(axis="y", nbins=2, integer=True)
            axes.set_title(record.class_names[label - 1], loc="left", fontsize=9, pad=2)
        _clock(rows[-1], narrow, record)

    rest = len(total) - len(labels)
    more = f" {rest} classes that were seen less are left out." if rest else ""
    caption = f"Objects in view: filled the mean over the frames, line the most at once.{more}"
    return Chart("What was seen when", caption, 0.5 + 0.72 * len(labels), draw)


def _darkness(record: Record, spells: Bins[Spell]) -> Chart:
    line = _Line(record, list(spells), spells.seconds)
    floor = 1e-4  # a logarithm's end

    def draw(figure: Any, narrow: bool) -> None:
        axes = figure.subplots()
        low, high, mean = (
            [max(value, floor) if value == value else value for value in line.values(of)]
            for of in (
                lambda spell: spell.darkest if spell.frames else None,
                lambda spell: spell.brightest if spell.frames else None,
                lambda spell: spell.luminance / spell.frames if spell.frames else None,
            )
        )
        axes.fill_between(line.times, low, high, step="post", color=SERIES[0], alpha=0.25, linewidth=0)
        axes.step(line.times, mean, where="post", color=SERIES[0], linewidth=1.4)
        axes.set_yscale("log")
        for edge in BIN_EDGES[1:-1]:
            axes.axhline(edge, color=LINE, linewidth=0.7, linestyle=(0, (4, 3)))
        seen = [value for value in (*low, *high) if value == value]
        axes.set_ylim(min(seen) / 1.6, min(max(*seen, BIN_EDGES[1]) * 1.6, 1.0))
        axes.set_ylabel("mean linear luminance")
        _clock(axes, narrow, record)

    edges = ", ".join(f"{edge:g}" for edge in BIN_EDGES[1:-1])
    caption = (
        "Line: mean of the frames; band: the darkest and the brightest. 1 is white; dashed: "
        f"{edges}, the bins of 'wnlb evaluate'."
    )
    return Chart("Darkness", caption, 2.6, draw)


def _speed(record: Record, spells: Bins[Spell]) -> Chart:
    line, seconds = _Line(record, list(spells), spells.seconds), spells.seconds

    def draw(figure: Any, narrow: bool) -> None:
        rates, times = figure.subplots(2, sharex=True)
        rates.step(
            line.times,
            line.values(lambda spell: spell.frames / seconds),
            where="post",
            color=SERIES[2],
            linewidth=1.3,
            label="frames a second with a result",
        )
        rates.step(
            line.times,
            line.values(lambda spell: spell.dropped / seconds),
            where="post",
            color=SERIES[1],
            linewidth=1.1,
            label="dropped for newer ones",
        )
        rates.set_ylim(0)
        rates.set_ylabel("a second")
        for i, percent in enumerate(_PERCENTILES):

            def late(spell: Spell, percent: int = percent) -> float | None:
                return spell.latency_ms(percent) if spell.frames else None

            color = SERIES[(0, 3, 4)[i]]
            times.step(
                line.times, line.values(late), where="post", color=color, linewidth=1.2, label=f"p{percent} latency"
            )
        times.set_ylim(0)
        times.set_ylabel("ms")
        _clock(times, narrow, record)
        handles = [part for axes in (rates, times) for part in axes.get_legend_handles_labels()[0]]
        figure.legend(
            handles,
            [part.get_label() for part in handles],
            loc="outside lower left",
            ncols=1 if narrow else 5,
            fontsize=8.5,
        )

    caption = "Latency: from the frame in memory to its masks, at most 2 % too high. Where a line breaks nothing came."
    return Chart("Frames and latency", caption, 3.9, draw)


def _heat(record: Record, spells: Bins[Spell]) -> Chart:
    line = _Line(record, list(spells), spells.seconds)
    zones = sorted({zone for _, spell in spells for zone in spell.celsius})[: len(SERIES)]
    power = any(spell.watts for _, spell in spells)

    def draw(figure: Any, narrow: bool) -> None:
        rows = figure.subplots(bool(zones) + power, sharex=True, squeeze=False)[:, 0]
        if power:
            watts = line.values(lambda spell: spell.watts / spell.readings if spell.readings else None)
            rows[0].step(line.times, watts, where="post", color=SERIES[1], linewidth=1.3)
            rows[0].set_ylabel("W")
        for i, zone in enumerate(zones):

            def hottest(spell: Spell, zone: str = zone) -> float | None:
                return spell.celsius.get(zone)

            rows[-1].step(line.times, line.values(hottest), where="post", color=SERIES[i], linewidth=1.2, label=zone)
        if zones:
            rows[-1].set_ylabel("degrees C")
            legend(figure, rows[-1], 2 if narrow else 4)
        _clock(rows[-1], narrow, record)

    caption = "From sysfs: mean power, the highest temperature."
    return Chart("Power and temperature", caption, 1.0 + 1.5 * (bool(zones) + power), draw)


def _clock(axes: Any, narrow: bool, record: Record) -> None:
    """Times of day below the axes, of the place where the record was made."""
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

    zone = record.began.tzinfo
    locator = AutoDateLocator(tz=zone, minticks=3, maxticks=7 if narrow else 10)
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator, tz=zone))
