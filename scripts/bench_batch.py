"""What a run costs of a file that takes several numbers of frames, against files of one fixed batch.

    python scripts/bench_batch.py                           # the sample model at 320x320, for a CPU, whole frames
    python scripts/bench_batch.py --size 416x608 --target gpu --rounds 20

Three files of one checkpoint: of batch 1, of batch 4, and of 1 to 8. In every round each of them runs once with the
frames of a row, night scenes, from frame to pasted masks; so whatever the machine does meanwhile meets all alike. The
figure of a row is the median of its rounds, its ratio that of each round to the run of batch 1 beside it. A row of
fewer frames than a fixed batch holds pays for all of them.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from bench_padded import night_frames
from counts import from_
from numpy.typing import NDArray
from tqdm import tqdm

from wnlb.export.checkpoints.checkpoint import load_checkpoint
from wnlb.export.checkpoints.files.fetched import SAMPLE
from wnlb.export.onnx_file.export_onnx import export_onnx
from wnlb.export.options import ExportOptions
from wnlb.runtime.contract import TARGETS
from wnlb.runtime.errors import exit_code
from wnlb.runtime.geometry import parse_size
from wnlb.runtime.predictor import Predictor
from wnlb.runtime.table import table

FILES: dict[str, tuple[int | None, int]] = {"1": (None, 1), "4": (None, 4), "1-8": (1, 8)}  # fewest and most frames
ROWS = (("1", 1), ("1-8", 1), ("1-8", 2), ("1-8", 4), ("1-8", 8), ("4", 1), ("4", 4))  # file and frames
WARM_UP = 2  # rounds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="320x320", metavar="HxW")
    parser.add_argument("--target", choices=TARGETS, default="cpu")
    parser.add_argument("--rounds", type=from_(1), default=15, metavar="N")
    parser.add_argument(
        "--threads", type=from_(0), default=0, metavar="N", help="of ONNX Runtime (default: one per core)"
    )
    parser.add_argument(
        "--folder", type=Path, metavar="DIR", help="keep the files there, and take those that are there"
    )
    arguments = parser.parse_args()
    size = parse_size(arguments.size)
    frames = list(night_frames(size, 8, seed=0))
    with tempfile.TemporaryDirectory() as temporary:
        predictors = {}
        for name, (least, most) in FILES.items():
            path = (arguments.folder or Path(temporary)) / f"{name}.{arguments.size}.{arguments.target}.onnx"
            if not path.exists():
                model, config = load_checkpoint(SAMPLE)
                options = ExportOptions(*size, batch=most, min_batch=least, target=arguments.target)
                export_onnx(model, path, options, class_names=config.class_names)
            predictors[name] = Predictor(path, threads=arguments.threads)
        times = measured(predictors, frames, arguments.rounds)
    print(predictors["1"].backend.description)
    print(table(("file of batch", "frames", "median ms", "ms a frame", "times batch 1, a frame"), rows_of(times)))


def measured(predictors: dict[str, Predictor], frames: list[NDArray[np.uint8]], rounds: int) -> NDArray[np.float64]:
    """Milliseconds ``[rounds, rows]``."""
    runs: list[Callable[[], object]] = [
        lambda name=name, count=count: predictors[name].predict_batch(frames[:count])  # type: ignore[misc]
        for name, count in ROWS
    ]
    times = []
    for _ in tqdm(range(WARM_UP + rounds), file=sys.stderr, leave=False, disable=None):
        times.append([])
        for run in runs:
            started = time.perf_counter()
            run()
            times[-1].append(1e3 * (time.perf_counter() - started))
    return np.array(times[WARM_UP:])


def rows_of(times: NDArray[np.float64]) -> list[tuple[object, ...]]:
    counts = np.array([count for _, count in ROWS])
    each = times / counts
    ratios = np.median(each / each[:, :1], axis=0)
    return [
        (name, count, f"{whole:.0f}", f"{one:.0f}", f"{ratio:.2f}")
        for (name, count), whole, one, ratio in zip(
            ROWS, np.median(times, axis=0), np.median(each, axis=0), ratios, strict=True
        )
    ]


if __name__ == "__main__":
    sys.exit(exit_code(main))
