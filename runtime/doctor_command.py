"""``wnlb doctor``: what this machine can do, and what to install for the rest."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.metadata
import json
import os
import platform
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

from wnlb.runtime.engine.driver import find_gpu
from wnlb.runtime.engine.tensorrt import load_tensorrt
from wnlb.runtime.errors import MissingDependency, WnlbError
from wnlb.runtime.live.window import has_display
from wnlb.runtime.machine import (
    clocks_are_fixed,
    fastest_power_mode,
    jetpack_release,
    jetson_model,
    nvidia_driver,
    power_mode,
    processor,
)
from wnlb.runtime.table import human_bytes

_MARKS = {"yes": "+", "no": "-", "note": "!"}
_DESCRIPTION = """\
Look at this machine: GPU, driver, TensorRT, plugin, ONNX Runtime, OpenCV, display; on a Jetson its model and power
mode. Starts nothing and changes nothing. A minus is something that is not there, with what to do if you want it.
"""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    what: str
    state: str  # yes, no, or note: works, but not as well as it could
    found: str
    advice: str = ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = _DESCRIPTION
    parser.add_argument("--json", action="store_true", help="print JSON for programs")


def run(arguments: argparse.Namespace) -> int:
    findings = list(examine())
    if arguments.json:
        print(json.dumps([asdict(finding) for finding in findings], indent=2))
        return 0
    width = max(len(finding.what) for finding in findings)
    for finding in findings:
        print(f"{_MARKS[finding.state]} {finding.what:{width}}  {finding.found}")
        if finding.advice:
            print(f"  {'':{width}}  -> {finding.advice}")
    return 0


def examine() -> Iterator[Finding]:
    """Everything, one after the other; nothing of it raises."""
    version = importlib.metadata.version("wnlb-deploy")
    yield Finding("wnlb", "yes", f"{version}, Python {platform.python_version()}, {platform.platform(terse=True)}")
    yield Finding("processor", "yes", processor())
    yield from _jetson()
    for what, look in (
        ("GPU", _gpu),
        ("CUDA memory", _cuda),
        ("TensorRT", lambda: _tensorrt("tensorrt")),
        ("TensorRT-RTX", lambda: _tensorrt("tensorrt-rtx")),
        ("plugin", _plugin),
        ("ONNX Runtime", _onnxruntime),
        ("OpenCV", _opencv),
        ("display", _display),
        ("export", lambda: _packages("export", "torch", "torchvision", "onnx", "onnxscript", "safetensors")),
        ("convert", lambda: _packages("calibration", "onnx", "matplotlib")),
        ("label", lambda: _packages("label", "pyarrow", "fsspec")),
        ("label, Ray", lambda: _packages("ray", "ray")),
        ("metrics", lambda: _packages("metrics", "prometheus_client")),
        ("track", lambda: _packages("track", "trackers", "supervision")),
        ("Triton client", lambda: _packages("triton", "tritonclient", "grpcio")),
    ):
        yield _looked(what, look)
    yield from _evidence()


def _looked(what: str, look: Callable[[], tuple[str, str, str]]) -> Finding:
    try:
        return Finding(what, *look())
    except WnlbError as error:
        return Finding(what, "no", str(error))
    except Exception as error:  # a broken installation must not end the examination
        return Finding(what, "no", f"broken: {' '.join(str(error).split())[:200]}")


def _jetson() -> Iterator[Finding]:
    model = jetson_model()
    if not model:
        return
    yield Finding("Jetson", "yes", f"{model}, L4T {jetpack_release() or 'of unknown version'}")
    mode, fastest = power_mode(), fastest_power_mode()
    if mode.startswith("MAXN"):
        yield Finding("power mode", "yes", mode)
    else:
        yield Finding("power mode", "note", mode or "unknown", f"sudo nvpmodel -m {fastest}" if fastest else "")
    fixed = clocks_are_fixed()
    if fixed is not None:
        state = ("yes", "at their highest", "") if fixed else ("note", "vary with the load", "sudo jetson_clocks")
        yield Finding("GPU clocks", *state)


def _gpu() -> tuple[str, str, str]:
    gpu = find_gpu()
    memory = f"{human_bytes(gpu.memory)}{' shared with the CPU' if gpu.integrated else ''}"
    driver = f"driver {nvidia_driver()} for CUDA {gpu.cuda}".replace("  ", " ")
    return "yes", f"{gpu.name}, SM {gpu.compute_capability}, {memory}, {driver}", ""


def _cuda() -> tuple[str, str, str]:
    for package, name in (("pycuda", "PyCUDA"), ("cuda.bindings", "cuda-python")):
        try:
            module = importlib.import_module(package)
        except ImportError:
            continue
        return "yes", f"{name} {getattr(module, 'VERSION_TEXT', '') or getattr(module, '__version__', '')}".strip(), ""
    return "no", "neither PyCUDA nor cuda-python", "pip install 'wnlb-deploy[jetson]', or pip install pycuda"


def _tensorrt(name: str) -> tuple[str, str, str]:
    from wnlb.runtime.engine.tensorrt import HOW_TO_INSTALL

    try:
        return "yes", load_tensorrt(name).title, ""
    except MissingDependency:
        return "no", "not installed", HOW_TO_INSTALL[name]


def _plugin() -> tuple[str, str, str]:
    from wnlb.plugins.library import HOW_TO_BUILD, how_to_get_kernels, load

    try:
        library = load()
    except MissingDependency:
        return "no", "not built", HOW_TO_BUILD
    found = f"{library.path}, {library.kernels} kernels, for TensorRT {library.tensorrt}"
    with contextlib.suppress(WnlbError):
        gpu = find_gpu()
        if not library.kernels_for(gpu.arch):
            return "note", f"{found}, none for SM {gpu.compute_capability}", how_to_get_kernels(gpu.arch)
    return "yes", found, ""


def _evidence() -> Iterator[Finding]:
    """How somebody with a GPU can show what it does; nothing without one."""
    with contextlib.suppress(WnlbError):
        found = f"eight minutes show what the {find_gpu().name} can do"
        send = "in a checkout: scripts/gpu_evidence -o out/evidence, then send us out/evidence/evidence.json"
        yield Finding("evidence", "note", found, send)


def _onnxruntime() -> tuple[str, str, str]:
    try:
        ort = importlib.import_module("onnxruntime")
    except ImportError:
        if jetson_model():  # [cpu] and [gpu] bring an OpenCV that would shadow JetPack's
            return "no", "not installed; engines do not need it", ""
        return "no", "not installed", "pip install 'wnlb-deploy[cpu]', or [gpu] for NVIDIA GPUs"
    providers = [name.removesuffix("ExecutionProvider") for name in ort.get_available_providers()]
    found = f"{ort.__version__}: {', '.join(providers)}"
    has_gpu = os.path.exists("/dev/nvidiactl") or os.path.exists("/dev/nvgpu")
    if has_gpu and "CUDA" not in providers and not jetson_model():
        return "note", found, "for ONNX Runtime on the GPU: pip uninstall onnxruntime; pip install 'wnlb-deploy[gpu]'"
    return "yes", found, ""


def _opencv() -> tuple[str, str, str]:
    try:
        import cv2

        from wnlb.runtime.live.feed import has_gstreamer
    except ImportError:
        return (
            "no",
            "not installed",
            "sudo apt-get install python3-opencv" if jetson_model() else "pip install opencv-python",
        )

    lines = [line.partition(":") for line in cv2.getBuildInformation().splitlines()]
    built = {name.strip(): value.strip() for name, _, value in lines}
    video = [name for name in ("FFMPEG", "GStreamer", "v4l/v4l2") if built.get(name, "").startswith("YES")]
    found = f"{cv2.__version__} with {', '.join(video) or 'no video'}"
    if jetson_model() and not has_gstreamer():
        return "note", found, "csi:// and hardware decoding need JetPack's OpenCV: pip uninstall opencv-python"
    return "yes", found, ""


def _display() -> tuple[str, str, str]:
    if has_display():
        return "yes", os.environ.get("WAYLAND_DISPLAY") or os.environ.get("DISPLAY", ""), ""
    return "no", "none", "look at results with wnlb run --serve 127.0.0.1:8080"


def _packages(extra: str, *names: str) -> tuple[str, str, str]:
    missing, found = [], []
    for name in names:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
    if missing:
        return "no", f"{', '.join(missing)} not installed", f"pip install 'wnlb-deploy[{extra}]'"
    return "yes", ", ".join(found), ""
