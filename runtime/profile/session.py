"""One measurement: files to rows."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wnlb.runtime.errors import WnlbError
from wnlb.runtime.files import sha256_of
from wnlb.runtime.profile.making import Maker
from wnlb.runtime.profile.measure import Plan, Samples, measure
from wnlb.runtime.profile.onnxruntime_stages import BETWEEN
from wnlb.runtime.profile.report import Row
from wnlb.runtime.profile.stages import UNKNOWN
from wnlb.runtime.profile.variants import Variant
from wnlb.runtime.profile.worker import How, Worker
from wnlb.runtime.sensors import Sampler, conditions_of, find_sensors, over_current_growth
from wnlb.runtime.served_model import Model

STAGE_RUNS = 5
MAPPED = 0.95  # of the time that the profiler saw; below that stages are doubted
CURVE_POINTS = 1000  # of what the sensors told
NOT_OURS = "not ours: bare inference on zeros, without preparation and masks"
Progress = Callable[[str], object]


def row_of(variant: Variant, maker: Maker) -> Row:
    """What is known before it runs."""
    row = Row(variant.name, variant.backend, variant.precision, variant.attention, failure=variant.failure)
    path = variant.path if isinstance(variant.path, Path) else None
    if path:
        row.sha256, row.bytes = sha256_of(path), path.stat().st_size
    made = maker.made.get(variant.name)
    if made and path and path.parent == maker.folder:
        row.made_by, row.build_seconds = made.command, made.seconds
    return row


def open_workers(
    rows: dict[str, Row], paths: dict[str, Model], frames: list[NDArray[np.uint8]], how: How, progress: Progress
) -> list[Worker]:
    """A worker for each row that has a file; a row whose model cannot be opened bears the reason."""
    workers: list[Worker] = []
    try:
        for name, path in paths.items():
            row = rows[name]
            progress(name)
            try:
                worker = Worker(name, path, frames, how)
            except WnlbError as error:
                row.failure = str(error)
                continue
            workers.append(worker)
            _take_facts(row, worker)
    except BaseException:
        close(workers)
        raise
    return workers


def _take_facts(row: Row, worker: Worker) -> None:
    facts = worker.facts
    row.description, row.start_up_ms, row.first_ms = facts["description"], facts["start_up_ms"], facts["first_ms"]
    contract = facts["contract"]
    if not contract:
        row.warnings.append(NOT_OURS)
        return
    row.precision, row.batch, row.found = contract["precision"], facts["batch"], facts["found"]
    if not row.attention:
        forms = {form.rpartition("/")[2] for form in contract["attention"].values()}
        row.attention = "plugin" if "plugin" in forms else "standard"


def measure_rows(
    workers: Sequence[Worker], rows: dict[str, Row], plan: Plan, alone: bool, progress: Progress
) -> dict[str, Any]:
    """Fill in what was measured.

    Args:
        alone: one model after the other, each for the whole duration, as heat wants it; else in turns.

    Returns:
        ``timeline``: what the sensors told meanwhile, entries of ``Reading`` with ``at_s``, seconds since the
        beginning; ``over_current_events``: by how much that counter grew, None where there is none.
    """
    began = time.perf_counter()
    samples: dict[str, Samples] = {}
    with Sampler(find_sensors()) as sampler:
        for group in [[worker] for worker in workers] if alone else [workers]:
            samples |= measure(group, plan, progress)
    for name, own in samples.items():
        row = rows[name]
        row.take(own, began)
        turns = [(start, end, count * row.batch) for start, end, count in own.turns]
        found = conditions_of(sampler.readings, turns)
        if found and not row.failure:
            row.conditions = dataclasses.asdict(found)
    every = -(-len(sampler.readings) // CURVE_POINTS) or 1
    timeline = [
        {"at_s": round(moment - began, 2), **dataclasses.asdict(reading)}
        for moment, reading in sampler.readings[::every]
    ]
    return {"timeline": timeline, "over_current_events": over_current_growth(sampler.readings)}


def add_memory_and_stages(workers: Sequence[Worker], rows: dict[str, Row], stages: bool, progress: Progress) -> None:
    """After the measurement, for profilers cost time and memory."""
    for worker in workers:
        row = rows[worker.name]
        if row.failure:
            continue
        try:
            row.peak_bytes, row.device_bytes = worker.memory()
            if stages:
                progress(worker.name)
                row.stages = worker.stages(STAGE_RUNS)
                row.warnings += _doubts(row.stages)
        except WnlbError as error:
            row.warnings.append(f"stages are not measured: {error}")


def _doubts(stages: dict[str, float]) -> list[str]:
    whole = sum(stages.values())
    told = whole - stages.get(BETWEEN, 0.0) - stages.get(UNKNOWN, 0.0)
    return (
        [f"stages account for {100 * told / whole:.0f} % of the time only"] if whole and told < MAPPED * whole else []
    )


def close(workers: Sequence[Worker]) -> None:
    """End all processes."""
    for worker in workers:
        worker.close()
