"""Pictures a second of ``wnlb label`` against ``wnlb predict``, each after its start.

    python scripts/bench_label.py model.onnx
    python scripts/bench_label.py model.onnx --count 200 --few 20 --rounds 3

Each command runs as a process of its own on ``--few`` and on ``--count`` night scenes, one command after the other in
every round; what the longer run takes more is the time of the pictures that it has more. ``run`` is
``wnlb run --every-frame --coco``, which reads, infers and run-length encodes as predict does and draws nothing.
Processor time is that of a command with all processes it waited for; Ray's are not among them. ``label, Ray`` runs
where Ray is installed.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from counts import from_

from wnlb.calibration.scenes.dataset import write_scenes
from wnlb.runtime.errors import WnlbError, exit_code
from wnlb.runtime.geometry import parse_size
from wnlb.runtime.machine import processor
from wnlb.runtime.table import table

DARKNESS = (1000.0, 300.0, 100.0, 30.0)


@dataclass(frozen=True)
class Cost:
    """Seconds on the clock and of the processor."""

    clock: float
    processor: float

    def __sub__(self, other: Cost) -> Cost:
        return Cost(self.clock - other.clock, self.processor - other.processor)


def cost_of(words: list[str], output: Path) -> Cost:
    """Of one command, which writes into a new folder. Raises WnlbError where it fails."""
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir()
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "wnlb.runtime.cli", *words], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise WnlbError(f"wnlb {' '.join(words)} ended with {process.returncode}")
    return Cost(time.perf_counter() - started, usage.ru_utime + usage.ru_stime)


def commands(model: Path, output: Path) -> dict[str, list[str]]:
    """Name to the words of a command, ``PICTURES`` standing for the folder."""
    label = ["label", str(model), "PICTURES", "-o", str(output), "--quiet"]
    found = {
        "run, no overlays": ["run", str(model), "PICTURES", "--every-frame", "--quiet", "--coco", f"{output}/d.json"],
        "predict": ["predict", str(model), "PICTURES", "-o", str(output), "--quiet"],
        "label, processes": label,
    }
    if importlib.util.find_spec("ray"):
        found["label, Ray"] = [*label, "--address", "local"]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--size", default="320x320", metavar="HxW", help="of the pictures (default: 320x320)")
    parser.add_argument("--count", type=from_(2), default=200)
    parser.add_argument("--few", type=from_(1), default=20)
    parser.add_argument("--rounds", type=from_(1), default=3)
    arguments = parser.parse_args()
    if arguments.few >= arguments.count:
        raise WnlbError(f"--few is {arguments.few}, --count {arguments.count}; expected fewer than --count")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for count in (arguments.few, arguments.count):
            write_scenes(folder / str(count), count, *parse_size(arguments.size), DARKNESS, seed=1000)
        spent: dict[str, list[Cost]] = {}
        starts: dict[str, list[Cost]] = {}
        for number in range(arguments.rounds):
            for what, words in commands(arguments.model, folder / "out").items():
                few, many = (
                    cost_of([f"{folder}/{count}/images" if w == "PICTURES" else w for w in words], folder / "out")
                    for count in (arguments.few, arguments.count)
                )
                spent.setdefault(what, []).append(many - few)
                starts.setdefault(what, []).append(few)
                print(f"round {number + 1}: {what}: {few.clock:.1f} s, {many.clock:.1f} s", file=sys.stderr)
    pictures = arguments.count - arguments.few
    base = statistics.median(cost.clock for cost in next(iter(spent.values())))
    rows = []
    for what, costs in spent.items():
        clock, used = (statistics.median(getattr(c, kind) for c in costs) for kind in ("clock", "processor"))
        ms = "-" if "Ray" in what else f"{1e3 * used / pictures:.0f}"
        whole = statistics.median(cost.clock for cost in starts[what])
        rows.append((what, f"{pictures / clock:.2f}", f"{base / clock:.2f}", ms, f"{whole:.1f}"))
    print(f"{processor()}; {pictures} pictures of {arguments.size}, {arguments.rounds} rounds\n")
    header = (
        "command",
        "pictures/s after start",
        "against the first",
        "processor ms a picture",
        f"s for {arguments.few}",
    )
    print(table(header, rows))


if __name__ == "__main__":
    sys.exit(exit_code(main))
