"""``wnlb profile``: accuracy and latency of models side by side, and where the time goes."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import datetime
import importlib.metadata
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from wnlb.runtime.doctor_command import examine
from wnlb.runtime.engine.driver import find_gpu
from wnlb.runtime.errors import MissingDependency, WnlbError
from wnlb.runtime.geometry import parse_size
from wnlb.runtime.onnxruntime_backend import DEVICES, check_threads
from wnlb.runtime.profile.accuracy import Truth, accuracy_of, give_references
from wnlb.runtime.profile.compare import run_compare
from wnlb.runtime.profile.floor import add_floors
from wnlb.runtime.profile.making import Maker
from wnlb.runtime.profile.measure import Plan
from wnlb.runtime.profile.report import Row
from wnlb.runtime.profile.session import add_memory_and_stages, close, measure_rows, open_workers, row_of
from wnlb.runtime.profile.variants import ATTENTION, BACKENDS, ONNX_RUNTIME, Variant, Wanted, is_checkpoint, variants_of
from wnlb.runtime.profile.worker import How
from wnlb.runtime.profile.writing import tell
from wnlb.runtime.served_model import Model, model_of
from wnlb.runtime.source import open_source

FRAMES = 16
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


def run(arguments: argparse.Namespace) -> int:
    if arguments.compare:
        _check_compare(arguments)
        old, new = arguments.compare
        return run_compare(old, new, arguments.max_regression, arguments.json)
    _check(arguments)
    plan = _plan(arguments)
    engines = (arguments.data_transfers, arguments.cuda_graph, arguments.spin_wait)
    how = How(arguments.device, arguments.threads, *engines, batch=arguments.batch)
    frames = _frames(arguments.images or arguments.eval_images)
    with _maker(arguments) as maker:
        variants = [
            variant for model in arguments.models for variant in variants_of(model, _wanted(model, arguments), maker)
        ]
        _tell_apart(variants)
        rows = {variant.name: row_of(variant, maker) for variant in variants}
        _add_accuracy(variants, rows, arguments, how, maker)
        measured = _measure(variants, rows, frames, plan, how, arguments)
    facts = _facts(arguments, plan, len(frames)) | measured
    tell(list(rows.values()), facts, arguments.output, arguments.json)
    return 1 if all(row.failure for row in rows.values()) else 0


def _check_compare(arguments: argparse.Namespace) -> None:
    if arguments.models or arguments.output or arguments.images or arguments.annotations:
        raise WnlbError("--compare reads two reports and measures nothing; leave models, pictures and -o out")


def _check(arguments: argparse.Namespace) -> None:
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


def _plan(arguments: argparse.Namespace) -> Plan:
    duration = arguments.duration
    if arguments.sustained:
        found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", arguments.sustained)
        if not found or not float(found[1]):
            raise WnlbError(f"--sustained is {arguments.sustained!r}; expected a time such as 90s, 10m or 1h")
        duration = float(found[1]) * _UNITS[found[2]]
    return Plan(arguments.warm_up / 1e3, duration, arguments.iterations)


def _wanted(model: Model, arguments: argparse.Namespace) -> Wanted:
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


@contextlib.contextmanager
def _maker(arguments: argparse.Namespace) -> Iterator[Maker]:
    with tempfile.TemporaryDirectory() as temporary:
        yield Maker(arguments.output / "models" if arguments.output else Path(temporary), arguments.json)


def _tell_apart(variants: list[Variant]) -> None:
    """Files of one name in several folders are called by their paths."""
    names = Counter(variant.name for variant in variants)
    for variant in variants:
        if names[variant.name] > 1 and variant.path:
            variant.name = str(variant.path)
    twice = next((name for name, count in Counter(variant.name for variant in variants).items() if count > 1), None)
    if twice:
        raise WnlbError(f"model {twice} is named twice; give each once, and checkpoints of different names")


def _add_accuracy(
    variants: list[Variant], rows: dict[str, Row], arguments: argparse.Namespace, how: How, maker: Maker
) -> None:
    if not arguments.annotations and (arguments.no_accuracy or not arguments.images):
        return
    give_references(variants)
    truth = Truth(arguments.eval_images or arguments.images, arguments.annotations)
    reasons = []
    for variant in variants:
        try:
            rows[variant.name].accuracy = accuracy_of(variant, truth, how, maker)
        except WnlbError as error:
            reasons.append(str(error))
            rows[variant.name].warnings.append(f"accuracy is not measured: {error}")
    if arguments.annotations and len(reasons) == len(variants):  # told now, not behind minutes of measuring
        raise WnlbError(f"accuracy cannot be measured of any model: {reasons[0]}")


def _measure(
    variants: list[Variant],
    rows: dict[str, Row],
    frames: list[NDArray[np.uint8]],
    plan: Plan,
    how: How,
    arguments: argparse.Namespace,
) -> dict[str, Any]:
    """Fill in the rows; what belongs to none of them."""
    paths = {variant.name: variant.path for variant in variants if variant.path}
    hidden = arguments.json or None  # None: where stderr is no terminal
    with tqdm(unit="turn", disable=hidden, file=sys.stderr, leave=False) as bar:

        def progress(name: str) -> None:
            bar.set_postfix_str(name, refresh=False)
            bar.update()

        workers = open_workers(rows, paths, frames, how, progress)
        try:
            measured = measure_rows(workers, rows, plan, bool(arguments.sustained), progress)
            add_memory_and_stages(workers, rows, not arguments.no_stages, progress)
        finally:
            close(workers)
        peaks = {} if arguments.no_stages else add_floors(variants, rows, how, progress)
    return {**measured, "peaks": {backend: dataclasses.asdict(peak) for backend, peak in peaks.items()}}


def _frames(images: str | None) -> list[NDArray[np.uint8]]:
    if images is None:
        return [np.random.default_rng(0).integers(0, 24, (480, 640, 3), dtype=np.uint8)]
    frames = []
    for frame in open_source(images):
        if frame.pixels is not None:
            frames.append(frame.pixels)
        if len(frames) == FRAMES:
            break
    if not frames:
        raise WnlbError(f"images {images}: none of them can be read")
    return frames


def _facts(arguments: argparse.Namespace, plan: Plan, frames: int) -> dict[str, Any]:
    return {
        "tool_version": importlib.metadata.version("wnlb-deploy"),
        "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "command": arguments.command_line,
        "machine": {finding.what: finding.found for finding in examine() if finding.state != "no"},
        "plan": vars(plan),
        "frames": {"source": arguments.images or arguments.eval_images or "dark noise", "count": frames},
    }


def _names(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name.strip() for name in text.split(",")))
