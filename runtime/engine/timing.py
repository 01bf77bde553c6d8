"""Times of an engine on its GPU: of copies and inference by events, and of layers by TensorRT's profiler."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

from wnlb.runtime.engine.driver import Event
from wnlb.runtime.errors import WnlbError

Reported = list[tuple[str, float]]  # layers of one run, in the order in which they ran, and their milliseconds


@dataclass(frozen=True)
class Parts:
    """The three parts of a run; each call puts its part on the stream and returns."""

    upload: Callable[[], None]
    infer: Callable[[], None]
    download: Callable[[], None]


class PartTimer:
    """Takes the times of the parts of a run, by an event before, between and after them.

    The context of the stream must be current, for every method.

    Raises:
        WnlbError: CUDA reports an error.
    """

    def __init__(self, stream: int) -> None:
        self._stream = stream
        self._events: list[Event] = []
        try:
            for _ in range(4):
                self._events.append(Event())
        except WnlbError:
            self.close()
            raise

    def measure(self, parts: Parts, transfers: bool, spin_wait: bool) -> dict[str, float]:
        """Run once and wait for it; see ``TensorRtEngine.timed``."""
        before, uploaded, inferred, downloaded = self._events
        if transfers:
            before.record(self._stream)
        parts.upload()  # without transfers too, but outside of the times: the inference wants an input
        uploaded.record(self._stream)
        started = perf_counter()
        parts.infer()
        enqueue = 1e3 * (perf_counter() - started)
        inferred.record(self._stream)
        if transfers:
            parts.download()
            downloaded.record(self._stream)
        _wait(downloaded if transfers else inferred, spin_wait)
        gpu = inferred.ms_since(uploaded)
        if not transfers:
            return {"gpu": gpu, "latency": gpu, "enqueue": enqueue}
        h2d, d2h = uploaded.ms_since(before), downloaded.ms_since(inferred)
        return {"h2d": h2d, "gpu": gpu, "d2h": d2h, "latency": h2d + gpu + d2h, "enqueue": enqueue}

    def close(self) -> None:
        """May be called more than once."""
        for event in self._events:
            event.close()


def _wait(event: Event, spin: bool) -> None:
    if not spin:
        event.synchronize()
        return
    while not event.done():
        pass


def make_profiler(trt: Any) -> Any:
    """A ``trt.IProfiler`` that keeps what it is told in ``reported``."""

    class LayerTimes(trt.IProfiler):
        def __init__(self) -> None:
            super().__init__()
            self.reported: Reported = []

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            self.reported.append((layer_name, ms))  # and no more: TensorRT swallows what is raised here

    return LayerTimes()


def mean_layer_times(runs: Sequence[Reported], onnx_names: dict[str, str]) -> Reported:
    """The mean of all runs, in the order of execution. A layer's nodes, where they are known, stand behind its name."""
    sums: dict[tuple[str, int], float] = {}  # a name may come twice in one run: by the place among its equals
    for reported in runs:
        seen: Counter[str] = Counter()
        for name, ms in reported:
            key = (name, seen[name])
            sums[key] = sums.get(key, 0.0) + ms
            seen[name] += 1
    return [(f"{name} {onnx_names.get(name, '')}".rstrip(), total / len(runs)) for (name, _), total in sums.items()]
