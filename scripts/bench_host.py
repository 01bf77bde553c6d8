"""What the host adds to the inference: each stage beside it, and frames a second of whole commands against it alone.

    python scripts/bench_host.py model.onnx
    python scripts/bench_host.py model.onnx --sizes 1080x1920 --format png --count 24 --rounds 5

Pictures are night scenes, a folder for each size. Stages are run one after the other on each picture; the commands,
``wnlb predict``, ``wnlb evaluate`` and ``wnlb run --video``, in turn with as many runs of the inference alone, all from
the opening of the model, in one process, with the same threads. Beside the time on the clock stands that of the
processor, of all threads together, which other work on the machine changes least. Shares: all host stages of a stage
table against the inference; the inference alone against a whole command.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
from counts import from_

from wnlb.calibration.scenes.dataset import write_scenes
from wnlb.runtime.backend import Backend, open_backend
from wnlb.runtime.cli import main as wnlb
from wnlb.runtime.coco import coco_results
from wnlb.runtime.darkness import luminance
from wnlb.runtime.errors import WnlbError, exit_code
from wnlb.runtime.geometry import parse_size
from wnlb.runtime.inputs import prepared_inputs
from wnlb.runtime.machine import processor
from wnlb.runtime.overlay import draw
from wnlb.runtime.pictures import read_picture
from wnlb.runtime.predictor import Predictor
from wnlb.runtime.table import table

DARKNESS = (1000.0, 300.0, 100.0, 30.0)
THRESHOLD = 0.5  # of scores, of ``wnlb predict``
BESIDE = "prepare, paste"
STAGES = {"predict": ("read", BESIDE, "draw", "encode", "RLE"), "evaluate": ("read", "luminance", BESIDE, "RLE")}


@dataclass(frozen=True)
class Cost:
    """Milliseconds on the clock and of the processor."""

    clock: float
    processor: float

    def __sub__(self, other: Cost) -> Cost:
        return Cost(self.clock - other.clock, self.processor - other.processor)

    @classmethod
    def of(cls, run: Callable[[], object]) -> Cost:
        clock, used = time.perf_counter(), time.process_time()
        run()
        return cls(1e3 * (time.perf_counter() - clock), 1e3 * (time.process_time() - used))


def median(costs: list[Cost]) -> Cost:
    return Cost(statistics.median(c.clock for c in costs), statistics.median(c.processor for c in costs))


def write_night(folder: Path, size: tuple[int, int], count: int, suffix: str) -> None:
    """``count`` scenes and their annotations, as files of this format."""
    write_scenes(folder, count, *size, DARKNESS, seed=1000)
    if suffix == "png":
        return
    for path in sorted((folder / "images").glob("*.png")):
        cv2.imwrite(str(path.with_suffix(f".{suffix}")), cv2.imread(str(path)))
        path.unlink()
    labels = json.loads((folder / "annotations.json").read_text())
    for image in labels["images"]:
        image["file_name"] = str(Path(image["file_name"]).with_suffix(f".{suffix}"))
    (folder / "annotations.json").write_text(json.dumps(labels))


class Clocked:
    """A backend that keeps what its last run cost."""

    def __init__(self, backend: Backend) -> None:
        self._backend, self.cost = backend, Cost(0, 0)

    def run(self, inputs: dict[str, Any]) -> dict[str, Any]:
        outputs: list[dict[str, Any]] = []
        self.cost = Cost.of(lambda: outputs.append(self._backend.run(inputs)))
        return outputs[0]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)


def stages_of(backend: Backend, paths: list[Path], rounds: int) -> dict[str, Cost]:
    """The median cost of each stage over all pictures, each after the other."""
    costs: dict[str, list[Cost]] = {}

    def done(stage: str, run: Callable[..., Any], *arguments: Any) -> Any:
        result: list[Any] = []
        costs.setdefault(stage, []).append(Cost.of(lambda: result.append(run(*arguments))))
        return result[0]

    clocked, names = Clocked(backend), backend.contract.class_names
    predictor = Predictor(clocked, score_threshold=THRESHOLD)
    for path in paths * rounds:
        picture = done("read", read_picture, path)
        done("luminance", luminance, picture)
        found = done(BESIDE, predictor, picture)
        costs.setdefault("inference", []).append(clocked.cost)
        costs[BESIDE].append(costs[BESIDE].pop() - clocked.cost)
        overlay = done("draw", draw, picture, found, names)
        done("encode", cv2.imencode, path.suffix, overlay)
        done("RLE", coco_results, found, 1)
    return {stage: median(of_stage) for stage, of_stage in costs.items()}


def whole(model: Path, night: Path, threads: int, rounds: int) -> dict[str, list[Cost]]:
    """A folder's pictures by the inference alone and by each command, in turn, ``rounds`` times."""
    paths = sorted((night / "images").iterdir())
    common = ("--device", "cpu", "--threads", str(threads))
    with Predictor(model, device="cpu", threads=threads) as predictor:
        inputs = [prepared_inputs(predictor.contract, [read_picture(p)]) for p in paths]

    def alone() -> None:
        with Predictor(model, device="cpu", threads=threads) as predictor:
            for each in inputs:
                predictor.backend.run(each)

    def command(*words: object) -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            if code := wnlb([*map(str, words), *common]):
                raise WnlbError(f"wnlb {words[0]} ended with exit code {code}")

    labels, video = ("--annotations", night / "annotations.json"), night / "overlays.mp4"
    ways: dict[str, Callable[[], None]] = {
        "alone": alone,
        "predict": lambda: command("predict", model, night / "images", "-o", night / "out", "--quiet"),
        "evaluate": lambda: command("evaluate", model, "--images", night / "images", *labels),
        "run": lambda: command("run", model, night / "images", "--video", video, "--quiet"),
    }
    costs: dict[str, list[Cost]] = {way: [] for way in ways}
    for number in range(rounds + 1):
        for way, run in ways.items():
            cost = Cost.of(run)
            if number:  # the first round loads modules
                costs[way].append(cost)
    return costs


def print_stages(stages: dict[str, dict[str, Cost]]) -> None:
    """``stages``: by size of the frame, by stage."""
    first = next(iter(stages.values()))
    rows = [
        (stage, *(f"{c.clock:.1f} / {c.processor:.1f}" for c in (of[stage] for of in stages.values())))
        for stage in first
    ]
    for command, own in STAGES.items():
        shares = []
        for of in stages.values():
            host = [of[stage] for stage in own]
            by = (sum(getattr(c, kind) for c in host) / getattr(of["inference"], kind) for kind in vars(host[0]))
            shares.append(" / ".join(f"{100 * share:.1f} %" for share in by))
        rows.append((f"host of {command}", *shares))
    print(table(("ms, clock / processor", *stages), rows))


def print_whole(costs: dict[str, dict[str, list[Cost]]], count: int) -> None:
    """``costs``: by size of the frame, by way."""
    rows = []
    for size, of in costs.items():
        for way, own in of.items():
            clock, used = (
                statistics.median(getattr(a, kind) / getattr(c, kind) for a, c in zip(of["alone"], own, strict=True))
                for kind in ("clock", "processor")
            )
            speed = count / statistics.median(c.clock for c in own) * 1e3
            rows.append((size, way, f"{speed:.2f}", f"{100 * clock:.1f} %", f"{100 * used:.1f} %"))
    print(table(("frames", "what", "frames/s", "of the inference alone", "by the processor"), rows))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("model", type=Path, help="an ONNX file that 'wnlb export' wrote")
    parser.add_argument("--sizes", nargs="+", default=["480x640", "1080x1920", "2160x3840"], metavar="HxW")
    parser.add_argument("--format", choices=("jpg", "png"), default="jpg", help="of the pictures (default: jpg)")
    parser.add_argument("--count", type=from_(1), default=16, metavar="N", help="pictures of each size (default: 16)")
    parser.add_argument("--rounds", type=from_(1), default=5, metavar="N", help="turns of each (default: 5)")
    parser.add_argument("--threads", type=from_(0), default=0, metavar="N", help="CPU threads (default: all)")
    arguments = parser.parse_args()
    model, threads, rounds = arguments.model, arguments.threads, arguments.rounds
    sizes = [parse_size(size) for size in arguments.sizes]
    stages: dict[str, dict[str, Cost]] = {}
    costs: dict[str, dict[str, list[Cost]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, size in zip(arguments.sizes, sizes, strict=True):
            night = Path(folder) / name
            write_night(night, size, arguments.count, arguments.format)
            backend = open_backend(model, device="cpu", threads=threads)
            stages[name] = stages_of(backend, sorted((night / "images").iterdir()), rounds)
            backend.close()
            costs[name] = whole(model, night, threads, rounds)
    print(f"{processor()}; {backend.description}; {arguments.count} {arguments.format} pictures, {rounds} rounds\n")
    print_stages(stages)
    print()
    print_whole(costs, arguments.count)


if __name__ == "__main__":
    sys.exit(exit_code(main))
