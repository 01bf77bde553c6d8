"""``wnlb adopt``: a segmentation ONNX file of another tool to one of ours."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from wnlb.export.arguments import (
    add_file_arguments,
    add_frame_arguments,
    add_graph_arguments,
    options_of,
    overrides_of,
)
from wnlb.runtime.errors import WnlbError
from wnlb.runtime.files import check_output, sha256_of
from wnlb.runtime.geometry import parse_size
from wnlb.runtime.table import human_bytes, table
from wnlb.runtime.text_file import read_names

if TYPE_CHECKING:
    from wnlb.export.adopt.adopt_onnx import AdoptReport
    from wnlb.export.adopt.families.foreign import ForeignFile
    from wnlb.export.graph.attention import AttentionPlan
    from wnlb.export.options import ExportOptions

_DESCRIPTION = """\
Take a YOLOv8-seg or YOLO11-seg file that ultralytics exported, or a SOLOv2 file with the outputs of its head, with or
without weighted non-local blocks, and write it as one static file of ours: frames in, boxes, scores, labels and masks
out. All other commands then work on it: convert, compare, build, predict, run, evaluate, profile, inspect.

The file is compared with the original in ONNX Runtime and a plain reference of the post-processing of ultralytics or
mmdetection before it appears; where anything differs, no file is written and the exit code is 1. Export a YOLO-seg
without nms=True, half=True or end2end; opset 17 or later, simplified or not, of a fixed size or dynamic. Of a SOLOv2
(mmdetection's or SOLO's) the outputs are kernels and scores of each grid, and mask features; what the file does not
tell (mean, thresholds, Matrix NMS) comes from --config or --set, and is mmdetection's default else.

  yolo export model=best.pt format=onnx opset=18      # in the environment that it was trained in
  wnlb adopt best.onnx -o model.onnx
  wnlb adopt best.onnx -o model.onnx --target cpu                          # no GPU
  wnlb adopt best.onnx -o model.onnx --attention auto                      # our kernel where the matrix is large
  wnlb adopt best.onnx -o model.onnx --batch 1-8                           # any number of frames to 8
  wnlb adopt dynamic.onnx -o model.onnx --size 384x640                     # of a file with dynamic=True
  wnlb adopt best.onnx -o ap.onnx --score-threshold 0.001 --candidates 3840    # to measure AP, as 'yolo val' does
  wnlb adopt solov2.onnx -o model.onnx --config solov2_r50.py --classes names.txt
  wnlb adopt solov2.onnx -o model.onnx --set channel_order=bgr --set 'mean=[103.53,116.28,123.675]' --set 'std=[1,1,1]'
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = _DESCRIPTION
    parser.add_argument("model", type=Path, help="an ONNX file of another tool")
    add_file_arguments(
        parser,
        size="input size in pixels, multiples of 32, where the file leaves it open",
        size_required=False,
        classes=", where the file does not tell them",
    )
    told = parser.add_argument_group("what a SOLOv2 file does not tell")
    told.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="mmdetection's (.py) that it was trained with; read as data, never run",
    )
    told.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        dest="overrides",
        help="one of its entries: channel_order=bgr, mean=[103.5,116.3,123.7], std=[1,1,1], scale=[600,400], "
        "cell_threshold=0.1, nms_candidates=500, nms_sigma=2, cell_strides=[8,8,16,32,32], grids=[40,36,24,16,12]",
    )
    add_graph_arguments(
        parser,
        masks=("frame", "none"),
        masks_default="frame, a quarter of the input's height and width",
        detections="300; SOLOv2: 100",
        score_threshold="0.25; SOLOv2: 0.05",
        nms_threshold="0.7; SOLOv2 has none",
        candidates="anchors that enter NMS, or (cell, class) pairs of SOLOv2, the best ones",
    )
    add_frame_arguments(parser, resize="fit", interpolation="bilinear, as they are trained")


def run(arguments: argparse.Namespace) -> int:
    check_output(arguments.output, ".onnx", arguments.model)
    names = read_names(arguments.classes) if arguments.classes else ()
    bar = tqdm(
        total=None, file=sys.stderr, disable=arguments.json or None, leave=False, bar_format="{desc} [{elapsed}]"
    )
    with bar:
        bar.set_description_str("load PyTorch")
        from wnlb.export.adopt.adopt_onnx import STEPS, adopt_onnx
        from wnlb.export.adopt.recognise import recognised

        bar.set_description_str(f"read {arguments.model.name}")
        overrides = overrides_of(arguments.overrides)
        file = recognised(arguments.model, names, arguments.config, overrides)
        options = _options(arguments, file)

        def on_plan(plans: list[AttentionPlan]) -> None:
            if not arguments.json:
                bar.write(_plan_text(arguments.model, file, plans, options), file=sys.stdout)

        report = adopt_onnx(
            file,
            arguments.output,
            options,
            original=arguments.model,
            sha256=sha256_of(arguments.model),
            on_plan=on_plan,
            on_step=lambda step: bar.set_description_str(f"step {STEPS.index(step) + 1} of {len(STEPS)}: {step}"),
        )
    size = arguments.output.stat().st_size
    if arguments.json:
        print(json.dumps(_json(report, file, arguments.output, size), indent=2))
    else:
        print(_verification_text(report))
        print(f"\nwrote {arguments.output}, {human_bytes(size)}")
    return 0


def _options(arguments: argparse.Namespace, file: ForeignFile) -> ExportOptions:
    height, width = parse_size(arguments.size) if arguments.size else (file.height, file.width)
    if height is None or width is None:
        raise WnlbError(f"{arguments.model} leaves the size of its input open; say which: --size 640x640")
    if file.fixed_size and (height, width) != (file.height, file.width):
        raise WnlbError(
            f"{arguments.model} is of {file.height}x{file.width} pixels, --size is {height}x{width}; export it for "
            "that size, or with dynamic=True"
        )
    return options_of(arguments, height, width)


def _plan_text(path: Path, file: ForeignFile, plans: list[AttentionPlan], options: ExportOptions) -> str:
    from wnlb.export.graph.attention import plan_table

    header = f"{path.name}: {file.title}; input {options.height}x{options.width}"
    if file.licence:
        header += f"\nlicence, as the file says: {file.licence}"
    return f"{header}\n\n{plan_table(plans)}\n" if plans else f"{header}; no weighted non-local blocks found\n"


def _verification_text(report: AdoptReport) -> str:
    rows = [
        (
            case.name,
            case.detections,
            f"{case.threshold:.3g}",
            case.errors.missing + case.errors.extra,
            f"{case.errors.box:.2g}",
            f"{case.errors.score:.2g}",
            f"{100 * case.errors.mask:.2g} %",
            "-" if case.chain is None else f"{case.chain} of {report.contract.nms_rounds}",
        )
        for case in report.cases
    ]
    columns = (
        "against the original",
        "detections",
        "above",
        "others",
        "boxes px",
        "scores",
        "mask pixels",
        "NMS rounds",
    )
    lines = [table(columns, rows)]
    if any(case.rounding for case in report.cases):
        lines.append(
            "this network amplifies rounding: where more than the tolerances differ, the original differs so too"
        )
    return "\n".join(lines)


def _json(report: AdoptReport, file: ForeignFile, path: Path, size: int) -> dict[str, Any]:
    return {
        "output": str(path),
        "bytes": size,
        "recognised": file.title,
        "licence": file.licence,
        "contract": json.loads(report.contract.to_json()),
        "plans": [dataclasses.asdict(plan) for plan in report.plans],
        "verification": [dataclasses.asdict(case) for case in report.cases],
    }
