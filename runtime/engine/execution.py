"""One way to run an opened engine: a context for one batch, its buffers, and what is captured of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wnlb.runtime.engine.cuda import Buffer, Cuda
from wnlb.runtime.engine.driver import Graph, Memory
from wnlb.runtime.engine.tensorrt import TensorRt, last_error
from wnlb.runtime.engine.timing import Reported, make_profiler
from wnlb.runtime.errors import WnlbError

COUNT = "count"  # the output that tells, for each frame, how many rows of the others are something


@dataclass(frozen=True)
class Opened:
    """A deserialised engine."""

    path: Path
    library: TensorRt
    logger: Any  # of ``make_logger``, that the engine reports to
    engine: Any  # ICudaEngine
    inputs: tuple[str, ...]  # names
    # outputs [N, D, ...] of which only the rows leave the GPU that ``COUNT`` [N] tells of
    counted: frozenset[str] = frozenset()

    @property
    def title(self) -> str:
        return self.library.title

    def last_error(self) -> str:
        return last_error(self.logger)


class Execution:
    """An execution context on buffers, for their shapes alone.

    Every batch, or number of rows, of an engine has one of its own: a context must not change its shapes once a CUDA
    graph was captured from it (TensorRT's documentation). The context of the GPU must be current, for every method.

    Args:
        opened: the engine.
        buffers: of the inputs and outputs that pass between host and GPU, of the shapes that are run.
        resident: addresses of those that stay on the GPU.
        shapes: of an engine whose inputs are open, what they are here; None where all shapes are static.
        profile: of its optimisation profiles, the one for these shapes.
        memory: scratch of an engine whose inputs are open, which all its executions share, for one runs at a time; None
            for an engine of static shapes, whose context has its own.

    Raises:
        WnlbError: TensorRT or CUDA report an error; from every method.
    """

    def __init__(
        self,
        opened: Opened,
        cuda: Cuda,
        buffers: dict[str, Buffer],
        resident: Mapping[str, int] | None = None,
        shapes: Mapping[str, tuple[int, ...]] | None = None,
        profile: int = 0,
        memory: Memory | None = None,
    ) -> None:
        self.buffers = buffers
        self.outputs = {name: buffer.host for name, buffer in buffers.items() if name not in opened.inputs}
        # By which inputs come from the GPU, and of the inference alone; None where it cannot be captured.
        self.graphs: dict[frozenset[str] | None, Graph | None] = {}
        self._opened, self._cuda = opened, cuda
        self._context: Any = None
        try:
            self._open(memory)
            self._set_shapes(shapes or {}, profile)
            self._set_addresses({**(resident or {}), **{name: buffer.address for name, buffer in buffers.items()}})
        except WnlbError:
            self.close()
            raise

    def _open(self, memory: Memory | None) -> None:
        opened, engine = self._opened, self._opened.engine
        if memory is None:
            self._context = engine.create_execution_context()
        else:
            trt = opened.library.trt
            self._context = engine.create_execution_context(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        if self._context is None:
            raise WnlbError(f"{opened.title} cannot run engine {opened.path}: {opened.last_error()}")
        if memory is not None:
            self._context.set_device_memory(memory.address, memory.size)

    def _set_shapes(self, shapes: Mapping[str, tuple[int, ...]], profile: int) -> None:
        opened = self._opened
        if profile:  # a context begins with the first
            if not self._context.set_optimization_profile_async(profile, self._cuda.stream):
                raise WnlbError(f"{opened.title} refuses optimisation profile {profile}: {opened.last_error()}")
            self._cuda.synchronize()
        for name, shape in shapes.items():
            if not self._context.set_input_shape(name, shape):
                raise WnlbError(f"{opened.title} refuses {name} of {list(shape)}: {opened.last_error()}")

    def _set_addresses(self, addresses: Mapping[str, int]) -> None:
        for name, address in addresses.items():
            if not self._context.set_tensor_address(name, address):
                raise WnlbError(f"{self._opened.title} refuses the address of {name}: {self._opened.last_error()}")

    def close(self) -> None:
        """Drop graphs and context, which nothing may keep beyond the engine; may be called more than once."""
        for graph in filter(None, self.graphs.values()):
            graph.close()
        self._context = None

    def enqueue(self, on_device: frozenset[str]) -> None:
        """Put all of a run on the stream but ``download_counted``, without uploads of inputs that are there already."""
        self.upload(on_device)
        self.infer()
        self.download()

    def upload(self, but: frozenset[str] = frozenset()) -> None:
        for name in self._opened.inputs:
            if name in self.buffers and name not in but:
                self._cuda.upload(self.buffers[name])

    def infer(self) -> None:
        if not self._context.execute_async_v3(self._cuda.stream):
            raise WnlbError(f"{self._opened.title} cannot start the inference: {self._opened.last_error()}")

    def download(self) -> None:
        """All outputs but the counted ones."""
        for name in self.outputs:
            if name not in self._opened.counted:
                self._cuda.download(self.buffers[name])

    def download_counted(self) -> bool:
        """The rows of the counted outputs that the host's ``COUNT`` tells of, which must be there; whether any are."""
        rows = [(frame, int(count)) for frame, count in enumerate(self.outputs[COUNT])] if self._opened.counted else []
        parts = [self.buffers[name].rows_of(*each) for name in sorted(self._opened.counted) for each in rows if each[1]]
        for part in parts:
            self._cuda.download(part)
        return bool(parts)

    def download_all(self) -> None:
        """Both, by the counts of the run before."""
        self.download()
        self.download_counted()

    def infer_once(self) -> None:
        """On what the host's buffers hold, and wait: a first run may still allocate."""
        self.upload()
        self.infer()
        self._cuda.synchronize()

    def profiled(self, runs: int) -> list[Reported]:
        """What TensorRT's profiler reports of each run; a first one without it does not count."""
        self.infer_once()
        profiler = make_profiler(self._opened.library.trt)
        self._context.profiler = profiler
        reports = []
        for _ in range(runs):
            profiler.reported = []
            self.infer()
            self._cuda.synchronize()
            reports.append(profiler.reported)
        return reports
