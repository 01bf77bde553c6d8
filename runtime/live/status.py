"""What ``wnlb run`` tells on the terminal: while it runs, and at its end."""

from __future__ import annotations

import sys
import time

from tqdm import tqdm

from wnlb.runtime.live.feed import Feed
from wnlb.runtime.live.stream import Result, Stream, StreamState
from wnlb.runtime.table import table


class Status:
    """A line on the terminal; lost and found cameras are told on any standard error."""

    def __init__(self, quiet: bool, feed: Feed) -> None:
        hidden = quiet or None  # None: where stderr is no terminal
        self._name = feed.name
        self._bar = tqdm(total=feed.frames or None, bar_format="{desc}", disable=hidden, file=sys.stderr, leave=False)
        self._next = 0.0

    def __enter__(self) -> Status:
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.close()

    def tell(self, stream: Stream, result: Result | None = None) -> None:
        now = time.monotonic()
        if now < self._next or self._bar.disable:
            return
        self._next = now + 0.5
        state = stream.state()
        if state.state == "reconnecting":
            self._bar.set_description_str(f"{self._name} is lost for {state.silent_s:.0f} s: {state.last_error}")
            return
        if state.state == "unserved":
            self._bar.set_description_str(state.last_error)
            return
        latency = " / ".join(f"{ms:.0f}" for ms in state.latency_ms.values())
        found = f"  {len(result.detections)} found" if result else ""
        self._bar.set_description_str(
            f"{result.name if result else self._name}  {state.fps:.1f} fps  {latency} ms (p50 / p95 / p99)  "
            f"{state.dropped} dropped{found}"
        )

    def changed(self, message: str) -> None:
        tqdm.write(f"wnlb run: {message}", file=sys.stderr)


def summary(state: StreamState, backend: str) -> str:
    """Counts and latency of a stream that ended."""
    words = [f"{state.done} frame{'s' * (state.done != 1)}", f"{state.dropped} dropped for newer ones"]
    if state.odd:
        words.append(f"{state.odd} were no pictures")
    if state.unserved:
        words.append(f"{state.unserved} without an answer of the model's server")
    if state.reconnects:
        words.append(f"reconnected {state.reconnects} time{'s' * (state.reconnects != 1)}")
    latency = [(name, f"{ms:.1f}") for name, ms in state.latency_ms.items()]
    return "\n".join([", ".join(words), backend, "", table(("frame to masks", "ms"), latency)])
