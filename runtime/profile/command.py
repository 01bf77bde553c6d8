"""``wnlb profile``: accuracy and latency of models side by side, and where the time goes."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import datetime
import importlib.metadata
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
from wnlb.runtime.errors import WnlbError
from wnlb.runtime.profile.accuracy import Truth, accuracy_of, give_references
from wnlb.runtime.profile.arguments import add_arguments, check, check_compare, plan_of, wanted_of
from wnlb.runtime.profile.compare import run_compare
from wnlb.runtime.profile.floor import add_floors
from wnlb.runtime.profile.making import Maker
from wnlb.runtime.profile.measure import Plan
from wnlb.runtime.profile.report import Row
from wnlb.runtime.profile.session import add_memory_and_stages, close, measure_rows, open_workers, row_of
from wnlb.runtime.profile.variants import Variant, variants_of
from wnlb.runtime.profile.worker import How
from wnlb.runtime.profile.writing import tell
from wnlb.runtime.source import open_source

__all__ = ["add_arguments", "run"]
FRAMES = 16


def run(arguments: argparse.Namespace) -> int:
    if arguments.compare:
        check_compare(arguments)
        old, new = arguments.compare
        return run_compare(old, new, arguments.max_regression, arguments.json)
    check(arguments)
    plan = plan_of(arguments)
    engines = (arguments.data_transfers, arguments.cuda_graph, arguments.spin_wait)
    how = How(arguments.device, arguments.threads, *engines, batch=arguments.batch)
    frames = _frames(arguments.images or arguments.eval_images)
    with _maker(arguments) as maker:
        variants = [
            variant for model in arguments.models for variant in variants_of(model, wanted_of(model, arguments), maker)
        ]
        _tell_apart(variants)
        rows = {variant.name: row_of(variant, maker) for variant in variants}
        _add_accuracy(variants, rows, arguments, how, maker)
        measured = _measure(variants, rows, frames, plan, how, arguments)
    facts = _facts(arguments, plan, len(frames)) | measured
    tell(list(rows.values()), facts, arguments.output, arguments.json)
    return 1 if all(row.failure for row in rows.values()) else 0


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
