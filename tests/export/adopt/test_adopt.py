"""``wnlb adopt`` on a small network of our own with the interface of a YOLO-seg file."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
import torch
from small_yolo import CLASSES, write_small_yolo
from tensorrt_rtx_build import build_in_tensorrt_rtx

from wnlb.calibration.comparison.compare import taps_of
from wnlb.calibration.precision.convert import Converter, Int8Choice, save_checked
from wnlb.calibration.precision.groups import groups_of
from wnlb.export.adopt.adopt_onnx import adopt_onnx
from wnlb.export.adopt.families.body import static_body
from wnlb.export.adopt.recognise import recognised
from wnlb.export.onnx_file.attention_pieces import cut_attention
from wnlb.export.onnx_file.fuse import PLUGIN_OP, fuse_attention
from wnlb.export.onnx_file.verify import onnx_session, with_score_threshold
from wnlb.export.options import ExportOptions
from wnlb.runtime.errors import VerificationError, WnlbError
from wnlb.runtime.onnx_file import read_model
from wnlb.runtime.predictor import Predictor
from wnlb.runtime.profile.stages import stage_of


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_yolo(tmp_path_factory.mktemp("yolo") / "best.onnx")


@pytest.fixture(scope="module")
def adopted(original: Path) -> Path:
    """For a GPU, batch 1, by the library; the command is tested beside it."""
    path = original.with_name("model.onnx")
    adopt_onnx(recognised(original), path, options(), original=original, sha256="ab")
    return path


def options(**fields: Any) -> ExportOptions:
    return ExportOptions(**{"height": 64, "width": 96, "masks": "frame", "candidates": 126, **fields})


def test_the_file_says_what_it_is(adopted: Path) -> None:
    model, contract = read_model(adopted)
    assert contract.framework == "ultralytics"
    assert contract.class_names == CLASSES
    assert (contract.score_threshold, contract.nms_threshold, contract.detections) == (0.25, 0.7, 300)
    assert (contract.padding, contract.pad_rgb, contract.masks) == ("centre", (114, 114, 114), "frame")
    assert contract.attention == {"c2": "embedded/standard", "c3": "embedded/standard"}
    assert {entry.key: entry.value for entry in model.metadata_props}["license"] == "a licence of its own"


def test_nodes_are_named_after_their_parts(adopted: Path) -> None:
    """By which all other commands know groups, stages, blocks and taps."""
    model, _ = read_model(adopted)
    groups = Counter(groups_of(model).values())
    wanted = {"stem", "c2", "c2 block", "c3", "c3 block", "c4", "c5", "fpn", "box head", "predictors", "mask head"}
    assert set(groups) == wanted
    convolutions = Counter(
        groups_of(model)[n.name] for n in model.graph.node if n.op_type == "Conv" and n.name in groups_of(model)
    )
    assert convolutions == {
        **dict.fromkeys(("c2", "c3", "c4", "c5"), 2),
        **dict.fromkeys(("c2 block", "c3 block"), 4),
        **dict.fromkeys(("box head", "predictors"), 9),
        "stem": 1,
        "fpn": 6,
        "mask head": 3,
    }
    stages = {stage_of(node.name) for node in model.graph.node}
    assert stages == wanted - {"predictors"} | {"input", "detections"}
    assert {"C2 before block", "C3 after block"} <= set(taps_of(model))


def test_frames_in_detections_out(adopted: Path, original: Path) -> None:
    """On a frame that is resized and padded; a second time for a CPU, for two frames."""
    rng = np.random.default_rng(3)
    frames = [rng.integers(0, 256, shape, np.uint8) for shape in ((100, 90, 3), (30, 96, 3))]
    path = original.with_name("cpu.onnx")
    report = adopt_onnx(recognised(original), path, options(target="cpu", batch=2, min_batch=1), original=original)
    assert sum(case.detections for case in report.cases) > 100
    assert all(case.errors.box <= 1e-3 for case in report.cases)
    with Predictor(adopted) as one, Predictor(path) as both:
        together = both.predict_batch(frames)
        for frame, found in zip(frames, together, strict=True):
            alone = one(frame)
            assert len(found) == len(alone) > 10
            np.testing.assert_allclose(found.boxes, alone.boxes, atol=1e-3)
            assert found.boxes.max() <= max(frame.shape[:2])
            masks = [np.stack([*each.full_masks()]) for each in (found, alone)]
            assert (masks[0] != masks[1]).mean() < 1e-5


def test_tensorrt_rtx_builds_it(adopted: Path) -> None:
    assert build_in_tensorrt_rtx(adopted) > 10_000


def test_fp16_and_int8(adopted: Path, tmp_path: Path) -> None:
    """An activation is half precision through and through; decoding stays FP32."""
    converter = Converter(adopted)
    model, report = converter.half("fp16")
    assert report.half > 100
    save_checked(model, tmp_path / "half.onnx")
    assert {"stem", "c2 block", "predictors"} <= set(converter.groups)
    casts = sum(node.op_type == "Cast" for node in model.graph.node)
    assert casts < 45  # not two for every activation, of which there are 34
    ranges = dict.fromkeys(converter.activations, 8.0)
    choice = Int8Choice(frozenset(converter.groups) - {"stem", "predictors", "c2 block", "c3 block"}, "max", "fp16")
    save_checked(converter.int8(choice, ranges), tmp_path / "int8.onnx")


def test_attention_as_one_node_and_in_pieces(original: Path, tmp_path: Path) -> None:
    """Cut, the same to rounding; as a node, its body is the pieces."""
    file = recognised(original)
    body = static_body(file.model, (64, 96), 1, None)
    x = {"images": np.random.default_rng(0).random((1, 3, 64, 96), np.float32)}
    whole = onnx_session(body.SerializeToString()).run(None, x)
    softmax = [node.name for node in body.graph.node if node.op_type == "Softmax"]
    assert cut_attention(body, {softmax[0]: 5})
    assert sum(node.op_type == "Softmax" for node in body.graph.node) == len(softmax) + 4
    for ours, expected in zip(onnx_session(body.SerializeToString()).run(None, x), whole, strict=True):
        np.testing.assert_allclose(ours, expected, atol=1e-4)
    assert not cut_attention(body, {softmax[0]: 1})
    assert fuse_attention(body)
    nodes = [node for node in body.graph.node if node.op_type == PLUGIN_OP]
    assert len(nodes) == 2
    assert sorted(Counter(n.op_type for n in f.node)["Softmax"] for f in body.functions) == [1, 5]
    with pytest.raises(WnlbError, match="attention of c4 was asked for; the file has blocks at c2, c3"):
        adopt_onnx(file, tmp_path / "x.onnx", options(attention="c4=plugin"), original=original)


def test_an_open_batch(original: Path) -> None:
    """A file of one image, for one to three: each as alone."""
    file = recognised(original)
    body = static_body(file.model, (64, 96), 3, range(1, 4))
    x = np.random.default_rng(0).random((3, 3, 64, 96), np.float32)
    session, alone = onnx_session(body.SerializeToString()), onnx_session(str(original))
    expected = [
        np.concatenate(both)
        for both in zip(*(alone.run(None, {"images": x[i : i + 1]}) for i in range(3)), strict=True)
    ]
    for count in (1, 2, 3):
        for ours, own in zip(session.run(None, {"images": x[:count]}), expected, strict=True):
            np.testing.assert_allclose(ours, own[:count], atol=1e-4)


def test_what_computes_something_else_is_not_written(original: Path, tmp_path: Path) -> None:
    """The verification sees other weights, a suppression that is too short, and candidates that are too few."""
    other = onnx.load(original)
    weight = next(t for t in other.graph.initializer if t.name.startswith("heads.0.1"))
    values = onnx.numpy_helper.to_array(weight) * 1.01
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    onnx.save(other, tmp_path / "other.onnx")
    path = tmp_path / "model.onnx"
    with pytest.raises(VerificationError, match="scores differ by"):
        adopt_onnx(recognised(original), path, options(), original=tmp_path / "other.onnx")
    with pytest.raises(VerificationError, match="NMS needs 4 rounds, more than the 1 of --nms-rounds"):
        adopt_onnx(recognised(original), path, options(nms_rounds=1), original=original)
    assert not path.exists()


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        ({"task": "detect"}, "is a YOLO file for the task 'detect'; expected 'segment': export a -seg model"),
        ({"end2end": "True"}, "chooses its detections itself"),
        ({"names": "{0: 'a'}"}, "15 numbers an anchor and 8 prototypes, and 1 class names"),
    ],
)
def test_files_that_are_refused(original: Path, tmp_path: Path, metadata: dict[str, str], said: str) -> None:
    model = onnx.load(original)
    told = {entry.key: entry.value for entry in model.metadata_props}
    onnx.helper.set_model_props(model, {**told, **metadata})
    onnx.save(model, tmp_path / "odd.onnx")
    with pytest.raises(WnlbError, match=said):
        recognised(tmp_path / "odd.onnx")


def test_the_command(original: Path, adopted: Path, tmp_path: Path, wnlb_here: Callable[..., Any]) -> None:
    path = tmp_path / "model.onnx"
    ran = wnlb_here("adopt", original, "-o", path, "--masks", "none", "--json", "--detections", "20")
    assert ran.code == 0, ran
    told = json.loads(ran.out)
    assert told["licence"] == "a licence of its own"
    assert told["contract"]["masks"] == "none"
    assert path.stat().st_size == told["bytes"]
    refused = wnlb_here("adopt", adopted, "-o", tmp_path / "again.onnx").refused()
    assert "is a file of ours already" in refused
    assert "--size is 128x128" in wnlb_here("adopt", original, "-o", path, "--size", "128x128").refused()
    before = original.read_bytes()
    assert "which would be lost" in wnlb_here("adopt", original, "-o", original).refused()
    assert original.read_bytes() == before
    for zipped in (True, False):
        torch.save({"model": None}, tmp_path / "best.pt", _use_new_zipfile_serialization=zipped)
        refused = wnlb_here("adopt", tmp_path / "best.pt", "-o", path).refused()
        assert "is a checkpoint; expected an ONNX file: where it was trained, 'yolo export model=best.pt" in refused
    simple = onnx.helper.make_model(
        onnx.helper.make_graph(
            [onnx.helper.make_node("Identity", ["x"], ["y"])],
            "simple",
            [onnx.helper.make_tensor_value_info("x", 1, [1, 3])],
            [onnx.helper.make_tensor_value_info("y", 1, [1, 3])],
        )
    )
    onnx.save(simple, tmp_path / "simple.onnx")
    assert "expected a YOLO-seg file" in wnlb_here("adopt", tmp_path / "simple.onnx", "-o", path).refused()
    shown = wnlb_here("inspect", original).out
    assert "(384 positions x 8 channels)" in shown
    assert "contract: none" in shown
    cv2.imwrite(str(tmp_path / "black.png"), np.zeros((64, 96, 3), np.uint8))
    ran = wnlb_here("predict", original, tmp_path / "black.png", "-o", tmp_path / "out")
    assert "has no wnlb contract, which says how frames go in" in ran.refused()


def test_another_threshold(adopted: Path) -> None:
    """The constant that the verification changes has the name that it looks for."""
    assert onnx_session(with_score_threshold(adopted, 0.5))
