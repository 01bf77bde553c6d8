"""``wnlb profile``: latencies of models beside one another, and where the time goes."""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import shlex
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from wnlb.runtime.doctor_command import examine
from wnlb.runtime.errors import WnlbError
from wnlb.runtime.files import atomic_path, make_folder, sha256_of
from wnlb.runtime.onnxruntime_backend import DEVICES
from wnlb.runtime.profile.measure import Plan, measure
from wnlb.runtime.profile.report import Row, as_json, as_markdown, as_text
from wnlb.runtime.profile.worker import Worker
from wnlb.runtime.source import open_source

FRAMES = 16
STAGE_RUNS = 5
_DESCRIPTION = """\
Measure models side by side: each in a process of its own, in turns of a quarter of a second, so that whatever the
machine does meanwhile meets all alike. Times are of whole frames: preparation, inference, masks in the frame.

  wnlb profile model.onnx model.fp16.onnx model.int8.onnx --images night/ -o report/
  wnlb profile model.onnx --duration 10 --json

Percentiles, warm-up, duration and iterations as trtexec's. The report folder gets report.json and report.md.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = _DESCRIPTION
    parser.add_argument("models", nargs="+", type=Path, help=".onnx of 'wnlb export' or 'convert', .engine of 'build'")
    parser.add_argument(
        "--images", metavar="SOURCE", help="pictures to run on, the first 16 (default: dark noise, which finds nothing)"
    )
    parser.add_argument("-o", "--output", type=Path, help="folder for report.json and report.md")
    parser.add_argument("--warm-up", type=float, default=200, metavar="MS", help="default: 200")
    parser.add_argument("--duration", type=float, default=3, metavar="S", help="of each model, at least (default: 3)")
    parser.add_argument("--iterations", type=int, default=10, metavar="N", help="of each model, at least (default: 10)")
    parser.add_argument("--no-stages", action="store_true", help="leave out where the time goes")
    parser.add_argument("--device", choices=DEVICES, default="auto", help="for .onnx: default CUDA where it works")
    parser.add_argument("--threads", type=int, default=0, metavar="N", help="for .onnx: CPU threads (default: all)")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")


def run(arguments: argparse.Namespace) -> int:
    plan = Plan(arguments.warm_up / 1e3, arguments.duration, arguments.iterations)
    models: list[Path] = arguments.models
    names = _names(models)
    for model in models:
        if not model.is_file():
            raise WnlbError(f"model {model} {'is a folder' if model.is_dir() else 'does not exist'}")
    if arguments.output:
        make_folder(arguments.output)
    frames = _frames(arguments.images)
    rows = {name: Row(name, sha256_of(model), model.stat().st_size) for name, model in zip(names, models, strict=True)}
    workers: list[Worker] = []
    try:
        for name, model in zip(names, models, strict=True):
            try:
                worker = Worker(name, model, frames, arguments.device, arguments.threads)
            except WnlbError as error:
                rows[name].failure = str(error)
                continue
            workers.append(worker)
            contract = worker.facts.pop("contract")
            if contract:
                rows[name].precision, rows[name].batch = contract["precision"], contract["batch"]
            else:
                rows[name].warnings.append("not ours: bare inference on zeros, without preparation and masks")
            for key, value in worker.facts.items():
                setattr(rows[name], key, value)
        _measure(workers, rows, plan, arguments)
    finally:
        for worker in workers:
            worker.close()
    facts = _facts(arguments, plan, len(frames))
    _tell(list(rows.values()), facts, arguments)
    return 1 if all(row.failure for row in rows.values()) else 0


def _measure(workers: list[Worker], rows: dict[str, Row], plan: Plan, arguments: argparse.Namespace) -> None:
    hidden = arguments.json or None  # None: where stderr is no terminal
    with tqdm(unit="turn", disable=hidden, file=sys.stderr, leave=False) as bar:

        def progress(name: str) -> None:
            bar.set_postfix_str(name, refresh=False)
            bar.update()

        for name, samples in measure(workers, plan, progress).items():
            rows[name].take(samples)
        for worker in workers:
            row = rows[worker.name]
            if row.failure:
                continue
            row.peak_bytes = worker.peak_bytes()
            if not arguments.no_stages:
                progress(worker.name)
                row.stages = worker.stages(STAGE_RUNS)


def _names(models: list[Path]) -> list[str]:
    """File names, with their folders where two are the same."""
    names = [model.name for model in models]
    names = names if len(set(names)) == len(names) else [str(model) for model in models]
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise WnlbError(f"model {twice} is named twice; give each once")
    return names


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
    options = {"--images": arguments.images, "--warm-up": arguments.warm_up, "--duration": arguments.duration}
    options |= {"--iterations": arguments.iterations, "--device": arguments.device, "--threads": arguments.threads}
    words = ["wnlb", "profile", *map(str, arguments.models)]
    words += [str(word) for option in options.items() if option[1] is not None for word in option]
    return {
        "tool_version": importlib.metadata.version("wnlb-deploy"),
        "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "command": shlex.join(words),
        "machine": {finding.what: finding.found for finding in examine() if finding.state != "no"},
        "plan": vars(plan),
        "frames": {"source": arguments.images or "dark noise", "count": frames},
    }


def _tell(rows: list[Row], facts: dict[str, Any], arguments: argparse.Namespace) -> None:
    report = json.dumps(as_json(rows, facts), indent=1) + "\n"
    if arguments.output:
        for name, text in (("report.json", report), ("report.md", as_markdown(rows, facts))):
            with atomic_path(arguments.output / name) as temporary:
                temporary.write_text(text)
    print(report if arguments.json else as_text(rows), end="" if arguments.json else "\n")
    if arguments.output and not arguments.json:
        print(f"\nreport.json and report.md are in {arguments.output}/")
