"""How many of eager torchvision's detections a file finds again on frames that do not fill its input.

    python scripts/bench_padded.py                       # the sample model at 256x320, 120 frames of three sizes
    python scripts/bench_padded.py --size 256x320 --count 30 --frames 256x320

Torchvision runs whole, with its own transform, which pads to multiples of 32 and never resizes here; the file through
the Predictor. A detection counts as found where the file has one of the same class within 0.5 px and 0.01 of its score.
Exit code 1 where less than 99.5 % of those with a score of 0.3 or more are.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from counts import from_
from numpy.typing import NDArray
from torchvision.models.detection import MaskRCNN
from tqdm import tqdm

from wnlb.calibration.scenes.camera import DARKNESS_LEVELS, Camera, expose
from wnlb.calibration.scenes.scene import make_scene
from wnlb.export.checkpoints.checkpoint import load_checkpoint
from wnlb.export.checkpoints.files.fetched import SAMPLE
from wnlb.export.onnx_file.export_onnx import configure, export_onnx
from wnlb.export.options import ExportOptions
from wnlb.runtime.detections import Detections
from wnlb.runtime.errors import WnlbError, exit_code
from wnlb.runtime.geometry import parse_size
from wnlb.runtime.predictor import Predictor
from wnlb.runtime.table import table

SCORE = 0.3
WITHIN = (0.5, 0.01)  # px, score
WANTED = 0.995
Arrays = dict[str, NDArray]


@dataclass
class Found:
    """Of the frames of one size."""

    eager: int = 0  # detections of torchvision
    again: int = 0  # of these, those that the file has
    box_error: float = 0.0  # px, the largest of those
    score_error: float = 0.0

    def add(self, eager: Arrays, ours: Detections) -> None:
        """The detections of one frame; one of ours serves one of torchvision's."""
        free = np.ones(len(ours), bool)
        for box, score, label in zip(eager["boxes"], eager["scores"], eager["labels"], strict=True):
            if score < SCORE:
                continue
            self.eager += 1
            apart = np.abs(ours.boxes - box).max(1, initial=0) if len(ours) else np.empty(0)
            scores = np.abs(ours.scores - score)
            fits = free & (ours.labels == label) & (apart <= WITHIN[0]) & (scores <= WITHIN[1])
            if fits.any():
                i = int(np.where(fits, apart, np.inf).argmin())
                free[i], self.again = False, self.again + 1
                self.box_error = max(self.box_error, float(apart[i]))
                self.score_error = max(self.score_error, float(scores[i]))

    @property
    def share(self) -> float:
        return self.again / self.eager if self.eager else 1.0


def night_frames(size: tuple[int, int], count: int, seed: int) -> Iterator[NDArray[np.uint8]]:
    """Night scenes ``[h, w, 3]`` in BGR, the same from the same seed."""
    for i in range(count):
        camera = Camera(DARKNESS_LEVELS[i % len(DARKNESS_LEVELS)])
        light = make_scene(seed, i, *size).light
        picture = expose(light, camera, np.random.default_rng([seed, i, 1])).astype(np.uint8)
        yield np.ascontiguousarray(picture[..., ::-1])


def eager_detections_of(model: MaskRCNN, frame_bgr: NDArray[np.uint8]) -> Arrays:
    """What torchvision finds in a frame of its own size, padded by its own transform."""
    model.transform.min_size, model.transform.max_size = (min(frame_bgr.shape[:2]),), max(frame_bgr.shape[:2])
    planes = torch.from_numpy(frame_bgr[..., ::-1].transpose(2, 0, 1).copy()) / 255
    with torch.no_grad():
        (found,) = model([planes])
    return {name: value.numpy() for name, value in found.items()}


def compare(
    model: MaskRCNN, predictor: Predictor, sizes: Sequence[tuple[int, int]], count: int, seed: int
) -> dict[tuple[int, int], Found]:
    """By the size of the frames, ``count`` of each."""
    rows = {}
    for size in sizes:
        rows[size] = Found()
        shown = f"{size[0]}x{size[1]}"
        for frame in tqdm(night_frames(size, count, seed), shown, count, disable=None, leave=False):
            rows[size].add(eager_detections_of(model, frame), predictor(frame))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=SAMPLE, help="default: the sample of the package")
    parser.add_argument("--size", default="256x320", metavar="HxW", help="of the input (default: 256x320)")
    parser.add_argument("--frames", nargs="+", default=["240x320", "233x320", "256x300"], metavar="HxW")
    parser.add_argument("--count", type=from_(1), default=40, metavar="N", help="frames of each size (default: 40)")
    parser.add_argument("--seed", type=int, default=6000, help="of the scenes (default: 6000)")
    arguments = parser.parse_args()
    height, width = parse_size(arguments.size)
    sizes = [parse_size(text) for text in arguments.frames]
    if bad := [size for size in sizes if [-(-side // 32) * 32 for side in size] != [height, width]]:
        raise WnlbError(f"frames of {bad[0][0]}x{bad[0][1]} are not padded to {arguments.size} by torchvision")
    model, config = load_checkpoint(arguments.checkpoint)
    options = ExportOptions(height, width)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        export_onnx(model, path, options, class_names=config.class_names)
        configure(model, options)
        with Predictor(path, device="cpu") as predictor:
            rows = compare(model, predictor, sizes, arguments.count, arguments.seed)
    everything = Found(*(sum(getattr(row, name) for row in rows.values()) for name in ("eager", "again")))
    cells = [
        (f"{h}x{w}", row.eager, row.again, f"{100 * row.share:.2f} %", f"{row.box_error:.1e}", f"{row.score_error:.1e}")
        for (h, w), row in rows.items()
    ]
    cells.append(("all", everything.eager, everything.again, f"{100 * everything.share:.2f} %", "", ""))
    print(table(("frames", "eager", "found again", "share", "boxes px", "scores"), cells))
    if everything.share < WANTED:
        sys.exit(1)


if __name__ == "__main__":
    sys.exit(exit_code(main))
