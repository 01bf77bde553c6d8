"""What is measured of engines on the emulated GPU: times between events, times of layers, memory, the whole profile."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import engine_from, images, run_thrice, take_all_times
from model_inputs import whole

from wnlb.runtime.engine.backend import TensorRtBackend
from wnlb.runtime.engine.cuda import open_cuda
from wnlb.runtime.engine.engine import TensorRtEngine
from wnlb.runtime.engine.layers import onnx_names_of_inspector
from wnlb.runtime.engine.manifest import read_manifest
from wnlb.runtime.errors import WnlbError
from wnlb.runtime.onnxruntime_backend import OnnxRuntimeBackend
from wnlb.runtime.profile.floor import run_in_tensorrt
from wnlb.runtime.profile.peaks import peak_model
from wnlb.runtime.profile.stages import stage_of
from wnlb.runtime.profile.worker import How, _opened


@pytest.mark.parametrize("shared", [0, 1], ids=["own memory", "shared memory"])
def test_times_are_those_between_the_events(
    planted: Path, tmp_path: Path, driver: Any, trt: Any, memory: str, shared: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two uploads of 0.25 ms, 4 ms of inference, five downloads of 0.125 ms; a graph takes 0.5 ms to start."""
    driver.emulatedMachine(1, 87, shared)
    backend = TensorRtBackend(engine_from(planted, tmp_path))
    driver.emulatedTakes(0.25, 0.125, 4, 0.5)
    # The host's clock: each call of the driver takes a millisecond.
    monkeypatch.setattr("wnlb.runtime.engine.timing.perf_counter", lambda: driver.emulatedCalls() / 1e3)
    h2d, d2h = (0, 0) if shared else (0.5, 0.625)
    for cuda_graph, spin_wait in itertools.product((False, True), (False, True)):
        gpu = 4.5 if cuda_graph else 4
        bare = {"gpu": gpu, "latency": gpu, "enqueue": pytest.approx(1)}
        whole = {"h2d": h2d, "gpu": gpu, "d2h": d2h, "latency": h2d + gpu + d2h, "enqueue": pytest.approx(1)}
        for transfers, expected in ((True, whole), (False, bare), (True, whole)):
            assert backend.timed(transfers, cuda_graph, spin_wait) == expected
    backend.close()
    with pytest.raises(WnlbError, match="closed"):
        backend.timed(True, True, True)


@pytest.mark.parametrize("transfers", [True, False])
def test_the_end_is_polled_for_or_slept_for(
    planted: Path, tmp_path: Path, driver: Any, trt: Any, transfers: bool
) -> None:
    backend = TensorRtBackend(engine_from(planted, tmp_path))
    driver.emulatedQueriesBeforeReady(7)
    sleeps = driver.emulatedSleeps()
    backend.timed(transfers, True, True)
    assert (driver.emulatedQueries(), driver.emulatedSleeps() - sleeps) == (8, 0)
    backend.timed(transfers, True, False)
    assert (driver.emulatedQueries(), driver.emulatedSleeps() - sleeps) == (8, 1)
    backend.close()


def test_timing_and_running_in_turns(planted: Path, tmp_path: Path, driver: Any, trt: Any, memory: str) -> None:
    """Each by its own graph, and nothing is allocated after the first of each."""
    reference, backend = OnnxRuntimeBackend(planted, device="cpu"), TensorRtBackend(engine_from(planted, tmp_path))
    for number, image in enumerate(images(6)):
        if number == 2:
            alive, launches = driver.emulatedAlive(), driver.emulatedLaunches()
        expected = reference.run(whole(image))
        found = backend.run(whole(image))
        np.testing.assert_array_equal(found["scores"], expected["scores"])
        found["scores"][...] = 0
        backend.timed(True, True, False)
        np.testing.assert_array_equal(found["scores"], expected["scores"])
        backend.timed(False, False, True)
        backend.layer_times(1)
    assert driver.emulatedAlive() == alive
    assert driver.emulatedLaunches() - launches == 4 * 2
    assert backend.description.endswith(", CUDA graph")
    backend.close()


def test_what_the_host_holds_is_inferred(planted: Path, tmp_path: Path, driver: Any, trt: Any) -> None:
    """Without transfers too: the inference must not meet what happened to be in the memory."""
    path = engine_from(planted, tmp_path)
    engine, reference = TensorRtEngine(path, read_manifest(path)), OnnxRuntimeBackend(planted, device="cpu")
    first, second = (reference.run(whole(image))["scores"] for image in images(2))
    engine.inputs["content"][...] = (64, 96)
    engine.inputs["image"][...] = images(1)[0]
    engine.timed(True, True, True)
    np.testing.assert_array_equal(engine.outputs["scores"], first)
    engine.inputs["image"][...] = images(2)[1]
    engine.timed(False, True, True)
    np.testing.assert_array_equal(engine.outputs["scores"], first)  # what it found stays on the GPU
    engine._buffers["scores"].host[...] = 0
    with engine._current() as cuda:
        cuda.download(engine._buffers["scores"])
    np.testing.assert_array_equal(engine.outputs["scores"], second)
    engine.close()


def test_an_inference_that_cannot_be_captured_is_timed_without(
    planted: Path, tmp_path: Path, driver: Any, trt: Any
) -> None:
    backend = TensorRtBackend(engine_from(planted, tmp_path))
    driver.emulatedTakes(0.25, 0.125, 4, 0.5)
    trt.faults.add("capture")
    assert [backend.timed(True, True, True)["gpu"] for _ in range(2)] == [4, 4]
    assert "no CUDA graph (TensorRT 10.3.0 cannot start the inference: " in backend.description
    trt.faults.clear()
    run_thrice(backend)
    assert "no CUDA graph" in backend.description  # still so for the times
    backend.close()


PLANTED_LAYERS = [
    ("Reformatting CopyNode for Input Tensor 0", "", [0.5, 1.5, 1.0]),
    ("__myl_Conv_myl0_1", "[ONNX Layer: body.conv1/Conv]\x1e[ONNX Layer: body.relu/Relu]", [4.0, 2.0, 3.0]),
    ("copy", "", [1.0, 1.0, 4.0]),
    ("__myl_Resh_myl0_2", "[ONNX Layer: rpn.nms/Slice]", [8.0, 8.0, 8.0]),
    ("copy", "", [3.0, 3.0, 6.0]),
]


@pytest.mark.parametrize("shared", [0, 1], ids=["own memory", "shared memory"])
def test_layer_times_are_means_in_the_order_of_execution(
    planted: Path, tmp_path: Path, driver: Any, trt: Any, memory: str, shared: int
) -> None:
    driver.emulatedMachine(1, 87, shared)
    backend = TensorRtBackend(engine_from(planted, tmp_path))
    trt.planted_layers.extend(PLANTED_LAYERS)
    backend.run(whole(images(1)[0]))
    expected = [
        ("Reformatting CopyNode for Input Tensor 0", 1.0),
        ("__myl_Conv_myl0_1 body.conv1/Conv + body.relu/Relu", 3.0),
        ("copy", 2.0),
        ("__myl_Resh_myl0_2 rpn.nms/Slice", 8.0),
        ("copy", 4.0),
    ]
    assert backend.layer_times(3) == expected
    assert [ms for _, ms in backend.layer_times(2)] == [1, 3, 1, 8, 3]
    assert [stage_of(name) for name, _ in expected] == [None, "stem", None, "proposals", None]
    trt.planted_layers.clear()
    assert backend.layer_times(1) == []
    with pytest.raises(WnlbError, match="in 0 runs; expected 1 or more"):
        backend.layer_times(0)
    backend.close()


def test_a_profiler_is_left_in_no_context_that_runs(planted: Path, tmp_path: Path, driver: Any, trt: Any) -> None:
    """Not after a failure either: a context with a profiler cannot be captured."""
    backend = TensorRtBackend(engine_from(planted, tmp_path))
    trt.planted_layers.append(("a", "", [1.0]))
    taken = backend.device_bytes
    backend.layer_times(1)
    trt.faults.add("context")
    with pytest.raises(WnlbError, match=r"cannot run engine .*: IExecutionContext cannot be made"):
        backend.layer_times(1)
    trt.faults.clear()
    trt.faults.add("enqueue")
    with pytest.raises(WnlbError, match="cannot start the inference"):
        backend.layer_times(1)
    trt.faults.clear()
    run_thrice(backend)
    assert backend.description.endswith(", CUDA graph")
    assert backend.device_bytes == taken
    backend.close()


def test_an_inspector_that_talks_rubbish_costs_no_layer_times(
    planted: Path, tmp_path: Path, driver: Any, trt: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = TensorRtBackend(engine_from(planted, tmp_path))
    trt.planted_layers.append(("a", "", [1.0]))

    def undecodable(self: Any, form: Any) -> str:
        return b"\xff".decode()

    monkeypatch.setattr(trt.EngineInspector, "get_engine_information", lambda self, form: "{broken")
    assert backend.layer_times(1) == [("a", 1.0)]
    monkeypatch.setattr(trt.EngineInspector, "get_engine_information", undecodable)
    assert backend.layer_times(1) == [("a", 1.0)]
    backend.close()


def test_nodes_of_layers() -> None:
    entries = [
        "named only",
        {"Name": "a", "Metadata": "[ONNX Layer: x/Conv]\x1e[ONNX Layer: y/Relu]"},
        {"Name": "b", "Metadata": "[ONNX Layer: x/Conv]\x1f[ONNX Layer: y/Relu]"},
        {"Name": "c", "Metadata": "[ONNX Layer: x/Conv][ONNX Layer: y/Relu]"},
        {"Name": "d", "Metadata": "another form: x/Conv"},
        {"Name": "e", "Metadata": ""},
        {"Name": "f"},
        {"Name": "g", "Metadata": None},
    ]
    both = "x/Conv + y/Relu"
    expected = {"a": both, "b": both, "c": both, "d": "another form: x/Conv"}
    text = json.dumps({"Layers": entries, "Bindings": []})
    assert onnx_names_of_inspector(text) == expected
    assert onnx_names_of_inspector(text.replace("\\u001e", "\x1e")) == expected  # not escaped
    for broken in (
        "",
        "{broken",
        "[]",
        "3",
        "{}",
        '{"Layers": 3}',
        '{"Layers": [3]}',
        '{"Layers": [{"Metadata": "a"}]}',
    ):
        assert onnx_names_of_inspector(broken) == {}


@pytest.mark.parametrize("shared", [0, 1], ids=["own memory", "shared memory"])
def test_the_memory_that_an_engine_takes(
    planted: Path, tmp_path: Path, driver: Any, trt: Any, memory: str, shared: int
) -> None:
    driver.emulatedMachine(1, 87, shared)
    path = engine_from(planted, tmp_path)
    cuda = open_cuda()
    cuda.activate()
    others = cuda.buffer((64 << 20,), np.uint8, False)
    backend = TensorRtBackend(path)
    buffers = sum(array.nbytes for array in (*backend._engine.inputs.values(), *backend._engine.outputs.values()))
    assert backend.device_bytes == buffers + trt.CONTEXT_BYTES
    take_all_times(backend)
    assert backend.device_bytes == buffers + trt.CONTEXT_BYTES
    others.free()
    assert backend.device_bytes == 0  # others gave more than it took
    cuda.deactivate()
    cuda.close()
    backend.close()
    with pytest.raises(WnlbError, match="closed"):
        _ = backend.device_bytes


def test_the_profile_of_an_engine(fused: Path, tmp_path: Path, driver: Any, trt: Any) -> None:
    """Whole frames, trtexec's parts beside them, stages, memory; and the machine's peaks through TensorRT."""
    runner = _opened(engine_from(fused, tmp_path), [np.zeros((48, 80, 3), np.uint8)], How(data_transfers=False))
    assert runner.contract["precision"] == "fp32"
    assert set(runner.run()) == {"prepare", "infer", "paste"}
    assert set(runner.timed()) == {"gpu", "latency", "enqueue"}
    assert runner.device_bytes > 0
    trt.planted_layers.extend(
        [*PLANTED_LAYERS, ("__myl_Conv_myl1_1", "[ONNX Layer: detect.mask.cells/Conv]", [5.0] * 3)]
    )
    stages = {"stem": 6.0, "proposals": 12.0, "mask head": 5.0}  # the copies count to what stands before them
    assert runner.stages(3) == stages
    runner._predictor.close()


def test_peaks_are_those_of_the_gpus_own_memory_and_of_numbers(
    tmp_path: Path, driver: Any, trt: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Jetson's GPU does not cache the memory that it shares, and zeros take less power."""
    opened: list[TensorRtEngine] = []

    class Kept(TensorRtEngine):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            opened.append(self)

    monkeypatch.setattr("wnlb.runtime.profile.floor.TensorRtEngine", Kept)
    driver.emulatedMachine(1, 87, 1)
    with run_in_tensorrt("tensorrt")(peak_model(tmp_path, "fp32", 8).path) as run:
        assert run() >= 0
        (engine,) = opened
        assert "shared memory" not in engine.description
        assert engine.inputs["x"].min() >= 0.5
        assert len(np.unique(engine.inputs["x"])) == 64
