"""``wnlb adopt``: a segmentation ONNX file of another tool to one of ours."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from wnlb.export.arguments import parse_batches, parse_bytes, parse_setting
from wnlb.export.options import ExportOptions
from wnlb.runtime.contract import INTERPOLATIONS, RESIZES, TARGETS
from wnlb.runtime.errors import WnlbError
from wnlb.runtime.files import sha256_of
from wnlb.runtime.geometry import parse_size
from wnlb.runtime.table import human_bytes, table
from wnlb.runtime.text_file import read_names

if TYPE_CHECKING:
    from wnlb.export.adopt.adopt_onnx import AdoptReport
    from wnlb.export.adopt.families.foreign import ForeignFile
    from wnlb.export.graph.attention import AttentionPlan

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
    parser.add_argument("-o", "--output", type=Path, required=True, help="the ONNX file to write")
    parser.add_argument(
        "--size", metavar="HxW", help="input size in pixels, multiples of 32, where the file leaves it open"
    )
    names = "class names, where the file does not tell them: one a line, a JSON list, or COCO's annotations"
    parser.add_argument("--classes", type=Path, metavar="FILE", help=names)
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
    graph = parser.add_argument_group("graph")
    defaults = {field.name: field.default for field in dataclasses.fields(ExportOptions)}
    graph.add_argument(
        "--target",
        choices=TARGETS,
        default="gpu",
        help="gpu, for engines and FP16 or INT8; or cpu, for ONNX Runtime without a GPU (default: gpu)",
    )
    graph.add_argument("--batch", metavar="N", help="frames per run; A-B for any number of them (default: 1)")
    graph.add_argument("--masks", choices=("frame", "none"), default="frame", help="none: boxes only (default: frame)")
    graph.add_argument("--detections", type=int, metavar="N", help="rows of the outputs (default: 300; SOLOv2: 100)")
    graph.add_argument("--score-threshold", type=float, metavar="S", help="default: 0.25; SOLOv2: 0.05")
    graph.add_argument("--nms-threshold", type=float, metavar="IOU", help="of YOLO (default: 0.7)")
    for name, what in (
        ("candidates", "anchors that enter NMS, or (cell, class) pairs, the best ones"),
        ("nms_rounds", "of YOLO, longest chain of overlapping boxes that NMS resolves"),
    ):
        option = f"--{name.replace('_', '-')}"
        graph.add_argument(option, type=int, default=defaults[name], metavar="N", help=f"{what} (default: %(default)s)")
    graph.add_argument(
        "--attention",
        default="standard",
        metavar="FORM",
        help="of blocks that are found: standard operators, one node of our TensorRT plugin each (plugin), or the "
        "plugin where the standard form would be cut into chunks (auto); also per level: c2=plugin (default: standard)",
    )
    graph.add_argument(
        "--attention-memory",
        metavar="SIZE",
        help="most that a piece of an attention matrix may take (default: 256MiB; 32MiB for --target cpu)",
    )
    frames = parser.add_argument_group("frames")
    frames.add_argument("--resize", choices=RESIZES, help="fit: keep the aspect ratio and pad; stretch (default: fit)")
    frames.add_argument("--interpolation", choices=INTERPOLATIONS, help="default: bilinear, as they are trained")
    parser.add_argument("--json", action="store_true", help="print plan and verification as JSON")


def run(arguments: argparse.Namespace) -> int:
    if not arguments.output.parent.is_dir():
        raise WnlbError(f"folder {arguments.output.parent} does not exist; create it or choose another output")
    if arguments.output.suffix != ".onnx":
        raise WnlbError(f"output {arguments.output} has the suffix {arguments.output.suffix!r}; expected .onnx")
    names = read_names(arguments.classes) if arguments.classes else ()
    bar = tqdm(
        total=None, file=sys.stderr, disable=arguments.json or None, leave=False, bar_format="{desc} [{elapsed}]"
    )
    with bar:
        bar.set_description_str("load PyTorch")
        from wnlb.export.adopt.adopt_onnx import STEPS, adopt_onnx
        from wnlb.export.adopt.recognise import recognised

        bar.set_description_str(f"read {arguments.model.name}")
        overrides = dict(map(parse_setting, arguments.overrides))
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
    min_batch, batch = parse_batches(arguments.batch) if arguments.batch else (None, 1)
    return ExportOptions(
        height=height,
        width=width,
        batch=batch,
        min_batch=min_batch,
        detections=arguments.detections,
        score_threshold=arguments.score_threshold,
        nms_threshold=arguments.nms_threshold,
        candidates=arguments.candidates,
        nms_rounds=arguments.nms_rounds,
        masks=arguments.masks,
        attention=arguments.attention,
        attention_memory=parse_bytes(arguments.attention_memory) if arguments.attention_memory else None,
        target=arguments.target,
        resize=arguments.resize,
        interpolation=arguments.interpolation,
    )


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
