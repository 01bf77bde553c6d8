"""Pictures by matplotlib, which is loaded only when one is drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from wnlb.runtime.errors import MissingDependency
from wnlb.runtime.files import atomic_path


def load_pyplot() -> Any:
    """matplotlib.pyplot without a display. Raises MissingDependency."""
    try:
        import matplotlib
    except ImportError as error:
        raise MissingDependency("matplotlib is not installed: pip install 'wnlb-deploy[plots]'") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def save_figure(pyplot: Any, figure: Any, path: Path) -> None:
    """PNG, at once or not at all, and no figure left open."""
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120)
    pyplot.close(figure)
