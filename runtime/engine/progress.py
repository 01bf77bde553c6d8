"""How far a build is, and how to stop it."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

Progress = Callable[[float, str], bool]  # fraction from 0 to 1 and what is being done; False to stop


def make_monitor(trt: Any, progress: Progress) -> Any:
    """A ``trt.IProgressMonitor`` that tells TensorRT's nested phases as one fraction, and can stop the build."""

    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            super().__init__()
            self.stopped = False
            self.reason: BaseException | None = None
            self.fraction = 0.0
            self.phases: dict[str, list[int]] = {}  # name to steps done and steps

        def phase_start(self, name: str, parent: str | None, steps: int) -> None:
            self.phases[name] = [0, max(steps, 1)]
            self.tell()

        def step_complete(self, name: str, step: int) -> bool:
            if name in self.phases:
                self.phases[name][0] = step + 1
            self.tell()
            return not self.stopped

        def phase_finish(self, name: str) -> None:
            self.phases.pop(name, None)
            self.tell()

        def tell(self) -> None:
            fraction = 0.0
            for done, steps in reversed(self.phases.values()):
                fraction = min((done + fraction) / steps, 1.0)
            self.fraction = max(self.fraction, fraction)  # a phase ends before its parent counts it
            try:
                if not progress(self.fraction, next(reversed(self.phases), "")):
                    self.stopped = True
            except Exception as error:  # none may cross TensorRT
                self.stopped, self.reason = True, error

    return Monitor()


@contextlib.contextmanager
def interrupts_to(monitor: Any) -> Iterator[None]:
    """Ctrl-C stops the build through its monitor: raised inside a callback, TensorRT's bindings would swallow it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: object) -> None:
        monitor.stopped, monitor.reason = True, KeyboardInterrupt()

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
