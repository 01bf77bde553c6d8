"""A model in a process of its own, so that its memory, its threads and its start are its own."""

from __future__ import annotations

import contextlib
import itertools
import json
import multiprocessing
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wnlb.runtime.contract import METADATA_KEY, Contract
from wnlb.runtime.denormals import without_denormals
from wnlb.runtime.engine.backend import TensorRtBackend
from wnlb.runtime.engine.engine import TensorRtEngine
from wnlb.runtime.engine.manifest import read_manifest
from wnlb.runtime.errors import ContractError, WnlbError
from wnlb.runtime.inputs import prepared_inputs
from wnlb.runtime.onnxruntime_backend import open_session
from wnlb.runtime.predictor import Predictor
from wnlb.runtime.profile.measure import Times
from wnlb.runtime.profile.onnxruntime_stages import stages_in_onnxruntime
from wnlb.runtime.profile.stages import stage_times
from wnlb.runtime.served_model import Model, options_for


@dataclass(frozen=True)
class How:
    """How models are run. Three are trtexec's, for engines."""

    device: str = "auto"  # of ONNX Runtime
    threads: int = 0  # of ONNX Runtime
    data_transfers: bool = True
    cuda_graph: bool = True
    spin_wait: bool = True
    batch: int = 0  # frames of a run, which the model must take; 0 for the fewest


class Worker:
    """Opens the model when it is made; see ``wnlb.runtime.profile.measure.Subject``.

    A model of ours runs on the frames, with preparation and masks; another on zeros, bare.

    ``facts`` are the backend's ``description``, the ``contract`` (None for a model that is not ours), the ``batch``
    of a run, ``start_up_ms`` (opening the model) and ``first_ms`` (the first run).

    Raises:
        WnlbError: the model cannot be opened or run.
    """

    def __init__(self, name: str, model: Model, frames: list[NDArray[np.uint8]], how: How) -> None:
        self.name, self.how = name, how
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        arguments = (theirs, model, frames, how)
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

    def timed(self, count: int) -> list[Times]:
        """Runs of the inference alone, with trtexec's times; without any in ONNX Runtime."""
        return self._ask("timed", count)

    def stages(self, runs: int) -> dict[str, float]:
        """Milliseconds of each stage of the network, the mean of ``runs``; empty where that cannot be had."""
        return self._ask("stages", runs)

    def memory(self) -> tuple[int, int]:
        """Bytes: the most of the host's memory that the process held so far; what it holds of the GPU's."""
        return self._ask("memory", 0)

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

    def __init__(self, model: Model, frames: list[NDArray[np.uint8]], how: How) -> None:
        started = time.perf_counter()
        self._subject = _opened(model, frames, how)
        start_up_ms = 1e3 * (time.perf_counter() - started)
        (first,) = self.run(1)
        self.facts = {
            "description": self._subject.description,
            "start_up_ms": start_up_ms,
            "first_ms": first["total"],
            "contract": self._subject.contract,
            "batch": self._subject.batch,
            "found": self._subject.found,
        }

    def run(self, count: int) -> list[Times]:
        found = []
        for _ in range(count):
            started = time.perf_counter()
            parts = self._subject.run()
            total = 1e3 * (time.perf_counter() - started)
            found.append({**parts, "total": total})
        return found

    def timed(self, count: int) -> list[Times]:
        return [self._subject.timed() for _ in range(count)]

    def stages(self, runs: int) -> dict[str, float]:
        return self._subject.stages(runs)

    def memory(self, _: int) -> tuple[int, int]:
        lines = Path("/proc/self/status").read_text().splitlines()
        peak = next((int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM:")), 0)
        return peak, self._subject.device_bytes


def _opened(model: Model, frames: list[NDArray[np.uint8]], how: How) -> Any:
    """Whole frames for a model of ours, bare inference for another."""
    try:
        return _Frames(model, frames, how)
    except ContractError:
        if not isinstance(model, Path):
            raise
        if model.suffix == ".engine" and not read_manifest(model).contract:
            return _BareEngine(model, how)
        if model.suffix == ".onnx":
            session = open_session(model, device=how.device, threads=how.threads)
            if METADATA_KEY not in session.get_modelmeta().custom_metadata_map:
                return _BareOnnx(model, session)
        raise


class _Engine:
    """What can be asked of engines, of ours and others."""

    found = 0  # detections of the first frames, on which stages are measured

    def __init__(self, engine: TensorRtEngine | TensorRtBackend, how: How) -> None:
        self._engine, self._how = engine, how

    def timed(self) -> Times:
        how = self._how
        return self._engine.timed(how.data_transfers, how.cuda_graph, how.spin_wait)

    def stages(self, runs: int) -> dict[str, float]:
        return stage_times(self._engine.layer_times(runs))

    @property
    def device_bytes(self) -> int:
        return self._engine.device_bytes


class _Session:
    """What can be asked of ONNX Runtime's sessions: its profiler is asked elsewhere, the GPU's memory not at all."""

    device_bytes = 0
    found = 0

    def timed(self) -> Times:
        return {}

    def stages(self, runs: int) -> dict[str, float]:
        return {}


class _Frames:
    """A model of ours, on frames in turns."""

    def __init__(self, model: Model, frames: list[NDArray[np.uint8]], how: How) -> None:
        self._predictor = Predictor(model, **options_for(model, how.device, how.threads))
        self._model, self._threads, self.found = model, how.threads, 0
        self.batch = _batch(model, self._predictor.contract, how.batch)
        self._batches = [[frames[(i + j) % len(frames)] for j in range(self.batch)] for i in range(len(frames))]
        self._turns = itertools.cycle(self._batches)
        self.contract = json.loads(self._predictor.contract.to_json())
        backend = self._predictor.backend
        self._inner = _Engine(backend, how) if isinstance(backend, TensorRtBackend) else _Session()
        self.timed = self._inner.timed

    @property
    def description(self) -> str:
        return self._predictor.backend.description

    @property
    def device_bytes(self) -> int:
        return self._inner.device_bytes

    def run(self) -> Times:
        frames = next(self._turns)
        detections = self._predictor.predict_batch(frames)
        if frames is self._batches[0]:
            self.found = sum(map(len, detections))
        return self._predictor.times_ms

    def stages(self, runs: int) -> dict[str, float]:
        if isinstance(self._inner, _Engine):
            self._predictor.predict_batch(self._batches[0])  # the layers run on what that leaves
            return self._inner.stages(runs)
        if not isinstance(self._model, Path) or not self.description.partition(", ")[2].startswith("CPU"):
            return {}  # of a server, and of a GPU, of which ONNX Runtime's profiler sees the launches only
        inputs = prepared_inputs(self._predictor.contract, self._batches[0])
        return stages_in_onnxruntime(self._model, inputs, self._threads, runs)


class _BareEngine(_Engine):
    """An engine that is not ours, on zeros."""

    contract, batch = None, 1

    def __init__(self, model: Path, how: How) -> None:
        engine = TensorRtEngine(model, read_manifest(model))
        super().__init__(engine, how)
        self._inputs = {name: np.zeros_like(array) for name, array in engine.inputs.items()}

    @property
    def description(self) -> str:
        return self._engine.description

    def run(self) -> Times:
        self._engine.run(self._inputs)
        return {}


class _BareOnnx(_Session):
    """An ONNX file that is not ours, on zeros."""

    contract, batch = None, 1

    def __init__(self, model: Path, session: Any) -> None:
        self._session = session
        self.description = f"ONNX Runtime, {session.get_providers()[0].removesuffix('ExecutionProvider')}"
        self._inputs = {value.name: _zeros(model, value) for value in session.get_inputs()}

    def run(self) -> Times:
        with without_denormals():
            self._session.run(None, self._inputs)
        return {}


def _batch(model: Model, contract: Contract, wanted: int) -> int:
    """Frames of a run."""
    if not wanted:
        return contract.batches[0]
    if wanted not in contract.batches:
        raise WnlbError(f"{model} takes {contract.batch_text} frames a run, not the {wanted} of --batch")
    return wanted


def _zeros(model: Path, value: Any) -> NDArray[Any]:
    kinds = {"float": np.float32, "float16": np.float16, "double": np.float64, "bool": np.bool_}
    kind = value.type.removeprefix("tensor(").removesuffix(")")
    if not all(isinstance(dim, int) and dim > 0 for dim in value.shape):
        raise WnlbError(f"{model}: input {value.name} is {kind} {value.shape}; expected a static shape")
    try:
        return np.zeros(value.shape, kinds.get(kind, kind))
    except TypeError as error:
        raise WnlbError(f"{model}: input {value.name} is {kind}, which NumPy lacks") from error


def _serve(connection: Connection, model: Model, frames: list[NDArray[np.uint8]], how: How) -> None:
    with contextlib.suppress(EOFError, KeyboardInterrupt, BrokenPipeError), connection:  # the other side has ended
        try:
            runner = _Runner(model, frames, how)
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
