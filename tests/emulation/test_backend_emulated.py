"""The TensorRT backend on the emulated GPU: results, memory, graphs, and every call that can fail failing."""

from __future__ import annotations

import dataclasses
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from conftest import engine_from, images, of_batch, run_thrice, take_all_times
from model_inputs import whole

from wnlb.plugins import load
from wnlb.runtime.backend import open_backend
from wnlb.runtime.engine.backend import TensorRtBackend
from wnlb.runtime.engine.build import BuildOptions, build_engine
from wnlb.runtime.engine.cuda import open_cuda
from wnlb.runtime.engine.driver import find_gpu
from wnlb.runtime.engine.manifest import manifest_path, read_manifest
from wnlb.runtime.errors import ContractError, MissingDependency, WnlbError
from wnlb.runtime.onnxruntime_backend import OnnxRuntimeBackend
from wnlb.runtime.predictor import Predictor


@pytest.mark.parametrize("shared", [0, 1], ids=["own memory", "shared memory"])
def test_the_outputs_are_onnx_runtimes(
    planted: Path, tmp_path: Path, driver: Any, trt: Any, memory: str, shared: int
) -> None:
    driver.emulatedMachine(1, 87, shared)
    reference = OnnxRuntimeBackend(planted, device="cpu")
    backend = open_backend(engine_from(planted, tmp_path))
    assert (
        backend.description == f"TensorRT 10.3.0, Emulated GPU, {backend_memory(memory)}" + ", shared memory" * shared
    )
    launches = driver.emulatedLaunches()
    for number, image in enumerate(images(4)):
        inputs = {"image": image, "content": np.array([[64, 96 - 20 * number], [20 * number, 96]], np.int32)}
        found, expected = backend.run(inputs), reference.run(inputs)
        assert list(found) == list(expected)
        for name, value in expected.items():
            np.testing.assert_array_equal(found[name], value)
            assert found[name].dtype == value.dtype
        assert driver.emulatedLaunches() - launches == number  # by the graph from the second run on
    assert backend.description.endswith(", CUDA graph")
    backend.close()
    backend.close()
    with pytest.raises(WnlbError, match="closed"):
        backend.run(whole(images(1)[0]))


def test_an_engine_of_format_1_takes_its_image_alone(tmp_path: Path, driver: Any, trt: Any) -> None:
    planted = Path(os.environ["EMULATED_MODEL_OF_FORMAT_1"])
    reference, backend = OnnxRuntimeBackend(planted, device="cpu"), TensorRtBackend(engine_from(planted, tmp_path))
    assert backend.contract.input_shapes == {"image": (2, 64, 96, 3)}
    for image in images(3):
        found, expected = backend.run({"image": image}), reference.run({"image": image})
        for name, value in expected.items():
            np.testing.assert_array_equal(found[name], value)
    backend.close()


def test_an_input_that_is_absent_is_named(planted: Path, tmp_path: Path, driver: Any, trt: Any) -> None:
    backend = TensorRtBackend(engine_from(planted, tmp_path))
    with pytest.raises(WnlbError, match=r"input content is absent; expected int32 \[2, 2\]"):
        backend.run({"image": images(1)[0]})
    backend.close()


def backend_memory(name: str) -> str:
    if name == "PyCUDA":
        import pycuda

        return f"PyCUDA {pycuda.VERSION_TEXT}"
    import cuda.bindings

    return f"cuda-python {cuda.bindings.__version__}"


@pytest.mark.parametrize("shared", [0, 1], ids=["own memory", "shared memory"])
def test_of_masks_of_the_frame_only_the_rows_that_count_leave_the_gpu(
    tmp_path: Path, driver: Any, trt: Any, memory: str, shared: int
) -> None:
    """Another number of rows of each frame and run; the others keep what was copied before."""
    driver.emulatedMachine(1, 87, shared)
    planted = Path(os.environ["EMULATED_MODEL_OF_FRAME_MASKS"])
    reference, backend = OnnxRuntimeBackend(planted, device="cpu"), TensorRtBackend(engine_from(planted, tmp_path))
    kept = np.zeros((2, 2, 16, 24), np.float16)
    for bright in ([0, 0], [100, 0], [0, 200], [100, 200], [0, 0], [200, 200]):
        image = np.broadcast_to(np.array(bright, np.uint8).reshape(2, 1, 1, 1), (2, 64, 96, 3)).copy()
        expected, found = reference.run(whole(image)), backend.run(whole(image))
        counts = [int(value > 255 / 4) + int(value > 255 / 2) for value in bright]
        assert found["count"].tolist() == expected["count"].tolist() == counts
        for frame, count in enumerate(counts):
            kept[frame, : 2 if shared else count] = expected["masks"][frame, : 2 if shared else count]
        np.testing.assert_array_equal(found["masks"], kept)
    assert backend.timed(True, True, False)["d2h"] >= 0
    backend.close()


class OnDevice:
    """An input in "GPU" memory."""

    def __init__(self, address: int, shape: tuple[int, ...], kind: str = "|u1", strides: Any = None) -> None:
        self.__cuda_array_interface__ = {"shape": shape, "typestr": kind, "data": (address, False), "strides": strides}


@pytest.mark.parametrize("shared", [0, 1], ids=["own memory", "shared memory"])
def test_an_input_on_the_gpu_stays_there(
    planted: Path, tmp_path: Path, driver: Any, trt: Any, memory: str, shared: int
) -> None:
    """Copied on the GPU, inferred by a graph of its own, in turns with inputs of the host."""
    driver.emulatedMachine(1, 87, shared)
    reference, backend = OnnxRuntimeBackend(planted, device="cpu"), TensorRtBackend(engine_from(planted, tmp_path))
    cuda = open_cuda()
    cuda.activate()
    buffer = cuda.buffer((2, 64, 96, 3), np.uint8, False)
    launches = driver.emulatedLaunches()
    for number, image in enumerate(images(6)):
        expected = reference.run(whole(image))["scores"]
        if number % 2:
            buffer.host[:] = image
            cuda.upload(buffer)
            given: Any = OnDevice(buffer.address, image.shape)
        else:
            given = image
        np.testing.assert_array_equal(backend.run({**whole(images(1)[0]), "image": given})["scores"], expected)
    assert driver.emulatedLaunches() - launches == 4  # all but the first of each
    for odd in (
        OnDevice(buffer.address, (1, 64, 96, 3)),
        OnDevice(buffer.address, (2, 64, 96, 3), "<f4"),
        OnDevice(buffer.address, (2, 64, 96, 3), strides=(1, 1, 1, 1)),
    ):
        with pytest.raises(WnlbError, match=r"expected uint8 \[2, 64, 96, 3\], contiguous"):
            backend.run({**whole(images(1)[0]), "image": odd})
    buffer.free()
    cuda.deactivate()
    cuda.close()
    backend.close()


def test_no_memory_is_allocated_after_the_first_frames(
    planted: Path, tmp_path: Path, driver: Any, trt: Any, memory: str
) -> None:
    backend = TensorRtBackend(engine_from(planted, tmp_path))
    for image in images(2):
        backend.run(whole(image))
    alive = driver.emulatedAlive()
    driver.emulatedFailAt(0)  # counts from here
    outputs = [backend.run(whole(image)) for image in images(5)]
    assert driver.emulatedAlive() == alive
    assert driver.emulatedCalls() == 5 * 2  # one launch, one wait
    assert outputs[0]["boxes"] is outputs[4]["boxes"]  # the pinned buffer itself
    backend.close()


@pytest.mark.parametrize("shared", [0, 1], ids=["own memory", "shared memory"])
@pytest.mark.parametrize("work", [run_thrice, take_all_times])
def test_every_call_that_fails_is_told_and_leaves_nothing(
    planted: Path,
    tmp_path: Path,
    driver: Any,
    trt: Any,
    memory: str,
    work: Callable[[TensorRtBackend], None],
    shared: int,
) -> None:
    """The first, the second, ... call of the driver fails; the fixture sees that nothing is left."""
    driver.emulatedMachine(1, 87, shared)
    engine = engine_from(planted, tmp_path)
    expected = OnnxRuntimeBackend(planted, device="cpu").run(whole(images(2)[1]))["scores"]
    alive, told, without_graph = driver.emulatedAlive(), 0, 0
    for call in range(1, 200):
        backend, failure = None, None
        driver.emulatedFailAt(call)
        try:
            backend = TensorRtBackend(engine)
            work(backend)
            without_graph += "no CUDA graph" in backend.description
        except WnlbError as error:
            failure = error  # kept, with its traceback, until after the end
            told += str(error).startswith(("CUDA: ", "TensorRT 10.3.0 cannot"))
        calls = driver.emulatedCalls()
        driver.emulatedFailAt(0)
        if backend:
            np.testing.assert_array_equal(backend.run(whole(images(2)[1]))["scores"], expected)
            backend.close()
        assert driver.emulatedAlive() == alive, f"call {call} leaks"
        if calls < call:
            break
        # PyCUDA allocates once more when memory was short.
        assert failure or "no CUDA graph" in backend.description or memory == "PyCUDA", f"call {call} is not told"
    assert call < 199
    assert told >= 12
    assert without_graph >= 3  # begin, end, instantiate, and what is put into the graph


BATCHES = (1, 3, 5, 3, 1, 1, 5, 3)


@pytest.mark.parametrize("shared", [0, 1], ids=["own memory", "shared memory"])
def test_each_batch_has_a_graph_of_its_own(
    batches: Path, tmp_path: Path, driver: Any, trt: Any, memory: str, shared: int
) -> None:
    """From its second run on; the scratch memory is one for all, and only what was run is copied."""
    driver.emulatedMachine(1, 87, shared)
    reference, backend = OnnxRuntimeBackend(batches, device="cpu"), TensorRtBackend(engine_from(batches, tmp_path))
    launches, seen = driver.emulatedLaunches(), set()
    graphs = 0
    for number, count in enumerate(BATCHES):
        inputs = of_batch(count, number)
        found, expected = backend.run(inputs), reference.run(inputs)
        for name, value in expected.items():
            np.testing.assert_array_equal(found[name], value)
            assert found[name].shape[0] == count
        graphs += count in seen
        seen.add(count)
        assert driver.emulatedLaunches() - launches == graphs
    alive = driver.emulatedAlive()
    for number, count in enumerate(BATCHES):
        backend.run(of_batch(count, number))
    assert driver.emulatedAlive() == alive
    assert backend.description.endswith(", CUDA graph")
    backend.close()


def run_all_batches(backend: TensorRtBackend) -> None:
    for count in (1, 3, 1, 3):
        backend.run(of_batch(count))
    backend.timed(True, True, False)
    backend.layer_times(1)


def test_every_call_that_fails_with_several_batches_is_told_and_leaves_nothing(
    batches: Path, tmp_path: Path, driver: Any, trt: Any, memory: str
) -> None:
    engine, told = engine_from(batches, tmp_path), 0
    alive = driver.emulatedAlive()
    for call in range(1, 300):
        backend, failure = None, None
        driver.emulatedFailAt(call)
        try:
            backend = TensorRtBackend(engine)
            run_all_batches(backend)
        except WnlbError as error:
            failure = error  # kept, with its traceback, until after the end
            told += 1
        calls = driver.emulatedCalls()
        driver.emulatedFailAt(0)
        if backend:
            backend.close()
        assert driver.emulatedAlive() == alive, f"call {call} leaks"
        if calls < call:
            break
        assert failure or "no CUDA graph" in backend.description or memory == "PyCUDA", f"call {call} is not told"
    assert call < 299
    assert told >= 12


def test_a_batch_that_the_engine_was_not_built_for(batches: Path, tmp_path: Path, driver: Any, trt: Any) -> None:
    backend = TensorRtBackend(engine_from(batches, tmp_path))
    for inputs, said in (
        (of_batch(6), "input image has 6 rows; expected 1 to 5"),
        ({}, "input image has none; expected 1 to 5"),
        ({**of_batch(3), "content": of_batch(2)["content"]}, r"input content is <i4 \[2, 2\]; expected int32 \[3, 2\]"),
    ):
        with pytest.raises(WnlbError, match=said):
            backend.run(inputs)
    np.testing.assert_array_equal(backend.run(of_batch(2))["count"], [2, 2])
    trt.faults.add("shape")
    with pytest.raises(WnlbError, match=r"TensorRT 10.3.0 refuses image of \[4, 64, 96, 3\]"):
        backend.run(of_batch(4))
    trt.faults.clear()
    backend.run(of_batch(4))
    backend.close()


def test_a_predictor_pays_for_the_frames_that_come(batches: Path, tmp_path: Path, driver: Any, trt: Any) -> None:
    frames = [np.full((64, 96, 3), 40 * (i + 1), np.uint8) for i in range(5)]
    with Predictor(engine_from(batches, tmp_path)) as predictor:
        alone = [predictor(frame).scores for frame in frames]
        for count in (5, 2):
            together = predictor.predict_batch(frames[:count])
            np.testing.assert_array_equal([found.scores for found in together], alone[:count])
        with pytest.raises(WnlbError, match="6 frames; expected 1 to 5"):
            predictor.predict_batch([*frames, frames[0]])


def test_an_engine_of_other_batches_is_refused(
    batches: Path, planted: Path, tmp_path: Path, driver: Any, trt: Any
) -> None:
    bare = tmp_path / "bare.engine"
    shutil.copy(engine_from(batches, tmp_path), bare)
    with pytest.raises(ContractError, match=r"takes 1-5 frames, unlike its contract: 2"):
        TensorRtBackend(bare, trust=planted)
    TensorRtBackend(bare, trust=batches).close()
    shutil.copy(engine_from(planted, tmp_path), bare)
    with pytest.raises(ContractError, match=r"takes one number of frames, unlike its contract: 1-5"):
        TensorRtBackend(bare, trust=batches)


def test_it_runs_in_another_thread_and_may_be_closed_there(
    planted: Path, tmp_path: Path, driver: Any, trt: Any, memory: str
) -> None:
    backend, found = TensorRtBackend(engine_from(planted, tmp_path)), []

    def work() -> None:
        for image in images(2):
            found.append(backend.run(whole(image))["scores"].copy())
        backend.close()

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    expected = OnnxRuntimeBackend(planted, device="cpu")
    for scores, image in zip(found, images(2), strict=True):
        np.testing.assert_array_equal(scores, expected.run(whole(image))["scores"])


def test_detections_stay_when_the_next_frame_comes(planted: Path, tmp_path: Path, driver: Any, trt: Any) -> None:
    """The predictor's detections must not be views of buffers that are used again."""
    with Predictor(engine_from(planted, tmp_path)) as predictor:
        bright = predictor(np.full((64, 96, 3), 200, np.uint8))
        before = [bright.boxes.copy(), bright.scores.copy(), bright.labels.copy()]
        predictor(np.full((64, 96, 3), 10, np.uint8))
        for now, then in zip((bright.boxes, bright.scores, bright.labels), before, strict=True):
            np.testing.assert_array_equal(now, then)


def test_without_a_graph_it_goes_on(planted: Path, tmp_path: Path, driver: Any, trt: Any) -> None:
    trt.faults.add("capture")
    backend = TensorRtBackend(engine_from(planted, tmp_path))
    expected = OnnxRuntimeBackend(planted, device="cpu")
    for image in images(3):
        np.testing.assert_array_equal(backend.run(whole(image))["scores"], expected.run(whole(image))["scores"])
    assert "no CUDA graph (TensorRT 10.3.0 cannot start the inference: " in backend.description
    backend.close()


@pytest.mark.parametrize(("fault", "message"), [("context", "cannot run engine"), ("enqueue", "cannot start")])
def test_tensorrt_that_fails(
    planted: Path, tmp_path: Path, driver: Any, trt: Any, memory: str, fault: str, message: str
) -> None:
    engine = engine_from(planted, tmp_path)
    trt.faults.add(fault)
    with pytest.raises(WnlbError, match=message), Predictor(engine) as predictor:
        predictor(np.zeros((64, 96, 3), np.uint8))


def test_what_does_not_fit_is_refused_by_name(planted: Path, tmp_path: Path, driver: Any, trt: Any) -> None:
    engine = engine_from(planted, tmp_path)
    driver.emulatedMachine(1, 110, 1)
    with pytest.raises(WnlbError, match=r"for Emulated GPU \(SM 8.7\), this is .*SM 11.0.*wnlb build planted.onnx"):
        TensorRtBackend(engine)
    driver.emulatedMachine(1, 87, 0)
    trt.emulate("10.13.3")
    with pytest.raises(WnlbError, match=r"built with tensorrt 10.3.0, this is 10.13.3; build it again"):
        TensorRtBackend(engine)
    trt.emulate("10.3.0")
    driver.emulatedMachine(0, 87, 0)
    with pytest.raises(MissingDependency, match=r"no NVIDIA GPU can be used: .*no CUDA-capable device"):
        TensorRtBackend(engine)
    driver.emulatedMachine(1, 89, 0)
    chosen = dataclasses.replace(
        read_manifest(engine), compute_capability="", options={"compute_capabilities": ["12.0"]}
    )
    manifest_path(engine).write_text(chosen.to_json())
    with pytest.raises(WnlbError, match=r"built for SM 12.0, this is .*SM 8.9.*--compute-capability 8.9"):
        TensorRtBackend(engine)


def test_damaged_engines(planted: Path, tmp_path: Path, driver: Any, trt: Any) -> None:
    engine = engine_from(planted, tmp_path)
    data = engine.read_bytes()
    engine.write_bytes(data[:-100])
    with pytest.raises(ContractError, match="it is truncated"):
        TensorRtBackend(engine)
    engine.write_bytes(bytes([data[0] ^ 1]) + data[1:])
    with pytest.raises(ContractError, match="it is damaged, or the two do not belong"):
        TensorRtBackend(engine)
    engine.write_bytes(data)
    TensorRtBackend(engine).close()


def test_an_engine_of_trtexec_wants_trust(planted: Path, tmp_path: Path, driver: Any, trt: Any) -> None:
    engine = engine_from(planted, tmp_path)
    bare = tmp_path / "bare.engine"
    shutil.copy(engine, bare)
    with pytest.raises(WnlbError, match=r"no manifest bare.engine.json beside it.*--trust"):
        TensorRtBackend(bare)
    backend = open_backend(bare, trust=planted)
    assert backend.run(whole(images(1)[0]))["count"].tolist() == [2, 2]
    backend.close()
    bare.write_bytes(b"not an engine at all")
    with pytest.raises(WnlbError, match=r"cannot open engine .*magicTag"):
        TensorRtBackend(bare, trust=planted)


def test_an_engine_unlike_its_contract(planted: Path, fused: Path, tmp_path: Path, driver: Any, trt: Any) -> None:
    engine = engine_from(planted, tmp_path)
    with pytest.raises(ContractError, match="unlike its contract"):
        TensorRtBackend(engine, trust=fused)


def test_the_plugin_of_the_build_is_asked_for(
    fused: Path, tmp_path: Path, driver: Any, trt: Any, make_plugin: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WNLB_PLUGIN_LIBRARY", str(make_plugin()))
    trt.plugin_bodies.extend(onnx.load(fused).functions)
    engine = engine_from(fused, tmp_path)
    assert trt.IPluginRegistry.libraries == [str(make_plugin())]
    for _ in range(2):  # registered once, by the build
        TensorRtBackend(engine).close()
    bare = tmp_path / "bare.engine"
    build_engine(fused, bare, BuildOptions(target="tensorrt", mask_rows="all"))  # as trtexec would
    TensorRtBackend(bare, trust=fused).close()
    monkeypatch.setenv("WNLB_PLUGIN_LIBRARY", str(make_plugin(100301)))
    with pytest.raises(WnlbError, match="the engine was built with"):
        TensorRtBackend(engine)
    monkeypatch.delenv("WNLB_PLUGIN_LIBRARY")
    with pytest.raises(MissingDependency, match="plugin library is missing"):
        TensorRtBackend(engine)


def test_one_plugin_library_fits_in_a_process(
    planted: Path, driver: Any, trt: Any, make_plugin: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    load(make_plugin(), tensorrt=trt)
    load(make_plugin(), tensorrt=trt)
    with pytest.raises(WnlbError, match=r"is loaded, .*100301.* is another"):
        load(make_plugin(100301), tensorrt=trt)


def test_the_gpu_is_described(driver: Any) -> None:
    driver.emulatedMachine(1, 121, 1)
    gpu = find_gpu()
    assert (gpu.name, gpu.compute_capability, gpu.arch, gpu.cuda) == ("Emulated GPU", "12.1", 121, "13.0")
    assert (gpu.integrated, gpu.memory) == (True, 8 << 30)
    with pytest.raises(MissingDependency, match="sees 1 GPUs; GPU 3"):
        find_gpu(3)
