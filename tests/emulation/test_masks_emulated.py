"""Engines in two parts on the emulated GPU: masks for as many rows as are found, equal to those of the whole."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from conftest import take_all_times
from model_inputs import whole
from onnx import TensorProto, helper, numpy_helper

from wnlb.runtime.contract import METADATA_KEY, Contract
from wnlb.runtime.engine.backend import TensorRtBackend
from wnlb.runtime.engine.build import BuildOptions, build_engine
from wnlb.runtime.engine.manifest import manifest_path, read_manifest
from wnlb.runtime.errors import ContractError, WnlbError
from wnlb.runtime.onnxruntime_backend import OnnxRuntimeBackend

DETECTIONS = 20
ROWS = [8, 16, 20]  # that masks are built for
COUNTS = (3, 0, 8, 9, 20, 16, 1, 3)


def model(folder: Path, number: int = 0) -> Path:
    """Finds as many boxes as the content is high; their masks depend on the picture, the box and its label."""
    counts = dict.fromkeys(("pre_nms_top_n", "post_nms_top_n", "candidates", "nms_rounds", "batch"), 1)
    thresholds = {"score_threshold": 0.0, "nms_threshold": 0.5, "rpn_nms_threshold": 0.7}
    contract = Contract(**counts, **thresholds, height=64, width=96, class_names=("a",), detections=DETECTIONS)
    corners = np.random.default_rng(number).random((1, DETECTIONS, 4)).astype(np.float32)
    values = {
        "corners": corners,
        "ranks": np.arange(DETECTIONS, dtype=np.int32).reshape(1, -1),
        "axes": np.array([1, 2, 3], np.int64),
        "first": np.array([0], np.int64),
        "behind": np.array([2], np.int64),
        "cells": np.array([1, -1, 1, 1], np.int64),
        "start": np.array([0, 0, 0, 0], np.int64),
        "end": np.array([1, 1, 28, 28], np.int64),
        "white": np.array(255, np.float32),
        "one": np.array([1], np.int64),
    }
    nodes = [
        helper.make_node("Cast", ["image"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["pixels", "white"], ["light"]),
        helper.make_node("Transpose", ["light"], ["maps"], perm=[0, 3, 1, 2]),
        helper.make_node("ReduceMean", ["maps", "axes"], ["mean"], keepdims=0),
        helper.make_node("Cast", ["content"], ["sizes"], to=TensorProto.INT32),
        helper.make_node("Gather", ["sizes", "first"], ["height"], axis=1),
        helper.make_node("Less", ["ranks", "height"], ["found"]),
        helper.make_node("Cast", ["found"], ["weights"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["weights", "behind"], ["box_weights"]),
        helper.make_node("Mul", ["corners", "box_weights"], ["boxes"]),
        helper.make_node("Mul", ["weights", "mean"], ["scores"]),
        helper.make_node("Cast", ["found"], ["labels"], to=TensorProto.INT32),
        helper.make_node("Cast", ["labels"], ["classes"], to=TensorProto.INT64),
        helper.make_node("ReduceSum", ["classes"], ["total"], keepdims=0),
        helper.make_node("Cast", ["total"], ["whole_total"], to=TensorProto.INT32),
        helper.make_node("Reshape", ["whole_total", "one"], ["count"]),
        # the masks
        helper.make_node("ReduceMean", ["boxes", "behind"], ["middles"], keepdims=0),
        helper.make_node("Cast", ["classes"], ["class_values"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["middles", "class_values"], ["own"]),
        helper.make_node("Reshape", ["own", "cells"], ["own_cells"], name="detect.mask/Reshape"),
        helper.make_node("Slice", ["maps", "start", "end"], ["corner"], name="detect.mask.pool/Slice"),
        helper.make_node("Mul", ["corner", "own_cells"], ["shades"], name="detect.mask/Mul"),
        helper.make_node("Reshape", ["weights", "cells"], ["cell_weights"]),
        helper.make_node("Mul", ["shades", "cell_weights"], ["masks"]),
    ]
    kinds = {name: helper.np_dtype_to_tensor_dtype(np.dtype(kind)) for name, kind in contract.types.items()}
    graph = helper.make_graph(
        nodes,
        "planted rows",
        [helper.make_tensor_value_info(n, kinds[n], s) for n, s in contract.input_shapes.items()],
        [helper.make_tensor_value_info(n, kinds[n], s) for n, s in contract.output_shapes.items()],
        [numpy_helper.from_array(value, name) for name, value in values.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    helper.set_model_props(made, {METADATA_KEY: contract.to_json()})
    path = folder / f"rows{number}.onnx"
    onnx.save(made, path)
    return path


def inputs(count: int, seed: int) -> dict[str, Any]:
    image = np.random.default_rng(seed).integers(0, 256, (1, 64, 96, 3), dtype=np.uint8)
    return {"image": image, "content": np.array([[count, 96]], np.int32)}


def built(source: Path, mask_rows: str = "auto") -> Path:
    engine = source.with_suffix(f".{mask_rows}.engine")
    build_engine(source, engine, BuildOptions(target="tensorrt", mask_rows=mask_rows))
    return engine


@pytest.mark.parametrize("shared", [0, 1], ids=["own memory", "shared memory"])
def test_any_count_gives_the_masks_of_the_whole(
    tmp_path: Path, driver: Any, trt: Any, memory: str, shared: int
) -> None:
    """One after the other: rows of an earlier frame do not stay."""
    driver.emulatedMachine(1, 87, shared)
    source = model(tmp_path)
    reference, backend = OnnxRuntimeBackend(source, device="cpu"), TensorRtBackend(built(source))
    for number, count in enumerate(COUNTS):
        found, expected = backend.run(inputs(count, number)), reference.run(inputs(count, number))
        assert list(found) == list(expected)
        assert found["count"].tolist() == [count]
        for name, value in expected.items():
            np.testing.assert_allclose(found[name], value, atol=1e-6, rtol=0, err_msg=f"{name} of {count}")
        assert found["masks"][0, :count].any() == (count > 0)
    assert backend.description.endswith(", CUDA graph")
    backend.close()


def test_only_rows_that_are_found_are_computed(tmp_path: Path, driver: Any, trt: Any) -> None:
    """Seen at the downloads: the next number of rows; none for an empty frame, which launches no graph of masks."""
    backend = TensorRtBackend(built(model(tmp_path)))
    part = backend._engine._masks
    for count, rows in ((5, 8), (8, 8), (9, 16), (17, 20), (20, 20)):
        for _ in range(3):
            launches = driver.emulatedLaunches()
            backend.run(inputs(count, 0))
        assert part.latest.buffers["masks"].host.shape == (1, rows, 28, 28)
        assert driver.emulatedLaunches() - launches == 2
    launches = driver.emulatedLaunches()
    assert not backend.run(inputs(0, 0))["masks"].any()
    assert part.latest is None
    assert driver.emulatedLaunches() - launches == 1
    backend.close()


@pytest.mark.parametrize(("which", "rows_of_masks"), [("fused", (8, 16, 32, 64, 100)), ("peer", (8, 12))])
def test_a_real_network_in_two_parts(
    which: str,
    rows_of_masks: tuple[int, ...],
    request: pytest.FixtureRequest,
    tmp_path: Path,
    driver: Any,
    trt: Any,
) -> None:
    """Every tensor that crosses is of a type that an engine takes; a plugin's body stays with the first part."""
    real: Path = request.getfixturevalue(which)
    trt.plugin_bodies.extend(onnx.load(real).functions)
    source = tmp_path / "real.onnx"
    source.write_bytes(real.read_bytes())
    backends = [TensorRtBackend(built(source, rows)) for rows in ("all", "auto")]
    assert read_manifest(tmp_path / "real.auto.engine").mask_rows == rows_of_masks
    assert read_manifest(tmp_path / "real.all.engine").mask_rows == ()
    image = np.random.default_rng(0).integers(0, 256, (1, 64, 96, 3), dtype=np.uint8)
    expected, found = [{name: a.copy() for name, a in b.run(whole(image)).items()} for b in backends]
    assert expected["count"][0] > 0
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, atol=1e-5, rtol=0)
    for backend in backends:
        backend.close()


def test_times_and_layers_are_of_both_parts(tmp_path: Path, driver: Any, trt: Any) -> None:
    backend = TensorRtBackend(built(model(tmp_path)))
    take_all_times(backend)  # before any run: of all rows
    trt.planted_layers.extend([("a", "", [1.0, 2.0]), ("b", "[ONNX Layer: detect.mask/Mul]", [3.0, 5.0])])
    for count, expected in ((4, [("a", 1.5), ("b detect.mask/Mul", 4.0)]), (0, [("a", 1.5)])):
        backend.run(inputs(count, 1))
        assert backend.layer_times(2) == expected
        driver.emulatedTakes(0, 0, 0, 0)
        assert set(backend.timed(True, True, False)) == {"h2d", "gpu", "d2h", "latency", "enqueue"}
    backend.close()


@pytest.mark.parametrize("fault", ["context", "enqueue", "shape"])
def test_every_fault_is_told_and_leaves_nothing(tmp_path: Path, driver: Any, trt: Any, fault: str) -> None:
    engine = built(model(tmp_path))
    backend = TensorRtBackend(engine)
    backend.run(inputs(3, 0))
    trt.faults.add(fault)
    with pytest.raises(WnlbError, match=r"TensorRT 10\.3\.0 (cannot|refuses)"):
        backend.run(inputs(12, 0))  # a number of rows that is met for the first time
    trt.faults.clear()
    assert backend.run(inputs(12, 0))["count"].tolist() == [12]
    backend.close()


def work_on(backend: TensorRtBackend) -> None:
    for count in (3, 3, 3, 0, 12, 12):
        backend.run(inputs(count, count))
    backend.timed(True, True, False)
    backend.layer_times(1)


def test_every_call_that_fails_is_told_and_leaves_nothing(tmp_path: Path, driver: Any, trt: Any, memory: str) -> None:
    """The first, the second, ... call of the driver fails; after it the masks are right again."""
    source = model(tmp_path)
    engine, expected = built(source), OnnxRuntimeBackend(source, device="cpu").run(inputs(5, 9))["masks"]
    alive, told = driver.emulatedAlive(), 0
    for call in range(1, 300):
        backend, failure = None, None
        driver.emulatedFailAt(call)
        try:
            backend = TensorRtBackend(engine)
            work_on(backend)
        except WnlbError as error:
            failure = error
            told += 1
        calls = driver.emulatedCalls()
        driver.emulatedFailAt(0)
        if backend:
            np.testing.assert_allclose(backend.run(inputs(5, 9))["masks"], expected, atol=1e-6, rtol=0)
            backend.close()
        assert driver.emulatedAlive() == alive, f"call {call} leaks"
        if calls < call:
            break
        assert failure or "no CUDA graph" in backend.description or memory == "PyCUDA", f"call {call} is not told"
    assert 40 < call < 299
    assert told > 30


def test_without_a_cuda_graph_it_goes_on(tmp_path: Path, driver: Any, trt: Any) -> None:
    source = model(tmp_path)
    reference, backend = OnnxRuntimeBackend(source, device="cpu"), TensorRtBackend(built(source))
    trt.faults.add("capture")
    for count in (3, 3, 12):
        expected = reference.run(inputs(count, count))
        np.testing.assert_allclose(backend.run(inputs(count, count))["masks"], expected["masks"], atol=1e-6, rtol=0)
    assert "no CUDA graph" in backend.description
    backend.close()


def test_the_manifest_tells_of_both_parts(tmp_path: Path, driver: Any, trt: Any) -> None:
    source = model(tmp_path)
    engine = built(source)
    manifest = read_manifest(engine)
    assert manifest.options["masks"]["rows"] == ROWS
    assert 0 < manifest.masks_at < manifest.engine_bytes == engine.stat().st_size
    assert {"detect.mask/Mul", "detect.mask.pool/Slice"} <= {layer["name"] for layer in manifest.layers}
    assert list(manifest.outputs) == ["boxes", "scores", "labels", "masks", "count"]
    values = json.loads(manifest_path(engine).read_text())
    for entry in ({"at": 5}, {"at": 0, "rows": [8]}, {"at": 5, "rows": []}, {"at": 5, "rows": [8, 8]}, [5]):
        changed = {**values, "options": {**values["options"], "masks": entry}}
        manifest_path(engine).write_text(json.dumps(changed))
        with pytest.raises(ContractError, match="masks is"):
            read_manifest(engine)


def test_parts_that_do_not_fit_are_refused(tmp_path: Path, driver: Any, trt: Any) -> None:
    source = model(tmp_path)
    engine, other = built(source), built(source, "all").read_bytes()
    manifest = read_manifest(engine)
    data = engine.read_bytes()[: manifest.masks_at] + other
    engine.write_bytes(data)
    changed = {"engine_sha256": hashlib.sha256(data).hexdigest(), "engine_bytes": len(data)}
    manifest_path(engine).write_text(dataclasses.replace(manifest, **changed).to_json())
    with pytest.raises(WnlbError, match="its two parts do not fit; build it again"):
        TensorRtBackend(engine)
