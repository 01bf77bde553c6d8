"""Real builds, by TensorRT-RTX without a GPU."""

from __future__ import annotations

import importlib.util
import json
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from wnlb.export.onnx_file.fuse import fuse_attention
from wnlb.runtime.engine.build import BuildOptions, build_engine
from wnlb.runtime.engine.layers import layers_of_inspector
from wnlb.runtime.engine.manifest import read_manifest
from wnlb.runtime.errors import GraphError, MissingDependency, WnlbError

TENSORRT = importlib.util.find_spec("tensorrt") is not None
pytest.importorskip(
    "tensorrt_rtx_libs", reason="TensorRT-RTX is not installed: pip install 'wnlb-deploy[tensorrt-rtx]'"
)
RTX = BuildOptions(target="tensorrt-rtx")


@pytest.fixture(autouse=True)
def _no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine without one, also on one that has it."""

    def find_gpu() -> Any:
        raise MissingDependency("no GPU")

    monkeypatch.setattr("wnlb.runtime.engine.build.find_gpu", find_gpu)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


def test_an_exported_file_builds(brief_model_path: Path, tmp_path: Path) -> None:
    engine, seen = tmp_path / "model.engine", []
    manifest = build_engine(brief_model_path, engine, RTX, lambda fraction, what: seen.append((fraction, what)) or True)
    assert read_manifest(engine) == manifest
    assert engine.stat().st_size > 1e5
    assert (manifest.library, manifest.gpu, manifest.compute_capability) == ("tensorrt-rtx", "", "")
    assert manifest.layers_of == "network"
    kinds = {layer["name"]: (layer["type"], layer["precision"]) for layer in manifest.layers}
    assert kinds["body.conv1/Conv"] == ("CONVOLUTION", "fp32")
    fractions = [fraction for fraction, _ in seen]
    assert fractions == sorted(fractions)
    assert fractions[-1] > 0.8
    assert any("graph" in what for _, what in seen)


def test_several_batches_build_by_one_profile(planted_batches_path: Path, tmp_path: Path) -> None:
    engine = tmp_path / "model.engine"
    assert build_engine(planted_batches_path, engine, RTX).options["batches"] == [1, 5, 5]
    options = BuildOptions(target="tensorrt-rtx", batch=3)
    manifest = build_engine(planted_batches_path, engine, options)
    assert manifest.options["batches"] == [1, 3, 5]
    assert manifest.inputs["image"] == "uint8 [batch, 64, 96, 3]"
    assert read_manifest(engine) == manifest
    for batch in (6, -1):
        with pytest.raises(WnlbError, match=rf"batch is {batch}; expected"):
            build_engine(planted_batches_path, engine, BuildOptions(target="tensorrt-rtx", batch=batch))


@pytest.mark.slow  # 7 s of both cores
def test_an_exported_file_of_several_batches_builds(batches_model_path: Path, tmp_path: Path) -> None:
    engine = tmp_path / "model.engine"
    manifest = build_engine(batches_model_path, engine, RTX)
    assert manifest.options["batches"] == [1, 5, 5]
    assert engine.stat().st_size > 1e5
    model = onnx.load(batches_model_path)
    assert fuse_attention(model)
    onnx.save(model, tmp_path / "fused.onnx")
    assert build_engine(tmp_path / "fused.onnx", engine, RTX).attention == "standard"


def test_files_for_a_cpu_are_refused(small_cpu_model_path: Path, tmp_path: Path) -> None:
    """Before anything is loaded: no engine allows sizes that depend on data."""
    with pytest.raises(GraphError, match=r"exported with --target cpu, .* export it with --target gpu"):
        build_engine(small_cpu_model_path, tmp_path / "model.engine", RTX)
    assert list(tmp_path.iterdir()) == []


def test_plugin_nodes_build_through_their_bodies(brief_model_path: Path, tmp_path: Path) -> None:
    model = onnx.load(brief_model_path)
    assert fuse_attention(model)
    onnx.save(model, tmp_path / "fused.onnx")
    manifest = build_engine(tmp_path / "fused.onnx", tmp_path / "model.engine", RTX)
    assert manifest.attention == "standard"
    options = BuildOptions(target="tensorrt-rtx", attention="plugin")
    with pytest.raises(WnlbError, match="takes no plugins"):
        build_engine(tmp_path / "fused.onnx", tmp_path / "model.engine", options)


def test_compute_capabilities(planted_model_path: Path, tmp_path: Path) -> None:
    options = BuildOptions(target="tensorrt-rtx", compute_capabilities=("8.9", "12.0"))
    manifest = build_engine(planted_model_path, tmp_path / "model.engine", options)
    assert manifest.options["compute_capabilities"] == ["8.9", "12.0"]
    options = BuildOptions(target="tensorrt-rtx", compute_capabilities=("8.7",))
    with pytest.raises(WnlbError, match=r"builds for .*8\.9.*, not for 8\.7"):
        build_engine(planted_model_path, tmp_path / "m.engine", options)


def test_a_node_that_it_cannot_take(tmp_path: Path) -> None:
    value = helper.make_tensor_value_info
    node = helper.make_node("NonZero", ["x"], ["y"], name="head/NonZero")
    graph = helper.make_graph(
        [node], "g", [value("x", TensorProto.FLOAT, [2, 3])], [value("y", TensorProto.INT64, None)]
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), tmp_path / "x.onnx")
    with pytest.raises(
        GraphError, match=r"TensorRT-RTX 1\.\S+ cannot take node head/NonZero \(NonZero\): \S+"
    ) as raised:
        build_engine(tmp_path / "x.onnx", tmp_path / "x.engine", RTX)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "x.engine").exists()


def test_refusals(
    wnlb_here: Callable[..., Any], brief_model_path: Path, planted_model_path: Path, tmp_path: Path
) -> None:
    engine = tmp_path / "m.engine"
    value = helper.make_tensor_value_info
    inputs = [value("x", TensorProto.FLOAT, ["batch", 3])]
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])], "g", inputs, [value("y", TensorProto.FLOAT, None)]
    )
    onnx.save(helper.make_model(graph), tmp_path / "dynamic.onnx")
    graph.input[0].type.tensor_type.ClearField("shape")
    onnx.save(helper.make_model(graph), tmp_path / "shapeless.onnx")
    for words, message in (
        ([tmp_path / "no.onnx", "-o", engine], "does not exist"),
        ([__file__, "-o", engine], "not a readable ONNX file"),
        ([tmp_path / "dynamic.onnx", "-o", engine], "input x is float32 [batch, 3]; expected a static shape"),
        ([brief_model_path, "-o", tmp_path / "m.onnx"], "expected .engine"),
        (
            [brief_model_path, "-o", tmp_path / "no" / "m.engine", "--target", "tensorrt-rtx"],
            "does not exist; create it",
        ),
        ([brief_model_path, "-o", engine, "--workspace", "-1"], "workspace is -1 MiB"),
        ([brief_model_path, "-o", engine, "--optimization-level", "6"], "expected 0 to 5"),
        ([brief_model_path, "-o", engine, "--batch", "2"], "takes one number of frames; leave --batch out"),
        ([brief_model_path, "-o", engine, "--compute-capability", "89"], "expected one like 8.9"),
        ([brief_model_path, "-o", engine, "--workspace", "9" * 17], "less than 16 TiB"),
        ([tmp_path / "shapeless.onnx", "-o", engine], "input x is float32 []; expected a static shape"),
        ([brief_model_path, "-o", engine, "--target", "tensorrt-rtx", "--timing-cache", "t"], "keeps no timings"),
        *([] if TENSORRT else [([brief_model_path, "-o", engine, "--target", "tensorrt"], "JetPack brings it")]),
    ):
        assert message in wnlb_here("build", *words).refused()
    assert {path.suffix for path in tmp_path.iterdir()} == {".onnx"}


def test_the_command_and_what_others_say_of_its_engine(
    wnlb: Callable[..., Any], planted_model_path: Path, tmp_path: Path
) -> None:
    engine = tmp_path / "model.engine"
    ran = wnlb("build", planted_model_path, "-o", engine, "--target", "tensorrt-rtx")
    assert ran.code == 0
    assert "TensorRT-RTX 1." in ran.out
    assert "default GPUs, SM 8.0 and later" in ran.out
    assert "image" in wnlb("inspect", engine).out
    (tmp_path / "frame.png").write_bytes(b"")
    assert "NVIDIA" in wnlb("run", engine, tmp_path / "frame.png", "--jsonl", "-").refused()


def test_a_full_disk_leaves_nothing(brief_model_path: Path, tmp_path: Path) -> None:
    """A limit on the size of files stands for the disk."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))

    words = ["build", brief_model_path, "-o", tmp_path / "m.engine", "--target", "tensorrt-rtx"]
    command = [sys.executable, "-m", "wnlb.runtime.cli", *map(str, words)]
    ran = subprocess.run(command, preexec_fn=limit, capture_output=True, text=True, timeout=600)
    assert ran.returncode == 2
    assert "m.engine cannot be written: File too large" in ran.stderr
    assert ran.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_killed_at_any_moment_no_broken_engine_appears(brief_model_path: Path, tmp_path: Path) -> None:
    """Killed from the first written byte on; whatever bears the engine's name is whole."""
    engine = tmp_path / "m.engine"
    words = ["build", brief_model_path, "-o", engine, "--target", "tensorrt-rtx", "--quiet"]
    command = [sys.executable, "-m", "wnlb.runtime.cli", *map(str, words)]
    for grown in (0, 1, 1 << 20):
        process = subprocess.Popen(command)
        while process.poll() is None:
            written = [path.stat().st_size for path in tmp_path.glob(".m*.engine") if path.exists()]
            if written and max(written) >= grown:
                break
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        process.wait()
        if engine.exists():
            assert read_manifest(engine)
        for path in tmp_path.iterdir():
            path.unlink()


def test_ctrl_c_in_the_middle_is_one_line(tmp_path: Path) -> None:
    """A network that takes some seconds to build, interrupted while TensorRT works and calls back."""
    nodes, rng = [], np.random.default_rng(0)
    weights = [numpy_helper.from_array(rng.normal(size=(32, 32, 3, 3)).astype(np.float32), f"w{i}") for i in range(200)]
    for i in range(200):
        nodes.append(helper.make_node("Conv", [f"x{i}", f"w{i}"], [f"c{i}"], name=f"conv{i}", pads=[1] * 4))
        nodes.append(helper.make_node("Sin", [f"c{i}"], [f"x{i + 1}"], name=f"sin{i}"))
    value = helper.make_tensor_value_info
    shape = [1, 32, 64, 64]
    inputs, outputs = [value("x0", TensorProto.FLOAT, shape)], [value("x200", TensorProto.FLOAT, shape)]
    graph = helper.make_graph(nodes, "g", inputs, outputs, weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), tmp_path / "x.onnx")
    for delay in (0.0, 0.05, 0.2):
        words = ["build", tmp_path / "x.onnx", "-o", tmp_path / "m.engine", "--target", "tensorrt-rtx"]
        command = [sys.executable, "-m", "wnlb.runtime.cli", *map(str, words)]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        while process.poll() is None and not list(tmp_path.glob(".m*")):
            time.sleep(0.001)
        time.sleep(delay)
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=300)
        assert (process.returncode, error) == (130, "wnlb build: interrupted\n")
        assert [path.name for path in tmp_path.iterdir()] == ["x.onnx"]


def test_layers_of_the_inspector_of_several_versions() -> None:
    cask = {"Name": "a", "LayerType": "CaskConvolution"}
    first = {**cask, "Outputs": [{"Format/Datatype": "Row major linear FP16 format"}]}
    second = {"Name": "b", "Outputs": [{"Format/Datatype": "Int8 NC/32HW32"}]}
    old = json.dumps({"Layers": [first, second], "Bindings": []})
    first = {**cask, "Outputs": [{"Format": "Linear", "Datatype": "BFloat16"}]}
    new = json.dumps({"Layers": [first, {"Name": "c"}], "I/O Tensors": []})
    assert [layer["precision"] for layer in layers_of_inspector(old)] == ["fp16", "int8"]
    assert [layer["precision"] for layer in layers_of_inspector(new)] == ["bf16", ""]
    assert layers_of_inspector('{"Layers": ["a\x1eb"]}')[0]["name"] == "a\x1eb"  # what TensorRT puts between names
    assert layers_of_inspector('{"Layers": ["conv1"]}') == [{"name": "conv1", "type": "", "precision": ""}]
