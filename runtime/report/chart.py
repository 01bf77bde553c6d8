"""Pictures of a page: SVG by matplotlib, its colours those of the page, light or dark."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from wnlb.runtime.errors import MissingDependency

# Colours that stand for variables of the page, which has two sets of them; matplotlib wants numbers.
TEXT, LINE, BACK = "#a0a0f1", "#a0a0f2", "#a0a0f3"
SERIES = tuple(f"#a0a0e{i:x}" for i in range(1, 9))
VARIABLES = {TEXT: "--text", LINE: "--line", BACK: "--card"} | {c: f"--s{i}" for i, c in enumerate(SERIES, 1)}
WIDTHS = {"wide": 9.6, "narrow": 3.7}  # inches of 96 pixels
_STYLE: Any = {  # matplotlib types the keys one by one
    "svg.fonttype": "none",  # text stays text, in the font of the page
    "svg.hashsalt": "wnlb",
    "font.family": "sans-serif",
    "font.size": 9.5,
    "text.color": TEXT,
    "axes.labelcolor": TEXT,
    "axes.edgecolor": LINE,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.linewidth": 0.7,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": TEXT,
    "ytick.labelcolor": TEXT,
    "legend.frameon": False,
    "figure.facecolor": "none",
}


@dataclass(frozen=True)
class Chart:
    """One picture in two widths."""

    title: str
    caption: str
    height: float  # inches, of both
    draw: Callable[[Any, bool], None]  # on a figure; whether it is the narrow one

    def svg(self, width: str, name: str) -> str:
        """``width``: one of WIDTHS. ``name``: of the picture, unlike that of any other on the page."""
        try:
            from matplotlib import rc_context
            from matplotlib.figure import Figure
        except ImportError as error:
            raise MissingDependency("matplotlib is not installed: pip install 'wnlb-deploy[plots]'") from error
        with rc_context(_STYLE):
            figure = Figure(figsize=(WIDTHS[width], self.height), layout="constrained")
            self.draw(figure, width == "narrow")
            drawn = io.StringIO()
            figure.savefig(drawn, format="svg", metadata={"Date": None, "Creator": None})
        return _embedded(drawn.getvalue(), name, width, self.title)


def legend(figure: Any, axes: Any, columns: int) -> None:
    """Of all that is drawn on the axes, below them."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower left", ncols=columns, fontsize=8.5, handlelength=1.2)


def _embedded(svg: str, name: str, width: str, title: str) -> str:
    """For use inside a page: colours as its variables, names of parts unlike those of other pictures."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"\b(id=\"|xlink:href=\"#|url\(#)", rf"\g<1>{name}-{width}-", svg)
    for color, variable in VARIABLES.items():
        svg = svg.replace(color, f"var({variable})")
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    return svg.replace("<svg ", f'<svg class="{width}" role="img" aria-label="{title}" ', 1)
