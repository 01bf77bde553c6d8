"""TensorRT and TensorRT-RTX engines on an NVIDIA GPU or a Jetson."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wnlb.runtime.contract import Contract
from wnlb.runtime.cuda import Buffer, Cuda, open_cuda
from wnlb.runtime.driver import Gpu, Graph, find_gpu
from wnlb.runtime.engine_manifest import Manifest, read_manifest
from wnlb.runtime.errors import ContractError, MissingDependency, WnlbError
from wnlb.runtime.tensorrt_library import TARGETS, TensorRt, last_error, load_tensorrt, make_logger

OUTPUT_TYPES = {"labels": np.int32, "count": np.int32}  # the others are float32


class TensorRtBackend:
    """Runs an engine that ``wnlb build`` wrote; see ``wnlb.runtime.backend.Backend``.

    One stream of its own, pinned buffers allocated once (one memory for CPU and GPU on a Jetson), and from the second
    run on a CUDA graph of upload, inference and download, where the engine can be captured. Runs in any thread, one at
    a time. The arrays that ``run`` returns are these buffers: the next run overwrites them.

    Args:
        trust: the ONNX file that an engine without a manifest was built from, by trtexec for instance; it gives the
            contract. Opening an engine is running code: only for one whose origin you know.

    Raises:
        WnlbError: engine, manifest, this machine's library, GPU or plugin do not fit; says which, and what to do.
    """

    takes_device_arrays = True

    def __init__(self, path: Path | str, *, trust: Path | None = None) -> None:
        path = Path(path)
        manifest = None if trust else read_manifest(path)
        self.contract = _trusted_contract(trust) if trust else _contract(path, manifest)
        self._gpu = find_gpu()
        self._lock = threading.Lock()
        self._buffers: dict[str, Buffer] = {}
        self._runtime: Any = None
        self._engine: Any = None
        self._context: Any = None
        # By where the input comes from; None where it cannot be captured.
        self._graphs: dict[bool, Graph | None] = {}
        self._cuda: Cuda | None = open_cuda()
        try:
            with self._current():
                self._engine = self._open(path, manifest)
                self._context = self._engine.create_execution_context()
                if self._context is None:
                    raise WnlbError(f"{self._library.title} cannot run engine {path}: {last_error(self._logger)}")
                self._allocate(path)
        except BaseException:
            self.close()
            raise
        self.description = self._described("")

    def run(self, inputs: dict[str, Any]) -> dict[str, NDArray]:
        image = inputs[self.contract.input_name]
        address = self._device_address(image)
        with self._lock:
            if self._cuda is None:
                raise WnlbError("the backend is closed; open the model again")
            with self._current():
                buffer, on_device = self._buffers[self.contract.input_name], address != 0
                if on_device:
                    self._cuda.copy(buffer, address)
                else:
                    np.copyto(buffer.host, image)
                graph = self._graphs.get(on_device)
                if graph:
                    graph.launch()
                else:
                    self._enqueue(on_device)
                self._cuda.synchronize()
                if on_device not in self._graphs:
                    self._graphs[on_device] = self._captured(on_device)
        return {name: self._buffers[name].host for name in self.contract.output_shapes}

    def _device_address(self, image: Any) -> int:
        """Where the input lies on the GPU; 0 for a NumPy array. Raises WnlbError where it does not fit."""
        on_device = getattr(image, "__cuda_array_interface__", None)
        kind, shape = (on_device["typestr"], on_device["shape"]) if on_device else (image.dtype.str, image.shape)
        expected = self.contract.input_shape
        if kind != "|u1" or tuple(shape) != expected or (on_device and on_device.get("strides")):
            raise WnlbError(f"input is {kind} {list(shape)}; expected uint8 {list(expected)}, contiguous")
        return int(on_device["data"][0]) if on_device else 0

    def close(self) -> None:
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
                    stack.callback(cuda.synchronize)
            finally:
                cuda.deactivate()
                self._buffers = {}
                cuda.close()

    @contextlib.contextmanager
    def _current(self) -> Iterator[None]:
        """With the context current in this thread."""
        assert self._cuda is not None
        cuda = self._cuda
        cuda.activate()
        try:
            yield
        finally:
            cuda.deactivate()

    def _open(self, path: Path, manifest: Manifest | None) -> Any:
        """Deserialise the engine with the library of its manifest; without one, with the first that takes it."""
        data = _read(path)
        refusals = []
        for name in (manifest.library,) if manifest else TARGETS:
            try:
                library = load_tensorrt(name)
                if manifest:
                    _check_fit(path, manifest, library, self._gpu)
                _load_plugin(library, manifest, self.contract)
            except WnlbError as error:
                if manifest:
                    raise
                refusals.append(str(error))
                continue
            self._library, self._logger = library, make_logger(library.trt)
            self._runtime = library.trt.Runtime(self._logger)
            engine = self._runtime.deserialize_cuda_engine(data)
            if engine is not None:
                return engine
            refusals.append(f"{library.title} cannot open engine {path}: {last_error(self._logger)}")
        raise WnlbError(f"{'; '.join(refusals)}; build it again here")

    def _allocate(self, path: Path) -> None:
        """A buffer for each input and output, at the shapes and types of the contract."""
        assert self._cuda is not None
        wanted = {self.contract.input_name: (self.contract.input_shape, np.dtype(np.uint8))}
        for name, shape in self.contract.output_shapes.items():
            wanted[name] = (shape, np.dtype(OUTPUT_TYPES.get(name, np.float32)))  # type: ignore[assignment]
        names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        if set(names) != set(wanted):
            raise ContractError(f"engine {path} has the tensors {', '.join(names)}, unlike its contract")
        for name, (shape, dtype) in wanted.items():
            has = (tuple(self._engine.get_tensor_shape(name)), self._engine.get_tensor_dtype(name))
            if has != (tuple(shape), _tensorrt_type(self._library.trt, dtype)):
                raise ContractError(f"engine {path}: {name} is {has[1]} {list(has[0])}, unlike its contract")
            self._buffers[name] = self._cuda.buffer(shape, dtype, self._gpu.integrated)
            if not self._context.set_tensor_address(name, self._buffers[name].address):
                raise WnlbError(f"{self._library.title} refuses the address of {name}: {last_error(self._logger)}")

    def _enqueue(self, on_device: bool) -> None:
        assert self._cuda is not None
        if not on_device:
            self._cuda.upload(self._buffers[self.contract.input_name])
        if not self._context.execute_async_v3(self._cuda.stream):
            raise WnlbError(f"{self._library.title} cannot start the inference: {last_error(self._logger)}")
        for name in self.contract.output_shapes:
            self._cuda.download(self._buffers[name])

    def _captured(self, on_device: bool) -> Graph | None:
        """After a first run, for that one may still allocate. Without a graph all goes on as before."""
        assert self._cuda is not None
        try:
            graph = Graph(self._cuda.stream, lambda: self._enqueue(on_device))
        except WnlbError as error:
            self.description = self._described(f", no CUDA graph ({error})")
            return None
        self.description = self._described(", CUDA graph")
        return graph

    def _described(self, graph: str) -> str:
        assert self._cuda is not None
        shared = ", shared memory" if self._gpu.integrated else ""
        return f"{self._library.title}, {self._gpu.name}, {self._cuda.description}{shared}{graph}"

    def _drop_engine(self) -> None:
        self._context = self._engine = self._runtime = None  # in this order


def _contract(path: Path, manifest: Manifest | None) -> Contract:
    contract = manifest.read_contract() if manifest else None
    if contract is None:
        raise ContractError(
            f"engine {path} was built from {manifest.onnx if manifest else '?'}, which is not ours: it has no wnlb "
            "contract to say how frames are prepared; expected a file that 'wnlb export' wrote"
        )
    return contract


def _trusted_contract(trust: Path) -> Contract:
    from wnlb.runtime.onnx_file import read_model

    return read_model(trust)[1]


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


def _load_plugin(library: TensorRt, manifest: Manifest | None, contract: Contract) -> None:
    """The plugin library that the engine was built with; any, for a trusted engine whose ONNX file has its nodes."""
    from wnlb.plugins.library import load

    if manifest and manifest.plugin_sha256:
        load(sha256=manifest.plugin_sha256, tensorrt=library.trt)
    elif not manifest and library.takes_plugins and any("plugin" in form for form in contract.attention.values()):
        with contextlib.suppress(MissingDependency):  # it may have been built through the function bodies
            load(tensorrt=library.trt)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise WnlbError(f"engine {path} cannot be read: {error.strerror}") from error


def _tensorrt_type(trt: Any, dtype: np.dtype[Any]) -> Any:
    kinds: dict[str, Callable[[], Any]] = {
        "uint8": lambda: trt.DataType.UINT8,
        "int32": lambda: trt.DataType.INT32,
        "float32": lambda: trt.DataType.FLOAT,
    }
    return kinds[dtype.name]()
