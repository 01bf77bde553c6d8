"""``wnlb profile`` on planted models."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from wnlb.runtime.errors import WnlbError
from wnlb.runtime.profile.worker import Worker

QUICK = ("--duration", "0.2", "--warm-up", "10", "--iterations", "5")


def test_two_models_and_one_that_is_none(
    wnlb: Callable[..., Any], planted_model_path: Path, small_model_path: Path, tmp_path: Path
) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"bad")
    for number in range(3):
        cv2.imwrite(str(tmp_path / f"{number}.png"), np.full((64, 96, 3), 40 * number, np.uint8))
    words = [planted_model_path, small_model_path, tmp_path / "bad.onnx", "--images", tmp_path, *QUICK]
    ran = wnlb("profile", *words, "-o", tmp_path / "report")
    assert (ran.code, ran.err) == (0, "")
    assert "planted.onnx" in ran.out
    assert "bad.onnx: not measured: model " in ran.out
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert report["format"] == 1
    assert report["frames"] == {"source": str(tmp_path), "count": 3}
    planted, small, bad = report["rows"]
    assert (planted["batch"], small["batch"], planted["precision"]) == (2, 1, "fp32")
    for row in (planted, small):
        parts = row["parts"]
        assert parts["total"]["count"] == len(row["samples_ms"]) >= 5
        assert parts["total"]["min"] <= parts["total"]["p50"] <= parts["total"]["p99"] <= parts["total"]["max"]
        assert parts["infer"]["p50"] <= parts["total"]["p50"] * 1.001
        assert row["frames_per_second"] == pytest.approx(1e3 * row["batch"] / parts["total"]["mean"])
        assert row["start_up_ms"] > 0
        assert row["first_ms"] > 0
        assert row["peak_bytes"] > 20 << 20
        assert row["backend"].startswith("ONNX Runtime")
    assert {"c2 block", "mask head"} <= set(small["stages"])
    assert bad["failure"]
    assert bad["parts"] == {}
    text = (tmp_path / "report" / "report.md").read_text()
    assert "| planted.onnx" in text
    assert "c2 block" in text
    assert f"wnlb profile {planted_model_path}" in text


def test_a_model_that_is_not_ours(wnlb: Callable[..., Any], tmp_path: Path) -> None:
    value = helper.make_tensor_value_info
    for name, dims in (("static", [1, 3]), ("dynamic", ["n", 3])):
        inputs, outputs = [value("x", TensorProto.FLOAT, dims)], [value("y", TensorProto.FLOAT, dims)]
        graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", inputs, outputs)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
        onnx.save(model, tmp_path / f"{name}.onnx")
    ran = wnlb("profile", tmp_path / "static.onnx", tmp_path / "dynamic.onnx", *QUICK, "--json")
    static, dynamic = json.loads(ran.out)["rows"]
    assert list(static["parts"]) == ["total"]
    assert static["warnings"][0] == "not ours: bare inference on zeros, without preparation and masks"
    assert dynamic["failure"].endswith("input x is float ['n', 3]; expected a static shape")


def test_as_json(wnlb: Callable[..., Any], planted_model_path: Path) -> None:
    ran = wnlb("profile", planted_model_path, *QUICK, "--json", "--no-stages")
    assert (ran.code, ran.err) == (0, "")
    (row,) = json.loads(ran.out)["rows"]
    assert row["stages"] == {}


def test_refusals(wnlb: Callable[..., Any], planted_model_path: Path, tmp_path: Path) -> None:
    shutil.copy(planted_model_path, tmp_path / "planted.onnx")
    (tmp_path / "empty").mkdir()
    for words, message in (
        ([tmp_path / "no.onnx"], "does not exist"),
        ([planted_model_path, planted_model_path], "is named twice"),
        ([planted_model_path, "--iterations", "0"], "at least one iteration"),
        ([planted_model_path, "--images", tmp_path / "empty"], "holds no pictures"),
        ([planted_model_path, "-o", planted_model_path], "cannot be made"),
    ):
        assert message in wnlb("profile", *words).refused()
    ran = wnlb("profile", Path(__file__), *QUICK)
    assert ran.code == 1  # nothing was measured
    assert "expected .onnx or .engine" in ran.out


def test_a_process_that_dies_is_told(planted_model_path: Path) -> None:
    worker = Worker("planted.onnx", planted_model_path, [np.zeros((64, 96, 3), np.uint8)], "cpu", 1)
    assert [times.keys() for times in worker.run(2)] == [{"prepare", "infer", "paste", "total"}] * 2
    assert worker.peak_bytes() > 20 << 20
    pid = worker._process.pid
    assert pid
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(WnlbError, match=r"the process of planted.onnx (has ended|ended with -9)"):
        worker.run(1)
    worker.close()
    worker.close()


def test_a_model_that_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(WnlbError, match="does not exist"):
        Worker("no.onnx", tmp_path / "no.onnx", [np.zeros((64, 96, 3), np.uint8)])
