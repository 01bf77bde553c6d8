"""A TensorRT or TensorRT-RTX engine on an NVIDIA GPU or a Jetson: arrays in, arrays out, whatever it computes."""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wnlb.runtime.engine.cuda import Buffer, Cuda, open_cuda
from wnlb.runtime.engine.driver import Graph, Memory, find_gpu, free_memory
from wnlb.runtime.engine.execution import COUNT, Execution, Opened
from wnlb.runtime.engine.layers import onnx_names_of_engine
from wnlb.runtime.engine.manifest import Manifest
from wnlb.runtime.engine.mask_cut import MASKS
from wnlb.runtime.engine.mask_part import MaskPart
from wnlb.runtime.engine.opening import Engines, open_engines
from wnlb.runtime.engine.timing import Parts, PartTimer, Reported, mean_layer_times
from wnlb.runtime.errors import WnlbError

_TYPES = {
    "FLOAT": np.float32,
    "HALF": np.float16,
    "BF16": np.uint16,  # its bits: NumPy lacks the type
    "INT8": np.int8,
    "INT32": np.int32,
    "INT64": np.int64,
    "UINT8": np.uint8,
    "BOOL": np.bool_,
}


class TensorRtEngine:
    """One opened engine, of static shapes but for the first axis of all inputs and outputs, which may be open.

    One stream of its own, pinned buffers allocated once (one memory for CPU and GPU on a Jetson), and from the second
    run of a batch on a CUDA graph of upload, inference and download, where the engine can be captured. Runs in any
    thread, one at a time. Where the file was built in two parts, the masks are computed behind the rest, for as many
    rows as are found, see ``MaskPart``.

    Args:
        manifest: of the engine; None for one that is trusted without: the first library that takes it opens it.
        plugin: whether a trusted engine may have our plugin inside.
        counted: outputs ``[N, D, ...]`` of which only those rows leave the GPU that the output ``count [N]`` tells of:
            the others keep what they had. They are copied when that is known, after the graph.
        mapped: whether inputs and outputs lie in the host's memory, where the GPU shares it: nothing is copied, but the
            GPU of a Jetson does not cache that memory, which costs where inputs are read often.

    Raises:
        WnlbError: this machine's library, GPU or plugin do not fit; says which, and what to do.
    """

    def __init__(
        self,
        path: Path,
        manifest: Manifest | None,
        plugin: bool = False,
        mapped: bool = True,
        counted: frozenset[str] = frozenset(),
    ) -> None:
        self.path, self._counted = path, counted
        self._gpu = find_gpu()
        self._mapped = mapped and self._gpu.integrated
        self._lock = threading.Lock()
        self._buffers: dict[str, Buffer] = {}
        self._engines: Engines | None = None
        self._masks: MaskPart | None = None
        self._resident: dict[str, Memory] = {}  # what the first part leaves on the GPU for the masks
        self._executions: dict[int | None, Execution] = {}  # by batch; None: of static shapes
        self._latest: int | None = None  # of the batches, what was run last
        self._memory: Memory | None = None  # scratch of all executions, where the batch is open
        self._inputs: list[str] = []
        self.batches: range | None = None  # numbers of rows that the first axis may have; None: static shapes
        self._timer: PartTimer | None = None
        self._cuda: Cuda | None = open_cuda()
        try:
            with self._current():
                self._free = free_memory()
                self._engines = open_engines(path, manifest, plugin, self._gpu)
                self._library, self._logger, self._engine = (
                    self._engines.library,
                    self._engines.logger,
                    self._engines.parts[0],
                )
                self._allocate(set(manifest.outputs) if manifest else set())
                self._execution(self._latest)
                if manifest and manifest.mask_rows:
                    self._open_masks(self._engines.parts[1], manifest.mask_rows)
        except BaseException:
            self.close()
            raise
        self.description = self._described("")

    @property
    def inputs(self) -> dict[str, NDArray[Any]]:
        """The host's side of each input, by name; of the largest batch."""
        return {name: self._buffers[name].host for name in self._inputs}

    @property
    def outputs(self) -> dict[str, NDArray[Any]]:
        """The host's side of each output, by name; of the largest batch."""
        return {name: buffer.host for name, buffer in self._buffers.items() if name not in self._inputs}

    @property
    def device_bytes(self) -> int:
        """Memory of the GPU that opening took, and after the first run all that the engine needs.

        Free memory before less free memory now: what other programs took or freed meanwhile counts too, on a Jetson on
        the CPU as well; the CUDA context's own memory does not. Raises WnlbError where the engine is closed.
        """
        with self._lock, self._current():
            return max(self._free - free_memory(), 0)

    def run(self, inputs: dict[str, Any]) -> dict[str, NDArray]:
        """All inputs, of exactly their shapes and types, NumPy arrays or contiguous arrays on the GPU, to all outputs.

        Where the first axis is open, all inputs have as many rows, and so have the outputs.

        The outputs are the engine's own buffers: the next run overwrites them, and after ``close`` they are gone.
        """
        with self._lock, self._current() as cuda:
            self._latest = self._batch_of(inputs)
            own = self._execution(self._latest)
            addresses = {name: _device_address(name, inputs.get(name), own.buffers[name].host) for name in self._inputs}
            on_device = frozenset(name for name, address in addresses.items() if address)
            for name, address in addresses.items():
                if address:
                    cuda.copy(own.buffers[name], address)
                else:
                    np.copyto(own.buffers[name].host, inputs[name])
            graph = own.graphs.get(on_device)
            if graph:
                graph.launch()
            else:
                own.enqueue(on_device)
            cuda.synchronize()
            if own.download_counted():
                cuda.synchronize()
            if on_device not in own.graphs:
                own.graphs[on_device] = self._captured(lambda: own.enqueue(on_device))
            if self._masks is None:
                return own.outputs
            self._masks.run(int(own.outputs[COUNT].max()), self._captured)
            return {**own.outputs, MASKS: self._masks.masks}

    def timed(self, transfers: bool, cuda_graph: bool, spin_wait: bool) -> dict[str, float]:
        """Run once on what the host's buffers hold, and take the times, as trtexec defines them, in milliseconds.

        Of the batch that was run last; before any run, of the largest. So it is with the rows of masks, where these are
        a part of their own: it follows at once, and the moment that ``run`` takes to read the count is left out.

        ``h2d``, ``gpu`` and ``d2h``: of the uploads, the inference and the downloads, by events on the stream;
        ``latency``: their sum; ``enqueue``: how long this thread took to put the inference on the stream. The copies
        take about no time on a GPU that shares the host's memory.

        Args:
            transfers: without, ``h2d`` and ``d2h`` are left out: inputs are uploaded before the first event, outputs
                stay on the GPU. Of counted outputs, the rows of the latest ``run`` are copied.
            cuda_graph: launch the inference, without copies, as a graph. Where it cannot be captured it is enqueued as
                without, and the description says so.
            spin_wait: poll for the end rather than sleep.

        Raises:
            WnlbError: the engine is closed, or TensorRT or CUDA report an error.
        """
        with self._lock, self._current() as cuda:
            if self._timer is None:
                self._timer = PartTimer(cuda.stream)
            running = [self._execution(self._latest)]
            if self._masks and (masks := self._masks.latest):
                running.append(masks)
            graphs = [self._inference_graph(own) if cuda_graph else None for own in running]
            infer = [graph.launch if graph else own.infer for graph, own in zip(graphs, running, strict=True)]
            parts = Parts(running[0].upload, _one_by_one(infer), _one_by_one([own.download_all for own in running]))
            return self._timer.measure(parts, transfers, spin_wait)

    def layer_times(self, runs: int) -> Reported:
        """Names of TensorRT's layers, in the order of execution, and the mean milliseconds of ``runs`` runs, 1 or more.

        The nodes that a layer was fused from stand behind its name, where the engine was built with detailed verbosity.
        Runs on what the host's buffers hold, as ``timed`` does, one layer after the other, slower than otherwise. Empty
        where TensorRT reports none.

        They run in an execution context of their own, whose memory is free again afterwards: that a context forgets
        its profiler is not documented, and ``run`` must not be slower than before.

        Raises:
            WnlbError: the engine is closed, ``runs`` is below 1, or TensorRT or CUDA report an error.
        """
        if runs < 1:
            raise WnlbError(f"layers are to be timed in {runs} runs; expected 1 or more")
        with self._lock, self._current():
            found = self._profiled(self._opened(self._latest), self._engine, runs)
            if self._masks and (masks := self._masks.fresh()):
                found += self._profiled(masks, self._masks.opened.engine, runs)
            return found

    def _profiled(self, timing: Execution, engine: Any, runs: int) -> Reported:
        try:
            return mean_layer_times(timing.profiled(runs), onnx_names_of_engine(self._library.trt, engine))
        finally:
            timing.close()

    def close(self) -> None:
        """Free everything; may be called more than once."""
        with self._lock:
            cuda, self._cuda = self._cuda, None
            if cuda is None:
                return
            cuda.activate()
            try:
                with contextlib.ExitStack() as stack:  # each of them is called, whatever the others do
                    for buffer in self._buffers.values():
                        stack.callback(buffer.free)
                    for memory in filter(None, (self._memory, *self._resident.values())):
                        stack.callback(memory.close)
                    stack.callback(self._drop_engines)
                    if self._masks:
                        stack.callback(self._masks.close)
                    for own in self._executions.values():
                        stack.callback(own.close)
                    if self._timer:
                        stack.callback(self._timer.close)
                    stack.callback(cuda.synchronize)
            finally:
                cuda.deactivate()
                self._buffers = {}
                cuda.close()

    @contextlib.contextmanager
    def _current(self) -> Iterator[Cuda]:
        """With the context current in this thread. Raises WnlbError where the engine is closed."""
        cuda = self._cuda
        if cuda is None:
            raise WnlbError("the backend is closed; open the model again")
        cuda.activate()
        try:
            yield cuda
        finally:
            cuda.deactivate()

    def _allocate(self, outputs: set[str]) -> None:
        """A buffer for each input and output, of the largest batch where that is open.

        Of a file in two parts, what is not among the ``outputs`` of the whole stays on the GPU.
        """
        assert self._cuda is not None
        assert self._engines is not None
        trt = self._library.trt
        names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        self._inputs = [n for n in names if self._engine.get_tensor_mode(n) == trt.TensorIOMode.INPUT]
        self.batches = self._open_batches()
        for name in names:
            shape, kind = tuple(self._engine.get_tensor_shape(name)), self._engine.get_tensor_dtype(name).name
            stated = shape
            if self.batches and shape[:1] == (-1,):
                shape = (self.batches[-1], *shape[1:])
            if kind not in _TYPES or min(shape, default=1) < 1 or (self.batches and stated[:1] != (-1,)):
                raise WnlbError(
                    f"engine {self.path}: {name} is {kind} {list(stated)}; expected a static shape of numbers, or the "
                    "first axis open in all inputs and outputs"
                )
            if len(self._engines.parts) > 1 and name not in {*outputs, *self._inputs}:
                self._resident[name] = Memory(math.prod(shape) * np.dtype(_TYPES[kind]).itemsize)
            else:
                self._buffers[name] = self._cuda.buffer(shape, _TYPES[kind], self._mapped)
        if self.batches:
            self._memory = Memory(self._engine.device_memory_size_v2)
            self._latest = self.batches[-1]

    def _open_masks(self, engine: Any, rows: tuple[int, ...]) -> None:
        """The second part, and a buffer for what it makes. Raises WnlbError where it does not fit the first."""
        assert self._cuda is not None
        names = {engine.get_tensor_name(i) for i in range(engine.num_io_tensors)}
        sources = {name: memory.address for name, memory in self._resident.items()}
        sources |= {name: buffer.address for name, buffer in self._buffers.items()}
        modes = {name: engine.get_tensor_mode(name) for name in names}
        inputs = tuple(name for name in names if modes[name] == self._library.trt.TensorIOMode.INPUT)
        if names - {*inputs} != {MASKS} or not sources.keys() >= {*inputs} or COUNT not in self._buffers:
            raise WnlbError(f"engine {self.path}: its two parts do not fit; build it again")
        shape = tuple(rows[-1] if size < 0 else size for size in engine.get_tensor_shape(MASKS))
        self._buffers[MASKS] = self._cuda.buffer(shape, _TYPES[engine.get_tensor_dtype(MASKS).name], self._mapped)
        opened = Opened(self.path, self._library, self._logger, engine, inputs)
        taken = {name: sources[name] for name in inputs}
        self._masks = MaskPart(opened, self._cuda, rows, taken, self._buffers[MASKS])

    def _open_batches(self) -> range | None:
        """The numbers of rows of the first axis; None where no input has it open."""
        opened = [n for n in self._inputs if tuple(self._engine.get_tensor_shape(n))[:1] == (-1,)]
        if not opened:
            return None
        least, _, most = self._engine.get_tensor_profile_shape(opened[0], 0)
        return range(least[0], most[0] + 1)

    def _batch_of(self, inputs: dict[str, Any]) -> int | None:
        """Rows of the inputs, where their number is open. Raises WnlbError where no run has so many."""
        if self.batches is None:
            return None
        name, built = self._inputs[0], self.batches
        first = inputs.get(name)
        rows = getattr(first, "__cuda_array_interface__", {"shape": getattr(first, "shape", ())})["shape"]
        if not rows or rows[0] not in built:
            got = f"{rows[0]} rows" if rows else "none"
            raise WnlbError(f"input {name} has {got}; expected {built[0]} to {built[-1]}, as the engine was built for")
        return int(rows[0])

    def _execution(self, batch: int | None) -> Execution:
        """The one of that batch, opened when it is first asked for."""
        if batch not in self._executions:
            self._executions[batch] = self._opened(batch)
        return self._executions[batch]

    def _opened(self, batch: int | None) -> Execution:
        assert self._cuda is not None
        opened = Opened(self.path, self._library, self._logger, self._engine, tuple(self._inputs), self._counted)
        buffers, shapes = self._buffers, None
        if batch is not None:
            buffers = {name: buffer.first(batch) for name, buffer in buffers.items()}
            shapes = {name: buffers[name].host.shape for name in self._inputs}
        if self._engines and len(self._engines.parts) > 1:
            buffers = {name: buffer for name, buffer in buffers.items() if name != MASKS}
        resident = {name: memory.address for name, memory in self._resident.items()}
        return Execution(opened, self._cuda, buffers, resident, shapes, memory=self._memory)

    def _captured(self, enqueue: Callable[[], None]) -> Graph | None:
        """After a first run, for that one may still allocate. Without a graph all goes on as before."""
        assert self._cuda is not None
        try:
            graph = Graph(self._cuda.stream, enqueue)
        except WnlbError as error:
            self.description = self._described(f", no CUDA graph ({error})")
            return None
        executions = [*self._executions.values(), *(self._masks.executions() if self._masks else ())]
        if all(None not in own.graphs.values() for own in executions):
            self.description = self._described(", CUDA graph")
        return graph

    def _inference_graph(self, own: Execution) -> Graph | None:
        if None not in own.graphs:
            own.infer_once()
            own.graphs[None] = self._captured(own.infer)
        return own.graphs[None]

    def _described(self, graph: str) -> str:
        assert self._cuda is not None
        shared = ", shared memory" if self._mapped else ""
        return f"{self._library.title}, {self._gpu.name}, {self._cuda.description}{shared}{graph}"

    def _drop_engines(self) -> None:
        self._engine = None  # after the contexts
        if self._engines:
            self._engines.close()


def _one_by_one(calls: list[Callable[[], None]]) -> Callable[[], None]:
    def all_of_them() -> None:
        for call in calls:
            call()

    return all_of_them


def _device_address(name: str, array: Any, like: NDArray[Any]) -> int:
    """Where an input lies on the GPU; 0 for a NumPy array. Raises WnlbError where it does not fit."""
    if array is None:
        raise WnlbError(f"input {name} is absent; expected {like.dtype} {list(like.shape)}")
    on_device = getattr(array, "__cuda_array_interface__", None)
    kind, shape = (on_device["typestr"], on_device["shape"]) if on_device else (array.dtype.str, array.shape)
    if kind != like.dtype.str or tuple(shape) != like.shape or (on_device and on_device.get("strides")):
        raise WnlbError(f"input {name} is {kind} {list(shape)}; expected {like.dtype} {list(like.shape)}, contiguous")
    return int(on_device["data"][0]) if on_device else 0
