"""What ``wnlb profile`` may be asked for, and what of it is refused before work begins."""

from __future__ import annotations

import argparse
import re
from collections import Counter
from pathlib import Path

from wnlb.runtime.engine.driver import find_gpu
from wnlb.runtime.errors import MissingDependency, WnlbError
from wnlb.runtime.geometry import parse_size
from wnlb.runtime.onnxruntime_backend import DEVICES, check_threads
from wnlb.runtime.profile.measure import Plan
from wnlb.runtime.profile.variants import ATTENTION, BACKENDS, ONNX_RUNTIME, Wanted, is_checkpoint
from wnlb.runtime.served_model import Model, model_of

_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600}
_DESCRIPTION = """\
Measure models side by side: each in a process of its own, in turns of a quarter of a second, so that whatever the
machine does meanwhile meets all alike. Times are of whole frames: preparation, inference, masks in the frame.

  wnlb profile model.onnx model.fp16.onnx model.int8.onnx --images night/ -o report/
  wnlb profile checkpoint.pth --size 416x608 --images night/ -o report/     # exports, converts, builds what is missing
  wnlb profile sample --size 320x320 --precisions fp32,fp16 --images night/ -o report/ \\
      --annotations labelled/annotations.json --eval-images labelled/images   # accuracy beside latency
  wnlb profile model.engine --sustained 10m -o report/                        # how heat slows it
  wnlb profile --compare old/report.json new/report.json --max-regression 5   # exit code 1 where it became slower

Percentiles, warm-up, duration and iterations are trtexec's. The report folder gets report.html, report.md, report.json
and, in models/, what was made; it is made again only where something has changed. What this machine cannot run is a
row with the reason. Without labels, accuracy is agreement with the FP32 file on 32 pictures of --images.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = _DESCRIPTION
    parser.add_argument(
        "models",
        nargs="*",
        type=model_of,
        metavar="MODEL",
        help="checkpoint ('sample' is this package's), .onnx of 'wnlb export' or 'convert', .engine of 'build', "
        "triton://HOST:8001/MODEL of 'triton'",
    )
    parser.add_argument("-o", "--output", type=Path, help="folder for the report and for what is made")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    _add_making(parser.add_argument_group("what is made of a checkpoint or of an FP32 file"))
    _add_pictures(parser.add_argument_group("pictures and accuracy"))
    _add_measuring(parser.add_argument_group("measuring"))
    comparing = parser.add_argument_group("comparing two reports")
    comparing.add_argument("--compare", nargs=2, type=Path, metavar=("OLD", "NEW"), help="what changed beyond noise")
    comparing.add_argument(
        "--max-regression", type=float, metavar="PERCENT", help="exit code 1 where a p50 grew by more, beyond noise"
    )


def _add_making(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--precisions",
        type=_names,
        metavar="P,...",
        help="fp32, fp16, bf16, int8 (default: fp32,fp16,int8 of a checkpoint; an .onnx file as it is)",
    )
    group.add_argument(
        "--attention", type=_names, default=ATTENTION, metavar="FORM,...", help="standard, plugin (default: both)"
    )
    group.add_argument(
        "--backends",
        type=_names,
        metavar="B,...",
        help=f"{', '.join(BACKENDS)} (default: all for a checkpoint, onnxruntime for an .onnx file)",
    )
    group.add_argument("--size", default="", metavar="HxW", help="input size of a checkpoint, see 'wnlb export'")
    group.add_argument("--classes", type=Path, metavar="FILE", help="class names of a checkpoint, see 'wnlb export'")
    group.add_argument("--config", type=Path, metavar="FILE", help="what it was trained with, see 'wnlb export'")


def _add_pictures(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--images",
        metavar="SOURCE",
        help="pictures to run on, the first 16, and to calibrate on (default: dark noise, which finds nothing)",
    )
    group.add_argument("--annotations", type=Path, metavar="FILE", help="COCO labels, for AP and AP by darkness")
    group.add_argument("--eval-images", metavar="DIR", help="their pictures, other than those of --images")
    group.add_argument("--no-accuracy", action="store_true", help="leave out agreement with FP32")


def _add_measuring(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--warm-up", type=float, default=200, metavar="MS", help="default: 200")
    group.add_argument("--duration", type=float, default=3, metavar="S", help="of each model, at least (default: 3)")
    group.add_argument("--iterations", type=int, default=10, metavar="N", help="of each model, at least (default: 10)")
    group.add_argument(
        "--sustained", metavar="TIME", help="each model alone, for that long, e.g. 10m: latency as the machine heats up"
    )
    group.add_argument("--no-stages", action="store_true", help="leave out where the time goes, and its floor")
    group.add_argument("--device", choices=DEVICES, default="auto", help="for .onnx: default CUDA where it works")
    group.add_argument("--threads", type=int, default=0, metavar="N", help="for .onnx: CPU threads (default: all)")
    group.add_argument(
        "--batch",
        type=int,
        default=0,
        metavar="N",
        help="frames a run; models that do not take so many are refused (default: the fewest that each takes)",
    )
    for name, what in (
        ("--data-transfers", "time copies to and from the GPU"),
        ("--cuda-graph", "launch the engine as a CUDA graph"),
        ("--spin-wait", "poll the GPU rather than sleep"),
    ):
        group.add_argument(
            name, action=argparse.BooleanOptionalAction, default=True, help=f"in trtexec's figures of engines: {what}"
        )


def check_compare(arguments: argparse.Namespace) -> None:
    if arguments.models or arguments.output or arguments.images or arguments.annotations:
        raise WnlbError("--compare reads two reports and measures nothing; leave models, pictures and -o out")


def check(arguments: argparse.Namespace) -> None:
    """Whatever can be refused before work begins."""
    if not arguments.models:
        raise WnlbError("no model was given; expected a checkpoint, .onnx or .engine files, or --compare")
    if arguments.max_regression is not None:
        raise WnlbError("--max-regression is for --compare OLD NEW")
    for model in arguments.models:
        if is_checkpoint(model) and not arguments.size:
            raise WnlbError(f"checkpoint {model} needs --size, that of its input, e.g. --size 416x608")
        if not isinstance(model, Path):
            continue
        if not model.is_file() and not (is_checkpoint(model) and not model.suffix):
            raise WnlbError(f"model {model} {'is a folder' if model.is_dir() else 'does not exist'}")
    makes = arguments.precisions or arguments.backends or any(map(is_checkpoint, arguments.models))
    if makes and not arguments.output:
        raise WnlbError("models are to be made; give -o, the folder for them and for the report")
    stems = Counter(model.stem for model in arguments.models if isinstance(model, Path))
    stem, count = stems.most_common(1)[0] if stems else ("", 0)
    if makes and count > 1:
        raise WnlbError(f"{count} models are called {stem}, and so would be what is made of them; rename them")
    if arguments.size:
        height, width = parse_size(arguments.size)
        if min(height, width) < 64 or height % 32 or width % 32:
            raise WnlbError(f"--size is {arguments.size}; expected multiples of 32 from 64 up, e.g. 416x608")
    if arguments.classes and not arguments.classes.is_file():
        raise WnlbError(f"--classes {arguments.classes} is no file; expected class names, one a line")
    if arguments.config and not arguments.config.is_file():
        raise WnlbError(f"--config {arguments.config} is no file; expected what the checkpoint was trained with")
    check_threads(arguments.threads)
    if arguments.batch < 0:
        raise WnlbError(f"--batch is {arguments.batch}; expected a number of frames")
    _check_pictures(arguments)


def _check_pictures(arguments: argparse.Namespace) -> None:
    images, eval_images = arguments.images, arguments.eval_images
    if bool(arguments.annotations) != bool(eval_images):
        raise WnlbError("--annotations and --eval-images go together: give both, or none to compare with FP32")
    if eval_images and not Path(eval_images).is_dir():
        raise WnlbError(f"--eval-images {eval_images} is no folder; expected that of the labelled pictures")
    if arguments.annotations and not arguments.annotations.is_file():
        raise WnlbError(f"--annotations {arguments.annotations} is no file; expected COCO labels")
    if images and eval_images and Path(images).resolve() == Path(eval_images).resolve():
        raise WnlbError(f"{images} is to be calibrated on and judged by; give other pictures as --images")


def plan_of(arguments: argparse.Namespace) -> Plan:
    duration = arguments.duration
    if arguments.sustained:
        found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", arguments.sustained)
        if not found or not float(found[1]):
            raise WnlbError(f"--sustained is {arguments.sustained!r}; expected a time such as 90s, 10m or 1h")
        duration = float(found[1]) * _UNITS[found[2]]
    return Plan(arguments.warm_up / 1e3, duration, arguments.iterations)


def wanted_of(model: Model, arguments: argparse.Namespace) -> Wanted:
    """Everything of a checkpoint; an ONNX file as it is; unless something was asked for."""
    checkpoint = is_checkpoint(model)
    return Wanted(
        arguments.precisions or (("fp32", "fp16", "int8") if checkpoint else ()),
        tuple(arguments.attention),
        arguments.backends or (BACKENDS if checkpoint else (ONNX_RUNTIME,)),
        arguments.size,
        arguments.classes,
        arguments.config,
        arguments.images or "",
        arguments.device == "cpu" or not _has_gpu(),
    )


def _has_gpu() -> bool:
    try:
        find_gpu()
    except MissingDependency:
        return False
    return True


def _names(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name.strip() for name in text.split(",")))
