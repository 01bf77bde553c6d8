"""The masks of an engine that was built in two parts: computed for as many rows as are found."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from numpy.typing import NDArray

from wnlb.runtime.engine.cuda import Buffer, Cuda
from wnlb.runtime.engine.driver import Graph, Memory
from wnlb.runtime.engine.execution import Execution, Opened
from wnlb.runtime.engine.mask_cut import MASKS

Capture = Callable[[Callable[[], None]], Graph | None]
_HERE: frozenset[str] = frozenset()  # of a run, the inputs that came from elsewhere on the GPU: none


class MaskPart:
    """The second engine of a file, behind the first on the same stream; see ``wnlb.runtime.engine.mask_cut``.

    What it takes of the first lies on the GPU and stays there. Each number of rows has an execution of its own, made
    when it is first met, and from its second run on a CUDA graph. The context of the GPU must be current, for every
    method.

    Args:
        opened: the second engine.
        rows: the numbers of rows that it takes, ascending, each by the optimisation profile of its place.
        sources: address of each input, where the first engine leaves it.
        masks: ``[1, D, 28, 28]``, D the most rows.

    Raises:
        WnlbError: TensorRT or CUDA report an error; from every method.
    """

    def __init__(
        self, opened: Opened, cuda: Cuda, rows: tuple[int, ...], sources: Mapping[str, int], masks: Buffer
    ) -> None:
        self.opened = opened
        self._cuda, self._rows, self._sources, self._masks = cuda, rows, sources, masks
        self._executions: dict[int, Execution] = {}
        self._latest = rows[-1]  # that were run last; 0 for none
        self._filled = 0  # rows of the masks that may not be zero
        self._memory = Memory(opened.engine.device_memory_size_v2)

    @property
    def masks(self) -> NDArray[Any]:
        """The host's side; zero in rows that are no detections."""
        return self._masks.host

    @property
    def latest(self) -> Execution | None:
        """Of the rows that were run last, before any run of all; None where nothing was found."""
        return self._execution(self._latest) if self._latest else None

    def run(self, count: int, captured: Capture) -> None:
        """Masks of the first ``count`` rows, on the host when it returns.

        Args:
            captured: makes a graph of what a function puts on the stream; None where it cannot.
        """
        self._latest = next(rows for rows in self._rows if rows >= count) if count else 0
        self._filled = max(self._filled, self._latest)  # also where the run fails
        if (own := self.latest) is not None:
            graph = own.graphs.get(_HERE)
            if graph:
                graph.launch()
            else:
                own.enqueue(_HERE)
            self._cuda.synchronize()
            if _HERE not in own.graphs:
                own.graphs[_HERE] = captured(lambda: own.enqueue(_HERE))
        self._masks.host[:, self._latest : self._filled] = 0
        self._filled = self._latest

    def fresh(self) -> Execution | None:
        """Another execution of the latest rows, to be closed by who asks for it."""
        return self._made(self._latest) if self._latest else None

    def executions(self) -> list[Execution]:
        return list(self._executions.values())

    def close(self) -> None:
        """May be called more than once."""
        for own in self._executions.values():
            own.close()
        self._executions = {}
        self._memory.close()

    def _execution(self, rows: int) -> Execution:
        if rows not in self._executions:
            self._executions[rows] = self._made(rows)
        return self._executions[rows]

    def _made(self, rows: int) -> Execution:
        engine, whole = self.opened.engine, self._masks
        stated = {name: tuple(engine.get_tensor_shape(name)) for name in self.opened.inputs}
        return Execution(
            self.opened,
            self._cuda,
            {MASKS: Buffer(whole.host[:, :rows], whole.address, whole.mapped, lambda: None)},
            resident=self._sources,
            shapes={n: tuple(rows if size < 0 else size for size in s) for n, s in stated.items() if -1 in s},
            profile=self._rows.index(rows),
            memory=self._memory,
        )
