"""``wnlb build`` for the emulated TensorRT, through its versions' rules."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
from conftest import engine_from
from onnx import TensorProto, helper

from wnlb.runtime.cli import main
from wnlb.runtime.engine.build import BuildOptions, build_engine
from wnlb.runtime.engine.engine import TensorRtEngine
from wnlb.runtime.engine.manifest import read_manifest
from wnlb.runtime.errors import GraphError, MissingDependency, WnlbError
from wnlb.runtime.profile.worker import How, _opened

TENSORRT = BuildOptions(target="tensorrt")


def test_the_manifest_says_what_the_engine_is(planted: Path, tmp_path: Path, driver: Any, trt: Any) -> None:
    engine = tmp_path / "model.engine"
    manifest = build_engine(planted, engine, TENSORRT)
    assert manifest == read_manifest(engine)
    assert (manifest.library, manifest.version, manifest.compute_capability) == ("tensorrt", "10.3.0", "8.7")
    assert (manifest.gpu, manifest.cuda, manifest.attention) == ("Emulated GPU", "13.0", "standard")
    assert manifest.inputs == {"image": "uint8 [2, 64, 96, 3]", "content": "int32 [2, 2]"}
    assert manifest.outputs["masks"] == "float32 [2, 2, 28, 28]"
    assert manifest.layers_of == "engine"
    assert {layer["precision"] for layer in manifest.layers} == {"fp16"}
    assert manifest.read_contract().class_names == ("lamp", "dark cat")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "model.engine", "model.engine.json"]


@pytest.mark.parametrize("version", ["10.3.0", "10.6.1", "10.7.0", "10.14.1", "10.15.1", "11.4.0"])
def test_the_plugin_is_taken_in_every_version(
    fused: Path, tmp_path: Path, driver: Any, trt: Any, make_plugin: Any, version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    major = int(version.split(".")[0])
    monkeypatch.setenv("WNLB_PLUGIN_LIBRARY", str(make_plugin(major * 10000)))
    trt.emulate(version)
    trt.plugin_bodies.extend(onnx.load(fused).functions)
    manifest = build_engine(fused, tmp_path / "model.engine", BuildOptions(target="tensorrt", attention="plugin"))
    assert manifest.attention == "plugin"
    assert len(manifest.plugin_sha256) == 64


def test_a_parser_that_takes_the_function_is_noticed(
    fused: Path, tmp_path: Path, driver: Any, trt: Any, make_plugin: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The assertion behind the rules: were they wrong for a version, the engine would silently lack the plugin."""
    monkeypatch.setenv("WNLB_PLUGIN_LIBRARY", str(make_plugin()))
    monkeypatch.setattr(trt.OnnxParser, "_takes_plugin", lambda *_: False)
    with pytest.raises(GraphError, match=r"took the plugin for 0 of 4 attention nodes"):
        build_engine(fused, tmp_path / "model.engine", TENSORRT)
    assert not (tmp_path / "model.engine").exists()


def test_attention_auto_takes_what_is_there(
    fused: Path, tmp_path: Path, driver: Any, trt: Any, make_plugin: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = tmp_path / "model.engine"
    trt.plugin_bodies.extend(onnx.load(fused).functions)
    assert build_engine(fused, engine, TENSORRT).attention == "standard"  # no library
    with pytest.raises(MissingDependency, match="plugin library is missing"):
        build_engine(fused, engine, BuildOptions(target="tensorrt", attention="plugin"))
    monkeypatch.setenv("WNLB_PLUGIN_LIBRARY", str(make_plugin(arch=90)))
    assert build_engine(fused, engine, TENSORRT).attention == "standard"  # no kernels for this GPU
    with pytest.raises(MissingDependency, match=r"no kernels for Emulated GPU \(SM 8.7\).*plugins.build"):
        build_engine(fused, engine, BuildOptions(target="tensorrt", attention="plugin"))
    monkeypatch.setenv("WNLB_PLUGIN_LIBRARY", str(make_plugin()))
    assert build_engine(fused, engine, TENSORRT).attention == "plugin"
    assert build_engine(fused, engine, BuildOptions(target="tensorrt", attention="standard")).attention == "standard"
    monkeypatch.setattr("wnlb.plugins.library._registered", {})
    trt.faults.add("plugin")
    with pytest.raises(WnlbError, match="refuses the plugin library"):
        build_engine(fused, engine, TENSORRT)


def test_timings_are_kept_and_a_damaged_cache_is_none(planted: Path, tmp_path: Path, driver: Any, trt: Any) -> None:
    cache = tmp_path / "cache" / "wnlb" / "tensorrt-10.3.0-sm87.timing"
    build_engine(planted, tmp_path / "model.engine", TENSORRT)
    assert cache.read_bytes() == b"timings of 10.3.0"
    for content in (b"garbage", b"timings of 9.9.9"):
        cache.write_bytes(content)
        build_engine(planted, tmp_path / "model.engine", TENSORRT)
        assert cache.read_bytes() == b"timings of 10.3.0"
    own = tmp_path / "own.timing"
    build_engine(planted, tmp_path / "model.engine", BuildOptions(target="tensorrt", timing_cache=own))
    assert own.exists()
    cache.unlink()
    cache.mkdir()  # the user's cache is only a help, a file that was named is more
    build_engine(planted, tmp_path / "model.engine", TENSORRT)
    with pytest.raises(WnlbError, match=r"timing cache .* cannot be read"):
        build_engine(planted, tmp_path / "model.engine", BuildOptions(target="tensorrt", timing_cache=cache))
    below = BuildOptions(target="tensorrt", timing_cache=own / "below" / "it")
    with pytest.raises(WnlbError, match="cannot be made"):
        build_engine(planted, tmp_path / "model.engine", below)


def test_an_inspector_that_talks_rubbish_costs_no_engine(
    planted: Path, tmp_path: Path, driver: Any, trt: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for text in ("{broken", "[]", '{"Layers": 3}', '{"Layers": [3]}', '{"Layers": [{"Outputs": {"a": 1}}]}'):
        monkeypatch.setattr(trt.EngineInspector, "get_engine_information", lambda self, form, text=text: text)
        assert build_engine(planted, tmp_path / "model.engine", TENSORRT).layers_of == "network"


def test_a_build_that_fails_leaves_the_old_engine(planted: Path, tmp_path: Path, driver: Any, trt: Any) -> None:
    engine = tmp_path / "model.engine"
    build_engine(planted, engine, TENSORRT)
    before = engine.read_bytes()
    trt.faults.add("build")
    with pytest.raises(WnlbError, match=r"cannot build it: .*OutOfMemory; free GPU memory, build with a smaller"):
        build_engine(planted, engine, TENSORRT)
    trt.faults.clear()
    with pytest.raises(WnlbError, match="was stopped"):
        build_engine(planted, engine, TENSORRT, lambda fraction, what: fraction < 0.5)
    with pytest.raises(ZeroDivisionError):  # what a callback raises comes out, and not through TensorRT
        build_engine(planted, engine, TENSORRT, lambda fraction, what: bool(1 / 0))
    assert engine.read_bytes() == before
    assert read_manifest(engine)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize(("severity", "reason"), [("ERROR", "out of memory"), ("WARNING", "failure with error: 35")])
def test_cuda_that_does_not_start_is_a_wnlb_error(
    planted: Path,
    tmp_path: Path,
    driver: Any,
    trt: Any,
    severity: str,
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """TensorRT's bindings raise a TypeError then, and its logger knows why."""

    def start(logger: Any) -> None:
        logger.log(getattr(trt.ILogger, severity), f"CUDA initialization {reason}")
        raise TypeError("pybind11::init(): factory function returned nullptr")

    engine = engine_from(planted, tmp_path)
    expected = rf"TensorRT 10.3.0 cannot start here: CUDA initialization {reason}; is"
    monkeypatch.setattr(trt, "Builder", start)
    monkeypatch.setattr(trt, "Runtime", start)
    with pytest.raises(WnlbError, match=expected):
        build_engine(planted, tmp_path / "other.engine", TENSORRT)
    with pytest.raises(WnlbError, match=expected):
        TensorRtEngine(engine, read_manifest(engine))


def test_progress_grows_to_the_end(planted: Path, tmp_path: Path, driver: Any, trt: Any) -> None:
    seen: list[float] = []
    build_engine(planted, tmp_path / "model.engine", TENSORRT, lambda fraction, what: seen.append(fraction) or True)
    assert seen == sorted(seen)
    assert seen[-1] == 1


def test_ctrl_c_ends_the_build(planted: Path, tmp_path: Path, driver: Any, trt: Any, capsys: Any) -> None:
    def progress(fraction: float, what: str) -> bool:
        if fraction >= 0.5:
            os.kill(os.getpid(), signal.SIGINT)
        return True

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        build_engine(planted, tmp_path / "model.engine", TENSORRT, progress)
    assert not (tmp_path / "model.engine").exists()
    assert signal.getsignal(signal.SIGINT) is before


def test_a_model_of_others_builds_and_is_refused_by_name(
    tmp_path: Path, driver: Any, trt: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    value = helper.make_tensor_value_info
    node = helper.make_node("Relu", ["x"], ["y"], name="relu")
    inputs = [value("x", TensorProto.FLOAT, [1, 3])]
    graph = helper.make_graph([node], "g", inputs, [value("y", TensorProto.FLOAT, [1, 3])])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), tmp_path / "x.onnx")
    engine = tmp_path / "x.engine"
    assert main(["build", str(tmp_path / "x.onnx"), "-o", str(engine), "--target", "tensorrt"]) == 0
    assert "not ours" in capsys.readouterr().out
    assert read_manifest(engine).contract == {}
    assert main(["inspect", str(engine)]) == 0
    assert "x.onnx" in capsys.readouterr().out
    runner = _opened(engine, [], How())
    assert (runner.run(), runner.contract) == ({}, None)
    assert runner.description.startswith("TensorRT 10.3.0")
    runner._engine.close()
    for command in ("predict", "run"):
        cv2.imwrite(str(tmp_path / "frame.png"), np.zeros((8, 8, 3), np.uint8))
        assert (
            main(
                [
                    command,
                    str(engine),
                    str(tmp_path / "frame.png"),
                    *(["-o", str(tmp_path / "o")] * (command == "predict")),
                ]
            )
            == 2
        )
        assert "x.onnx, which is not ours" in capsys.readouterr().err


def test_the_commands_on_an_engine(
    planted: Path, tmp_path: Path, driver: Any, trt: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = tmp_path / "model.engine"
    assert main(["build", str(planted), "-o", str(engine), "--target", "tensorrt", "--workspace", "64", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["options"]["workspace"] == 64
    cv2.imwrite(str(tmp_path / "frame.png"), np.zeros((8, 8, 3), np.uint8))
    words = [str(engine), str(tmp_path / "frame.png")]
    assert main(["predict", *words, "-o", str(tmp_path / "out")]) == 0
    assert "TensorRT 10.3.0, Emulated GPU" in capsys.readouterr().out
    assert main(["run", *words, "--jsonl", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["name"] == "frame.png"
    assert main(["predict", *words, "-o", str(tmp_path / "out"), "--device", "cpu"]) == 2
    assert "runs on a GPU only" in capsys.readouterr().err
    assert main(["inspect", str(engine), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["library"] == "tensorrt"
    assert main(["doctor", "--json"]) == 0
    found = {entry["what"]: entry for entry in json.loads(capsys.readouterr().out)}
    assert found["GPU"]["found"] == "Emulated GPU, SM 8.7, 8.0 GiB, driver for CUDA 13.0"
    assert found["TensorRT"]["found"] == "TensorRT 10.3.0"


def test_an_old_library_and_a_node_that_it_lacks(planted: Path, tmp_path: Path, driver: Any, trt: Any) -> None:
    model = onnx.load(planted)
    model.graph.node.append(helper.make_node("NonZero", ["image"], ["where"], name="head/NonZero"))
    onnx.save(model, tmp_path / "bad.onnx")
    with pytest.raises(GraphError, match=r"cannot take node head/NonZero \(NonZero\): UNSUPPORTED_NODE: not emulated$"):
        build_engine(tmp_path / "bad.onnx", tmp_path / "model.engine", TENSORRT)
    trt.emulate("10.2.0")
    with pytest.raises(WnlbError, match=r"10.2.0 is too old"):
        build_engine(planted, tmp_path / "model.engine", TENSORRT)


def test_options_for_the_other_library(planted: Path, tmp_path: Path, driver: Any, trt: Any) -> None:
    with pytest.raises(WnlbError, match="TensorRT-RTX only"):
        build_engine(planted, tmp_path / "m.engine", BuildOptions(target="tensorrt", compute_capabilities=("8.9",)))
    driver.emulatedMachine(0, 87, 0)
    with pytest.raises(MissingDependency, match=r"no CUDA-capable device.*--target tensorrt-rtx"):
        build_engine(planted, tmp_path / "m.engine", TENSORRT)


def test_one_profile_for_all_batches(batches: Path, planted: Path, tmp_path: Path, driver: Any, trt: Any) -> None:
    engine = tmp_path / "m.engine"
    manifest = build_engine(batches, engine, BuildOptions(target="tensorrt"))
    assert manifest.options["batches"] == [1, 5, 5]
    assert manifest.inputs == {"image": "uint8 [batch, 64, 96, 3]", "content": "int32 [batch, 2]"}
    options = BuildOptions(target="tensorrt", batch=2)
    assert build_engine(batches, engine, options).options["batches"] == [1, 2, 5]
    with pytest.raises(WnlbError, match="batch is 6; expected 1-5, the frames that"):
        build_engine(batches, engine, BuildOptions(target="tensorrt", batch=6))
    with pytest.raises(WnlbError, match="takes one number of frames; leave --batch out"):
        build_engine(planted, engine, options)
    trt.faults.add("profile")
    with pytest.raises(GraphError, match="no optimisation profile of 1 to 5 can be made"):
        build_engine(batches, engine, BuildOptions(target="tensorrt"))
    assert "batches" not in build_engine(planted, engine, BuildOptions(target="tensorrt")).options
