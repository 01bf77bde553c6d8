"""``wnlb evaluate``: COCO accuracy by class and by darkness."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from wnlb.runtime.errors import WnlbError
from wnlb.runtime.files import atomic_path, make_folder
from wnlb.runtime.onnxruntime_backend import DEVICES
from wnlb.runtime.served_model import Model, model_of, options_for
from wnlb.runtime.tracking.arguments import add_smoothing_argument, check_smoothing, make_tracker

if TYPE_CHECKING:
    from wnlb.calibration.accuracy.judge import Judge
    from wnlb.calibration.accuracy.score import Evaluation
    from wnlb.calibration.accuracy.tracks import TrackEvaluation
    from wnlb.runtime.predictor import Predictor
    from wnlb.runtime.source import Frame

_DESCRIPTION = """\
Score a model on labelled pictures: box and mask AP (COCO, IoU 0.50:0.95), by class, by size of the object and by the
darkness of the picture (mean linear luminance, measured), and average recall. Classes are matched to categories by
name, whatever their ids: LIS counts from 0. Labels without masks serve for box AP.
Without labels, what a baseline finds with a score of 0.5 or more is the truth.

  wnlb evaluate model.onnx --annotations night/annotations.json --images night/images
  wnlb evaluate int8.onnx --baseline fp32.onnx --annotations a.json --images pictures/ -o report/
  wnlb evaluate int8.onnx --baseline fp32.onnx --images pictures/
  wnlb evaluate model.onnx --track --annotations drives/annotations.json --images drives/images

With --track, on videos (COCO-VID, as of 'wnlb scenes --video'), also how well identities hold: HOTA, IDF1 and MOTA of
boxes and masks, by the darkness of the video; with --smooth of averaged scores and masks.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = _DESCRIPTION
    parser.add_argument(
        "model", type=model_of, help=".onnx of 'wnlb export' or 'convert', .engine of 'build', triton://HOST:8001/MODEL"
    )
    parser.add_argument(
        "--annotations", type=Path, metavar="FILE", help="COCO labels (default: what the baseline finds is the truth)"
    )
    parser.add_argument(
        "--images",
        required=True,
        metavar="SOURCE",
        help="folder of the labelled pictures; without labels pictures or a video",
    )
    parser.add_argument("--baseline", type=model_of, metavar="MODEL", help="another model, to compare with")
    parser.add_argument("--track", action="store_true", help="also score identities, on annotations of videos")
    add_smoothing_argument(parser)
    parser.add_argument("--count", type=int, metavar="N", help="pictures to use, evenly taken (default: all)")
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="DIR",
        help="also write report.md, darkness.png and results.json (COCO results)",
    )
    parser.add_argument(
        "--device", choices=DEVICES, default="auto", help="of .onnx files; default: CUDA where it works"
    )
    parser.add_argument("--threads", type=int, default=0, metavar="N", help="CPU threads (default: one per core)")
    parser.add_argument("--json", action="store_true", help="print JSON for programs")


def run(arguments: argparse.Namespace) -> int:
    from wnlb.calibration.accuracy.evaluate import evaluate_pictures
    from wnlb.calibration.accuracy.report import json_of, markdown
    from wnlb.calibration.accuracy.score import agreement
    from wnlb.calibration.accuracy.track_report import track_markdown, tracks_json
    from wnlb.calibration.accuracy.tracks import VideoTracks, by_video, score_tracks

    if not arguments.annotations and not arguments.baseline:
        raise WnlbError("neither --annotations nor --baseline was given; expected labels, or a model to compare with")
    if arguments.track and not arguments.annotations:
        raise WnlbError("--track needs --annotations with identities, as 'wnlb scenes --video' writes them")
    check_smoothing(arguments)
    if arguments.count is not None and arguments.count < 1:
        raise WnlbError(f"--count is {arguments.count}; expected 1 or more")
    if arguments.output:
        make_folder(arguments.output)
    judge, labels = _judge(arguments), arguments.annotations is not None
    for note in judge.notes:
        print(f"wnlb evaluate: {note}", file=sys.stderr)
    if arguments.track:
        judge.labels = by_video(judge.labels)
    evaluations: list[Evaluation] = []
    tracked: list[TrackEvaluation] = []
    make = partial(make_tracker, smooth_s=arguments.smooth)
    for path in filter(None, (arguments.model, arguments.baseline if labels else None)):
        with _open(path, arguments) as predictor, _bar(len(judge), path.name) as bar:
            tracks = VideoTracks(judge.labels, make) if arguments.track else None
            evaluation = evaluate_pictures(predictor, judge.labels, judge.picture_of, path.name, bar.update, tracks)
        evaluations.append(evaluation)
        if tracks:
            tracked.append(score_tracks(judge.labels, evaluation.results, tracks.light, path.name))
    other = (evaluations[-1].results if labels else judge.sure) if arguments.baseline else None
    same = None if other is None else agreement(evaluations[0].results, other)
    report = markdown(evaluations, same, "" if labels else arguments.baseline.name, judge.notes)
    report += track_markdown(tracked)
    if arguments.output:
        _write(arguments.output, report, evaluations)
    facts = {"truth": judge.truth, **json_of(evaluations, same), "tracks": tracks_json(tracked), "notes": judge.notes}
    print(json.dumps(facts, indent=2) if arguments.json else report)
    return 0


def _write(folder: Path, report: str, evaluations: list[Evaluation]) -> None:
    """report.md, darkness.png, and what was found as COCO results: results.json, of a baseline baseline.json."""
    from wnlb.calibration.accuracy.report import coco_results, plot

    for name, evaluation in zip(("results", "baseline"), evaluations, strict=False):
        with atomic_path(folder / f"{name}.json") as temporary:
            temporary.write_text(json.dumps(coco_results(evaluation)))
    with atomic_path(folder / "report.md") as temporary:
        temporary.write_text(report)
    plot(evaluations, folder / "darkness.png")


def _judge(arguments: argparse.Namespace) -> Judge:
    from wnlb.calibration.accuracy.judge import Judge

    if arguments.annotations:
        return Judge.on_labels(arguments.annotations, Path(arguments.images), arguments.count)
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


def _open(model: Model, arguments: argparse.Namespace) -> Predictor:
    from wnlb.runtime.predictor import AT_ONCE, Predictor

    return Predictor(model, at_once=AT_ONCE, **options_for(model, arguments.device, arguments.threads))


def _bar(total: int, what: str) -> Any:
    return tqdm(total=total, desc=what, unit="picture", disable=None, file=sys.stderr, leave=False)
