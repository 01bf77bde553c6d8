"""Times on a GPU by replayed graphs; on a CPU, in a rehearsal, by the clock."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

_SLOW_MS = 2000.0  # what takes longer for one run is measured once
_WANTED_MS = 250.0  # of measuring, for one thing
_WARM_UP_MS = 100.0


def median_ms(action: Callable[[], Any], device: str) -> float:
    """Median milliseconds of one action: graphs of several, replayed, timed by events."""
    return _graph_ms(action) if device == "cuda" else _clock_ms(action)


def _clock_ms(action: Callable[[], Any]) -> float:
    begun = time.perf_counter()
    action()  # once: a rehearsal's figures mean nothing, and an interpreted kernel takes seconds
    return 1e3 * (time.perf_counter() - begun)


def _graph_ms(action: Callable[[], Any]) -> float:
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())  # the inputs come from there
    with torch.cuda.stream(stream):
        action()
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)

        def timed(run: Callable[[], Any]) -> float:
            start.record(stream)
            run()
            end.record(stream)
            end.synchronize()
            return start.elapsed_time(end)

        single = timed(action)
        if single > _SLOW_MS:
            return single
        times = max(1, min(200, int(2.0 / max(single, 1e-3))))
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            for _ in range(times):
                action()
        until = time.perf_counter() + _WARM_UP_MS / 1e3
        while time.perf_counter() < until:  # an idle GPU has turned its clocks down
            graph.replay()
            stream.synchronize()

        def behind_another() -> float:
            graph.replay()  # while it runs the host puts the rest on the stream: no gap is measured
            return timed(graph.replay)

        replays = max(5, min(30, int(_WANTED_MS / max(2 * single * times, 1e-3))))
        return statistics.median(behind_another() for _ in range(replays)) / times


def memory_of(action: Callable[[], Any], device: str) -> tuple[Any, int]:
    """What one run gives, and the bytes of the GPU that it took at most, its result included; 0 on a CPU."""
    if device != "cuda":
        return action(), 0
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    held = torch.cuda.memory_allocated()
    result = action()
    torch.cuda.synchronize()
    return result, torch.cuda.max_memory_allocated() - held


def matrix_peak(dtype: torch.dtype, device: str) -> float:
    """TFLOP/s of a large matrix product of this type, on random data."""
    side = 8192 if device == "cuda" else 256
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    return 2 * side**3 / median_ms(lambda: a @ b, device) / 1e9


def copy_bandwidth(device: str) -> float:
    """GB/s of a copy within the memory, bytes read and written."""
    count = (1 << 30) if device == "cuda" else (1 << 20)
    source = torch.randint(0, 255, (count,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * count / median_ms(lambda: target.copy_(source), device) / 1e6
