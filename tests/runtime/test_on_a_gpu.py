"""What only a GPU can show. Everything here skips, with the reason, on a machine that lacks it."""

from __future__ import annotations

import ctypes
import threading
from pathlib import Path

import numpy as np
import pytest

from wnlb.export.verify import dark_scene
from wnlb.runtime.build import BuildOptions, build_engine
from wnlb.runtime.cuda import open_cuda
from wnlb.runtime.driver import Graph, find_gpu
from wnlb.runtime.errors import WnlbError
from wnlb.runtime.onnxruntime_backend import OnnxRuntimeBackend
from wnlb.runtime.tensorrt_backend import TensorRtBackend
from wnlb.runtime.tensorrt_library import load_tensorrt

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True, scope="session")
def _gpu() -> None:
    """Before the model is exported for nothing."""
    try:
        find_gpu()
    except WnlbError as error:
        pytest.skip(str(error))


@pytest.fixture(params=["tensorrt", "tensorrt-rtx"])
def library(request: pytest.FixtureRequest) -> str:
    """TensorRT-RTX has no kernels for data centre GPUs of SM 9.0: whether it runs there is seen here."""
    try:
        load_tensorrt(request.param)
    except WnlbError as error:
        pytest.skip(str(error))
    return request.param


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
        with pytest.raises(WnlbError, match="out of memory"):
            cuda.buffer((1 << 45,), np.uint8, False)
    finally:
        cuda.deactivate()
        cuda.close()


def test_onnx_runtimes_cuda_provider(small_model_path: Path) -> None:
    try:
        backend = OnnxRuntimeBackend(small_model_path, device="cuda")
    except WnlbError as error:
        pytest.skip(str(error))
    agree(backend.run({"image": dark_scene((1, 64, 96, 3))}), small_model_path)
    backend.close()


@pytest.mark.tensorrt
def test_an_engine_finds_what_onnx_runtime_finds(small_model_path: Path, tmp_path: Path, library: str) -> None:
    engine = tmp_path / "model.engine"
    manifest = build_engine(small_model_path, engine, BuildOptions(target=library))
    assert manifest.layers
    backend = TensorRtBackend(engine)
    image = dark_scene((1, 64, 96, 3))
    for _ in range(4):
        agree(backend.run({"image": image}), small_model_path)
    assert backend.description.endswith("CUDA graph")
    found = []
    thread = threading.Thread(target=lambda: found.append(backend.run({"image": image})))
    thread.start()
    thread.join()
    agree(found[0], small_model_path)
    backend.close()


@pytest.mark.tensorrt
def test_nothing_is_left_on_the_gpu(small_model_path: Path, tmp_path: Path, library: str) -> None:
    engine = tmp_path / "model.engine"
    build_engine(small_model_path, engine, BuildOptions(target=library))
    free = []
    for _ in range(6):
        backend = TensorRtBackend(engine)
        backend.run({"image": dark_scene((1, 64, 96, 3))})
        backend.close()
        free.append(free_memory())
    assert min(free[2:]) >= free[2] - (8 << 20)


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
    agree(backend.run({"image": dark_scene((1, 64, 96, 3))}), small_model_path)
    backend.close()


def agree(found: dict[str, np.ndarray], model: Path) -> None:
    """With ONNX Runtime on the CPU, but for detections near a threshold; TF32 is 1e-3 of a value."""
    expected = OnnxRuntimeBackend(model, device="cpu").run({"image": dark_scene((1, 64, 96, 3))})
    count = int(expected["count"][0])
    assert abs(int(found["count"][0]) - count) <= max(count // 20, 1)
    for i in range(count):
        same = found["labels"][0] == expected["labels"][0, i]
        distance = np.abs(found["boxes"][0][same] - expected["boxes"][0, i]).max(1, initial=0)
        if expected["scores"][0, i] > 0.1:
            assert distance.min(initial=np.inf) < 1, expected["boxes"][0, i]


def free_memory() -> int:
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    cuda = open_cuda()
    cuda.activate()
    ctypes.CDLL("libcuda.so.1").cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total))
    cuda.deactivate()
    cuda.close()
    return free.value
