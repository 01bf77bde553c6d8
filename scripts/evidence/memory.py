"""``wnlb.runtime.engine``'s memory, streams, events and graphs on a real driver, and whether a thousand frames leak."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import numpy as np

from evidence.checkout import ROOT
from evidence.rehearsal import emulated_driver
from evidence.stage import NO_TIME, Context
from wnlb.runtime.engine.cuda import Cuda, open_cuda
from wnlb.runtime.engine.driver import Event, Graph, free_memory
from wnlb.runtime.errors import MissingDependency, WnlbError

SESSIONS, FRAMES = 10, 100  # each session opens the GPU, and closes it again
SHAPE = (1, 416, 608, 3)
_TESTS = "tests/runtime/test_on_a_gpu.py"
ALLOWED = 8 << 20  # bytes that may differ between sessions: the driver's own


def run(context: Context) -> None:
    environment = emulated_driver(context.output) if context.rehearse else dict(os.environ)
    shape = (1, 64, 96, 3) if context.rehearse else SHAPE
    words = [sys.executable, "-m", "evidence.memory", json.dumps([SESSIONS, FRAMES, shape])]
    try:
        ran = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=max(context.left(), 1))
    except subprocess.TimeoutExpired:
        context.add(what="frames", refused=NO_TIME)
    else:
        if ran.returncode:
            raise MissingDependency(ran.stderr.strip().splitlines()[-1] if ran.stderr.strip() else "it wrote nothing")
        context.add(what="frames", **json.loads(ran.stdout.splitlines()[-1]))
    _tests(context)
    bad = [row for row in context.rows if row.get("right") is False or row.get("failed")]
    if bad:
        raise WnlbError(f"{bad[0]}")


def frames(sessions: int, frames_each: int, shape: tuple[int, ...]) -> dict[str, Any]:
    """Frames up, through a graph, and down again, each with its own content; what is free after each session."""
    drift = _driver_drift(sessions)
    wrong, free, resident, description, ms = 0, [], [], "", 0.0
    for _ in range(sessions):
        cuda = open_cuda()
        description = cuda.description
        cuda.activate()
        try:
            own_wrong, ms = _session(cuda, frames_each, shape)
            wrong += own_wrong
            free.append(free_memory())
        finally:
            cuda.deactivate()
            cuda.close()
        resident.append(_resident())
    leaked = max(free[1] - min(free[1:]), 0), max(resident[-1] - resident[1] - drift, 0)
    return {
        "memory": description,
        "frames": sessions * frames_each,
        "wrong": wrong,
        "last_ms": ms,
        "leaked_device_bytes": leaked[0],
        "leaked_host_bytes": leaked[1],
        "right": wrong == 0 and max(leaked) <= ALLOWED,
    }


def _driver_drift(sessions: int) -> int:
    """Bytes that the process grows by as many contexts, made and released with nothing in them: the driver's own."""
    resident = []
    for _ in range(sessions):
        open_cuda().close()
        resident.append(_resident())
    return max(resident[-1] - resident[1], 0)


def _session(cuda: Cuda, count: int, shape: tuple[int, ...]) -> tuple[int, float]:
    """How many of the frames came back wrong, and the milliseconds of the last."""
    first, second = (cuda.buffer(shape, np.uint8, False) for _ in range(2))
    start, end = Event(), Event()
    kept, second.address = second.address, first.address  # comes down from where the first went up

    def there_and_back() -> None:
        cuda.upload(first)
        cuda.download(second)

    graph, wrong = Graph(cuda.stream, there_and_back), 0
    for number in range(count):
        first.host[:] = number % 251
        second.host[:] = 255
        start.record(cuda.stream)
        graph.launch()
        end.record(cuda.stream)
        cuda.synchronize()
        wrong += not (second.host == first.host).all()
    end.synchronize()
    ms = end.ms_since(start)
    second.address = kept
    for made in (graph, start, end):
        made.close()
    for buffer in (first, second):
        buffer.free()
    return wrong, ms


def _resident() -> int:
    found = re.search(r"VmRSS:\s+(\d+)", Path("/proc/self/status").read_text())
    return 1024 * int(found[1]) if found else 0


def _tests(context: Context) -> None:
    """The tests for a GPU that need no TensorRT, by pytest."""
    if context.left() <= 0:
        context.add(what=_TESTS, refused=NO_TIME)
        return
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        words = [sys.executable, "-m", "pytest", "-q", "-m", "gpu and not tensorrt", f"--junitxml={report}"]
        words += ["-p", "no:cacheprovider", f"--basetemp={folder}/tests", _TESTS]
        try:
            ran = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=context.left())
        except subprocess.TimeoutExpired:
            context.add(what=_TESTS, refused=NO_TIME)
            return
        if not report.exists():
            lines = (ran.stderr or ran.stdout).strip().splitlines()
            context.add(what=_TESTS, refused=lines[-1][:200] if lines else "pytest wrote nothing")
            return
        suite = next(ElementTree.parse(report).iter("testsuite"))
        skips = [s.get("message", "") for s in suite.iter("skipped")]
        counts = {name: int(suite.get(key, 0)) for name, key in (("tests", "tests"), ("skipped", "skipped"))}
        failed = int(suite.get("failures", 0)) + int(suite.get("errors", 0))
        context.add(what=_TESTS, **counts, failed=failed, skips=skips, last_line=ran.stdout.strip().splitlines()[-1])


if __name__ == "__main__":
    try:
        count, each, size = json.loads(sys.argv[1])
        print(json.dumps(frames(count, each, tuple(size))))
    except WnlbError as error:
        sys.exit(str(error))
