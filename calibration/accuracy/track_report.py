"""What ``wnlb evaluate --track`` tells of identities: Markdown and JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from wnlb.calibration.accuracy.tracks import TrackAccuracy, TrackEvaluation, TrackFigures
from wnlb.runtime.table import markdown_table

_COLUMNS = ("HOTA", "DetA", "AssA", "IDF1", "MOTA", "switches")


def track_markdown(evaluations: Sequence[TrackEvaluation]) -> str:
    """A section with a row for each model and kind as a whole, and for each in each bin; empty of none."""
    if not evaluations:
        return ""
    whole = evaluations[0].overall
    lines = [
        "",
        f"Tracks of {whole.videos} videos with {whole.tracks} objects; in percent, but for identity switches:",
        "",
    ]
    rows = [(f"{e.model}, {kind}", *_figures(f)) for e in evaluations for kind, f in _kinds(e.overall)]
    lines += markdown_table(("model", *_COLUMNS), rows)
    lines += ["", "By darkness (mean linear luminance of the video), HOTA / IDF1 / MOTA:", ""]
    names = [f"{e.model}, {kind}" for e in evaluations for kind, _ in _kinds(e.overall)]
    rows = []
    for key, first in evaluations[0].by_darkness.items():
        cells = [_short(f) for e in evaluations for _, f in _kinds(e.by_darkness[key])]
        rows.append((key, str(first.videos), str(first.tracks), *cells))
    lines += markdown_table(("luminance", "videos", "objects", *names), rows)
    return "\n".join(lines) + "\n"


def tracks_json(evaluations: Sequence[TrackEvaluation]) -> list[dict[str, Any]]:
    return [dataclasses.asdict(evaluation) for evaluation in evaluations]


def _kinds(accuracy: TrackAccuracy) -> list[tuple[str, TrackFigures]]:
    return [("box", accuracy.box)] if accuracy.mask is None else [("mask", accuracy.mask), ("box", accuracy.box)]


def _figures(figures: TrackFigures) -> tuple[str, ...]:
    parts = (figures.hota, figures.det_a, figures.ass_a, figures.idf1, figures.mota)
    return (*(f"{part:.1f}" for part in parts), str(figures.id_switches))


def _short(figures: TrackFigures) -> str:
    return f"{figures.hota:.1f} / {figures.idf1:.1f} / {figures.mota:.1f}"
