"""``wnlb compare``: FP32 against FP16 against INT8, from the first drifting tensor to the pictures that show it."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from wnlb.export.arguments import add_weights_arguments, overrides_of
from wnlb.runtime.errors import WnlbError
from wnlb.runtime.files import atomic_path, make_folder
from wnlb.runtime.table import table

if TYPE_CHECKING:
    from wnlb.calibration.accuracy.score import Evaluation
    from wnlb.calibration.comparison.compare import DetectionError, TapReport
    from wnlb.calibration.comparison.page import Shown
    from wnlb.runtime.predictor import Predictor

_DESCRIPTION = """\
Compare models on the same pictures; the first is the reference. AP as a whole and by darkness (against labels, or
against what the reference finds), detections that agree, inner tensors of ONNX files of one export (C2..C5 before and
after their blocks, P2..P5, proposals) with the first that drifts, and a page with the pictures that differ most.

  wnlb compare model.onnx model.fp16.onnx model.int8.onnx --images night/ -o comparison/
  wnlb compare checkpoint.pth model.onnx model.int8.onnx --images pictures/ --annotations a.json -o comparison/

A checkpoint runs eagerly, as its own framework runs it, with the sizes, thresholds and settings of the first file.
"""
FILES = (".onnx", ".engine")  # everything else is a checkpoint


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = _DESCRIPTION
    parser.add_argument(
        "models", nargs="+", metavar="MODEL", help="files or engines, and checkpoints as 'wnlb export' takes them"
    )
    parser.add_argument("--images", required=True, metavar="SOURCE", help="pictures; with --annotations their folder")
    parser.add_argument(
        "--annotations", type=Path, metavar="FILE", help="COCO labels; without them the reference is the truth"
    )
    parser.add_argument("--count", type=int, metavar="N", help="pictures to use, evenly taken (default: all)")
    parser.add_argument("--tap-pictures", type=int, default=8, metavar="N", help="for inner tensors (default: 8)")
    parser.add_argument("--show", type=int, default=6, metavar="N", help="pictures on the page (default: 6)")
    parser.add_argument(
        "-o", "--output", type=Path, default=Path("comparison"), metavar="DIR", help="default: comparison"
    )
    parser.add_argument("--json", action="store_true", help="print JSON for programs")
    add_weights_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    from wnlb.calibration.accuracy.score import agreement
    from wnlb.calibration.comparison.compare import detection_error
    from wnlb.calibration.comparison.page import page

    if len(arguments.models) < 2:
        raise WnlbError("one model was given; expected a reference and at least one other")
    for name, least in (("count", 1), ("tap_pictures", 0), ("show", 0)):
        value = getattr(arguments, name)
        if value is not None and value < least:
            raise WnlbError(f"--{name.replace('_', '-')} is {value}; expected {least} or more")
    overrides = overrides_of(arguments.overrides)
    make_folder(arguments.output)
    hidden = arguments.json or None
    arguments.models = [_found(text, hidden) for text in arguments.models]
    predictors = _open(arguments, overrides)
    try:
        judge = _judge(arguments, predictors[0], hidden)
        _refuse_overlap(arguments, judge)
        evaluations = []
        for path, predictor in zip(arguments.models, predictors, strict=True):
            with _bar(len(judge), path.name, hidden) as bar:
                evaluations.append(_evaluate(judge, predictor, path.name, bar.update))
        errors = [detection_error(evaluations[0].results, other.results) for other in evaluations[1:]]
        agreements = [agreement(evaluations[0].results, other.results) for other in evaluations[1:]]
        taps = _taps(arguments, judge, hidden)
        shown = _shown(arguments, judge, predictors, evaluations)
    finally:
        for predictor in predictors:
            predictor.close()
    with atomic_path(arguments.output / "index.html") as temporary:
        temporary.write_text(page(evaluations, judge.truth, agreements, errors, taps, shown))
    facts: dict[str, Any] = {"notes": judge.notes}
    facts |= _facts(evaluations, judge.truth, agreements, errors, taps, shown)
    with atomic_path(arguments.output / "comparison.json") as temporary:
        temporary.write_text(json.dumps(facts, indent=1))
    print(
        json.dumps(facts, indent=2)
        if arguments.json
        else _text(evaluations, agreements, errors, taps, judge.truth, arguments.output)
    )
    return 0


def _bar(total: int, what: str, hidden: bool | None) -> Any:
    return tqdm(total=total, desc=what, unit="picture", disable=hidden, file=sys.stderr, leave=False)


def _found(text: str, hidden: bool | None) -> Path:
    """A model by its path; a checkpoint may have a name or an address, see ``wnlb export``."""
    if Path(text).suffix.lower() in FILES:
        return Path(text)
    from wnlb.export.checkpoints.files.fetched import fetched_checkpoint

    return fetched_checkpoint(text, hidden=hidden).path


def _is_checkpoint(path: Path) -> bool:
    return path.suffix.lower() not in FILES


def _open(arguments: argparse.Namespace, overrides: dict[str, Any]) -> list[Predictor]:
    """A predictor for each model; a checkpoint takes the contract of the first file."""
    from wnlb.runtime.predictor import AT_ONCE, Predictor

    files = [path for path in arguments.models if not _is_checkpoint(path)]
    if not files:
        raise WnlbError("only checkpoints were given; expected an exported file too, which tells size and thresholds")
    opened = {path: Predictor(path, at_once=AT_ONCE) for path in dict.fromkeys(files)}
    contract = opened[files[0]].contract
    for path in files[1:]:
        other = opened[path].contract
        if other.class_names != contract.class_names:
            raise WnlbError(f"{path} has other classes than {files[0]}; compare files of one model")
    predictors = []
    for path in arguments.models:
        if path in opened:
            predictors.append(opened[path])
        else:
            from wnlb.export.onnx_file.eager import EagerBackend

            reading = {"weights": arguments.weights, "key_map": arguments.key_map, "overrides": overrides}
            predictors.append(Predictor(EagerBackend(path, contract, **reading)))
    return predictors


def _judge(arguments: argparse.Namespace, reference: Predictor, hidden: bool | None) -> Any:
    from wnlb.calibration.accuracy.judge import Judge, evenly
    from wnlb.calibration.precision.selection import open_pictures

    if arguments.annotations:
        judge = Judge.on_labels(arguments.annotations, Path(arguments.images), arguments.count)
        for note in judge.notes:
            print(f"wnlb compare: {note}", file=sys.stderr)
        return judge
    frames = {frame.name: frame.pixels for frame in open_pictures(arguments.images) if frame.pixels is not None}
    if not frames:
        raise WnlbError(f"no picture of {arguments.images} can be read")
    names = [list(frames)[i] for i in evenly(len(frames), arguments.count)]
    taken = {name: frames[name] for name in names}
    with _bar(len(taken), "truth", hidden) as bar:
        return Judge.on_agreement(reference, taken, bar.update)


def _evaluate(judge: Any, predictor: Predictor, name: str, on_done: Any) -> Evaluation:
    from wnlb.calibration.accuracy.evaluate import evaluate_pictures

    return evaluate_pictures(predictor, judge.labels, judge.picture_of, name, on_done)


def _refuse_overlap(arguments: argparse.Namespace, judge: Any) -> None:
    """No figure of a model on the pictures that it was calibrated on."""
    from wnlb.calibration.precision.selection import pixel_hash, read_hashes

    manifests = [path.with_suffix(".calibration") / "manifest.json" for path in arguments.models]
    used = [(path, read_hashes(path)) for path in manifests if path.is_file() and _is_int8(path)]
    if not used or not arguments.annotations:
        return
    for image in judge.labels.images:
        digest = pixel_hash(judge.picture_of.as_seen(image))
        for path, hashes in used:
            if digest in hashes:
                raise WnlbError(
                    f"picture {image.file_name} is among those that {path.parent.stem} was calibrated on: its "
                    "accuracy would flatter; keep the two apart"
                )


def _is_int8(manifest: Path) -> bool:
    return (manifest.parent / "ranges.npz").is_file()


def _taps(arguments: argparse.Namespace, judge: Any, hidden: bool | None) -> dict[str, TapReport]:
    """Of the files after the first; none where the files are not of one export, or hold what the CPU cannot run."""
    from wnlb.calibration.accuracy.judge import evenly
    from wnlb.calibration.comparison.compare import compare_taps
    from wnlb.runtime.inputs import prepared_inputs
    from wnlb.runtime.onnx_file import read_model

    files = [path for path in arguments.models if not _is_checkpoint(path)]
    models = [read_model(path) for path in files]
    origin = {contract.checkpoint_sha256 for _, contract in models}
    sizes = {(contract.batches, *contract.input_shapes.items()) for _, contract in models}
    if len(files) < 2 or len(sizes) > 1 or len(origin) > 1 or arguments.tap_pictures < 1:
        return {}
    images = judge.labels.images
    images = [images[i] for i in evenly(len(images), arguments.tap_pictures)]
    contract = models[0][1]
    batches = (prepared_inputs(contract, [judge.picture_of(image)] * contract.batches[0]) for image in images)
    with _bar(len(images), "taps", hidden) as bar:
        reports = compare_taps([model for model, _ in models], batches, bar.update)
    return {path.name: report for path, report in zip(files[1:], reports, strict=True)}


def _shown(
    arguments: argparse.Namespace, judge: Any, predictors: list[Predictor], evaluations: list[Evaluation]
) -> list[Shown]:
    from wnlb.calibration.accuracy.score import AGREEMENT_SCORE
    from wnlb.calibration.comparison.compare import most_different
    from wnlb.calibration.comparison.page import Shown
    from wnlb.runtime.overlay import draw

    worst = most_different(evaluations[0].results, evaluations[-1].results, arguments.show)
    images = {image.id: image for image in judge.labels.images}
    shown = []
    for number in worst:
        picture = judge.picture_of(images[number])
        overlays, counts = [], []
        for predictor in predictors:
            found = predictor(picture).above(AGREEMENT_SCORE)
            overlays.append(draw(picture, found, predictor.contract.class_names))
            counts.append(len(found))
        shown.append(Shown(images[number].file_name, tuple(overlays), tuple(counts)))
    return shown


def _facts(
    evaluations: list[Evaluation],
    truth: str,
    agreements: list[tuple[int, int, int]],
    errors: list[DetectionError],
    taps: dict[str, TapReport],
    shown: list[Shown],
) -> dict[str, Any]:
    from wnlb.calibration.accuracy.report import json_of

    return {
        **json_of(evaluations, None),
        "detections": [dataclasses.asdict(error) for error in errors],
        "agreement": [dict(zip(("pairs", "first", "second"), same, strict=True)) for same in agreements],
        "truth": truth,
        "taps": {
            name: {
                "first_drift": report.first_drift(),
                "proposals": dict(zip(("same", "of"), report.proposals, strict=True)),
                "errors": {
                    error.tap: {"relative": error.relative, "largest": error.largest} for error in report.errors
                },
            }
            for name, report in taps.items()
        },
        "most_different": [picture.name for picture in shown],
    }


def _text(
    evaluations: list[Evaluation],
    agreements: list[tuple[int, int, int]],
    errors: list[DetectionError],
    taps: dict[str, TapReport],
    truth: str,
    output: Path,
) -> str:
    from wnlb.calibration.accuracy.report import markdown

    lines = [markdown(evaluations, None, "" if truth == "labels" else evaluations[0].model)]
    for evaluation, (pairs, first, second), error in zip(evaluations[1:], agreements, errors, strict=True):
        masks = "" if error.mask_iou is None else f", their masks by an IoU of {error.mask_iou:.3f}"
        lines.append(
            f"{evaluation.model}: {pairs} detections agree, of {first} and {second}; on average boxes differ by "
            f"{error.box:.2f} px, scores by {error.score:.3f}{masks}"
        )
    for name, report in taps.items():
        rows = [(error.tap, f"{error.relative:.4f}", f"{error.largest:.3g}") for error in report.errors]
        first_drift = report.first_drift()
        lines.append(f"\n{name}: {f'{first_drift} drifts first' if first_drift else 'nothing drifts'}\n")
        lines.append(table(("tensor", "relative error", "largest difference"), rows))
        if report.proposals[1]:
            lines.append(f"{report.proposals[0]} of {report.proposals[1]} proposals are the same")
    return "\n".join([*lines, f"\nlook at {output / 'index.html'}"])
