"""What only a GPU can show. It skips, with the reason, on a machine that lacks it."""

from __future__ import annotations

import json
import re
import shutil
import statistics
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from model_inputs import whole

from wnlb.export.checkpoints.checkpoint import load_checkpoint
from wnlb.export.onnx_file.export_onnx import export_onnx
from wnlb.export.onnx_file.verify import dark_scene
from wnlb.export.options import ExportOptions
from wnlb.runtime.cli import main
from wnlb.runtime.engine.backend import TensorRtBackend
from wnlb.runtime.engine.build import BuildOptions, build_engine
from wnlb.runtime.engine.cuda import open_cuda
from wnlb.runtime.engine.driver import Graph, find_gpu, free_memory
from wnlb.runtime.engine.tensorrt import load_tensorrt
from wnlb.runtime.errors import WnlbError
from wnlb.runtime.onnxruntime_backend import OnnxRuntimeBackend
from wnlb.runtime.profile.stages import stage_of

# Flags of all versions from 10.3; 11 has made some of them its defaults. Without --exposeDMA it starts an inference
# while the one before still runs, which we do not.
TRTEXEC_FLAGS = "--useCudaGraph --useSpinWait --noDataTransfers --exposeDMA --warmUp=500 --duration=3".split()
SUMMARY = """\
&&&& RUNNING TensorRT.trtexec [TensorRT v100300] # /usr/src/tensorrt/bin/trtexec --loadEngine=model.engine
[05/19/2025-17:33:07] [I] === Performance summary ===
[05/19/2025-17:33:07] [I] Throughput: 519.048 qps
[05/19/2025-17:33:07] [I] Latency: min = 1.92139 ms, max = 9.48242 ms, mean = 1.98548 ms, median = 1.9458 ms, \
percentile(90%) = 1.96777 ms, percentile(95%) = 1.98181 ms, percentile(99%) = 2.19116 ms
[05/19/2025-17:33:07] [I] Enqueue Time: min = 0.0493164 ms, max = 0.168213 ms, mean = 0.0594481 ms, \
median = 0.0557861 ms, percentile(90%) = 0.0664062 ms, percentile(95%) = 0.090332 ms, percentile(99%) = 0.097168 ms
[05/19/2025-17:33:07] [I] H2D Latency: min = 0 ms, max = 0 ms, mean = 0 ms, median = 0 ms, percentile(90%) = 0 ms, \
percentile(95%) = 0 ms, percentile(99%) = 0 ms
[05/19/2025-17:33:07] [I] GPU Compute Time: min = 1.85303 ms, max = 9.41162 ms, mean = 1.90965 ms, \
median = 1.87378 ms, percentile(90%) = 1.88477 ms, percentile(95%) = 1.89453 ms, percentile(99%) = 2.08984 ms
[05/19/2025-17:33:07] [I] D2H Latency: min = 0 ms, max = 0 ms, mean = 0 ms, median = 0 ms, percentile(90%) = 0 ms, \
percentile(95%) = 0 ms, percentile(99%) = 0 ms
[05/19/2025-17:33:07] [I] Total Host Walltime: 3.00049 s
[05/19/2025-17:33:07] [I] Total GPU Compute Time: 2.9741 s
&&&& PASSED TensorRT.trtexec [TensorRT v100300] # /usr/src/tensorrt/bin/trtexec --loadEngine=model.engine
"""


def on_a_gpu(test: Callable[..., None]) -> Callable[..., None]:
    return pytest.mark.gpu(pytest.mark.usefixtures("_gpu")(test))


@pytest.fixture(scope="session")
def _gpu() -> None:
    """Before the model is exported for nothing."""
    try:
        find_gpu()
    except WnlbError as error:
        pytest.skip(str(error))


@pytest.fixture(params=["tensorrt", "tensorrt-rtx"])
def library(request: pytest.FixtureRequest) -> str:
    try:
        found, gpu = load_tensorrt(request.param), find_gpu()
        if found.is_rtx and gpu.compute_capability not in found.compute_capabilities:
            pytest.skip(f"{found.title} has no kernels for {gpu.name} of SM {gpu.compute_capability}")
    except WnlbError as error:
        pytest.skip(str(error))
    return request.param


@on_a_gpu
def test_memory_copies_and_graphs() -> None:
    cuda = open_cuda()
    cuda.activate()
    try:
        first, second = cuda.buffer((3, 5), np.float32, False), cuda.buffer((3, 5), np.float32, False)
        source = cuda.buffer((3, 5), np.float32, find_gpu().integrated)
        try:
            first.host[:] = np.arange(15).reshape(3, 5)
            cuda.upload(first)
            second.address, kept = first.address, second.address  # down from where the first went
            cuda.download(second)
            cuda.synchronize()
            np.testing.assert_array_equal(second.host, first.host)
            graph = Graph(cuda.stream, lambda: (cuda.upload(first), cuda.download(second)))  # type: ignore[arg-type,return-value]
            for value in (7, 9):
                first.host[:] = value
                graph.launch()
                cuda.synchronize()
                assert (second.host == value).all()
            graph.close()
            second.address = kept
        finally:
            for buffer in (first, second, source):
                buffer.free()
        with pytest.raises(WnlbError, match="CUDA: "):
            cuda.buffer((1 << 45,), np.uint8, False)
    finally:
        cuda.deactivate()
        cuda.close()


@on_a_gpu
def test_onnx_runtimes_cuda_provider(request: pytest.FixtureRequest) -> None:
    ort = pytest.importorskip("onnxruntime")
    if "CUDAExecutionProvider" not in ort.get_available_providers():
        pytest.skip(f"ONNX Runtime {ort.__version__} has no CUDA provider")
    small_model_path = request.getfixturevalue("small_model_path")  # made only where it can run
    try:
        backend = OnnxRuntimeBackend(small_model_path, device="cuda")
    except WnlbError as error:
        pytest.skip(str(error))
    agree(backend.run(whole(dark_scene((1, 64, 96, 3)))), small_model_path)
    backend.close()


@on_a_gpu
@pytest.mark.tensorrt
def test_an_engine_finds_what_onnx_runtime_finds(small_model_path: Path, tmp_path: Path, library: str) -> None:
    engine = tmp_path / "model.engine"
    manifest = build_engine(small_model_path, engine, BuildOptions(target=library))
    assert manifest.layers
    backend = TensorRtBackend(engine)
    image = dark_scene((1, 64, 96, 3))
    for _ in range(4):
        agree(backend.run(whole(image)), small_model_path)
    assert backend.description.endswith("CUDA graph")
    found = []
    thread = threading.Thread(target=lambda: found.append(backend.run(whole(image))))
    thread.start()
    thread.join()
    agree(found[0], small_model_path)
    backend.close()


@on_a_gpu
@pytest.mark.tensorrt
def test_nothing_is_left_on_the_gpu(small_model_path: Path, tmp_path: Path, library: str) -> None:
    engine = tmp_path / "model.engine"
    build_engine(small_model_path, engine, BuildOptions(target=library))
    free = []
    for _ in range(6):
        backend = TensorRtBackend(engine)
        backend.run(whole(dark_scene((1, 64, 96, 3))))
        backend.close()
        free.append(free_now())
    assert min(free[2:]) >= free[2] - (8 << 20)


@on_a_gpu
@pytest.mark.tensorrt
def test_the_plugin_gives_what_the_standard_form_gives(small_model_path: Path, tmp_path: Path) -> None:
    from wnlb.plugins import load

    try:
        library = load_tensorrt("tensorrt")
        load(tensorrt=library.trt)
    except WnlbError as error:
        pytest.skip(str(error))
    options = BuildOptions(target="tensorrt", attention="plugin")
    assert build_engine(small_model_path, tmp_path / "model.engine", options).attention == "plugin"
    backend = TensorRtBackend(tmp_path / "model.engine")
    agree(backend.run(whole(dark_scene((1, 64, 96, 3)))), small_model_path)
    backend.close()


@on_a_gpu
@pytest.mark.tensorrt
def test_where_the_time_goes(small_model_path: Path, tmp_path: Path, library: str) -> None:
    build_engine(small_model_path, tmp_path / "model.engine", BuildOptions(target=library))
    backend = TensorRtBackend(tmp_path / "model.engine")
    backend.run(whole(dark_scene((1, 64, 96, 3))))
    for cuda_graph in (False, True):
        times = [backend.timed(True, cuda_graph, True) for _ in range(20)][-1]
        assert min(times["gpu"], times["enqueue"]) > 0
        assert times["latency"] == times["h2d"] + times["gpu"] + times["d2h"]
    taken = backend.device_bytes
    assert taken > 0
    layers = backend.layer_times(5)
    if library == "tensorrt":
        assert sum(ms for _, ms in layers) > 0
        assert len({stage_of(name) for name, _ in layers} - {None}) > 3, layers
    assert backend.device_bytes <= taken + (8 << 20)  # its context is gone
    agree(backend.run(whole(dark_scene((1, 64, 96, 3)))), small_model_path)
    assert backend.description.endswith("CUDA graph")
    backend.close()


@on_a_gpu
@pytest.mark.tensorrt
def test_an_engine_takes_as_long_as_for_trtexec(trtexec: str, small_checkpoint_path: Path, tmp_path: Path) -> None:
    """Within 3 %: the clocks of a GPU do not stand still between the two."""
    file, engine = tmp_path / "model.onnx", tmp_path / "model.engine"
    model, config = load_checkpoint(small_checkpoint_path)
    export_onnx(model, file, ExportOptions(320, 480), class_names=config.class_names)  # not only starts of kernels
    manifest = build_engine(file, engine, BuildOptions(target="tensorrt", attention="standard"))
    backend = TensorRtBackend(engine)
    backend.run(whole(np.random.default_rng(0).integers(0, 256, (1, 320, 480, 3), dtype=np.uint8)))
    before = gpu_times(backend)
    command = [trtexec, f"--loadEngine={engine}", *TRTEXEC_FLAGS]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120)
    if trtexec_version(ran.stdout) not in ("", ".".join(manifest.version.split(".")[:3])):
        pytest.skip(f"{trtexec} is of another TensorRT than {manifest.version}: {ran.stdout.splitlines()[0]}")
    assert ran.returncode == 0, ran.stdout[-2000:] + ran.stderr[-2000:]
    ours = statistics.median(before + gpu_times(backend))
    backend.close()
    assert ours == pytest.approx(gpu_compute_median(ran.stdout), rel=0.03)


@on_a_gpu
@pytest.mark.tensorrt
def test_the_profile_of_engines(small_model_path: Path, tmp_path: Path, library: str) -> None:
    """From the ONNX file: engines are built, measured beside ONNX Runtime, and have stages and a floor."""
    words = ["profile", str(small_model_path), "--precisions", "fp32,fp16", "--backends", f"onnxruntime,{library}"]
    assert main([*words, "--duration", "1", "-o", str(tmp_path)]) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    rows = {row["name"]: row for row in report["rows"]}
    assert report["peaks"][library]["flops_per_s"]["fp16"] > 1e11
    for name in (f"small.{library}.engine", f"small.fp16.{library}.engine"):
        row = rows[name]
        assert (row["failure"], row["backend"]) == ("", library)
        assert row["device_bytes"] > 0
        parts = row["parts"]
        assert parts["gpu"]["p50"] <= parts["latency"]["p50"] <= parts["infer"]["p50"] * 1.5
        assert "c2 block" in row["stages"]
        assert row["floor"]


@pytest.fixture
def trtexec() -> str:
    try:
        load_tensorrt("tensorrt")
    except WnlbError as error:
        pytest.skip(str(error))
    found = shutil.which("trtexec") or shutil.which("trtexec", path="/usr/src/tensorrt/bin")
    if found is None:
        pytest.skip("trtexec is neither on the PATH nor in /usr/src/tensorrt/bin")
    return found


def gpu_times(backend: TensorRtBackend) -> list[float]:
    """Of three seconds, after half a second that does not count, as TRTEXEC_FLAGS."""
    started, times = time.perf_counter(), []
    while (passed := time.perf_counter() - started) < 3.5:
        gpu = backend.timed(False, True, True)["gpu"]
        if passed > 0.5:
            times.append(gpu)
    return times


def gpu_compute_median(output: str) -> float:
    """Milliseconds, from trtexec's summary."""
    found = re.search(r"\] GPU Compute Time: min = [^\n]*, median = ([^ ,]+) ms", output)
    assert found, output[-2000:]
    return float(found[1])


def trtexec_version(output: str) -> str:
    """``"10.3.0"`` from ``[TensorRT v100300]`` in trtexec's first line; "" where it says none."""
    found = re.search(r"\[TensorRT v(\d+)\]", output)
    number = int(found[1]) if found else 0
    return f"{number // 10000}.{number // 100 % 100}.{number % 100}" if found else ""


def test_trtexecs_summary_is_read() -> None:
    assert gpu_compute_median(SUMMARY) == 1.87378
    assert trtexec_version(SUMMARY) == "10.3.0"
    assert trtexec_version("") == ""
    with pytest.raises(AssertionError):
        gpu_compute_median(SUMMARY.replace("] GPU", "] Total GPU"))


def agree(found: dict[str, np.ndarray], model: Path) -> None:
    """With ONNX Runtime on the CPU, but for detections near a threshold; TF32 is 1e-3 of a value."""
    expected = OnnxRuntimeBackend(model, device="cpu").run(whole(dark_scene((1, 64, 96, 3))))
    count = int(expected["count"][0])
    assert abs(int(found["count"][0]) - count) <= max(count // 20, 1)
    for i in range(count):
        same = found["labels"][0] == expected["labels"][0, i]
        distance = np.abs(found["boxes"][0][same] - expected["boxes"][0, i]).max(1, initial=0)
        if expected["scores"][0, i] > 0.1:
            assert distance.min(initial=np.inf) < 1, expected["boxes"][0, i]


def free_now() -> int:
    cuda = open_cuda()
    cuda.activate()
    try:
        return free_memory()
    finally:
        cuda.deactivate()
        cuda.close()
