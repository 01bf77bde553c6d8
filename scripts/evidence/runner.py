"""Runs the stages, each in a process of its own with a time limit of its own, and keeps what they found."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evidence.checkout import mount
from evidence.markdown import page_of
from wnlb.runtime.files import atomic_path

FORMAT = 1
SCRIPTS = Path(__file__).resolve().parents[1]
_GRACE = 3.0  # seconds between "begin nothing new" and the end of the process
_SAID = 30  # lines of a stage that failed


@dataclass(frozen=True)
class Stage:
    """A module of this package with a function ``run(context)``."""

    name: str
    title: str
    share: float  # of the time; what a stage does not use, the next ones have
    module: str = ""  # elsewhere than in this package

    @property
    def path(self) -> str:
        return self.module or f"evidence.{self.name}"


STAGES = (  # the most valuable first
    Stage("exact", "attention, exact", 50),
    Stage("fast", "attention, fast", 130),
    Stage("plugin", "plugin", 50),
    Stage("network", "network", 170),
    Stage("memory", "memory layer", 25),
    Stage("engines", "ONNX Runtime and TensorRT", 25),
    Stage("tiles", "tiles that could replace ours", 30),
)


def measure(stages: Sequence[Stage], head: dict[str, Any], output: Path, seconds: float, carried: Path) -> None:
    """Run ``stages``; ``evidence.json`` and ``evidence.md`` in ``output`` are written anew after each.

    Args:
        head: what is known before: machine, versions, commit, ``rehearsal``.
        seconds: for all of them. Each may run until its share of the time, counted from the start, is over.
        carried: the folder that ``--pack`` made.
    """
    record: dict[str, Any] = {"format": FORMAT, **head, "seconds": seconds, "stages": {}}
    with tempfile.TemporaryDirectory(prefix="gpu_evidence") as name:
        if not head["rehearsal"]:
            _wake(_environment(Path(name), carried, rehearse=False))
    begun, total, passed = time.time(), sum(stage.share for stage in stages), 0.0
    with tempfile.TemporaryDirectory(prefix="gpu_evidence") as name:
        for stage in stages:
            passed += stage.share
            deadline = begun + seconds * passed / total
            print(f"{stage.title}: until {deadline - begun:.0f} of {seconds:.0f} s ...", flush=True)
            result = run_stage(stage, Path(name), deadline, carried, rehearse=bool(head["rehearsal"]))
            record["stages"][stage.name] = {"title": stage.title, **result}
            _write(record, output)
            reason = f": {result['reason']}" if result["reason"] else ""
            print(f"  {result['state']}, {len(result['rows'])} rows, {result['seconds']:.0f} s{reason}", flush=True)


def run_stage(stage: Stage, folder: Path, deadline: float, carried: Path, rehearse: bool) -> dict[str, Any]:
    """Its state, reason, seconds, facts and rows, and the end of what it said; whatever happens to its process.

    ``folder`` is for what it needs while it runs.
    """
    part, log = folder / f"{stage.name}.json", folder / f"{stage.name}.log"
    command = [sys.executable, "-m", "evidence.stage", stage.path, "--output", part, "--carried", carried]
    command += ["--deadline", str(deadline - _GRACE), *(["--rehearse"] if rehearse else [])]
    begun = time.time()
    with open(log, "w") as sink:
        process = subprocess.Popen(
            list(map(str, command)),
            stdout=sink,
            stderr=subprocess.STDOUT,
            env=_environment(folder, carried, rehearse),
            start_new_session=True,
            stdin=subprocess.DEVNULL,
        )
        try:
            process.wait(timeout=max(deadline - time.time(), 0.1))
        except subprocess.TimeoutExpired:
            pass
        finally:
            _end(process)
    found = {"state": "failed", "reason": "it wrote nothing", "facts": {}, "rows": []}
    with contextlib.suppress(OSError, ValueError):
        found = json.loads(part.read_text())
    if process.returncode != 0:
        late = process.returncode in (-signal.SIGKILL, None) and time.time() >= deadline
        found["state"] = "cut off" if late else "failed"
        found["reason"] = "its time was over" if late else _why(process.returncode, log)
    said = log.read_text(errors="replace").splitlines()[-_SAID:] if found["state"] == "failed" else []
    return {
        "state": found["state"],
        "reason": found["reason"],
        "seconds": round(time.time() - begun, 2),
        "limit_seconds": round(deadline - begun, 2),
        "facts": found["facts"],
        "rows": found["rows"],
        "said": said,
    }


def _why(code: int | None, log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    how = "it does not end" if code is None else f"ended by signal {-code}" if code < 0 else f"exit code {code}"
    return f"{how}: {lines[-1][:200]}" if lines else how


def _end(process: subprocess.Popen[Any]) -> None:
    """The process and all that it started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):  # of a process that the driver does not let go
        process.wait(20)


def _environment(folder: Path, carried: Path, rehearse: bool) -> dict[str, str]:
    """This checkout as wnlb; the carried wheels, which a machine lacks, behind it."""
    wnlb = mount(folder / "checkout")
    path = [str(wnlb), str(SCRIPTS), *filter(None, [os.environ.get("PYTHONPATH")]), str(_wheels(folder, carried))]
    more = {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""} if rehearse else {}
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path), "PYTHONUNBUFFERED": "1", **more}


def _wheels(folder: Path, carried: Path) -> Path:
    """What does not install is missing where it is needed."""
    target, found = folder / "wheels", sorted((carried / "wheels").glob("*.whl"))
    if found and not target.exists():
        target.mkdir()
        words = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--target", target, *found]
        subprocess.run(list(map(str, words)), capture_output=True)
    return target


def _wake(environment: dict[str, str]) -> None:
    """Load what all stages load, from a disk that has not read it yet: no stage's time."""
    code = "import torch, torchvision; a = torch.ones(64, 64, device='cuda'); a @ a; torch.cuda.synchronize()"
    with contextlib.suppress(subprocess.TimeoutExpired):
        subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, timeout=80)


def _write(record: dict[str, Any], output: Path) -> None:
    """The figures first: a page that cannot be written costs none of them."""
    with atomic_path(output / "evidence.json") as temporary:
        temporary.write_text(json.dumps(record, indent=1))
    try:
        text = page_of(record)
    except Exception as error:  # rows of stages that ended anywhere
        text = f"There is no page of evidence.json: {error!r}\n"
    with atomic_path(output / "evidence.md") as temporary:
        temporary.write_text(text)
