"""What a Triton server adds to a frame, on this machine: the file itself against both variants of ``wnlb triton``.

    python scripts/bench_triton.py                          # the sample model at 320x320, for a CPU
    python scripts/bench_triton.py model.onnx --rounds 30 --clients 1,2,4,8

Three ways from a JPEG to detections: in this process; ``net``, over gRPC; ``full``, the JPEG over gRPC. They take
turns, frame by frame, so that whatever the machine does meanwhile meets all alike; a ratio is the median of the ratios
of the rounds. Processor time is that of this process and of the server's, all threads together: others who use the
machine change it least. Then several clients at once, for a while each.

The server is that of nvidia-pytriton (./scripts/test installs it). It lacks the onnxruntime backend, for which a Python
stand-in runs the same file: ``net`` pays for two copies through shared memory that Triton's own backend does not make.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import psutil
import real_triton
import tritonclient.grpc as triton
from bench_padded import night_frames
from counts import from_
from tqdm import tqdm

from wnlb.runtime.coco import encode_mask
from wnlb.runtime.detections import Detections
from wnlb.runtime.errors import WnlbError, exit_code
from wnlb.runtime.pictures import decode_picture
from wnlb.runtime.predictor import Predictor
from wnlb.runtime.profile.making import run_wnlb
from wnlb.runtime.served_model import model_of
from wnlb.runtime.serving.repository import How, read_models, start_of, write_repository
from wnlb.runtime.table import table

SCORE = 0.5
WARM_UP = 3  # rounds
PICTURES = 8
Way = Callable[[bytes], None]


def main(words: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", type=Path, help=".onnx of 'wnlb export' (default: the sample at 320x320)")
    parser.add_argument("--rounds", type=from_(1), default=20, metavar="N")
    parser.add_argument("--clients", default="1,4,8", metavar="N,...", help="at once (default: 1,4,8; 0 for none)")
    parser.add_argument("--seconds", type=float, default=15.0, metavar="S", help="for each number of clients")
    arguments = parser.parse_args(words)
    if absent := real_triton.missing():
        raise WnlbError(f"there is no Triton server: {absent}")
    with tempfile.TemporaryDirectory() as temporary, contextlib.ExitStack() as stack:
        folder = Path(temporary)
        model = arguments.model or folder / "sample.onnx"
        if not arguments.model:
            run_wnlb(["export", "sample", "-o", str(model), "--size", "320x320", "--target", "cpu"])
        servers = {variant: stack.enter_context(_server(model, variant, folder)) for variant in ("net", "full")}
        with Predictor(model, device="cpu") as predictor:
            shape = predictor.contract.input_shape
            frames = list(night_frames(shape[1:3], PICTURES, seed=0))
        jpegs = [cv2.imencode(".jpg", frame)[1].tobytes() for frame in frames]
        opened = _Ways(model, servers, stack)
        print(_interleaved(opened, jpegs, arguments.rounds))
        print(_bytes(opened, jpegs))
        for count in map(int, arguments.clients.split(",")):
            if count:
                print(_at_once(opened, jpegs, count, arguments.seconds))
    return 0


@contextlib.contextmanager
def _server(model: Path, variant: str, folder: Path) -> Iterator[real_triton.RealTriton]:
    own = folder / variant
    own.mkdir()
    how, models = How(variant, "cpu", score_threshold=SCORE), read_models([model], variant)
    write_repository(models, how, start_of(models, how, "26.05", "127.0.0.1"), own / "repository")
    with real_triton.started(own / "repository", own, model.stem, every_s=3600) as server:
        yield server


class _Ways:
    """From a JPEG to detections with run-length encoded masks, in three ways; a client of its own for each caller."""

    names = ("local", "net", "full")

    def __init__(self, model: Path, servers: dict[str, real_triton.RealTriton], stack: contextlib.ExitStack) -> None:
        self.model, self.servers, self._stack = model, servers, stack

    def open(self, name: str) -> Way:
        if name == "full":
            return self._full()
        address = str(self.model) if name == "local" else self.servers["net"].address(self.model.stem)
        device = {"device": "cpu"} if name == "local" else {}
        predictor = self._stack.enter_context(Predictor(model_of(address), score_threshold=SCORE, **device))

        def way(jpeg: bytes) -> None:
            _encoded(predictor(decode_picture(jpeg, "frame")))

        return way

    def ask_full(self, client: Any, jpeg: bytes) -> Any:
        value = triton.InferInput("picture", [1, 1], "BYTES")
        value.set_data_from_numpy(np.array([[jpeg]], np.object_))
        return client.infer(self.model.stem, [value])

    def client(self) -> Any:
        return self._stack.enter_context(triton.InferenceServerClient(f"127.0.0.1:{self.servers['full'].ports[1]}"))

    def cpu_seconds(self, name: str) -> float:
        """Of this process and, for a way over a server, of all of that server's."""
        own = sum(os.times()[:2])
        return own + (sum(map(_cpu, self._processes(name))) if name in self.servers else 0.0)

    def _processes(self, name: str) -> list[psutil.Process]:
        return psutil.Process(self.servers[name].process.pid).children(recursive=True)

    def _full(self) -> Way:
        client = self.client()

        def way(jpeg: bytes) -> None:
            answer = self.ask_full(client, jpeg)
            for output in answer.get_response().outputs:
                answer.as_numpy(output.name)

        return way


def _cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


def _encoded(found: Detections) -> list[Any]:
    return [encode_mask(mask, found.height, found.width) for mask in found.masks or ()]


def _interleaved(ways: _Ways, jpegs: list[bytes], rounds: int) -> str:
    """The median frame of each way, in turns, and what the median round makes of it beside the local one."""
    opened = {name: ways.open(name) for name in ways.names}
    wall: dict[str, list[float]] = {name: [] for name in opened}
    cpu: dict[str, list[float]] = {name: [] for name in opened}
    for number in tqdm(range(WARM_UP + rounds), desc="in turns", file=sys.stderr, leave=False, disable=None):
        for name, way in opened.items():
            used, started = ways.cpu_seconds(name), time.perf_counter()
            way(jpegs[number % len(jpegs)])
            if number >= WARM_UP:
                wall[name].append(1e3 * (time.perf_counter() - started))
                cpu[name].append(1e3 * (ways.cpu_seconds(name) - used))
    rows = []
    for name in opened:
        median, used = statistics.median(wall[name]), statistics.mean(cpu[name])
        ratio = statistics.median(own / local for own, local in zip(wall[name], wall["local"], strict=True))
        rows.append(
            (name, f"{median:.1f}", f"{ratio:.3f}", f"{used:.0f}", f"{used / statistics.mean(cpu['local']):.3f}")
        )
    head = ("way", "p50 ms", "/ local", "processor ms", "/ local")
    return f"{rounds} rounds, one client, from JPEG to detections\n{table(head, rows)}\n"


def _bytes(ways: _Ways, jpegs: list[bytes]) -> str:
    """What crosses the network for a picture, without gRPC's own few bytes."""
    predictor = Predictor(model_of(ways.servers["net"].address(ways.model.stem)))
    with predictor:
        contract = predictor.contract
        there, back = (
            sum(int(np.prod(shape)) * np.dtype(contract.types[name]).itemsize for name, shape in shapes.items())
            for shapes in (contract.input_shapes, contract.output_shapes)
        )
    client = ways.client()
    answers = [ways.ask_full(client, jpeg).get_response().ByteSize() for jpeg in jpegs]
    rows = [
        ("net", f"{there / 1e3:.1f}", f"{back / 1e3:.1f}"),
        ("full", f"{statistics.mean(map(len, jpegs)) / 1e3:.1f}", f"{statistics.mean(answers) / 1e3:.1f}"),
    ]
    return f"kB of a run, mean of {len(jpegs)} pictures for full\n{table(('variant', 'to the server', 'back'), rows)}\n"


def _at_once(ways: _Ways, jpegs: list[bytes], clients: int, seconds: float) -> str:
    """Pictures a second of so many clients, beside this process alone, in turns of a third of the time."""
    opened = {name: [ways.open(name) for _ in range(clients if name != "local" else 1)] for name in ways.names}
    done: dict[str, list[float]] = {name: [] for name in opened}
    for _ in range(3):
        for name, own in opened.items():
            done[name].append(_rate(own, jpegs, seconds / 3))
    rates = {name: statistics.median(found) for name, found in done.items()}
    rows = [(name, f"{rate:.2f}", f"{rate / rates['local']:.3f}") for name, rate in rates.items()]
    return f"{clients} clients at once, beside one in this process\n{table(('way', 'pictures/s', '/ local'), rows)}\n"


def _rate(ways: list[Way], jpegs: list[bytes], seconds: float) -> float:
    started, counts = time.perf_counter(), [0] * len(ways)

    def work(number: int) -> None:
        for jpeg in itertools.cycle(jpegs):
            if time.perf_counter() - started > seconds:
                return
            ways[number](jpeg)
            counts[number] += 1

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(ways))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / (time.perf_counter() - started)


if __name__ == "__main__":
    sys.exit(exit_code(lambda: main(sys.argv[1:])))
