"""Hold what ``wnlb profile`` measures against other clocks, in one run, in turns.

    python scripts/bench_profile.py model.onnx --rounds 40

Its p50 of the inference against ONNX Runtime's own profiler and against a plain loop around ``session.run`` (within
5 %), its p50 of whole frames against a plain loop around the Predictor (the profile adds 2 % at most), and the share of
ONNX Runtime's time that its stages account for (95 % at least). Exit code 1 where one does not hold.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from counts import from_
from numpy.typing import NDArray
from tqdm import tqdm

from wnlb.runtime.doctor_command import examine
from wnlb.runtime.errors import exit_code
from wnlb.runtime.inputs import prepared_inputs
from wnlb.runtime.onnxruntime_backend import open_session
from wnlb.runtime.predictor import Predictor
from wnlb.runtime.profile.compare import ratio_interval
from wnlb.runtime.profile.measure import Times
from wnlb.runtime.profile.onnxruntime_stages import BETWEEN
from wnlb.runtime.profile.worker import How, Worker
from wnlb.runtime.table import table

AGREES, ADDS, MAPPED = 0.05, 0.02, 0.95
Loop = Callable[[int], list[Any]]  # how many runs, to their milliseconds


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("model", type=Path, help="an ONNX file that 'wnlb export' wrote")
    parser.add_argument("--rounds", type=from_(1), default=40, metavar="N", help="turns of each (default: 40)")
    parser.add_argument("--runs", type=from_(1), default=2, metavar="N", help="runs of a turn (default: 2)")
    parser.add_argument("--threads", type=from_(0), default=0, metavar="N", help="CPU threads (default: all)")
    arguments = parser.parse_args()
    if not measured(arguments.model, arguments.rounds, arguments.runs, arguments.threads):
        sys.exit(1)


def measured(model: Path, rounds: int, runs: int, threads: int) -> bool:
    """Print the table; whether everything holds."""
    frame = np.random.default_rng(0).integers(0, 24, (480, 640, 3), dtype=np.uint8)
    worker = Worker(model.name, model, [frame], How("cpu", threads))
    try:
        with Predictor(model, device="cpu", threads=threads) as predictor, tempfile.TemporaryDirectory() as folder:
            ours, by_profiler, in_loop, frames = times_of(worker, predictor, frame, model, Path(folder), rounds, runs)
        stages = worker.stages(5)
    finally:
        worker.close()
    rows = [
        compared("inference, against ONNX Runtime's profiler", [times["infer"] for times in ours], by_profiler, AGREES),
        compared("inference, against a plain loop", [times["infer"] for times in ours], in_loop, AGREES),
        compared("whole frames, against a plain loop", [times["total"] for times in ours], frames, ADDS),
    ]
    share = 1 - stages[BETWEEN] / sum(stages.values())
    print(table(("p50", "profile, ms", "other, ms", "ratio", "95 % interval", "limit"), [row.cells() for row in rows]))
    print(f"stages account for {100 * share:.1f} % of ONNX Runtime's time ({100 * MAPPED:.0f} % at least)")
    shown = [finding for finding in examine() if finding.what in ("processor", "ONNX Runtime")]
    print("; ".join(f"{finding.what}: {finding.found}" for finding in shown))
    agree = all(abs(row.ratio - 1) <= row.limit for row in rows[:2])
    return agree and rows[2].ratio <= 1 + ADDS and share >= MAPPED


def times_of(
    worker: Worker, predictor: Predictor, frame: NDArray[np.uint8], model: Path, folder: Path, rounds: int, runs: int
) -> tuple[list[Times], list[float], list[float], list[float]]:
    """Of the profile, of ONNX Runtime's profiler, of a loop of its session, and of a loop of the Predictor."""
    contract, threads = predictor.contract, worker.how.threads
    inputs = prepared_inputs(contract, [frame] * contract.batches[0])
    plain = open_session(model, device="cpu", threads=threads)
    profiled = open_session(model, device="cpu", threads=threads, profile_prefix=str(folder / "profile"))

    def loop(run: Callable[[], object]) -> Loop:
        return lambda count: _timed(run, count)

    ours, _, in_loop, frames = in_turns(
        [
            worker.run,
            loop(lambda: profiled.run(None, inputs)),
            loop(lambda: plain.run(None, inputs)),
            loop(lambda: predictor.predict_batch([frame] * contract.batches[0])),
        ],
        rounds,
        runs,
    )
    return ours, model_runs(Path(profiled.end_profiling()))[-rounds * runs :], in_loop, frames


@dataclass(frozen=True)
class Comparison:
    """Two medians in milliseconds, and the interval of their ratio."""

    what: str
    ours: float
    other: float
    interval: tuple[float, float]
    limit: float  # of the ratio's distance from 1

    @property
    def ratio(self) -> float:
        return self.ours / self.other

    def cells(self) -> list[str]:
        low, high = self.interval
        figures = [f"{self.ours:.1f}", f"{self.other:.1f}", f"{self.ratio:.3f}", f"{low:.3f} to {high:.3f}"]
        return [self.what, *figures, f"{100 * self.limit:.0f} %"]


def compared(what: str, ours: list[float], other: list[float], limit: float) -> Comparison:
    return Comparison(what, statistics.median(ours), statistics.median(other), ratio_interval(other, ours), limit)


def in_turns(loops: list[Loop], rounds: int, runs: int) -> list[list[Any]]:
    """Times of each, after three runs to warm up; each round begins with another."""
    for loop in loops:
        loop(3)
    times: list[list[Any]] = [[] for _ in loops]
    for number in tqdm(range(rounds), unit="round", disable=None, leave=False):
        for i in range(len(loops)):
            which = (i + number) % len(loops)
            times[which] += loops[which](runs)
    return times


def _timed(run: Callable[[], object], count: int) -> list[float]:
    times = []
    for _ in range(count):
        started = time.perf_counter()
        run()
        times.append(1e3 * (time.perf_counter() - started))
    return times


def model_runs(profile: Path) -> list[float]:
    """Milliseconds of the runs in a profile of ONNX Runtime, in the order of time."""
    events = [event for event in json.loads(profile.read_text()) if event.get("name") == "model_run"]
    return [event["dur"] / 1e3 for event in sorted(events, key=lambda event: event["ts"])]


if __name__ == "__main__":
    sys.exit(exit_code(main))
