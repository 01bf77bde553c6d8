"""Times, as trtexec counts them."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence

import numpy as np


def percentile(times: Sequence[float], percent: float) -> float:
    """trtexec's percentile: the value that ``percent`` of the sorted times do not exceed, never interpolated.

    ``sorted[max(n - 1 - int((1 - percent / 100) * n), 0)]`` in single precision, as there; 0 where there are none.
    """
    if not times:
        return 0.0
    ordered, count = sorted(times), np.float32(len(times))
    left_out = int((np.float32(1) - np.float32(percent) / np.float32(100)) * count)
    return ordered[max(len(times) - 1 - left_out, 0)]


class RecentTimes:
    """Milliseconds of the newest frames, and how many there are a second; for several threads."""

    def __init__(self, kept: int = 512) -> None:
        self._times: deque[float] = deque(maxlen=kept)
        self._moments: deque[float] = deque(maxlen=64)
        self._lock = threading.Lock()

    def add(self, ms: float, moment: float) -> None:
        """``moment``: in seconds of any clock that grows."""
        with self._lock:
            self._times.append(ms)
            self._moments.append(moment)

    def percentiles(self) -> dict[str, float]:
        """``p50``, ``p95`` and ``p99`` in milliseconds."""
        with self._lock:
            times = list(self._times)
        return {f"p{p}": percentile(times, p) for p in (50, 95, 99)}

    def per_second(self, now: float) -> float:
        """Over the newest frames, 64 at most; falls while none come."""
        with self._lock:
            moments = list(self._moments)
        recent = [moment for moment in moments if moment >= now - 2] or moments[-1:]
        first = recent[0] if len(recent) > 1 else (moments[-2] if len(moments) > 1 else now)
        span = max(now, moments[-1]) - first if moments else 0.0
        return max(len(recent) - 1, 1) / span if span > 0 else 0.0
