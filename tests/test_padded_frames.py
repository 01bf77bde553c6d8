"""That files find what torchvision finds in frames that do not fill their input; see scripts/bench_padded.py."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from bench_padded import Found

from wnlb.runtime.detections import Detections


def test_what_counts_as_found() -> None:
    """Equal class, 0.5 px, 0.01; each of ours once; those below a score of 0.3 do not count."""
    box = [10.0, 10, 50, 50]
    eager = {
        "boxes": np.array([box, box, box, [60, 60, 90, 90], box]),
        "scores": np.array([0.9, 0.9, 0.8, 0.5, 0.2]),
        "labels": np.array([1, 1, 2, 1, 1]),
    }
    boxes = np.array([[10, 10, 50, 50.25], [60, 60, 90.75, 90]], np.float32)
    ours = Detections(99, 99, boxes, np.array([0.905, 0.5], np.float32), np.array([1, 1], np.int32), None)
    found = Found()
    found.add(eager, ours)
    assert (found.eager, found.again) == (4, 1)
    assert found.box_error == pytest.approx(0.25)
    assert found.score_error == pytest.approx(0.005, abs=1e-6)
    found.add(eager, Detections.none(99, 99))
    assert (found.eager, found.again) == (8, 1)


@pytest.mark.slow
def test_on_120_frames_of_three_sizes() -> None:
    script = Path(__file__).parents[1] / "scripts" / "bench_padded.py"
    ran = subprocess.run([sys.executable, str(script)], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
