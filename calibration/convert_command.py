"""``wnlb convert``: FP16, BF16 and INT8 from the FP32 file, calibrated on night pictures."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from wnlb.runtime.errors import WnlbError
from wnlb.runtime.files import make_folder
from wnlb.runtime.table import human_bytes, table

if TYPE_CHECKING:
    from wnlb.calibration.convert import Converter, Int8Choice, Int8Trials
    from wnlb.calibration.judge import Judge
    from wnlb.calibration.search import Sensitivity, Trial
    from wnlb.calibration.selection import Selection

_DESCRIPTION = """\
Write an exported file in FP16, BF16 or INT8. The precision is in the graph, as casts or as Q/DQ pairs, so that TensorRT
10.3 to 11.x and TensorRT-RTX build it strongly typed, without flags or calibrators of their own.

Box arithmetic, NMS, top-k, sampling coordinates and softmax stay FP32. INT8 ranges are measured on pictures that cover
the darkness and noise of --images; give the pictures that the camera will see, at night. No labels are needed.

  wnlb convert model.onnx --precision fp16 -o model.fp16.onnx --images night/
  wnlb convert model.onnx --precision int8 -o model.int8.onnx --images night/
  wnlb convert model.onnx --precision int8 -o model.int8.onnx --images night/ --sensitivity
  wnlb convert model.onnx --precision int8 -o model.int8.onnx --images night/ --max-ap-drop 0.3 \\
      --annotations labelled/annotations.json --eval-images labelled/images

What was measured lies in MODEL.int8.calibration/: manifest.json (the chosen pictures), coverage.png, ranges.npz (used
again where model and pictures are the same, also after an interrupt), trials.json, sensitivity.md and .png.
Exit code 1: no choice of groups holds --max-ap-drop; the best one is written nevertheless.
"""
TRIAL_PICTURES = 32
OVERFLOW_PICTURES = 16


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = _DESCRIPTION
    parser.add_argument("model", type=Path, help="an FP32 file that 'wnlb export' wrote")
    parser.add_argument("--precision", choices=("fp16", "bf16", "int8"), required=True)
    parser.add_argument("-o", "--output", type=Path, required=True, help="the ONNX file to write")
    pictures = parser.add_argument_group("calibration pictures")
    pictures.add_argument(
        "--images",
        metavar="SOURCE",
        help="folder, glob, video, list (.txt), or 'scenes' for synthetic ones, as fp16 and bf16 have by default",
    )
    pictures.add_argument(
        "--count", type=int, help="pictures to choose from it (default: 256 for int8, 16 to look for overflow in fp16)"
    )
    pictures.add_argument("--seed", type=int, default=0, help="of the choice (default: 0)")
    int8 = parser.add_argument_group("INT8")
    int8.add_argument(
        "--method",
        choices=("auto", "max", "entropy", "percentile", "mse"),
        default="auto",
        help="how ranges follow from histograms; auto takes what loses least on some pictures (default: auto)",
    )
    int8.add_argument("--rest", choices=("fp16", "fp32"), default="fp16", help="precision beside INT8 (default: fp16)")
    int8.add_argument(
        "--keep", default="", metavar="GROUP,...", help="groups that stay out of INT8, e.g. 'stem,c2 block'"
    )
    int8.add_argument("--sensitivity", action="store_true", help="measure what each group costs: a table and a picture")
    int8.add_argument(
        "--trial-pictures",
        type=int,
        default=TRIAL_PICTURES,
        metavar="N",
        help="on which method and groups are compared (default: %(default)s)",
    )
    budget = parser.add_argument_group("accuracy")
    budget.add_argument(
        "--max-ap-drop",
        type=float,
        metavar="AP",
        help="keep the fewest groups out of INT8 with which box and mask AP drop by at most this, in percent",
    )
    budget.add_argument("--annotations", type=Path, help="COCO labels; without them agreement with FP32 is measured")
    budget.add_argument("--eval-images", type=Path, metavar="DIR", help="their pictures, other than those of --images")
    parser.add_argument("--calibration", type=Path, metavar="DIR", help="default: OUTPUT without .onnx, .calibration")
    parser.add_argument("--json", action="store_true", help="print JSON for programs")


@dataclass
class _Outcome:
    """What the command tells at its end."""

    facts: dict[str, Any]
    held: bool = True


def run(arguments: argparse.Namespace) -> int:
    _check(arguments)
    from wnlb.calibration.convert import Converter, save_checked

    converter = Converter(arguments.model)
    _kept(arguments, converter)
    folder = arguments.calibration or arguments.output.with_suffix(".calibration")
    make_folder(folder)
    hidden = arguments.json or None
    selection = _select(arguments, converter, folder, hidden)
    if arguments.precision == "int8":
        model, outcome = _int8(arguments, converter, selection, folder, hidden)
    else:
        model, outcome = _half(arguments, converter, selection, hidden)
    save_checked(model, arguments.output, run=arguments.precision != "bf16")
    size = arguments.output.stat().st_size
    outcome.facts |= {"output": str(arguments.output), "bytes": size, "calibration": str(folder)}
    if arguments.json:
        print(json.dumps(outcome.facts, indent=2))
    else:
        print(f"\nwrote {arguments.output}, {human_bytes(size)}; measurements in {folder}/")
    return 0 if outcome.held else 1


def _check(arguments: argparse.Namespace) -> None:
    """Whatever can be refused before work begins."""
    if arguments.output.suffix != ".onnx":
        raise WnlbError(f"output {arguments.output} has the suffix {arguments.output.suffix!r}; expected .onnx")
    if not arguments.output.parent.is_dir():
        raise WnlbError(f"folder {arguments.output.parent} does not exist; create it or choose another output")
    if arguments.precision == "int8" and not arguments.images:
        raise WnlbError("INT8 needs --images, pictures such as the camera sees at night (or 'scenes' to try it)")
    if bool(arguments.annotations) != bool(arguments.eval_images):
        raise WnlbError("--annotations and --eval-images go together: give both, or none to compare with FP32")
    if arguments.max_ap_drop is not None and not arguments.max_ap_drop >= 0:
        raise WnlbError(f"--max-ap-drop is {arguments.max_ap_drop}; expected 0 or more")
    if arguments.max_ap_drop is not None and arguments.precision == "bf16":
        raise WnlbError("--max-ap-drop needs a run, and ONNX Runtime's CPU has no BF16; measure the engine instead")
    for name in ("count", "trial_pictures"):
        if getattr(arguments, name) is not None and getattr(arguments, name) < 1:
            raise WnlbError(f"--{name.replace('_', '-')} is {getattr(arguments, name)}; expected at least 1")


def _bar(total: int | None, what: str, hidden: bool | None) -> Any:
    return tqdm(total=total, desc=what, unit="picture", disable=hidden, file=sys.stderr, leave=False)


def _select(arguments: argparse.Namespace, converter: Converter, folder: Path, hidden: bool | None) -> Selection:
    """The calibration pictures, with manifest, coverage picture and warnings."""
    from wnlb.calibration.coverage import draw_coverage
    from wnlb.calibration.selection import coverage_table, open_pictures, select_pictures, write_manifest

    source = arguments.images or "scenes"
    count = arguments.count or (256 if arguments.precision == "int8" else OVERFLOW_PICTURES)
    with _bar(len(open_pictures(source)) or None, "measure pictures", hidden) as bar:
        selection = select_pictures(source, count, arguments.seed, bar.update)
    _refuse_overlap(arguments, selection, hidden)
    write_manifest(selection, converter.contract, folder / "manifest.json")
    draw_coverage(selection, folder / "coverage.png")
    if not arguments.json:
        rows = [
            ["-" if v is None else f"{v:.1f}" if isinstance(v, float) else v for v in r]
            for r in coverage_table(selection)
        ]
        print(f"{len(selection.chosen)} of {len(selection.seen)} pictures of {source} chosen\n")
        print(table(("luminance", "seen", "chosen", "noise", "contrast"), rows))
    warnings = selection.warnings() if arguments.precision == "int8" else []
    for line in [*warnings, *selection.failures]:
        print(f"wnlb convert: warning: {line}", file=sys.stderr)
    return selection


def _refuse_overlap(arguments: argparse.Namespace, selection: Selection, hidden: bool | None) -> None:
    if arguments.eval_images:
        from wnlb.calibration.selection import hashes_of, open_pictures

        source = str(arguments.eval_images)
        with _bar(len(open_pictures(source)), "compare pictures", hidden) as bar:
            selection.check_apart(hashes_of(source, bar.update))


def _inputs(converter: Converter, selection: Selection, count: int | None = None) -> Iterator[NDArray[np.uint8]]:
    """Inputs of the model, made of chosen pictures by the Predictor's own geometry; each batch holds one of them."""
    from wnlb.calibration.judge import evenly
    from wnlb.runtime.predictor import geometry_of

    geometry = geometry_of(converter.contract)
    for _, frame in selection.frames(evenly(len(selection.chosen), count)):
        batch = np.empty(converter.contract.input_shape, np.uint8)
        batch[:] = geometry.prepare(frame)[0]
        yield batch


def _half(
    arguments: argparse.Namespace, converter: Converter, selection: Selection, hidden: bool | None
) -> tuple[Any, _Outcome]:
    if arguments.precision == "fp16":  # BF16 has FP32's range
        _watch_overflow(converter, selection, None, hidden)
    model, report = converter.half(arguments.precision)
    facts = {"precision": arguments.precision, "half": report.half, "fp32": report.full}
    facts |= {"overflowing": list(report.overflowing), "vanishing": report.vanishing}
    if not arguments.json:
        print(f"\n{report.half} nodes in {arguments.precision.upper()}, {report.full} in FP32")
        if report.overflowing:
            print(f"kept in FP32, for their values leave FP16's range: {', '.join(report.overflowing)}")
        if report.vanishing:
            total = sum(report.vanishing.values())
            print(f"{total} weights are below FP16's range and become 0, in {len(report.vanishing)} tensors:")
            print(", ".join(f"{name} ({count})" for name, count in report.vanishing.items()))
    held = True
    if arguments.max_ap_drop is not None:
        held = _half_budget(arguments, converter, selection, model, facts, hidden)
    return model, _Outcome(facts, held)


def _half_budget(
    arguments: argparse.Namespace,
    converter: Converter,
    selection: Selection,
    model: Any,
    facts: dict[str, Any],
    hidden: bool | None,
) -> bool:
    import tempfile

    import onnx

    judge = _judge(arguments, converter, selection, None, hidden)
    with tempfile.TemporaryDirectory() as folder, _bar(2 * len(judge), "measure", hidden) as bar:
        onnx.save(model, Path(folder) / "half.onnx")
        drop = judge.measure(converter.path, bar.update).drop(judge.measure(Path(folder) / "half.onnx", bar.update))
    facts["drop"] = drop
    if not arguments.json:
        print(_drop_line(drop, judge, arguments.max_ap_drop))
    return drop <= arguments.max_ap_drop


def _watch_overflow(converter: Converter, selection: Selection, count: int | None, hidden: bool | None) -> None:
    with _bar(min(count or len(selection.chosen), len(selection.chosen)), "look for overflow", hidden) as bar:
        converter.watch_overflow(_inputs(converter, selection, count), bar.update)


def _judge(
    arguments: argparse.Namespace, converter: Converter, selection: Selection, count: int | None, hidden: bool | None
) -> Judge:
    """On the labels, or on agreement with FP32; ``count`` pictures of them, evenly taken, or all."""
    from wnlb.calibration.dataset import read_coco
    from wnlb.calibration.judge import Judge, evenly
    from wnlb.runtime.predictor import Predictor

    if arguments.annotations:
        return Judge.on_labels(read_coco(arguments.annotations), arguments.eval_images).part(count)
    pictures = dict(selection.frames(evenly(len(selection.chosen), count or TRIAL_PICTURES)))
    with Predictor(converter.path) as reference, _bar(len(pictures), "run FP32", hidden) as bar:
        return Judge.on_agreement(reference, pictures, bar.update)


def _int8(
    arguments: argparse.Namespace, converter: Converter, selection: Selection, folder: Path, hidden: bool | None
) -> tuple[Any, _Outcome]:
    from wnlb.calibration.convert import Int8Trials, ranges_by
    from wnlb.calibration.judge import Ledger
    from wnlb.calibration.ranges import collect_histograms

    key = f"{converter.sha256} {selection.sha256()} {converter.contract.to_json()}"
    with _bar(len(selection.chosen), "measure ranges", hidden) as bar:
        inputs = _inputs(converter, selection)
        histograms = collect_histograms(
            converter.model, converter.activations, inputs, key, folder / "ranges.npz", bar.update
        )
    if arguments.rest == "fp16":
        _watch_overflow(converter, selection, OVERFLOW_PICTURES, hidden)
    small = _judge(arguments, converter, selection, arguments.trial_pictures, hidden)
    with _bar(_planned(arguments, converter) * len(small), "try INT8", hidden) as bar:
        trials = Int8Trials(
            converter, histograms, small, Ledger(folder / "trials.json"), f"{key} {_labels(arguments)}", bar.update
        )
        choice = _choose(arguments, converter, trials)
        outcome = _Outcome({"precision": "int8", "rest": arguments.rest, "method": choice.method})
        rows: list[Sensitivity] = []
        if arguments.sensitivity:
            rows = _sensitivity(arguments, converter, trials, choice, folder, outcome.facts)
        drop = trials.drop(choice)
        judge = small
        if arguments.max_ap_drop is not None:
            if arguments.annotations:
                judge = _judge(arguments, converter, selection, None, hidden)
            full = Int8Trials(
                converter, histograms, judge, Ledger(folder / "trials.json"), f"{key} {_labels(arguments)}", bar.update
            )
            choice, drop, outcome.held = _budget(arguments, converter, trials, full, choice, rows, outcome.facts)
    outcome.facts |= {"groups": sorted(choice.groups), "drop": drop, "truth": judge.truth, "pictures": len(judge)}
    if not arguments.json:
        left = [group for group in converter.groups if group not in choice.groups]
        print(f"\nINT8: {', '.join(g for g in converter.groups if g in choice.groups) or 'nothing'}")
        print(f"{arguments.rest.upper()}: {', '.join(left) or 'no layer with weights'}")
        print(_drop_line(drop, judge, arguments.max_ap_drop))
    return converter.int8(choice, ranges_by(histograms, choice.method)), outcome


def _planned(arguments: argparse.Namespace, converter: Converter) -> int:
    """Files to measure before a budget is searched, where none was measured before: FP32, methods, edges, groups."""
    from wnlb.calibration.convert import EDGES
    from wnlb.calibration.ranges import METHODS

    methods = len(METHODS) if arguments.method == "auto" else 0
    groups = 2 * len(converter.groups) if arguments.sensitivity else 0
    return 1 + methods + len(EDGES) + groups + 1


def _labels(arguments: argparse.Namespace) -> str:
    from wnlb.runtime.files import sha256_of

    return sha256_of(arguments.annotations) if arguments.annotations else "agreement"


def _kept(arguments: argparse.Namespace, converter: Converter) -> set[str]:
    """Groups that the user keeps out of INT8."""
    kept = {name.strip() for name in arguments.keep.split(",") if name.strip()}
    if unknown := kept - set(converter.groups):
        raise WnlbError(f"--keep names {', '.join(sorted(unknown))}; the groups are {', '.join(converter.groups)}")
    return kept


def _choose(arguments: argparse.Namespace, converter: Converter, trials: Int8Trials) -> Int8Choice:
    """The calibrator, and which of the first and last layers are INT8."""
    from wnlb.calibration.convert import EDGE_DROP, EDGES, Int8Choice
    from wnlb.calibration.ranges import METHODS

    kept = _kept(arguments, converter)
    inner = frozenset(converter.groups) - set(EDGES) - kept
    method = arguments.method
    if method == "auto":
        drops = {name: trials.drop(Int8Choice(inner, name, arguments.rest)) for name in METHODS}
        method = min(drops, key=drops.__getitem__)
        if not arguments.json:
            print("\n" + table(("calibrator", "AP drop"), [(name, f"{drop:.2f}") for name, drop in drops.items()]))
    edges = [
        group
        for group in EDGES
        if group in converter.groups
        and group not in kept
        and trials.drop(Int8Choice(frozenset({group}), method, arguments.rest)) <= EDGE_DROP
    ]
    return Int8Choice(inner | set(edges), method, arguments.rest)


def _sensitivity(
    arguments: argparse.Namespace,
    converter: Converter,
    trials: Int8Trials,
    choice: Int8Choice,
    folder: Path,
    facts: dict[str, Any],
) -> list[Sensitivity]:
    import dataclasses

    from wnlb.calibration.coverage import draw_sensitivity
    from wnlb.calibration.search import sensitivities
    from wnlb.runtime.files import atomic_path
    from wnlb.runtime.table import markdown_table

    rows = sensitivities(converter.groups, lambda groups: trials.drop(dataclasses.replace(choice, groups=groups)))
    header = ("group", "layers", "alone", "all but it")
    lines = markdown_table(header, [(r.group, r.layers, f"{r.alone:.2f}", f"{r.spared:.2f}") for r in rows])
    with atomic_path(folder / "sensitivity.md") as temporary:
        temporary.write_text("Drop of AP in percent with groups in INT8\n\n" + "\n".join(lines) + "\n")
    draw_sensitivity(rows, folder / "sensitivity.png")
    facts["sensitivity"] = [dataclasses.asdict(row) for row in rows]
    if not arguments.json:
        print("\ndrop of AP with only this group in INT8, and with all but it:\n")
        print(table(header, [(r.group, r.layers, f"{r.alone:.2f}", f"{r.spared:.2f}") for r in rows]))
    return rows


def _budget(
    arguments: argparse.Namespace,
    converter: Converter,
    trials: Int8Trials,
    full: Int8Trials,
    choice: Int8Choice,
    rows: list[Sensitivity],
    facts: dict[str, Any],
) -> tuple[Int8Choice, float, bool]:
    """The choice with the fewest groups spared that holds the budget on all evaluation pictures."""
    import dataclasses

    from wnlb.calibration.search import hold_budget

    def drop_of(groups: frozenset[str]) -> float:
        return full.drop(dataclasses.replace(choice, groups=groups))

    order = [group for group in converter.groups if group in choice.groups]
    if drop_of(choice.groups) > arguments.max_ap_drop:
        alone = {row.group: row.alone for row in rows} or {
            group: trials.drop(dataclasses.replace(choice, groups=frozenset({group}))) for group in order
        }
        order.sort(key=lambda group: -alone[group])
    tried: list[Trial] = []

    def tell(trial: Trial) -> None:
        tried.append(trial)
        if not arguments.json:
            verdict = "holds" if trial.held else "too much"
            print(f"spared: {', '.join(trial.spared) or 'nothing'}: drop {trial.drop:.2f}, {verdict}")

    if not arguments.json:
        print(f"\nbudget: at most {arguments.max_ap_drop:g} AP")
    best, held = hold_budget(order, drop_of, arguments.max_ap_drop, tell)
    facts["trials"] = [dataclasses.asdict(trial) for trial in tried]
    return dataclasses.replace(choice, groups=frozenset(order) - set(best.spared)), best.drop, held


def _drop_line(drop: float, judge: Judge, budget: float | None) -> str:
    against = "labels" if judge.truth == "labels" else "what FP32 finds"
    verdict = "" if budget is None else ", within the budget" if drop <= budget else f", more than {budget:g}"
    return f"AP drops by {drop:.2f} (worse of box and mask, {len(judge)} pictures, against {against}){verdict}"
