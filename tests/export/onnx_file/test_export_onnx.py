"""Whole exports: verified in ONNX Runtime by the export itself, then built into an engine by TensorRT-RTX."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from conftest import BRIEF
from model_inputs import whole
from onnx import TensorProto, helper
from small_models import small_model
from tensorrt_rtx_build import build_in_tensorrt_rtx

from wnlb.export.onnx_file import export_onnx as stage
from wnlb.export.onnx_file.export_onnx import ExportReport, export_onnx
from wnlb.export.onnx_file.fuse import PLUGIN_OP, RUNTIME_OP
from wnlb.export.onnx_file.lint import lint
from wnlb.export.onnx_file.passes import name_by_module, name_rows, set_metadata
from wnlb.export.onnx_file.reference import match
from wnlb.export.onnx_file.verify import dark_scene
from wnlb.export.options import ExportOptions
from wnlb.runtime.contract import METADATA_KEY, Contract
from wnlb.runtime.errors import GraphError, VerificationError, WnlbError

PLAIN: tuple[dict[str, Any], dict[str, Any]] = ({"levels": ()}, {"masks": "none"})  # half as long to trace
DEFAULTS = {"pre_nms_top_n": None, "post_nms_top_n": None, "candidates": 1000, "nms_rounds": 32}
# Every mode, placement and backbone, batch 2, chunked attention, no masks, no blocks, each in one file at least.
VARIANTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "embedded inline resnet18": ({}, {"attention_memory": 2**20, "height": 192, **DEFAULTS}),
    "gaussian lateral, plugin": (
        {"mode": "gaussian", "placement": "lateral"},
        {"attention": "plugin"},
    ),
    "dot fpn resnet50, batch 2, few masks": (
        {"mode": "dot", "placement": "fpn", "backbone": "resnet50"},
        {"batch": 2, "mask_rows": 12},
    ),
    "concatenate inline": ({"mode": "concatenate"}, {"width": 64}),
    "unweighted, plugin at two levels, no masks": (
        {"weighted": False},
        {"masks": "none", "width": 160, "attention": "c2=plugin,c5=plugin"},
    ),
    "for a CPU, batch 2": (
        {"levels": ("c2", "c3")},
        {"target": "cpu", "batch": 2, "attention_memory": 2**20, "mask_rows": 7},
    ),
    "no blocks, few proposals": ({"levels": ()}, {"post_nms_top_n": 50, "detections": 10, "candidates": 200}),
}


def export(path: Path, fields: dict[str, Any], options: dict[str, Any]) -> ExportReport:
    return export_onnx(small_model(**fields), path, ExportOptions(**{"height": 64, "width": 96, **BRIEF, **options}))


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants_export_verify_and_build(tmp_path: Path, variant: str) -> None:
    path = tmp_path / "model.onnx"
    report = export(path, *VARIANTS[variant])
    assert [case.name for case in report.cases] == ["noise", "dark scene", "padded", "nothing to detect"]
    assert report.cases[0].found.detections > 0
    assert report.cases[2].found.detections > 0
    assert report.cases[3].found.detections == 0
    file = onnx.load(path)
    contract = Contract.from_json({e.key: e.value for e in file.metadata_props}[METADATA_KEY])
    assert contract == report.contract
    lint(file, contract)  # as it lies on disk
    if "attention_memory" in VARIANTS[variant][1]:
        assert report.plans[0].chunks > 1
        of_c2 = Counter(node.op_type for node in file.graph.node if "layer1.wnlb" in node.name)
        assert of_c2[RUNTIME_OP] == 1 if report.contract.target == "cpu" else of_c2["Softmax"] > 1
    forms = [plan.form for plan in report.plans]
    assert sum(node.op_type == RUNTIME_OP for node in file.graph.node) == forms.count("multi-head")
    assert sum(node.op_type == PLUGIN_OP for node in file.graph.node) == len(file.functions) == forms.count("plugin")
    if rows := report.contract.mask_rows:
        inputs = {"image": dark_scene((2, 64, 96, 3)), "content": np.array([[64, 96]] * 2, np.int32)}
        count, masks = ort.InferenceSession(str(path)).run(["count", "masks"], inputs)
        assert count.min() > rows == VARIANTS[variant][1]["mask_rows"]
        assert masks[:, :rows].all()
        assert not masks[:, rows:].any()
    if report.contract.target == "gpu":
        assert build_in_tensorrt_rtx(path) > 1e6


def test_nodes_are_named_after_their_modules_and_tell_no_paths(small_model_path: Path) -> None:
    file = onnx.load(small_model_path)
    names = [node.name for node in file.graph.node]
    assert len(set(names)) == len(names)
    for expected in ("body.conv1/Conv", "body.layer1.wnlb.theta/Conv", "fpn.inner_blocks.0.0/Conv", "rpn.nms/MatMul"):
        assert expected in names
    assert b"site-packages" not in small_model_path.read_bytes()
    before = file.SerializeToString(deterministic=True)
    assert not name_by_module(file)
    assert not name_rows(file)
    assert not set_metadata(file, {})
    assert file.SerializeToString(deterministic=True) == before


def test_a_failed_verification_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One weight of the file is changed behind the exporter's back: the comparison must notice."""
    trace = stage.trace

    def trace_and_damage(*arguments: Any) -> onnx.ModelProto:
        file = trace(*arguments)
        weight = next(t for t in file.graph.initializer if t.name == "detect.box_predictor.cls_score.bias")
        damaged = onnx.numpy_helper.to_array(weight) + np.eye(1, 9, 2, dtype=np.float32)[0] * 0.01
        weight.CopyFrom(onnx.numpy_helper.from_array(damaged, weight.name))
        return file

    monkeypatch.setattr(stage, "trace", trace_and_damage)
    with pytest.raises(VerificationError, match=r"noise: .*scores differ by") as failed:
        export(tmp_path / "model.onnx", *PLAIN)
    assert failed.value.exit_code == 1
    assert list(tmp_path.iterdir()) == []


def test_too_few_nms_rounds_or_candidates_fail_the_verification(tmp_path: Path) -> None:
    with pytest.raises(VerificationError, match=r"NMS of the proposals needs \d+ rounds, more than the 1 of"):
        export(tmp_path / "model.onnx", PLAIN[0], {**PLAIN[1], "nms_rounds": 1})
    with pytest.raises(VerificationError, match="more candidates pass the score threshold than --candidates"):
        export(tmp_path / "model.onnx", PLAIN[0], {**PLAIN[1], "candidates": 60, "nms_threshold": 0.1})
    assert list(tmp_path.iterdir()) == []


def test_class_names_must_fit(tmp_path: Path) -> None:
    with pytest.raises(GraphError, match="2 class names for 8 classes"):
        export_onnx(small_model(), tmp_path / "m.onnx", ExportOptions(64, 64), class_names=("a", "b"))


def detections(boxes: list[list[float]], scores: list[float], labels: list[int], rows: int) -> dict[str, np.ndarray]:
    padding = rows - len(scores)
    return {
        "boxes": np.array(boxes + [[0.0] * 4] * padding, np.float32).reshape(-1, 4),
        "scores": np.array(scores + [0.0] * padding, np.float32),
        "labels": np.array(labels + [0] * padding),
        "count": np.array(len(scores)),
    }


def test_matching_is_one_to_one_and_knows_the_cuts() -> None:
    a, b = [0.0, 0, 9, 9], [50.0, 0, 90, 90]
    eager = detections([a, b, b], [0.9, 0.8, 0.05005], [1, 2, 2], 3)
    same = detections([b, a], [0.8, 0.9], [2, 1], 5)
    assert match(eager, same, 0.05) == ([(0, 1), (1, 0)], 0, 0)  # the third is at the threshold
    assert match(eager, same, 0.01)[1:] == (1, 0)
    assert match(eager, detections([a, a], [0.9, 0.9], [1, 1], 5), 0.05)[1:] == (1, 1)
    assert match(eager, detections([a, b], [0.9, 0.8], [1, 3], 5), 0.05)[1:] == (1, 1)
    assert match(eager, detections([], [], [], 5), 0.05)[1:] == (2, 0)
    full = detections([a], [0.9], [1], 1)  # the second falls off the end of a full output only if it is weaker
    assert match(detections([a, b], [0.9, 0.9], [1, 2], 2), full, 0.05)[1:] == (0, 0)
    assert match(detections([b, a], [0.95, 0.9], [2, 1], 2), full, 0.05)[1:] == (1, 0)


def test_of_boxes_of_one_score_either_may_suppress_the_other() -> None:
    a, b, far = [0.0, 0, 10, 10], [0.0, 0, 10, 14], [50.0, 0, 90, 90]  # the IoU of a and b is 10 / 14
    eager = detections([far, a], [0.9, 0.8], [1, 1], 2)

    def counts(box: list[float], score: float, label: int, threshold: float) -> tuple[int, int]:
        found = detections([far, box], [0.9, score], [1, label], 5)
        pairs, missing, extra = match(eager, found, 0.05, nms_threshold=threshold)
        assert pairs == [(0, 0)]
        return missing, extra

    assert counts(b, 0.80005, 1, 0.7) == (0, 0)
    assert counts(b, 0.80005, 1, 0.72) == (1, 1)  # NMS keeps both
    assert counts(b, 0.801, 1, 0.7) == (1, 1)  # one is the better one
    assert counts(b, 0.80005, 2, 0.7) == (1, 1)
    assert match(eager, detections([far], [0.9], [1], 5), 0.05, nms_threshold=0.5)[1:] == (1, 0)


def test_dark_scene_is_dark_and_not_flat() -> None:
    scene = dark_scene((2, 64, 96, 3))
    assert scene.mean() < 50
    assert scene.std() > 5
    assert not np.array_equal(scene[0], scene[1])
    assert np.array_equal(scene, dark_scene((2, 64, 96, 3)))


def graph(*nodes: onnx.NodeProto, shape: list[int | str] | None = None) -> tuple[onnx.ModelProto, Contract]:
    """A model with the interface of a contract, whose outputs come from constants, and ``nodes`` beside them."""
    contract = Contract(1, 64, 64, ("a",), 4, 0.05, 0.5, 0.7, 10, 10, 10, 5, masks="none")
    outputs, initializers = [], []
    for name, size in contract.output_shapes.items():
        kind = TensorProto.INT32 if name in ("labels", "count") else TensorProto.FLOAT
        outputs.append(helper.make_tensor_value_info(name, kind, size))
        initializers.append(helper.make_tensor(f"{name}0", kind, size, np.zeros(int(np.prod(size)))))
    image = helper.make_tensor_value_info("image", TensorProto.UINT8, shape or contract.input_shape)
    content = helper.make_tensor_value_info("content", TensorProto.INT32, [1, 2])
    reshapes = [helper.make_node("Mul", [f"{n}0", f"{n}0"], [n]) for n in contract.output_shapes]
    initializers.append(helper.make_tensor("k", TensorProto.INT64, [1], [4000]))
    made = helper.make_graph([*reshapes, *nodes], "g", [image, content], outputs, initializers)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)]), contract


CAST = helper.make_node("Cast", ["image"], ["x"], to=TensorProto.FLOAT)
RULES = {
    "operator is not allowed": ([CAST, helper.make_node("NonZero", ["x"], ["y"])], "operator NonZero is not allowed"),
    "foreign domain": (
        [CAST, helper.make_node("Relu", ["x"], ["y"], domain="com.example")],
        r"operator com\.example\.Relu is not allowed",
    ),
    "input is not cast first": (
        [helper.make_node("Transpose", ["image"], ["x"], perm=[0, 3, 1, 2])],
        r"input goes into .*\(Transpose\), expected Cast",
    ),
    "TopK too large": ([CAST, helper.make_node("TopK", ["x", "k"], ["y", "i"], axis=1)], "takes the best 4000"),
}


@pytest.mark.parametrize("rule", RULES)
def test_lint_finds_each_broken_rule(rule: str) -> None:
    nodes, said = RULES[rule]
    model, contract = graph(*nodes)
    if rule == "TopK too large":
        model.graph.node[-1].input[0] = "wide"
        model.graph.initializer.append(helper.make_tensor("wide", TensorProto.FLOAT, [1, 5000], np.zeros(5000)))
    with pytest.raises(GraphError, match=said):
        lint(model, contract)


def test_lint_takes_roi_align_only_in_files_for_a_cpu() -> None:
    node = helper.make_node("RoiAlign", ["x", "rois", "of"], ["y"], output_height=7, output_width=7, sampling_ratio=0)
    model, contract = graph(CAST, node)
    model.graph.initializer.append(helper.make_tensor("rois", TensorProto.FLOAT, [3, 4], np.zeros(12)))
    model.graph.initializer.append(helper.make_tensor("of", TensorProto.INT64, [3], np.zeros(3, int)))
    lint(model, replace(contract, target="cpu"))
    with pytest.raises(GraphError, match="operator RoiAlign is not allowed"):
        lint(model, replace(contract, target="gpu"))


@pytest.mark.parametrize(
    ("target", "name", "size", "said"),
    [
        ("cpu", "detect.mask.pool/Slice", ["rows0"], ""),
        ("cpu", "detect.mask/Slice", ["196*rows0 + 196*rows1 + 1"], ""),
        ("gpu", "detect.mask/Slice", ["rows0"], r"has the shape \['rows0', 64\], expected whole numbers$"),
        ("cpu", "detect/Slice", ["rows0"], r"has the shape \['rows0', 64\], expected whole numbers$"),
        ("cpu", "detect.mask/Slice", ["n"], "expected whole numbers and once, at most, a number of rows"),
        ("cpu", "detect.mask/Slice", [None], "expected whole numbers and once, at most, a number of rows"),
        ("cpu", "detect.mask/Slice", ["rows0", "rows1"], "expected whole numbers and once, at most, a number of rows"),
    ],
)
def test_lint_takes_a_number_of_rows_in_the_mask_branch_for_a_cpu(
    target: str, name: str, size: list[str | None], said: str
) -> None:
    nodes = [
        CAST,
        helper.make_node("Cast", ["content"], ["size"], to=TensorProto.INT64),
        helper.make_node("Slice", ["size", "zero", "one", "one"], ["height"]),
        helper.make_node("Reshape", ["height", "one"], ["end"]),
        helper.make_node("Concat", ["end"] * len(size), ["ends"], axis=0),
        helper.make_node("Slice", ["map", "zeros", "ends", "axes"], ["y"], name=name),
    ]
    model, contract = graph(*nodes)
    constants = {"zero": [0], "one": [1], "zeros": [0] * len(size), "axes": list(range(len(size)))}
    for key, values in constants.items():
        model.graph.initializer.append(helper.make_tensor(key, TensorProto.INT64, [len(values)], values))
    model.graph.initializer.append(helper.make_tensor("map", TensorProto.FLOAT, [64, 64], np.zeros(64 * 64)))
    shape = [*size, 64, 64][:2]
    model.graph.value_info.append(helper.make_tensor_value_info("y", TensorProto.FLOAT, shape))
    if said:
        with pytest.raises(GraphError, match=said):
            lint(model, replace(contract, target=target))
    else:
        lint(model, replace(contract, target=target))


def test_lint_wants_static_shapes_and_the_contracts_interface() -> None:
    lint(*graph(CAST))
    model, contract = graph(CAST, shape=["n", 64, 64, 3])
    with pytest.raises(GraphError, match=r"input image is uint8 \['n', 64, 64, 3\], expected uint8 \[1, 64, 64, 3\]"):
        lint(model, contract)
    model, contract = graph(CAST)
    del model.graph.output[0]
    with pytest.raises(GraphError, match="output boxes is absent, expected float"):
        lint(model, contract)


@pytest.mark.parametrize(
    "options",
    [
        {"height": 63},
        {"width": 100},
        {"height": 32},
        {"batch": 0},
        {"detections": 4000},
        {"candidates": 0},
        {"mask_rows": 0},
        {"mask_rows": 5, "masks": "none"},
        {"score_threshold": 1.5},
        {"nms_threshold": -0.1},
        {"masks": "full"},
        {"resize": "crop"},
        {"attention_memory": 5},
    ],
)
def test_bad_options_are_refused_by_name(options: dict[str, Any]) -> None:
    with pytest.raises(WnlbError, match="expected"):
        ExportOptions(**{"height": 64, "width": 64, **options})


def test_exported_file_gives_the_same_after_a_change_of_threads(small_model_path: Path) -> None:
    from wnlb.runtime.onnxruntime_backend import OnnxRuntimeBackend

    inputs = whole(dark_scene((1, 64, 96, 3)))
    one, two = (OnnxRuntimeBackend(small_model_path, device="cpu", threads=n).run(inputs) for n in (1, 2))
    assert one["count"] > 0
    assert torch.equal(torch.from_numpy(one["labels"]), torch.from_numpy(two["labels"]))
    np.testing.assert_allclose(one["scores"], two["scores"], atol=1e-5)
