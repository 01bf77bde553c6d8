"""What machine the evidence is of, as it was found; nothing of it is changed."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
from typing import Any

from wnlb.runtime.engine.driver import find_gpu
from wnlb.runtime.errors import WnlbError
from wnlb.runtime.machine import jetpack_release, jetson_model, nvidia_driver, power_mode, processor

_PACKAGES = (
    "torch",
    "torchvision",
    "triton",
    "nvidia-cudnn-cu13",
    "onnx",
    "onnxruntime",
    "onnxruntime-gpu",
    "tensorrt",
    "tensorrt-rtx-cu13-bindings",
    "cuda-bindings",
    "pycuda",
    "numpy",
    "opencv-python",
    "opencv-python-headless",
)
_READINGS = {  # of nvidia-smi: our name and unit
    "clocks.sm": "sm_mhz",
    "clocks.mem": "memory_mhz",
    "clocks.max.sm": "sm_max_mhz",
    "clocks.max.mem": "memory_max_mhz",
    "power.draw": "power_w",
    "power.limit": "power_limit_w",
    "temperature.gpu": "temperature_c",
    "utilization.gpu": "busy_percent",
}


def describe() -> dict[str, Any]:
    """GPU, driver, clocks, processor and versions; ``gpu`` is None where there is none."""
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    try:
        gpu = find_gpu()
        found: dict[str, Any] | None = {
            "name": gpu.name,
            "compute_capability": gpu.compute_capability,
            "memory_bytes": gpu.memory,
            "cuda": gpu.cuda,
            "driver": nvidia_driver(),
            "integrated": gpu.integrated,
            **readings(),
        }
    except WnlbError:
        found = None
    jetson = {"model": jetson_model(), "l4t": jetpack_release(), "power_mode": power_mode()} if jetson_model() else None
    return {
        "gpu": found,
        "jetson": jetson,
        "processor": processor(),
        "python": platform.python_version(),
        "system": platform.platform(terse=True),
        "versions": versions,
    }


def readings() -> dict[str, float]:
    """Clocks, power and temperature of the first GPU; {} where nvidia-smi does not tell, as on a Jetson."""
    query = ["nvidia-smi", "-i", "0", f"--query-gpu={','.join(_READINGS)}", "--format=csv,noheader,nounits"]
    try:
        ran = subprocess.run(query, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return {}
    found = {}
    for name, text in zip(_READINGS.values(), ran.stdout.strip().split(","), strict=False):
        try:
            found[name] = float(text)
        except ValueError:
            continue
    return found
