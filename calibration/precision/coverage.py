"""Pictures of a calibration: what the chosen pictures cover, and what each group costs in INT8."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from wnlb.calibration.accuracy.plots import load_pyplot, save_figure
from wnlb.calibration.precision.search import Sensitivity
from wnlb.calibration.precision.selection import BRIGHT, Selection


def draw_coverage(selection: Selection, path: Path) -> None:
    """PNG: histogram of luminance, seen and chosen, with what counts as bright; and noise against luminance."""
    pyplot = load_pyplot()
    seen, chosen = ([max(p.luminance, 1e-4) for p in pictures] for pictures in (selection.seen, selection.chosen))
    bins = np.geomspace(min(seen) * 0.99, max(*seen, BRIGHT) * 1.01, 25)
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    left.hist(seen, bins, color="#c9d3e0", label=f"seen, {len(seen)}")
    left.hist(chosen, bins, color="#2f6fb0", label=f"chosen, {len(chosen)}")
    left.axvline(BRIGHT, color="#d9822b", linestyle="--", label="bright from here")
    bright = sum(picture.bright for picture in selection.chosen)
    left.set(
        xscale="log", xlabel="mean linear luminance", ylabel="pictures", title=f"{bright} of {len(chosen)} are bright"
    )
    left.legend()
    for pictures, color, size in ((selection.seen, "#c9d3e0", 14), (selection.chosen, "#2f6fb0", 8)):
        right.scatter([max(p.luminance, 1e-4) for p in pictures], [p.noise for p in pictures], size, color)
    right.axvline(BRIGHT, color="#d9822b", linestyle="--")
    right.set(
        xscale="log", xlabel="mean linear luminance", ylabel="noise (levels of 0..255)", title="darkness and noise"
    )
    save_figure(pyplot, figure, path)


def draw_sensitivity(rows: Sequence[Sensitivity], path: Path) -> None:
    """PNG: two bars for each group."""
    pyplot = load_pyplot()
    figure, axes = pyplot.subplots(figsize=(8, 0.45 * len(rows) + 1.2), layout="constrained")
    places = np.arange(len(rows))
    axes.barh(places - 0.2, [row.alone for row in rows], 0.38, color="#d9822b", label="only this group in INT8")
    axes.barh(places + 0.2, [row.spared for row in rows], 0.38, color="#2f6fb0", label="all but this group in INT8")
    axes.set_yticks(places, [f"{row.group} ({row.layers})" for row in rows])
    axes.invert_yaxis()
    axes.axvline(0, color="#444444", linewidth=0.8)
    axes.set(xlabel="drop of AP in percent against FP32 (left of 0: gains)")
    figure.legend(loc="outside upper center", ncols=2, frameon=False)
    save_figure(pyplot, figure, path)
