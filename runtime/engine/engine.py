"""A TensorRT or TensorRT-RTX engine on an NVIDIA GPU or a Jetson: arrays in, arrays out, whatever it computes."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wnlb.runtime.engine.cuda import Buffer, Cuda, open_cuda
from wnlb.runtime.engine.driver import Gpu, Graph, find_gpu, free_memory
from wnlb.runtime.engine.layers import onnx_names_of_engine
from wnlb.runtime.engine.manifest import Manifest
from wnlb.runtime.engine.tensorrt import TARGETS, TensorRt, last_error, load_tensorrt, make_logger
from wnlb.runtime.engine.timing import Parts, PartTimer, Reported, make_profiler, mean_layer_times
from wnlb.runtime.errors import MissingDependency, WnlbError

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
    """One opened engine of static shapes.

    One stream of its own, pinned buffers allocated once (one memory for CPU and GPU on a Jetson), and from the second
    run on a CUDA graph of upload, inference and download, where the engine can be captured. Runs in any thread, one at
    a time.

    Args:
        manifest: of the engine; None for one that is trusted without: the first library that takes it opens it.
        plugin: whether a trusted engine may have our plugin inside.
        mapped: whether inputs and outputs lie in the host's memory, where the GPU shares it: nothing is copied, but the
            GPU of a Jetson does not cache that memory, which costs where inputs are read often.

    Raises:
        WnlbError: this machine's library, GPU or plugin do not fit; says which, and what to do.
    """

    def __init__(self, path: Path, manifest: Manifest | None, plugin: bool = False, mapped: bool = True) -> None:
        self.path = path
        self._gpu = find_gpu()
        self._mapped = mapped and self._gpu.integrated
        self._lock = threading.Lock()
        self._buffers: dict[str, Buffer] = {}
        self._runtime: Any = None
        self._engine: Any = None
        self._context: Any = None
        self._resting: Any = None  # the context of ``run`` while layers are timed
        self._inputs: list[str] = []
        # By which inputs come from the GPU, and of the inference alone; None where it cannot be captured.
        self._graphs: dict[frozenset[str] | None, Graph | None] = {}
        self._timer: PartTimer | None = None
        self._cuda: Cuda | None = open_cuda()
        try:
            with self._current():
                self._free = free_memory()
                self._engine = self._open(manifest, plugin)
                self._allocate()
                self._open_context()
        except BaseException:
            self.close()
            raise
        self.description = self._described("")

    @property
    def inputs(self) -> dict[str, NDArray[Any]]:
        """The host's side of each input, by name."""
        return {name: self._buffers[name].host for name in self._inputs}

    @property
    def outputs(self) -> dict[str, NDArray[Any]]:
        """The host's side of each output, by name."""
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

        The outputs are the engine's own buffers: the next run overwrites them, and after ``close`` they are gone.
        """
        with self._lock, self._current() as cuda:
            addresses = {
                name: _device_address(name, inputs.get(name), self._buffers[name].host) for name in self._inputs
            }
            on_device = frozenset(name for name, address in addresses.items() if address)
            for name, address in addresses.items():
                if address:
                    cuda.copy(self._buffers[name], address)
                else:
                    np.copyto(self._buffers[name].host, inputs[name])
            graph = self._graphs.get(on_device)
            if graph:
                graph.launch()
            else:
                self._enqueue(on_device)
            cuda.synchronize()
            if on_device not in self._graphs:
                self._graphs[on_device] = self._captured(lambda: self._enqueue(on_device))
        return self.outputs

    def timed(self, transfers: bool, cuda_graph: bool, spin_wait: bool) -> dict[str, float]:
        """Run once on what the host's buffers hold, and take the times, as trtexec defines them, in milliseconds.

        ``h2d``, ``gpu`` and ``d2h``: of the uploads, the inference and the downloads, by events on the stream;
        ``latency``: their sum; ``enqueue``: how long this thread took to put the inference on the stream. The copies
        take about no time on a GPU that shares the host's memory.

        Args:
            transfers: without, ``h2d`` and ``d2h`` are left out: inputs are uploaded before the first event, outputs
                stay on the GPU.
            cuda_graph: launch the inference, without copies, as a graph. Where it cannot be captured it is enqueued as
                without, and the description says so.
            spin_wait: poll for the end rather than sleep.

        Raises:
            WnlbError: the engine is closed, or TensorRT or CUDA report an error.
        """
        with self._lock, self._current() as cuda:
            if self._timer is None:
                self._timer = PartTimer(cuda.stream)
            graph = self._inference_graph(cuda) if cuda_graph else None
            parts = Parts(self._upload, graph.launch if graph else self._infer, self._download)
            return self._timer.measure(parts, transfers, spin_wait)

    def layer_times(self, runs: int) -> Reported:
        """Names of TensorRT's layers, in the order of execution, and the mean milliseconds of ``runs`` runs, 1 or more.

        The nodes that a layer was fused from stand behind its name, where the engine was built with detailed verbosity.
        Runs on what the host's buffers hold, one layer after the other, slower than otherwise. Empty where TensorRT
        reports none.

        They run in an execution context of their own, whose memory is free again afterwards: that a context forgets
        its profiler is not documented, and ``run`` must not be slower than before.

        Raises:
            WnlbError: the engine is closed, ``runs`` is below 1, or TensorRT or CUDA report an error.
        """
        if runs < 1:
            raise WnlbError(f"layers are to be timed in {runs} runs; expected 1 or more")
        with self._lock, self._current() as cuda:
            self._resting = self._context  # in no local variable, where a traceback would keep it beyond ``close``
            try:
                self._open_context()
                return mean_layer_times(
                    self._profiled(cuda, runs), onnx_names_of_engine(self._library.trt, self._engine)
                )
            finally:
                self._context, self._resting = self._resting, None

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
                    stack.callback(self._drop_engine)
                    for graph in filter(None, self._graphs.values()):
                        stack.callback(graph.close)
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

    def _open(self, manifest: Manifest | None, plugin: bool) -> Any:
        """Deserialise the engine with the library of its manifest; without one, with the first that takes it."""
        data = _read(self.path)
        refusals = []
        for name in (manifest.library,) if manifest else TARGETS:
            try:
                library = load_tensorrt(name)
                if manifest:
                    _check_fit(self.path, manifest, library, self._gpu)
                _load_plugin(library, manifest, plugin)
            except WnlbError as error:
                if manifest:
                    raise
                refusals.append(str(error))
                continue
            self._library, self._logger = library, make_logger(library.trt)
            self._runtime = library.start("Runtime", self._logger)
            engine = self._runtime.deserialize_cuda_engine(data)
            if engine is not None:
                return engine
            refusals.append(f"{library.title} cannot open engine {self.path}: {last_error(self._logger)}")
        raise WnlbError(f"{'; '.join(refusals)}; build it again here")

    def _allocate(self) -> None:
        """A buffer for each input and output."""
        assert self._cuda is not None
        trt = self._library.trt
        for i in range(self._engine.num_io_tensors):
            name = self._engine.get_tensor_name(i)
            shape, kind = tuple(self._engine.get_tensor_shape(name)), self._engine.get_tensor_dtype(name).name
            if kind not in _TYPES or min(shape, default=1) < 1:
                raise WnlbError(
                    f"engine {self.path}: {name} is {kind} {list(shape)}; expected a static shape of numbers"
                )
            self._buffers[name] = self._cuda.buffer(shape, _TYPES[kind], self._mapped)
            if self._engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT:
                self._inputs.append(name)

    def _open_context(self) -> None:
        """An execution context on the buffers; it is the one that runs from here on."""
        self._context = self._engine.create_execution_context()
        if self._context is None:
            raise WnlbError(f"{self._library.title} cannot run engine {self.path}: {last_error(self._logger)}")
        for name, buffer in self._buffers.items():
            if not self._context.set_tensor_address(name, buffer.address):
                raise WnlbError(f"{self._library.title} refuses the address of {name}: {last_error(self._logger)}")

    def _enqueue(self, on_device: frozenset[str]) -> None:
        self._upload(on_device)
        self._infer()
        self._download()

    def _upload(self, but: frozenset[str] = frozenset()) -> None:
        assert self._cuda is not None
        for name in self._inputs:
            if name not in but:
                self._cuda.upload(self._buffers[name])

    def _infer(self) -> None:
        assert self._cuda is not None
        if not self._context.execute_async_v3(self._cuda.stream):
            raise WnlbError(f"{self._library.title} cannot start the inference: {last_error(self._logger)}")

    def _download(self) -> None:
        assert self._cuda is not None
        for name, buffer in self._buffers.items():
            if name not in self._inputs:
                self._cuda.download(buffer)

    def _captured(self, enqueue: Callable[[], None]) -> Graph | None:
        """After a first run, for that one may still allocate. Without a graph all goes on as before."""
        assert self._cuda is not None
        try:
            graph = Graph(self._cuda.stream, enqueue)
        except WnlbError as error:
            self.description = self._described(f", no CUDA graph ({error})")
            return None
        if None not in self._graphs.values():
            self.description = self._described(", CUDA graph")
        return graph

    def _inference_graph(self, cuda: Cuda) -> Graph | None:
        if None not in self._graphs:
            self._upload()
            self._infer()
            cuda.synchronize()
            self._graphs[None] = self._captured(self._infer)
        return self._graphs[None]

    def _profiled(self, cuda: Cuda, runs: int) -> list[Reported]:
        """What the profiler reports of each run; a first one without it does not count."""
        self._upload()
        self._infer()
        cuda.synchronize()
        profiler = make_profiler(self._library.trt)
        self._context.profiler = profiler
        reports = []
        for _ in range(runs):
            profiler.reported = []
            self._infer()
            cuda.synchronize()
            reports.append(profiler.reported)
        return reports

    def _described(self, graph: str) -> str:
        assert self._cuda is not None
        shared = ", shared memory" if self._mapped else ""
        return f"{self._library.title}, {self._gpu.name}, {self._cuda.description}{shared}{graph}"

    def _drop_engine(self) -> None:
        self._context = self._engine = self._runtime = None  # in this order


def _device_address(name: str, array: Any, like: NDArray[Any]) -> int:
    """Where an input lies on the GPU; 0 for a NumPy array. Raises WnlbError where it does not fit."""
    if array is None:
        raise WnlbError(f"input {name} is absent; expected {like.dtype} {list(like.shape)}")
    on_device = getattr(array, "__cuda_array_interface__", None)
    kind, shape = (on_device["typestr"], on_device["shape"]) if on_device else (array.dtype.str, array.shape)
    if kind != like.dtype.str or tuple(shape) != like.shape or (on_device and on_device.get("strides")):
        raise WnlbError(f"input {name} is {kind} {list(shape)}; expected {like.dtype} {list(like.shape)}, contiguous")
    return int(on_device["data"][0]) if on_device else 0


def _check_fit(path: Path, manifest: Manifest, library: TensorRt, gpu: Gpu) -> None:
    if manifest.version != library.version:
        raise WnlbError(
            f"engine {path} was built with {manifest.library} {manifest.version}, this is {library.version}; "
            f"build it again here: wnlb build {manifest.onnx} -o {path}"
        )
    wanted = manifest.compute_capability
    if wanted and wanted != gpu.compute_capability:
        raise WnlbError(
            f"engine {path} was built for {manifest.gpu} (SM {wanted}), this is {gpu.name} "
            f"(SM {gpu.compute_capability}); build it again here: wnlb build {manifest.onnx} -o {path}"
        )
    chosen = manifest.options.get("compute_capabilities")
    if chosen and gpu.compute_capability not in chosen:
        raise WnlbError(
            f"engine {path} was built for SM {', '.join(chosen)}, this is {gpu.name} (SM {gpu.compute_capability}); "
            f"build it again with --compute-capability {gpu.compute_capability}"
        )


def _load_plugin(library: TensorRt, manifest: Manifest | None, plugin: bool) -> None:
    """The plugin library that the engine was built with; any, for a trusted engine that may have our nodes."""
    from wnlb.plugins.library import load

    if manifest and manifest.plugin_sha256:
        load(sha256=manifest.plugin_sha256, tensorrt=library.trt)
    elif not manifest and plugin and library.takes_plugins:
        with contextlib.suppress(MissingDependency):  # it may have been built through the function bodies
            load(tensorrt=library.trt)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise WnlbError(f"engine {path} cannot be read: {error.strerror}") from error
