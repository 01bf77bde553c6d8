"""What the host adds to the inference: each stage beside it, and frames a second of whole commands against it alone.

    python scripts/bench_host.py model.onnx
    python scripts/bench_host.py model.onnx --sizes 1080x1920 --format png --count 48 --few 8 --rounds 5

Pictures are night scenes, a folder for each size. Stages are run one after the other on each picture; the commands,
``wnlb predict``, ``wnlb evaluate`` and ``wnlb run --video``, in turn with as many runs of the inference alone, one
after the other and two at once, all from the opening of the model, in one process, with the same threads. Each also
works on the first few pictures, and what the others take more is its time after the start. Beside the time on the clock
stands that of the processor, of all threads together, which other work on the machine changes least. Shares: all host
stages against the inference; the inference alone, one after the other, against a whole command, after the start of
both. "At best": the same by processor time, were a command no more than its stages and inference, two at once but in
``run``.
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
from wnlb.runtime.live.video_file import VideoFile
from wnlb.runtime.machine import processor
from wnlb.runtime.overlap import abreast
from wnlb.runtime.overlay import draw_on
from wnlb.runtime.pictures import read_picture
from wnlb.runtime.predict_command import JPEG_QUALITY
from wnlb.runtime.predictor import AT_ONCE, Predictor
from wnlb.runtime.table import table

DARKNESS = (1000.0, 300.0, 100.0, 30.0)
THRESHOLD = 0.5  # of scores, of ``wnlb predict``
BESIDE = "prepare, paste"
STAGES = {
    "predict": ("read", BESIDE, "draw", "encode", "RLE"),
    "evaluate": ("read", "luminance", BESIDE, "RLE"),
    "run": ("read", BESIDE, "copy", "draw", "encode video"),
}
ALONE, TOGETHER = "alone", "alone, two at once"


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


def few_of(night: Path, few: int) -> Path:
    """The first pictures of a folder as another one."""
    folder = night / "few"
    (folder / "images").mkdir(parents=True)
    labels = json.loads((night / "annotations.json").read_text())
    labels["images"] = labels["images"][:few]
    kept = {image["id"] for image in labels["images"]}
    labels["annotations"] = [own for own in labels["annotations"] if own["image_id"] in kept]
    for image in labels["images"]:
        (folder / "images" / image["file_name"]).hardlink_to(night / "images" / image["file_name"])
    (folder / "annotations.json").write_text(json.dumps(labels))
    return folder


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
    video = VideoFile(paths[0].parent.parent / "stages.mp4", 25.0)
    for path in paths * rounds:
        picture = done("read", read_picture, path)
        done("luminance", luminance, picture)
        found = done(BESIDE, predictor, picture)
        costs.setdefault("inference", []).append(clocked.cost)
        costs[BESIDE].append(costs[BESIDE].pop() - clocked.cost)
        overlay = done("copy", picture.copy)
        done("draw", draw_on, overlay, found, names)
        done("encode", cv2.imencode, path.suffix, overlay, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
        done("encode video", video.write, overlay)
        done("RLE", coco_results, found, 1)
    video.discard()
    return {stage: median(of_stage) for stage, of_stage in costs.items()}


def ways_of(model: Path, night: Path, threads: int) -> dict[str, Callable[[], None]]:
    """A folder's pictures by the inference alone, by that of two at once, and by each command."""
    paths = sorted((night / "images").iterdir())
    with Predictor(model, device="cpu", threads=threads) as predictor:
        inputs = [prepared_inputs(predictor.contract, [read_picture(p)]) for p in paths]

    def alone(at_once: int) -> None:
        with Predictor(model, device="cpu", threads=threads, at_once=at_once) as predictor:
            backend = predictor.backend
            for _ in abreast((each for each in inputs), [backend.run] * backend.at_once):
                pass

    def command(*words: object) -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            if code := wnlb([*map(str, words), "--device", "cpu", "--threads", str(threads)]):
                raise WnlbError(f"wnlb {words[0]} ended with exit code {code}")

    labels, video = ("--annotations", night / "annotations.json"), night / "overlays.mp4"
    return {
        ALONE: lambda: alone(1),
        TOGETHER: lambda: alone(AT_ONCE),
        "predict": lambda: command("predict", model, night / "images", "-o", night / "out", "--quiet"),
        "evaluate": lambda: command("evaluate", model, "--images", night / "images", *labels),
        "run": lambda: command("run", model, night / "images", "--video", video, "--quiet"),
    }


def whole(model: Path, night: Path, few: int, threads: int, rounds: int) -> tuple[dict[str, list[Cost]], ...]:
    """What each way costs, in turn, ``rounds`` times: of all pictures, and of the few."""
    sets = [ways_of(model, folder, threads) for folder in (night, few_of(night, few))]
    costs: tuple[dict[str, list[Cost]], ...] = tuple({way: [] for way in ways} for ways in sets)
    for number in range(rounds + 1):
        for way in sets[0]:
            for ways, own in zip(sets, costs, strict=True):
                cost = Cost.of(ways[way])
                if number:  # the first round loads modules
                    own[way].append(cost)
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


def print_whole(
    costs: dict[str, tuple[dict[str, list[Cost]], ...]], stages: dict[str, dict[str, Cost]], count: int, few: int
) -> None:
    """``costs``: by size of the frame, of all pictures and of the few, by way; ``stages``: by size, by stage."""
    rows = []
    for size, (of_all, of_few) in costs.items():
        after = {way: [a - b for a, b in zip(of_all[way], of_few[way], strict=True)] for way in of_all}
        for way, own in after.items():
            speed = 1e3 * count / median(of_all[way]).clock, 1e3 * (count - few) / median(own).clock
            shares = [
                statistics.median(getattr(a, kind) / getattr(c, kind) for a, c in zip(after[ALONE], own, strict=True))
                for kind in ("clock", "processor")
            ]
            if way in STAGES:
                host = sum(stages[size][stage].processor for stage in STAGES[way]) * (count - few)
                inference = ALONE if way == "run" else TOGETHER
                shares.append(median(after[ALONE]).processor / (median(after[inference]).processor + host))
            told = [f"{100 * share:.1f} %" for share in shares]
            rows.append((size, way, *(f"{each:.2f}" for each in speed), *told, *[""] * (3 - len(told))))
    header = ("frames", "what", "frames/s", "after the start", "of the inference alone", "by the processor", "at best")
    print(table(header, rows))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("model", type=Path, help="an ONNX file that 'wnlb export' wrote")
    parser.add_argument("--sizes", nargs="+", default=["480x640", "1080x1920", "2160x3840"], metavar="HxW")
    parser.add_argument("--format", choices=("jpg", "png"), default="jpg", help="of the pictures (default: jpg)")
    parser.add_argument("--count", type=from_(2), default=24, metavar="N", help="pictures of each size (default: 24)")
    parser.add_argument("--few", type=from_(1), default=6, metavar="N", help="of them, for the start (default: 6)")
    parser.add_argument("--rounds", type=from_(1), default=5, metavar="N", help="turns of each (default: 5)")
    parser.add_argument("--threads", type=from_(0), default=0, metavar="N", help="CPU threads (default: all)")
    arguments = parser.parse_args()
    model, threads, rounds = arguments.model, arguments.threads, arguments.rounds
    if arguments.few >= arguments.count:
        raise WnlbError(f"--few is {arguments.few}; expected fewer than --count, {arguments.count}")
    sizes = [parse_size(size) for size in arguments.sizes]
    stages: dict[str, dict[str, Cost]] = {}
    costs: dict[str, tuple[dict[str, list[Cost]], ...]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, size in zip(arguments.sizes, sizes, strict=True):
            night = Path(folder) / name
            write_night(night, size, arguments.count, arguments.format)
            backend = open_backend(model, device="cpu", threads=threads)
            stages[name] = stages_of(backend, sorted((night / "images").iterdir()), rounds)
            backend.close()
            costs[name] = whole(model, night, arguments.few, threads, rounds)
    print(f"{processor()}; {backend.description}; {arguments.count} {arguments.format} pictures, {rounds} rounds\n")
    print_stages(stages)
    print()
    print_whole(costs, stages, arguments.count, arguments.few)


if __name__ == "__main__":
    sys.exit(exit_code(main))
