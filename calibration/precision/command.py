"""``wnlb convert``: FP16, BF16 and INT8 from the FP32 file, calibrated on night pictures."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from wnlb.runtime.errors import WnlbError
from wnlb.runtime.files import check_output, make_folder
from wnlb.runtime.table import human_bytes, table

if TYPE_CHECKING:
    from wnlb.calibration.precision.convert import Converter
    from wnlb.calibration.precision.selection import Selection

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

A file of another tool, of any network, is converted by its operators: inputs and outputs stay FP32, and so does all
that follows the last layer with weights. It has no contract that says how frames go in; calibrate on arrays as it takes
them, one .npz (arrays by input name) or .npy a run. What it costs is told as errors of its outputs.

  wnlb convert other.onnx --precision fp16 -o other.fp16.onnx --inputs arrays/
  wnlb convert other.onnx --precision int8 -o other.int8.onnx --inputs arrays/

What was measured lies in MODEL.int8.calibration/: manifest.json (the chosen pictures), coverage.png, ranges.npz (used
again where model and pictures are the same, also after an interrupt), trials.json, sensitivity.md and .png.
Exit code 1: no choice of groups holds --max-ap-drop; the best one is written nevertheless.
"""
TRIAL_PICTURES = 32
INT8_OPTIONS = {"method": "auto", "rest": "fp16", "keep": "", "sensitivity": False}  # and what they are by default


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = _DESCRIPTION
    parser.add_argument("model", type=Path, help="an FP32 file of 'wnlb export' or 'wnlb adopt', or another tool's")
    parser.add_argument("--precision", choices=("fp16", "bf16", "int8"), required=True, help="of the file")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="the ONNX file to write")
    pictures = parser.add_argument_group("calibration pictures")
    pictures.add_argument(
        "--images",
        metavar="SOURCE",
        help="folder, glob, video, list (.txt), or 'scenes' for synthetic ones, as fp16 and bf16 have by default",
    )
    pictures.add_argument(
        "--count",
        type=int,
        metavar="N",
        help="pictures to choose from it (default: 256 for int8, 16 to look for overflow in fp16)",
    )
    pictures.add_argument(
        "--inputs", type=Path, metavar="PATH", help="of another tool's file, instead: .npz or .npy files of arrays"
    )
    pictures.add_argument("--seed", type=int, default=0, metavar="N", help="of the choice (default: 0)")
    int8 = parser.add_argument_group("INT8")
    int8.add_argument(
        "--method",
        choices=("auto", "max", "entropy", "percentile", "mse"),
        default=INT8_OPTIONS["method"],
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
    budget.add_argument(
        "--annotations", type=Path, metavar="FILE", help="COCO labels; without them agreement with FP32 is measured"
    )
    budget.add_argument("--eval-images", type=Path, metavar="DIR", help="their pictures, other than those of --images")
    parser.add_argument("--calibration", type=Path, metavar="DIR", help="default: OUTPUT without .onnx, .calibration")
    parser.add_argument("--json", action="store_true", help="print JSON for programs")


def run(arguments: argparse.Namespace) -> int:
    _check(arguments)
    if _is_foreign(arguments.model):
        from wnlb.calibration.precision.foreign_job import convert_foreign

        return convert_foreign(arguments)
    if arguments.inputs:
        raise WnlbError(f"--inputs is for files of other tools; {arguments.model} has a wnlb contract: give --images")
    _check_pictures(arguments)
    from wnlb.calibration.precision.convert import Converter, save_checked
    from wnlb.calibration.precision.int8 import convert_int8, kept_groups
    from wnlb.calibration.precision.job import Job, convert_half

    converter = Converter(arguments.model)
    kept_groups(arguments.keep, converter)
    folder = arguments.calibration or arguments.output.with_suffix(".calibration")
    make_folder(folder)
    selection = _select(arguments, converter, folder)
    converter.calibrated_luminance = selection.luminances
    job = Job(arguments, converter, selection, folder)
    model = convert_int8(job) if arguments.precision == "int8" else convert_half(job)
    save_checked(model, arguments.output, run=arguments.precision != "bf16")
    size = arguments.output.stat().st_size
    job.facts |= {"output": str(arguments.output), "bytes": size, "calibration": str(folder)}
    job.say(f"\nwrote {arguments.output}, {human_bytes(size)}; measurements in {folder}/")
    if arguments.json:
        print(json.dumps(job.facts, indent=2))
    return 0 if job.held else 1


def _is_foreign(path: Path) -> bool:
    """Whether it is an ONNX file without a contract."""
    from wnlb.runtime.onnx_file import contract_of, read_onnx

    return contract_of(read_onnx(path)) is None


def _check(arguments: argparse.Namespace) -> None:
    """Whatever can be refused before work begins."""
    check_output(arguments.output, ".onnx", arguments.model)
    for name, default in INT8_OPTIONS.items():
        if arguments.precision != "int8" and getattr(arguments, name) != default:
            raise WnlbError(f"--{name} is of INT8, the precision is {arguments.precision}; leave it out")
    for name, least in (("count", 1), ("trial_pictures", 1), ("seed", 0)):
        if getattr(arguments, name) is not None and getattr(arguments, name) < least:
            raise WnlbError(f"--{name.replace('_', '-')} is {getattr(arguments, name)}; expected {least} or more")


def _check_pictures(arguments: argparse.Namespace) -> None:
    """The same of what a file of ours is converted with."""
    if arguments.precision == "int8" and not arguments.images:
        raise WnlbError("INT8 needs --images, pictures such as the camera sees at night (or 'scenes' to try it)")
    if bool(arguments.annotations) != bool(arguments.eval_images):
        raise WnlbError("--annotations and --eval-images go together: give both, or none to compare with FP32")
    if arguments.annotations and arguments.precision != "int8" and arguments.max_ap_drop is None:
        raise WnlbError("--annotations judge a budget; give --max-ap-drop too, or leave them out")
    if arguments.max_ap_drop is not None and not arguments.max_ap_drop >= 0:
        raise WnlbError(f"--max-ap-drop is {arguments.max_ap_drop}; expected 0 or more")
    if arguments.max_ap_drop is not None and arguments.precision == "bf16":
        raise WnlbError("--max-ap-drop needs a run, and ONNX Runtime's CPU has no BF16; measure the engine instead")


def _select(arguments: argparse.Namespace, converter: Converter, folder: Path) -> Selection:
    """The calibration pictures, with manifest, coverage picture and warnings."""
    from wnlb.calibration.precision.coverage import draw_coverage
    from wnlb.calibration.precision.job import OVERFLOW_PICTURES, progress_bar
    from wnlb.calibration.precision.selection import coverage_table, open_pictures, select_pictures, write_manifest

    source = arguments.images or "scenes"
    count = arguments.count or (256 if arguments.precision == "int8" else OVERFLOW_PICTURES)
    with progress_bar(len(open_pictures(source)) or None, "measure pictures", arguments.json) as bar:
        selection = select_pictures(source, count, arguments.seed, bar.update)
    _refuse_overlap(arguments, selection)
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


def _refuse_overlap(arguments: argparse.Namespace, selection: Selection) -> None:
    if arguments.eval_images:
        from wnlb.calibration.precision.job import progress_bar
        from wnlb.calibration.precision.selection import hashes_of, open_pictures

        source = str(arguments.eval_images)
        with progress_bar(len(open_pictures(source)), "compare pictures", arguments.json) as bar:
            selection.check_apart(hashes_of(source, bar.update))
