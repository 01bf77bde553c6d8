"""``wnlb convert`` from end to end, on a small real model and synthetic night scenes."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from conftest import BRIEF
from model_inputs import whole
from small_models import small_model
from tensorrt_rtx_build import build_in_tensorrt_rtx

from wnlb.calibration.accuracy.judge import Judge, Ledger
from wnlb.calibration.precision.convert import Converter, Int8Choice, Int8Trials, ranges_by
from wnlb.calibration.precision.quantize import Graph, check_placement
from wnlb.calibration.precision.ranges import Histogram, Inputs, Tap
from wnlb.calibration.precision.search import hold_budget
from wnlb.calibration.scenes.dataset import write_scenes
from wnlb.export.onnx_file.export_onnx import export_onnx
from wnlb.export.onnx_file.fuse import PLUGIN_OP, fuse_attention
from wnlb.export.onnx_file.lint import lint
from wnlb.export.options import ExportOptions
from wnlb.runtime.cli import main
from wnlb.runtime.contract import METADATA_KEY, Contract
from wnlb.runtime.errors import ContractError, WnlbError
from wnlb.runtime.onnx_file import read_model
from wnlb.runtime.predictor import Predictor


@pytest.fixture(scope="module")
def night(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("night")
    write_scenes(folder, 12, 64, 96, [300.0, 30.0], seed=5, workers=1)
    return folder


def convert(*words: object) -> int:
    return main(["convert", *map(str, words)])


def histograms(converter: Converter, inputs: list[Inputs]) -> dict[str, Histogram]:
    tap, found = Tap(converter.model, converter.activations), {name: Histogram() for name in converter.activations}
    for own in inputs:
        for name, values in tap(own).items():
            found[name].add(values)
    return found


@pytest.fixture(scope="module")
def noise() -> list[Inputs]:
    rng = np.random.default_rng(0)
    return [whole(rng.integers(0, 128, (1, 64, 96, 3), dtype=np.uint8)) for _ in range(3)]


@pytest.fixture(scope="module")
def int8_half(brief_model_path: Path, noise: list[Inputs]) -> onnx.ModelProto:
    converter = Converter(brief_model_path)
    converter.watch_overflow(noise)
    ranges = ranges_by(histograms(converter, noise), "max")
    return converter.int8(Int8Choice(frozenset(converter.groups) - {"predictors"}, "max", "fp16"), ranges)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_half_precision_builds_in_tensorrt_rtx(
    precision: str, brief_model_path: Path, night: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "half.onnx"
    code = convert(brief_model_path, "--precision", precision, "-o", output, "--images", night / "images", "--json")
    assert code == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["half"] > 150
    model, contract = read_model(output)
    assert contract.precision == precision
    assert contract.opset == model.opset_import[0].version
    lint(model, contract)
    assert output.stat().st_size < 0.55 * brief_model_path.stat().st_size
    assert build_in_tensorrt_rtx(output) > 1e6
    assert {path.name for path in (tmp_path / "half.calibration").iterdir()} == {"manifest.json", "coverage.png"}


def test_int8_with_both_rests(brief_model_path: Path, noise: list[Inputs], int8_half: onnx.ModelProto) -> None:
    check_placement(int8_half)
    for (
        node
    ) in int8_half.graph.node:  # FP16 reaches from the layers into their pairs, or TensorRT makes no INT8 of them
        if node.op_type in ("Conv", "Gemm"):
            makers = {output: other for other in int8_half.graph.node for output in other.output}
            sources = [makers[name].op_type if name in makers else "weight" for name in node.input[:2]]
            assert sources in (["DequantizeLinear"] * 2, [sources[0], "weight"]), (node.name, sources)
    converter = Converter(brief_model_path)
    ranges = ranges_by(histograms(converter, noise), "max")
    full = converter.int8(Int8Choice(frozenset(converter.groups), "max", "fp32"), ranges)
    check_placement(full)
    assert not any(t.data_type == onnx.TensorProto.FLOAT16 for t in full.graph.initializer)
    contract = Contract.from_json({e.key: e.value for e in full.metadata_props}[METADATA_KEY])
    assert contract.precision == "int8+fp32"
    expected = ort.InferenceSession(str(brief_model_path)).run(["scores"], noise[0])[0]
    for model in (int8_half, full):
        session = ort.InferenceSession(model.SerializeToString(), disabled_optimizers=["WeightBiasQuantization"])
        found = session.run(["scores"], noise[0])[0]
        assert np.abs(found[0][:5] - expected[0][:5]).mean() < 0.1  # of random weights, whose best are no objects
        assert not np.array_equal(found, expected)


def test_int8_builds_in_tensorrt_rtx(int8_half: onnx.ModelProto, tmp_path: Path) -> None:
    onnx.save(int8_half, tmp_path / "int8.onnx")
    assert build_in_tensorrt_rtx(tmp_path / "int8.onnx") > 1e6


def test_a_converted_file_becomes_the_plugin_form_and_computes_the_same(
    int8_half: onnx.ModelProto, noise: list[Inputs]
) -> None:
    fused = onnx.ModelProto()
    fused.CopyFrom(int8_half)
    assert fuse_attention(fused)
    assert sum(node.op_type == PLUGIN_OP for node in fused.graph.node) == 4
    results = [
        ort.InferenceSession(m.SerializeToString(), disabled_optimizers=["WeightBiasQuantization"]).run(None, noise[1])
        for m in (int8_half, fused)
    ]
    for plain, plugin in zip(*results, strict=True):
        np.testing.assert_array_equal(plain, plugin)


def test_a_plugin_file_is_converted_inside_and_stays_one(tmp_path: Path, noise: list[Inputs]) -> None:
    path = tmp_path / "plugin.onnx"
    export_onnx(small_model(), path, ExportOptions(64, 96, attention="c2=plugin,c4=plugin", **BRIEF))
    converter = Converter(path)
    half, _ = converter.half("fp16")
    int8 = converter.int8(
        Int8Choice(frozenset(converter.groups), "max", "fp16"), ranges_by(histograms(converter, noise), "max")
    )
    for model in (half, int8):
        assert sorted(n.name for n in model.graph.node if n.op_type == PLUGIN_OP) == [
            f"body.layer1.wnlb/{PLUGIN_OP}",
            f"body.layer3.wnlb/{PLUGIN_OP}",
        ]
        ort.InferenceSession(model.SerializeToString()).run(None, noise[0])


def test_int8_command(
    brief_model_path: Path, night: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    """Ranges and trials are measured once, used again by a second run, and measured anew for other pictures."""
    output, folder = tmp_path / "model.int8.onnx", tmp_path / "model.int8.calibration"
    words = [brief_model_path, "--precision", "int8", "-o", output, "--images", night / "images"]
    words += ["--trial-pictures", "2", "--method", "percentile", "--json"]
    assert convert(*words) == 0
    captured = capsys.readouterr()
    first = json.loads(captured.out)
    assert "only 12 calibration pictures" in captured.err
    assert first["method"] == "percentile"
    assert first["truth"] == "reference"
    assert set(first["groups"]) >= {"c2", "c2 block", "fpn", "mask head"}
    model, contract = read_model(output)
    assert contract.precision == "int8+fp16"
    luminances = [each["luminance"] for each in json.loads((folder / "manifest.json").read_text())["pictures"]]
    assert contract.calibrated_luminance == (min(luminances), max(luminances))
    check_placement(model)
    assert {p.name for p in folder.iterdir()} == {"manifest.json", "coverage.png", "ranges.npz", "trials.json"}
    stamps = {name: os.stat(folder / name).st_mtime_ns for name in ("ranges.npz", "trials.json")}
    content = output.read_bytes()
    assert convert(*words) == 0
    assert json.loads(capsys.readouterr().out) == first
    assert {name: os.stat(folder / name).st_mtime_ns for name in stamps} == stamps
    assert output.read_bytes() == content
    assert convert(*words, "--seed", "1", "--count", "8") == 0
    assert os.stat(folder / "ranges.npz").st_mtime_ns != stamps["ranges.npz"]


def test_sensitivity_and_a_budget_that_cannot_hold(
    brief_model_path: Path, night: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    """With planted costs: the search goes through, the best file is written, the exit code is 1."""
    from wnlb.calibration.precision.convert import Int8Trials

    cost = {"fpn": 4.0, "c3": 1.0}
    monkeypatch.setattr(Int8Trials, "drop", lambda self, choice: 0.5 + sum(cost.get(g, 0.0) for g in choice.groups))
    output = tmp_path / "model.int8.onnx"
    words = [brief_model_path, "--precision", "int8", "-o", output, "--images", night / "images"]
    words += ["--trial-pictures", "1", "--method", "max", "--rest", "fp32"]
    assert convert(*words, "--sensitivity", "--max-ap-drop", "0.3") == 1
    said = capsys.readouterr().out
    assert "AP drops by 0.50" in said
    assert "more than 0.3" in said
    assert "spared: fpn, c3: drop 0.50, too much" in said
    assert output.is_file()
    assert (tmp_path / "model.int8.calibration" / "sensitivity.png").stat().st_size > 1000
    assert "| fpn " in (tmp_path / "model.int8.calibration" / "sensitivity.md").read_text()
    assert convert(*words, "--max-ap-drop", "1.6", "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert "fpn" not in facts["groups"]
    assert "c3" in facts["groups"]
    model, _ = read_model(output)
    quantized = {n.name for n in model.graph.node if n.op_type == "Conv" and n.input[0].endswith(".dequantized")}
    assert "body.layer2.0.conv1/Conv" in quantized
    assert not any(name.startswith("fpn") for name in quantized)


def test_the_budget_finds_a_planted_bad_group(
    brief_model_path: Path, night: Path, noise: list[Inputs], tmp_path: Path
) -> None:
    """The ranges of the mask head are a thousand times too wide, so that its INT8 holds nothing but zeros."""
    converter = Converter(brief_model_path)
    measured = histograms(converter, noise)
    graph = Graph(converter.model)
    heads = [layer.node for layer in converter.layers if layer.group == "mask head"]
    for tensor in {graph.source(graph.nodes[node].input[0]) for node in heads}:
        measured[tensor].largest *= 1000
    pictures = {path.name: cv2.imread(str(path)) for path in sorted((night / "images").iterdir())[:2]}
    with Predictor(brief_model_path) as reference:
        judge = Judge.on_agreement(reference, pictures)
    trials = Int8Trials(converter, measured, judge, Ledger(tmp_path / "trials.json"), "key")

    def drop(groups: frozenset[str]) -> float:
        return trials.drop(Int8Choice(groups, "max", "fp32"))

    groups = ["box head", "mask head", "fpn"]
    spared = drop(frozenset({"box head", "fpn"}))
    assert drop(frozenset(groups)) > spared + 5
    order = sorted(groups, key=lambda group: -drop(frozenset({group})))
    best, held = hold_budget(order, drop, spared + 1)
    assert held
    assert best.spared == ("mask head",)


def test_refusals(
    brief_model_path: Path,
    night: Path,
    tmp_path: Path,
    int8_half: onnx.ModelProto,
    capsys: pytest.CaptureFixture[str],
) -> None:
    images, output = night / "images", tmp_path / "o.onnx"
    onnx.save(int8_half, tmp_path / "int8.onnx")
    contract = Contract.from_json({e.key: e.value for e in onnx.load(brief_model_path).metadata_props}[METADATA_KEY])
    cpu = onnx.load(brief_model_path)
    onnx.helper.set_model_props(cpu, {METADATA_KEY: contract.to_json().replace('"gpu"', '"cpu"')})
    onnx.save(cpu, tmp_path / "cpu.onnx")
    (tmp_path / "text.onnx").write_text("nothing")
    base = [brief_model_path, "--precision", "int8", "-o", output]
    labels = ["--annotations", night / "annotations.json", "--eval-images", images]
    half = [brief_model_path, "--precision", "fp16", "-o", output, "--images", images]
    copy = tmp_path / "copy.onnx"
    copy.write_bytes(brief_model_path.read_bytes())
    (tmp_path / "link.onnx").symlink_to(copy)
    for words, message in (
        ([*base], "INT8 needs --images"),
        ([*base[:3], "-o", tmp_path / "o.engine", "--images", images], "expected .onnx"),
        ([*base[:3], "-o", tmp_path / "no" / "o.onnx", "--images", images], "does not exist"),
        ([*base, "--images", images, "--count", "0"], "--count is 0"),
        ([*base, "--images", images, "--seed", "-1"], "--seed is -1; expected 0 or more"),
        ([*half, "--keep", "stem"], "--keep is of INT8, the precision is fp16"),
        ([*half, "--sensitivity"], "--sensitivity is of INT8"),
        ([*half, "--rest", "fp32"], "--rest is of INT8"),
        ([*half, *labels], "--annotations judge a budget; give --max-ap-drop too"),
        ([copy, "--precision", "fp16", "-o", copy], "is what it would be made from, which would be lost"),
        ([copy, "--precision", "fp16", "-o", tmp_path / "link.onnx"], "is what it would be made from"),
        ([brief_model_path, "--precision", "bf16", "-o", output, "--max-ap-drop", "1"], "no BF16"),
        ([*base, "--images", tmp_path / "nowhere"], "does not exist"),
        ([*base, "--images", images, "--calibration", tmp_path / "cpu.onnx"], "cannot be made"),
        ([*base, "--images", images, "--max-ap-drop", "-1"], "expected 0 or more"),
        ([*base, "--images", images, "--annotations", night / "annotations.json"], "go together"),
        ([*base, "--images", images, *labels], "in the evaluation set"),
        ([*base, "--images", images, "--keep", "c9"], "--keep names c9; the groups are stem, c2"),
        ([tmp_path / "int8.onnx", *base[1:], "--images", images], "is int8+fp16 already"),
        ([tmp_path / "cpu.onnx", *base[1:], "--images", images], "export it with --target gpu"),
        ([tmp_path / "text.onnx", *base[1:], "--images", images], "not a readable ONNX file"),
        ([tmp_path / "none.onnx", *base[1:], "--images", images], "does not exist"),
    ):
        assert convert(*words) == 2
        captured = capsys.readouterr()
        assert message in captured.err
        assert captured.err.count("\n") == 1
    assert not output.exists()
    assert copy.read_bytes() == brief_model_path.read_bytes()


def test_no_contract_and_a_missing_range(tmp_path: Path, brief_model_path: Path) -> None:
    model = onnx.load(brief_model_path)
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "foreign.onnx")
    with pytest.raises(ContractError, match="has no wnlb contract"):
        Converter(tmp_path / "foreign.onnx")
    with pytest.raises(WnlbError, match="no range was measured"):
        Converter(brief_model_path).int8(Int8Choice(frozenset({"stem"}), "max", "fp32"), {})


def test_pictures_are_prepared_as_for_detection(brief_model_path: Path, tmp_path: Path) -> None:
    """The Predictor's geometry: padding in the mean colour, the same pixels as the model gets at run time."""
    from wnlb.calibration.precision.job import Job
    from wnlb.calibration.precision.selection import select_pictures
    from wnlb.runtime.predictor import geometry_of

    picture = np.random.default_rng(0).integers(0, 60, (50, 50, 3), dtype=np.uint8)
    cv2.imwrite(str(tmp_path / "a.png"), picture)
    converter = Converter(brief_model_path)
    selection = select_pictures(str(tmp_path / "a.png"))
    (inputs,) = list(Job(argparse.Namespace(json=True), converter, selection, tmp_path).inputs())
    np.testing.assert_array_equal(inputs["image"][0], geometry_of(converter.contract).prepare(picture)[0])
    assert inputs["content"].tolist() == [[64, 64]]


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_what_lies_beside_the_picture_does_not_matter(
    precision: str, brief_model_path: Path, int8_half: onnx.ModelProto
) -> None:
    """Zero after normalisation is zero in FP16, and the zero point of INT8."""
    model = int8_half if precision == "int8" else Converter(brief_model_path).half("fp16")[0]
    session = ort.InferenceSession(model.SerializeToString(), disabled_optimizers=["WeightBiasQuantization"])
    image = np.random.default_rng(1).integers(0, 128, (1, 64, 96, 3), dtype=np.uint8)
    content = np.array([[50, 71]], np.int32)
    found = []
    for beside in (0, 255):
        image[:, 50:], image[:, :, 71:] = beside, beside
        found.append(session.run(None, {"image": image, "content": content}))
    boxes, count = found[0][0][0], found[0][4][0]
    assert count > 0
    assert (boxes[:count, 2:].max(0) == [71, 50]).all()
    for dark, bright in zip(*found, strict=True):
        np.testing.assert_array_equal(dark, bright)
