"""What identities cost beside a frame of the model: the tracker, the overlay, and the ways and zones in it.

    python scripts/bench_tracking.py sample.onnx
    python scripts/bench_tracking.py sample.onnx --size 720x1280 --frames 60

Frames are those of a night video. Each is predicted, tracked and drawn, one stage after the other in one process; the
first ones warm up and do not count. Beside the time on the clock stands that of the processor, of all threads together,
which other work on the machine changes least; the shares are of the latter. A GPU makes the frame cheaper, these not.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from counts import from_
from numpy.typing import NDArray
from tqdm import tqdm

from wnlb.calibration.scenes.camera import Camera
from wnlb.calibration.scenes.video import NightVideo
from wnlb.runtime.errors import exit_code
from wnlb.runtime.geometry import parse_size
from wnlb.runtime.machine import processor
from wnlb.runtime.overlay import draw
from wnlb.runtime.predictor import Predictor
from wnlb.runtime.table import table
from wnlb.runtime.tracking.tracker import LOW_SCORE, BufferedIouTracker, TrackerOptions
from wnlb.runtime.tracking.tracks import Tracks
from wnlb.runtime.tracking.zones import Zone

WARM_UP = 5
FPS = 12.0
STAGES = ("frame to masks", "tracker and counts", "overlay", "ways and zones")


def frames_of(count: int, height: int, width: int) -> Iterator[NDArray[np.uint8]]:
    """Of night videos, one after the other, at a street lamp's darkness; uint8 BGR ``[h, w, 3]``."""
    video = NightVideo(0, 0, count, FPS, height, width, Camera(100.0))
    for number in range(count):
        yield np.ascontiguousarray(video.frame(number).picture[..., ::-1]).astype(np.uint8)


def measure(predictor: Predictor, frames: list[NDArray[np.uint8]]) -> dict[str, tuple[float, float]]:
    """Median milliseconds of each stage: on the clock, and of the processor."""
    height, width = frames[0].shape[:2]
    names = predictor.contract.class_names
    zones = (Zone("line", ((width / 2, 0), (width / 2, height))), Zone("area", ((0, 0), (width, 0), (width, height))))
    tracks = Tracks(BufferedIouTracker(TrackerOptions(FPS)), names, zones)
    times: defaultdict[str, list[tuple[float, float]]] = defaultdict(list)

    def timed(stage: str, started: tuple[float, float]) -> tuple[float, float]:
        now = (time.perf_counter(), time.process_time())
        times[stage].append((1e3 * (now[0] - started[0]), 1e3 * (now[1] - started[1])))
        return now

    for number, frame in enumerate(tqdm(frames, unit="frame", disable=None, leave=False)):
        at = (time.perf_counter(), time.process_time())
        detections = predictor(frame)
        at = timed(STAGES[0], at)
        found = tracks.update(detections, number / FPS)
        tracks.counts()
        at = timed(STAGES[1], at)
        overlay = draw(frame, found, names)
        at = timed(STAGES[2], at)
        tracks.draw(overlay, found)
        timed(STAGES[3], at)
    medians: dict[str, Any] = {}
    for stage in STAGES:
        clock, cpu = zip(*times[stage][WARM_UP:], strict=True)
        medians[stage] = (statistics.median(clock), statistics.median(cpu))
    return medians


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--size", default="320x320", metavar="HxW", help="of the frames (default: 320x320)")
    parser.add_argument("--frames", type=from_(1), default=40, help=f"beyond {WARM_UP} to warm up (default: 40)")
    parser.add_argument("--threads", type=from_(0), default=0, metavar="N", help="CPU threads (default: one per core)")
    arguments = parser.parse_args()
    height, width = parse_size(arguments.size)
    with Predictor(arguments.model, score_threshold=LOW_SCORE, threads=arguments.threads) as predictor:
        frames = list(frames_of(arguments.frames + WARM_UP, height, width))
        medians = measure(predictor, frames)
        print(f"{arguments.model.name}, {len(frames) - WARM_UP} frames of {arguments.size}, {processor()}")
        print(predictor.backend.description + "\n")
    whole = medians[STAGES[0]][1]
    rows = [(stage, f"{a:.2f}", f"{b:.2f}", f"{100 * b / whole:.2f}") for stage, (a, b) in medians.items()]
    added = medians[STAGES[1]][1] + medians[STAGES[3]][1]
    print(table(("stage", "ms", "ms of processor", "% of the frame"), rows))
    drawn = added + medians[STAGES[2]][1]
    print(f"\n--track adds {100 * added / whole:.2f} % of a frame; with the overlay {100 * drawn / whole:.2f} %")


if __name__ == "__main__":
    sys.exit(exit_code(main))
