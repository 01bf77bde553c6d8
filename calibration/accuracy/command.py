"""``wnlb evaluate``: COCO accuracy by class and by darkness."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from wnlb.runtime.errors import WnlbError
from wnlb.runtime.files import atomic_path, make_folder
from wnlb.runtime.onnxruntime_backend import DEVICES
from wnlb.runtime.table import markdown_table

if TYPE_CHECKING:
    from wnlb.calibration.accuracy.evaluate import Accuracy, Evaluation
    from wnlb.calibration.accuracy.judge import Judge
    from wnlb.runtime.predictor import Predictor
    from wnlb.runtime.source import Frame

_DESCRIPTION = """\
Score a model on labelled pictures: box and mask AP (COCO, IoU 0.50:0.95), by class and by the darkness of the picture
(mean linear luminance, measured). Classes are matched to categories by name, whatever their ids: LIS counts from 0.
Without labels, what a baseline finds with a score of 0.5 or more is the truth.

  wnlb evaluate model.onnx --annotations night/annotations.json --images night/images
  wnlb evaluate int8.onnx --baseline fp32.onnx --annotations a.json --images pictures/ -o report/
  wnlb evaluate int8.onnx --baseline fp32.onnx --images pictures/
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = _DESCRIPTION
    parser.add_argument("model", type=Path, help=".onnx of 'wnlb export' or 'convert', .engine of 'build'")
    parser.add_argument("--annotations", type=Path, help="COCO annotation file (default: what the baseline finds)")
    parser.add_argument("--images", required=True, metavar="SOURCE", help="folder of the pictures")
    parser.add_argument("--baseline", type=Path, metavar="MODEL", help="another model, to compare with")
    parser.add_argument("--count", type=int, metavar="N", help="pictures to use, evenly taken (default: all)")
    parser.add_argument("-o", "--output", type=Path, metavar="DIR", help="also write report.md and darkness.png there")
    parser.add_argument(
        "--device", choices=DEVICES, default="auto", help="of .onnx files; default: CUDA where it works"
    )
    parser.add_argument("--threads", type=int, default=0, metavar="N", help="CPU threads (default: one per core)")
    parser.add_argument("--json", action="store_true", help="print JSON for programs")


def run(arguments: argparse.Namespace) -> int:
    from wnlb.calibration.accuracy.evaluate import agreement, evaluate_pictures

    if not arguments.annotations and not arguments.baseline:
        raise WnlbError("neither --annotations nor --baseline was given; expected labels, or a model to compare with")
    if arguments.count is not None and arguments.count < 1:
        raise WnlbError(f"--count is {arguments.count}; expected 1 or more")
    if arguments.output:
        make_folder(arguments.output)
    judge, labels = _judge(arguments), arguments.annotations is not None
    evaluations = []
    for path in filter(None, (arguments.model, arguments.baseline if labels else None)):
        with _open(path, arguments) as predictor, _bar(len(judge), path.name) as bar:
            evaluations.append(evaluate_pictures(predictor, judge.document, judge.picture_of, path.name, bar.update))
    other = (evaluations[-1].results if labels else judge.document["annotations"]) if arguments.baseline else None
    same = None if other is None else agreement(evaluations[0].results, other)
    report = markdown(evaluations, same, "" if labels else arguments.baseline.name)
    if arguments.output:
        with atomic_path(arguments.output / "report.md") as temporary:
            temporary.write_text(report)
        _plot(evaluations, arguments.output / "darkness.png")
    facts = {"truth": judge.truth, **json_of(evaluations, same)}
    print(json.dumps(facts, indent=2) if arguments.json else report)
    return 0


def _judge(arguments: argparse.Namespace) -> Judge:
    from wnlb.calibration.accuracy.judge import Judge
    from wnlb.calibration.scenes.dataset import read_coco

    if arguments.annotations:
        document, folder = read_coco(arguments.annotations), Path(arguments.images)
        return Judge.on_labels(document, folder).part(arguments.count)
    chosen = {frame.name: frame.pixels for frame in _evenly_taken(arguments) if frame.pixels is not None}
    if not chosen:
        raise WnlbError(f"images {arguments.images}: none of them can be read")
    with _open(arguments.baseline, arguments) as reference, _bar(len(chosen), "truth") as bar:
        return Judge.on_agreement(reference, chosen, bar.update)


def _evenly_taken(arguments: argparse.Namespace) -> Iterator[Frame]:
    """``--count`` frames of the source, and no more of them in memory than are kept."""
    from wnlb.calibration.accuracy.judge import evenly
    from wnlb.runtime.source import open_source

    source, count = open_source(arguments.images), arguments.count
    if not len(source) and count is None:
        raise WnlbError(f"images {arguments.images} do not tell how many they are; give --count")
    chosen = set(evenly(len(source), count) if len(source) else range(count))
    for number, frame in enumerate(source):
        if number in chosen:
            yield frame
        if number >= max(chosen):
            return


def _open(path: Path, arguments: argparse.Namespace) -> Predictor:
    from wnlb.runtime.predictor import Predictor

    device = "auto" if path.suffix == ".engine" else arguments.device
    return Predictor(path, device=device, threads=arguments.threads)


def _bar(total: int, what: str) -> Any:
    return tqdm(total=total, desc=what, unit="picture", disable=None, file=sys.stderr, leave=False)


def markdown(evaluations: list[Evaluation], same: tuple[int, int, int] | None, reference: str = "") -> str:
    """``reference``: the model whose detections are the truth, where there are no labels."""
    head = evaluations[0].overall
    of = f" that {reference} finds with a score of 0.5 or more" if reference else ""
    lines = [f"{head.images} pictures, {head.objects} objects{of}; AP in percent", ""]
    names = [e.model for e in evaluations] + (["difference"] if len(evaluations) == 2 else [])
    columns = ("mask AP", "AP50", "AP75", "box AP", "AP50", "AP75")
    rows = [(e.model, *_figures(e.overall)) for e in evaluations]
    if len(evaluations) == 2:
        rows.append(("difference", *_difference(_figures(evaluations[0].overall), _figures(evaluations[1].overall))))
    lines += markdown_table(("model", *columns), rows)
    lines += ["", "By darkness (mean linear luminance of the picture), mask AP and box AP:", ""]
    header = ("luminance", "pictures", "objects", *(f"{n} {kind}" for n in names for kind in ("mask", "box")))
    keys = list(evaluations[0].by_darkness)
    rows = []
    for key in keys:
        bins = [e.by_darkness[key] for e in evaluations]
        figures: list[tuple[float | None, ...]] = [(b.mask_ap, b.box_ap) for b in bins]
        figures += [_difference(*figures)] if len(figures) == 2 else []
        rows.append((key, bins[0].images, bins[0].objects, *(value for pair in figures for value in pair)))
    lines += markdown_table(header, rows)
    lines += ["", "By class, mask AP and box AP:", ""]
    rows = []
    for key in evaluations[0].by_class:
        figures = [e.by_class[key][::-1] for e in evaluations]
        figures += [_difference(*figures)] if len(figures) == 2 else []
        rows.append((key, *(value for pair in figures for value in pair)))
    lines += markdown_table(("class", *header[3:]), rows)
    if same:
        pairs, first, second = same
        lines += ["", f"{pairs} detections agree, of {first} and {second} that score 0.5 or more "
                  "(same class, IoU of their masks at least 0.9)"]  # fmt: skip
    return "\n".join(lines) + "\n"


def _figures(a: Accuracy) -> tuple[float | None, ...]:
    return a.mask_ap, a.mask_ap50, a.mask_ap75, a.box_ap, a.box_ap50, a.box_ap75


def _difference(first: tuple[float | None, ...], second: tuple[float | None, ...]) -> tuple[float | None, ...]:
    return tuple(None if a is None or b is None else a - b for a, b in zip(first, second, strict=True))


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


def _plot(evaluations: list[Evaluation], path: Path) -> None:
    """AP against darkness, darkest first."""
    from wnlb.calibration.accuracy.plots import load_pyplot, save_figure

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
