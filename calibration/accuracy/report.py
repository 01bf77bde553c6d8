"""What ``wnlb evaluate`` tells: Markdown, JSON, COCO results and a plot."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from wnlb.calibration.accuracy.plots import load_pyplot, save_figure
from wnlb.calibration.accuracy.score import STATS, Accuracy, Evaluation
from wnlb.runtime.table import markdown_table

_KINDS = ("mask", "box")
_SIZES = """\
By size of the object (up to 32x32 pixels, up to 96x96, larger); average recall with 1, 10, 100 detections a picture:"""
Figures = tuple[float | None, ...]


def markdown(
    evaluations: Sequence[Evaluation],
    same: tuple[int, int, int] | None,
    reference: str = "",
    notes: Sequence[str] = (),
) -> str:
    """The report.

    Args:
        reference: the model whose detections are the truth, where there are no labels.
        notes: what was odd about the labels, a line each.
    """
    head = evaluations[0].overall
    of = f" that {reference} finds with a score of 0.5 or more" if reference else ""
    lines = [f"{head.images} pictures, {head.objects} objects{of}; AP in percent", ""]
    lines += [*(f"- {note}" for note in notes), ""] if notes else []
    names = [e.model for e in evaluations] + (["difference"] if len(evaluations) == 2 else [])
    lines += _overall(evaluations, names)
    lines += ["", _SIZES, "", *_by_size(evaluations)]
    columns = [f"{name} {kind}" for name in names for kind in _KINDS]
    lines += ["", "By darkness (mean linear luminance of the picture), mask AP and box AP:", ""]
    lines += _by_darkness(evaluations, columns)
    lines += ["", "By class, mask AP and box AP:", "", *_by_class(evaluations, columns)]
    if same:
        agree, first, second = same
        lines += ["", f"{agree} detections agree, of {first} and {second} that score 0.5 or more "
                  "(same class, IoU of their masks at least 0.9)"]  # fmt: skip
    return "\n".join(lines) + "\n"


def _overall(evaluations: Sequence[Evaluation], names: Sequence[str]) -> list[str]:
    figures = _with_difference([_figures(e.overall, _KINDS, STATS[:3]) for e in evaluations])
    columns = ("model", "mask AP", "AP50", "AP75", "box AP", "AP50", "AP75")
    return markdown_table(columns, [(name, *row) for name, row in zip(names, figures, strict=True)])


def _by_size(evaluations: Sequence[Evaluation]) -> list[str]:
    rows = [(f"{e.model}, {kind}", *_figures(e.overall, (kind,), STATS[3:])) for kind in _KINDS for e in evaluations]
    columns = ("model", "AP small", "medium", "large", "AR 1", "AR 10", "AR 100", "AR small", "medium", "large")
    return markdown_table(columns, [row for row in rows if row[1] is not None])


def _by_darkness(evaluations: Sequence[Evaluation], columns: Sequence[str]) -> list[str]:
    rows = []
    for key, first in evaluations[0].by_darkness.items():
        bins = [e.by_darkness[key] for e in evaluations]
        rows.append((key, first.images, first.objects, *_beside([(b.mask_ap, b.box_ap) for b in bins])))
    return markdown_table(("luminance", "pictures", "objects", *columns), rows)


def _by_class(evaluations: Sequence[Evaluation], columns: Sequence[str]) -> list[str]:
    """Of the classes that have objects."""
    figures = {name: _beside([e.by_class[name][::-1] for e in evaluations]) for name in evaluations[0].by_class}
    rows = [(name, *row) for name, row in figures.items() if not _is_nothing(row)]
    return markdown_table(("class", *columns), rows)


def _figures(accuracy: Accuracy, kinds: Sequence[str], stats: Sequence[str]) -> Figures:
    return tuple(getattr(accuracy, f"{kind}_{stat}") for kind in kinds for stat in stats)


def _with_difference(rows: Sequence[Figures]) -> list[Figures]:
    """Of two models also how much the first is above the second."""
    if len(rows) != 2:
        return list(rows)
    return [*rows, tuple(None if a is None or b is None else a - b for a, b in zip(*rows, strict=True))]


def _beside(pairs: Sequence[Figures]) -> Figures:
    return tuple(itertools.chain(*_with_difference(pairs)))


def _is_nothing(figures: Figures) -> bool:
    return all(value is None or math.isnan(value) for value in figures)


def json_of(evaluations: list[Evaluation], same: tuple[int, int, int] | None) -> dict[str, Any]:
    def clean(value: Any) -> Any:  # JSON has no NaN
        if isinstance(value, dict):
            return {key: clean(item) for key, item in value.items()}
        if isinstance(value, float) and math.isnan(value):
            return None
        return [clean(item) for item in value] if isinstance(value, (list, tuple)) else value

    models = []
    for evaluation in evaluations:
        fields = dataclasses.asdict(dataclasses.replace(evaluation, results=()))
        models.append({key: value for key, value in clean(fields).items() if key != "results"})
    agree = dict(zip(("pairs", "first", "second"), same, strict=True)) if same else None
    return {"models": models, "agreement": agree}


def coco_results(evaluation: Evaluation) -> list[dict[str, Any]]:
    """What pycocotools' ``loadRes`` reads: box, mask where there are masks, score, and of tracks their identity."""
    kept = ("image_id", "category_id", "bbox", "segmentation", "score", "track_id")
    return [{key: entry[key] for key in kept if key in entry} for entry in evaluation.results]


def plot(evaluations: list[Evaluation], path: Path) -> None:
    """AP against darkness, darkest first."""
    pyplot = load_pyplot()
    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    for evaluation in evaluations:
        bins = evaluation.by_darkness
        for kind, style in (("mask_ap", "o-"), ("box_ap", "s--")):
            values = [getattr(accuracy, kind) for accuracy in bins.values()]
            if None not in values:
                axes.plot(list(bins), values, style, label=f"{evaluation.model}, {kind.replace('_ap', ' AP')}")
    axes.set(xlabel="mean linear luminance of the picture (left: darkest)", ylabel="AP in percent", ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend()
    save_figure(pyplot, figure, path)
