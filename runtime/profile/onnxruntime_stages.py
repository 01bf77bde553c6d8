"""Where the time of a model goes in ONNX Runtime, by its own profiler."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from wnlb.runtime.denormals import without_denormals
from wnlb.runtime.errors import WnlbError
from wnlb.runtime.onnxruntime_backend import open_session
from wnlb.runtime.profile.stages import stage_times

WARM_UP = 2
BETWEEN = "between layers"  # what ONNX Runtime itself takes


def stages_in_onnxruntime(path: Path, inputs: dict[str, Any], threads: int, runs: int) -> dict[str, float]:
    """Milliseconds of one run by stage, the mean of ``runs``; in a session of its own, for the profiler costs time.

    Args:
        inputs: the model's, by name.

    Raises:
        WnlbError: the model cannot be opened or run.
    """
    with tempfile.TemporaryDirectory() as folder:
        session = open_session(path, device="cpu", threads=threads, profile_prefix=str(Path(folder) / "profile"))
        with without_denormals():
            for _ in range(WARM_UP + runs):
                session.run(None, inputs)
        try:
            events = json.loads(Path(session.end_profiling()).read_text())
        except (OSError, ValueError) as error:
            raise WnlbError(f"ONNX Runtime's profile of {path} cannot be read: {error}") from error
    stages = {stage: ms / runs for stage, ms in stage_times(kernel_times(events, WARM_UP)).items()}
    whole = sum(event["dur"] for event in _runs(events)[WARM_UP:]) / 1e3 / runs
    return {**stages, BETWEEN: max(whole - sum(stages.values()), 0.0)}


def kernel_times(events: list[dict], skipped: int) -> list[tuple[str, float]]:
    """Node names and milliseconds of a profile's kernels, in the order of time, without the first ``skipped`` runs."""
    runs = _runs(events)
    start = runs[skipped - 1]["ts"] + runs[skipped - 1]["dur"] if skipped and len(runs) >= skipped else 0
    kernels = [e for e in events if e.get("cat") == "Node" and e["name"].endswith("_kernel_time") and e["ts"] >= start]
    kernels.sort(key=lambda event: event["ts"])
    return [(event["name"].removesuffix("_kernel_time"), event["dur"] / 1e3) for event in kernels]


def _runs(events: list[dict]) -> list[dict]:
    return sorted((event for event in events if event.get("name") == "model_run"), key=lambda event: event["ts"])
