"""How steady the masks of tracks are with ``--smooth``: of objects that stand still, before a camera that does.

    python scripts/bench_smoothing.py sample.onnx
    python scripts/bench_smoothing.py sample.onnx --scenes 5 --half-lives 0.2,0.5

Each night scene is taken again and again: the same light, other noise, so whatever changes in a mask is an error. Of a
track that lies on an object of its class (IoU 0.5) is told how many pixels change from one frame to the next, against
the object's; how well it fits the object; and in how many frames it is shown. What it costs or gains in accuracy on
objects that move is told by ``wnlb evaluate --track --smooth``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from counts import from_
from tqdm import tqdm

from wnlb.calibration.scenes.camera import DARKNESS_LEVELS, Camera, expose
from wnlb.calibration.scenes.scene import SceneObject, make_scene
from wnlb.runtime.detections import Detections
from wnlb.runtime.errors import exit_code
from wnlb.runtime.predictor import Predictor
from wnlb.runtime.table import table
from wnlb.runtime.tracking.arguments import make_tracker
from wnlb.runtime.tracking.tracker import LOW_SCORE, SHOWN_SCORE

SEED, FPS = 9, 12.0
FIRST = 4  # frame that counts: before it tracks begin
OVERLAP = 0.5

Scene = tuple[Sequence[SceneObject], list[Detections]]


def detected(model: Path, scenes: int, frames: int, threads: int) -> list[Scene]:
    """Scenes at the five levels of darkness in turn: what stands in each, and what is found in each of its frames."""
    found: list[Scene] = []
    with Predictor(model, score_threshold=LOW_SCORE, threads=threads) as predictor:
        for index in tqdm(range(scenes), unit="scene", disable=None, leave=False):
            scene, camera = make_scene(SEED, index), Camera(DARKNESS_LEVELS[index % len(DARKNESS_LEVELS)])
            pictures = [expose(scene.light, camera, np.random.default_rng([SEED, index, n])) for n in range(frames)]
            taken = [predictor(np.ascontiguousarray(picture[..., ::-1])) for picture in pictures]
            found.append((scene.objects, taken))
        print(f"{model.name}, {scenes} scenes in {frames} frames each, {predictor.backend.description}\n")
    return found


def steadiness(scenes: Sequence[Scene], half_life_s: float) -> tuple[float, float, int]:
    """Pixels that change between frames and IoU of mask and object, mean percent; and how many masks were seen."""
    changes, overlaps = [], []
    for objects, frames in scenes:
        tracker, last = make_tracker(FPS, half_life_s), dict[int, np.ndarray]()
        for number, detections in enumerate(frames):
            shown = tracker.update(detections, number / FPS).tracked().above(SHOWN_SCORE)
            tracks = [] if shown.track_ids is None else shown.track_ids.tolist()
            now = dict(zip(tracks, shown.full_masks(), strict=True))
            for (track, mask), label in zip(now.items(), shown.labels.tolist(), strict=True):
                own = [each for each in objects if each.label == label]
                overlap, pixels = max(((_iou(mask, each.mask), each.mask.sum()) for each in own), default=(0.0, 0))
                if number < FIRST or overlap < OVERLAP:
                    continue
                overlaps.append(overlap)
                if track in last:
                    changes.append((mask ^ last[track]).sum() / pixels)
            last = now
    return 100 * float(np.mean(changes)), 100 * float(np.mean(overlaps)), len(overlaps)


def _iou(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / max((a | b).sum(), 1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--scenes", type=from_(1), default=20, help="default: 20")
    parser.add_argument("--frames", type=from_(FIRST + 2), default=16, help="of each scene (default: 16)")
    parser.add_argument("--half-lives", default="0.1,0.15,0.2,0.3", metavar="S,S,...", help="default: 0.1,0.15,0.2,0.3")
    parser.add_argument("--threads", type=from_(0), default=0, metavar="N", help="CPU threads (default: one per core)")
    arguments = parser.parse_args()
    try:
        half_lives = [0.0, *map(float, arguments.half_lives.split(","))]
    except ValueError:
        parser.error(f"--half-lives is {arguments.half_lives!r}; expected seconds, with commas")
    scenes = detected(arguments.model, arguments.scenes, arguments.frames, arguments.threads)
    rows = []
    for half_life in half_lives:
        change, overlap, seen = steadiness(scenes, half_life)
        rows.append((f"{half_life:g} s" if half_life else "as found", f"{change:.1f}", f"{overlap:.1f}", str(seen)))
    print(table(("--smooth", "% of pixels change", "IoU with the object, %", "masks"), rows))


if __name__ == "__main__":
    sys.exit(exit_code(main))
