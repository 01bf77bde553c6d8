"""A model in a process of its own, so that its memory, its threads and its start are its own."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wnlb.runtime.errors import WnlbError
from wnlb.runtime.measure import Times
from wnlb.runtime.onnxruntime_profile import stages_in_onnxruntime
from wnlb.runtime.predictor import Predictor


class Worker:
    """Opens the model when it is made; see ``wnlb.runtime.measure.Subject``.

    ``facts`` are the backend's description, the contract, ``start_up_ms`` (opening the model) and ``first_ms`` (the
    first frame).

    Raises:
        WnlbError: the model cannot be opened or run.
    """

    def __init__(
        self, name: str, model: Path, frames: list[NDArray[np.uint8]], device: str = "auto", threads: int = 0
    ) -> None:
        self.name = name
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        arguments = (theirs, model, frames, device, threads)
        self._process = context.Process(target=_serve, args=arguments, name=f"wnlb {name}", daemon=True)
        self._process.start()
        theirs.close()
        try:
            self.facts: dict[str, Any] = self._answer()
        except WnlbError:
            self.close()
            raise

    def run(self, count: int) -> list[Times]:
        """Frames in turns, each with its times: prepare, infer, paste and total."""
        return self._ask("run", count)

    def stages(self, runs: int) -> dict[str, float]:
        """Milliseconds of each stage of the network, the mean of ``runs``; empty where that cannot be had."""
        return self._ask("stages", runs)

    def peak_bytes(self) -> int:
        """The most memory of the host that the process held so far."""
        return self._ask("peak", 0)

    def close(self) -> None:
        """End the process; may be called more than once."""
        self._connection.close()
        self._process.join(timeout=5)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def _ask(self, what: str, count: int) -> Any:
        try:
            self._connection.send((what, count))
        except (OSError, ValueError) as error:
            raise WnlbError(f"the process of {self.name} has ended") from error
        return self._answer()

    def _answer(self) -> Any:
        try:
            answer, failure = self._connection.recv()
        except (EOFError, OSError) as error:
            self._process.join(timeout=5)
            code = self._process.exitcode
            raise WnlbError(f"the process of {self.name} ended with {code}; was its memory too small?") from error
        if failure:
            raise WnlbError(failure)
        return answer


class _Runner:
    """The other side: the model, and what is asked of it."""

    def __init__(self, model: Path, frames: list[NDArray[np.uint8]], device: str, threads: int) -> None:
        started = time.perf_counter()
        self._predictor = Predictor(model, device=device, threads=threads)
        start_up_ms = 1e3 * (time.perf_counter() - started)
        self._model, self._threads, self._next = model, threads, 0
        size = self._predictor.contract.batch
        self._batches = [[frames[(i + j) % len(frames)] for j in range(size)] for i in range(len(frames))]
        (first,) = self.run(1)
        self.facts = {
            "backend": self._predictor.backend.description,
            "start_up_ms": start_up_ms,
            "first_ms": first["total"],
            "contract": json.loads(self._predictor.contract.to_json()),
        }

    def run(self, count: int) -> list[Times]:
        found = []
        for _ in range(count):
            batch = self._batches[self._next % len(self._batches)]
            self._next += 1
            started = time.perf_counter()
            self._predictor.predict_batch(batch)
            total = 1e3 * (time.perf_counter() - started)
            found.append({**self._predictor.times_ms, "total": total})
        return found

    def stages(self, runs: int) -> dict[str, float]:
        if self._model.suffix != ".onnx":
            return {}  # TensorRT's profiler is not read yet
        contract = self._predictor.contract
        image = np.empty(contract.input_shape, np.uint8)
        for i, frame in enumerate(self._batches[0]):
            self._predictor.geometry.prepare(frame, image[i])
        return stages_in_onnxruntime(self._model, image, contract, self._threads, runs)

    def peak(self, _: int) -> int:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) << 10
        return 0


def _serve(connection: Connection, model: Path, frames: list[NDArray[np.uint8]], device: str, threads: int) -> None:
    with contextlib.suppress(EOFError, KeyboardInterrupt, BrokenPipeError), connection:  # the other side has ended
        try:
            runner = _Runner(model, frames, device, threads)
        except WnlbError as error:
            connection.send((None, str(error)))
            return
        connection.send((runner.facts, ""))
        while True:
            what, count = connection.recv()
            try:
                answer = (getattr(runner, what)(count), "")
            except WnlbError as error:
                answer = (None, str(error))
            connection.send(answer)
