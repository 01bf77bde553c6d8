"""Runs tests/emulation in a process of its own, for its CUDA driver must not meet PyTorch's."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

from wnlb.export.onnx_file.fuse import fuse_attention
from wnlb.runtime.contract import Contract

FOLDER = Path(__file__).parents[1] / "emulation"


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
@pytest.mark.parametrize("part", sorted(path.name for path in FOLDER.glob("test_*_emulated.py")))
def test_on_an_emulated_gpu(
    part: str,
    planted_model_path: Path,
    planted_batches_path: Path,
    planted_model: Callable[..., Path],
    make_contract: Callable[..., Contract],
    brief_model_path: Path,
    tmp_path: Path,
) -> None:
    model = onnx.load(brief_model_path)
    assert fuse_attention(model)
    onnx.save(model, tmp_path / "fused.onnx")
    of_frame_masks = make_contract(batch=2, framework="ultralytics", masks="frame")
    environment = {
        **os.environ,
        "EMULATED_FOLDER": str(tmp_path),
        "EMULATED_MODEL": str(planted_model_path),
        "EMULATED_MODEL_OF_BATCHES": str(planted_batches_path),
        "EMULATED_MODEL_OF_FORMAT_1": str(planted_model(tmp_path / "1.onnx", make_contract(batch=2, format=1))),
        "EMULATED_MODEL_OF_FRAME_MASKS": str(planted_model(tmp_path / "frame.onnx", of_frame_masks)),
        "EMULATED_FUSED_MODEL": str(tmp_path / "fused.onnx"),
    }
    for name in ("PYTEST_XDIST_WORKER", "PYTEST_XDIST_WORKER_COUNT", "PYTEST_ADDOPTS"):
        environment.pop(name, None)
    options = [
        "-q",
        "-ra",
        "--tb=short",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:xdist",
        "-c",
        os.devnull,
        "--rootdir",
        str(FOLDER),
        "-o",
        f"pythonpath={FOLDER.parent}",
    ]
    command = [sys.executable, "-m", "pytest", *options, "--confcutdir", str(FOLDER), str(FOLDER / part)]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1200)
    assert ran.returncode == 0, ran.stdout[-4000:] + ran.stderr[-1000:]
    assert " passed" in ran.stdout
