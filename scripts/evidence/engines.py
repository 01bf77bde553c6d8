"""ONNX Runtime with CUDA, TensorRT and TensorRT-RTX, where they are installed: `wnlb profile` of three precisions."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from evidence.checkout import ROOT
from evidence.stage import Context
from wnlb.runtime.engine.tensorrt import load_tensorrt
from wnlb.runtime.errors import MissingDependency, WnlbError

_LEFT_OUT = ("made_by", "samples_ms", "samples_at_s")  # paths of a folder that is gone; every single time
_SAMPLE = ROOT / "export" / "sample.safetensors"


def run(context: Context) -> None:
    backends, missing = (["onnxruntime"], {}) if context.rehearse else installed()
    context.fact("missing", missing)
    if not backends:
        raise MissingDependency("; ".join(missing.values()))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        size, count, seconds = ("64x96", 2, 0.2) if context.rehearse else ("320x320", 16, 3)
        _wnlb(context, "scenes", "-o", folder / "night", "--count", count, "--seed", 5, "--size", size)
        words = ["profile", *_subject(context, folder, size), "--images", folder / "night" / "images"]
        words += ["--backends", ",".join(backends), "--duration", seconds, "-o", folder / "report"]
        try:
            _wnlb(context, *words)
        finally:
            report = folder / "report" / "report.json"
            if report.exists():
                for row in json.loads(report.read_text())["rows"]:
                    context.add(**{name: value for name, value in row.items() if name not in _LEFT_OUT})


def _subject(context: Context, folder: Path, size: str) -> list[object]:
    """What is profiled: the sample in three precisions; in a rehearsal a file that is small and quickly made."""
    if not context.rehearse:
        return [_SAMPLE, "--size", size, "--precisions", "fp32,fp16,int8"]
    few = ["--pre-nms", 32, "--post-nms", 32, "--candidates", 64, "--detections", 8, "--target", "cpu"]
    _wnlb(context, "export", _SAMPLE, "-o", folder / "small.onnx", "--size", size, *few)
    return [folder / "small.onnx", "--precisions", "fp32", "--no-stages", "--no-accuracy"]


def installed() -> tuple[list[str], dict[str, str]]:
    """Backends of a GPU that are here, and why the others are not."""
    found, missing = [], {}
    if importlib.util.find_spec("onnxruntime") is None:
        missing["onnxruntime"] = "ONNX Runtime is not installed"
    else:
        import onnxruntime

        if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
            found.append("onnxruntime")
        else:
            missing["onnxruntime"] = f"ONNX Runtime {onnxruntime.__version__} has no CUDA provider"
    for name in ("tensorrt", "tensorrt-rtx"):
        try:
            load_tensorrt(name)
            found.append(name)
        except WnlbError as error:
            missing[name] = str(error).partition(";")[0]
    return found, missing


def _wnlb(context: Context, *words: object) -> None:
    command = [sys.executable, "-m", "wnlb.runtime.cli", *map(str, words)]
    try:
        ran = subprocess.run(command, capture_output=True, text=True, timeout=max(context.left(), 1))
    except subprocess.TimeoutExpired as error:
        raise WnlbError(f"wnlb {words[0]} was not done when the time was over") from error
    if ran.returncode:
        lines = ran.stderr.strip().splitlines()
        raise WnlbError(f"wnlb {words[0]}: {lines[-1] if lines else f'exit code {ran.returncode}'}")
