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
from wnlb.runtime.profile.worker import How, Worker

QUICK = ("--duration", "0.2", "--warm-up", "10", "--iterations", "5")


def test_two_models_and_one_that_is_none(
    wnlb: Callable[..., Any], planted_model_path: Path, brief_model_path: Path, tmp_path: Path
) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"bad")
    for number in range(3):
        cv2.imwrite(str(tmp_path / f"{number}.png"), np.full((64, 96, 3), 40 * number, np.uint8))
    words = [planted_model_path, brief_model_path, tmp_path / "bad.onnx", "--images", tmp_path, "--no-accuracy", *QUICK]
    ran = wnlb("profile", *words, "-o", tmp_path / "report")
    assert (ran.code, ran.err) == (0, "")
    assert "planted.onnx" in ran.out
    assert "bad.onnx: not measured: model " in ran.out
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert report["format"] == 1
    assert report["frames"] == {"source": str(tmp_path), "count": 3}
    planted, real, bad = report["rows"]
    assert (planted["batch"], real["batch"], planted["precision"]) == (2, 1, "fp32")
    for row in (planted, real):
        parts = row["parts"]
        assert parts["total"]["count"] == len(row["samples_ms"]) == len(row["samples_at_s"]) >= 5
        assert row["samples_at_s"] == sorted(row["samples_at_s"])
        assert parts["total"]["min"] <= parts["total"]["p50"] <= parts["total"]["p99"] <= parts["total"]["max"]
        assert parts["infer"]["p50"] <= parts["total"]["p50"] * 1.001
        assert row["frames_per_second"] == pytest.approx(1e3 * row["batch"] / parts["total"]["mean"])
        assert min(row["start_up_ms"], row["first_ms"]) > 0
        assert row["peak_bytes"] > 20 << 20
        assert row["description"].startswith("ONNX Runtime")
        assert (row["accuracy"], row["made_by"], row["backend"]) == (None, "", "onnxruntime")
    assert {"c2 block", "mask head"} <= set(real["stages"])
    known = {stage: ms for stage, ms in real["stages"].items() if stage != "between layers"}
    assert set(known) == set(real["floor"])
    assert real["floor"]["c2"]["flops"] > 1e6
    assert report["peaks"]["onnxruntime"]["flops_per_s"]["fp32"] > 1e9
    assert bad["failure"]
    assert bad["parts"] == {}
    text = (tmp_path / "report" / "report.md").read_text()
    assert "| planted.onnx" in text
    assert "c2 block" in text
    assert f"wnlb profile {planted_model_path}" in text
    assert "<svg" in (tmp_path / "report" / "report.html").read_text()
    assert sorted(path.name for path in (tmp_path / "report").iterdir()) == [
        "models",
        "report.html",
        "report.json",
        "report.md",
    ]


@pytest.mark.parametrize("source", ["brief_model_path", pytest.param("small_checkpoint_path", marks=pytest.mark.slow)])
def test_what_is_missing_is_made(
    wnlb: Callable[..., Any],
    wnlb_here: Callable[..., Any],
    request: pytest.FixtureRequest,
    source: str,
    tmp_path: Path,
) -> None:
    """Exports, converts, scores and measures; the second time nothing is made again."""
    path: Path = request.getfixturevalue(source)
    wnlb_here("scenes", "-o", tmp_path / "night", "--count", 2, "--size", "96x128")
    images, labels = tmp_path / "night" / "images", tmp_path / "night" / "annotations.json"
    words = ["profile", path, "--size", "64x96", "--precisions", "fp16", "--no-stages", *QUICK]
    words += ["--backends", "onnxruntime,tensorrt,tensorrt-rtx"]
    words += ["--annotations", labels, "--eval-images", images, "-o", tmp_path / "report"]
    words += ["--images", tmp_path / "night" / "clean"]
    ran = wnlb(*words)
    assert ran.code == 0, ran
    made = [line.split()[2] for line in ran.err.splitlines() if line.startswith("+ ")]
    assert made == [*(["export"] if path.suffix != ".onnx" else []), "convert", "evaluate"]
    rows = {row["name"]: row for row in json.loads((tmp_path / "report" / "report.json").read_text())["rows"]}
    row = rows.pop(f"{path.stem}.fp16.onnx")
    assert (row["failure"], row["precision"], row["accuracy"]["truth"]) == ("", "fp16", "labels")
    assert sum(own["images"] for own in row["accuracy"]["by_darkness"].values()) == row["accuracy"]["images"] == 2
    assert row["parts"]["total"]["p50"] > 0
    assert row["build_seconds"] > 0
    assert row["made_by"].startswith("wnlb convert ")
    names = {f"{path.stem}.fp16.{backend}.engine" for backend in ("tensorrt", "tensorrt.plugin", "tensorrt-rtx")}
    assert {name for name, row in rows.items() if "no NVIDIA driver" in row["failure"]} == names == set(rows)
    again = wnlb(*words)
    assert (again.code, again.err) == (0, "")


def test_agreement_without_labels(wnlb: Callable[..., Any], small_model_path: Path, tmp_path: Path) -> None:
    """The first FP32 file is the reference, for itself too."""
    for number in range(2):
        cv2.imwrite(str(tmp_path / f"{number}.png"), np.full((64, 96, 3), 100 + 40 * number, np.uint8))
    shutil.copy(small_model_path, tmp_path / "copy.onnx")
    words = [small_model_path, tmp_path / "copy.onnx", "--images", tmp_path, "--no-stages", *QUICK, "--json"]
    ran = wnlb("profile", *words)
    assert ran.code == 0, ran
    first, second = json.loads(ran.out)["rows"]
    assert first["accuracy"]["truth"] == "reference"
    assert first["accuracy"]["images"] == 2
    assert first["accuracy"]["box_ap"] > 99
    assert first["accuracy"] == second["accuracy"]


def test_sustained_runs_one_after_the_other(
    wnlb: Callable[..., Any], planted_model_path: Path, brief_model_path: Path
) -> None:
    ran = wnlb("profile", planted_model_path, brief_model_path, *QUICK, "--sustained", "0.4s", "--no-stages", "--json")
    report = json.loads(ran.out)
    first, second = report["rows"]
    assert report["plan"]["duration_s"] == 0.4
    assert max(first["samples_at_s"]) < min(second["samples_at_s"])


def test_files_of_one_name(wnlb: Callable[..., Any], planted_model_path: Path, tmp_path: Path) -> None:
    shutil.copy(planted_model_path, tmp_path / "planted.onnx")
    ran = wnlb("profile", planted_model_path, tmp_path / "planted.onnx", *QUICK, "--no-stages", "--json")
    names = [row["name"] for row in json.loads(ran.out)["rows"]]
    assert names == [str(planted_model_path), str(tmp_path / "planted.onnx")]


def test_comparing(wnlb: Callable[..., Any], planted_model_path: Path, tmp_path: Path) -> None:
    words = ["profile", planted_model_path, *QUICK, "--iterations", "40", "--no-stages", "-o", tmp_path / "old"]
    assert wnlb(*words).code == 0
    old = tmp_path / "old" / "report.json"
    report = json.loads(old.read_text())
    assert len(report["rows"][0]["samples_ms"]) >= 40
    for path, ms in ((old, 10), (tmp_path / "new.json", 20)):  # on a busy machine no difference is beyond noise
        report["rows"][0]["samples_ms"] = [ms + 0.01 * (i % 7) for i in range(40)]
        report["rows"][0]["samples_at_s"] = [0.03 * i for i in range(40)]
        path.write_text(json.dumps(report))
    ran = wnlb("profile", "--compare", old, tmp_path / "new.json", "--max-regression", "5")
    assert ran.code == 1
    assert "slower" in ran.out
    assert ran.out.endswith("regressed: planted.onnx\n")
    assert wnlb("profile", "--compare", old, old, "--max-regression", "5").code == 0
    assert wnlb("profile", "--compare", old, tmp_path / "new.json").code == 0


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


def test_refusals(wnlb_here: Callable[..., Any], planted_model_path: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "weights.pth").write_bytes(b"1")
    model, output = planted_model_path, ("-o", tmp_path / "report")
    (tmp_path / "bad.json").write_text('{"images": 3}')
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((32, 48, 3), np.uint8))
    shutil.copy(model, tmp_path / "planted.onnx")
    labels = ("--annotations", model, "--eval-images", tmp_path)
    for words, message in (
        ([], "no model was given"),
        ([tmp_path / "no.onnx"], "does not exist"),
        ([tmp_path], "is a folder"),
        ([model, model], "is named twice"),
        ([model, "--iterations", "0"], "at least one iteration"),
        ([model, "--sustained", "soon"], "expected a time such as"),
        ([model, "--sustained", "0m"], "expected a time such as"),
        ([model, "--images", tmp_path / "empty"], "holds no pictures"),
        ([model, "-o", model], "cannot be made"),
        ([model, "--precisions", "fp16"], "give -o"),
        ([model, "--precisions", "fp17", *output], "precision is 'fp17'; expected some of fp32,fp16,bf16,int8"),
        ([model, "--annotations", tmp_path / "a.json"], "--annotations and --eval-images go together"),
        ([model, *labels, "--images", tmp_path], "is to be calibrated on and judged by"),
        ([model, "--annotations", tmp_path, "--eval-images", tmp_path], "is no file; expected COCO labels"),
        ([model, "--annotations", model, "--eval-images", tmp_path / "no"], "no is no folder"),
        ([model, "--threads", "-1"], "threads is -1"),
        ([model, tmp_path / "planted.onnx", "--precisions", "fp16", *output], "2 models are called planted"),
        ([model, "--max-regression", "5"], "--max-regression is for --compare"),
        ([tmp_path / "weights.pth", *output], "needs --size"),
        ([tmp_path / "weights.pth", "--size", "big", *output], "size is 'big'; expected HEIGHTxWIDTH"),
        ([tmp_path / "weights.pth", "--size", "100x100", *output], "expected multiples of 32 from 64 up"),
        ([tmp_path / "weights.pth", "--size", "64x96", "--classes", "no.txt", *output], "--classes no.txt is no file"),
        ([tmp_path / "weights.pth", "--size", "64x96", "--config", "no.yaml", *output], "--config no.yaml is no file"),
        ([tmp_path / "none.pth", "--size", "64x96", *output], "does not exist"),
        (["--compare", model, model], "report"),
        ([model, "--compare", model, model], "--compare reads two reports and measures nothing"),
    ):
        assert message in wnlb_here("profile", *words).refused()
    ran = wnlb_here("profile", model, "--annotations", tmp_path / "bad.json", "--eval-images", tmp_path)
    assert (ran.code, ran.out) == (2, "")  # before minutes of measuring
    assert "error: accuracy cannot be measured of any model: annotations" in ran.err
    ran = wnlb_here("profile", Path(__file__), *QUICK)
    assert ran.code == 1  # nothing was measured
    assert "expected .onnx or .engine" in ran.out


def test_a_process_that_dies_is_told(planted_model_path: Path) -> None:
    worker = Worker("planted.onnx", planted_model_path, [np.zeros((64, 96, 3), np.uint8)], How("cpu", 1))
    assert [times.keys() for times in worker.run(2)] == [{"prepare", "infer", "paste", "total"}] * 2
    assert worker.memory()[0] > 20 << 20
    assert worker.memory()[1] == 0  # of a GPU
    pid = worker._process.pid
    assert pid
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(WnlbError, match=r"the process of planted.onnx (has ended|ended with -9)"):
        worker.run(1)
    worker.close()
    worker.close()


def test_a_model_that_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(WnlbError, match="does not exist"):
        Worker("no.onnx", tmp_path / "no.onnx", [np.zeros((64, 96, 3), np.uint8)], How())


@pytest.mark.parametrize(("wanted", "run"), [(0, 1), (3, 3)])
def test_a_model_of_several_batches_is_measured_with_one_of_them(
    planted_batches_path: Path, wanted: int, run: int
) -> None:
    frames = [np.zeros((64, 96, 3), np.uint8)]
    worker = Worker("batches.onnx", planted_batches_path, frames, How("cpu", 1, batch=wanted))
    assert worker.facts["batch"] == run
    assert worker.facts["contract"]["batch"] == 5
    assert worker.run(1)[0]["total"] > 0
    worker.close()


def test_a_batch_that_a_model_does_not_take_is_refused(planted_batches_path: Path, planted_model_path: Path) -> None:
    frames = [np.zeros((64, 96, 3), np.uint8)]
    with pytest.raises(WnlbError, match=r"takes 1-5 frames a run, not the 9 of --batch"):
        Worker("batches.onnx", planted_batches_path, frames, How("cpu", 1, batch=9))
    with pytest.raises(WnlbError, match=r"takes 2 frames a run, not the 1 of --batch"):
        Worker("fixed.onnx", planted_model_path, frames, How("cpu", 1, batch=1))
