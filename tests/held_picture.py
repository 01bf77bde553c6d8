"""A picture that makes its reader wait: a named pipe. Whoever reads it is at a known place, and can be killed there."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

WAIT = 180  # seconds until a test that hangs fails


def until(condition: Callable[[], Any]) -> Any:
    end = time.monotonic() + WAIT
    while not (found := condition()):
        assert time.monotonic() < end
        time.sleep(0.005)
    return found


def opened_by_a_worker(pipe: Path) -> int:
    """The writing end of a named pipe, once a worker reads the other."""

    def opened() -> int | None:
        try:
            return os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
        except OSError as error:
            if error.errno != errno.ENXIO:  # nobody reads
                raise
            return None

    return until(opened)
