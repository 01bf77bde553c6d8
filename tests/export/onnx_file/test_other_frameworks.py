"""Checkpoints of mmdetection and detectron2, from the file to detections: equal to the references, and exported."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import peer_checkpoint
import peer_keys
import pytest
import torch
from numpy.typing import NDArray
from small_peers import (
    detectron2_names,
    lively_state,
    small_mmdet_state,
    write_detectron2_checkpoint,
    write_mmdet_checkpoint,
)
from tensorrt_rtx_build import build_in_tensorrt_rtx
from torchvision.ops import box_iou

from wnlb.export.checkpoints.checkpoint import LoadedCheckpoint, Origin, load_checkpoint, read_checkpoint
from wnlb.export.graph.adaptive_roi_align import CellRoIAlign, NodeRoIAlign
from wnlb.export.graph.deploy import DeployGraph
from wnlb.export.graph.pyramid import limits
from wnlb.export.onnx_file.eager import EagerBackend
from wnlb.export.onnx_file.export_onnx import configure
from wnlb.export.onnx_file.reference import Eager, match
from wnlb.export.onnx_file.verify import dark_scene, padded
from wnlb.export.options import ExportOptions
from wnlb.export.references.boxes import levels
from wnlb.runtime.cli import main
from wnlb.runtime.errors import CheckpointError, WnlbError
from wnlb.runtime.inputs import prepared_inputs
from wnlb.runtime.onnx_file import contract_of
from wnlb.runtime.predictor import Predictor

FRAMEWORKS = ("mmdetection", "detectron2")
NAMES = ("boxes", "scores", "labels", "masks", "count")
TOLD: dict[str, Any] = {
    "style": "caffe",
    "channel_order": "bgr",
    "mean": [103.53, 116.28, 123.675],
    "std": [57.375, 57.12, 58.395],
    "resize": "fit",
    "scale": [90, 60],
    "interpolation": "bilinear",
    "pad_divisor": 32,
    "anchor_sizes": [[16, 20], [32, 40], [64, 80], [128, 160], [256, 320]],
    "aspect_ratios": [0.5, 1.0, 2.0],
    "pre_nms_top_n": 200,
    "post_nms_top_n": 60,
    "rpn_nms_threshold": 0.7,
    "score_threshold": 0.05,
    "nms_threshold": 0.5,
    "detections": 12,
    "class_names": [f"thing {i}" for i in range(8)],
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A training checkpoint of each framework: a narrow ResNet-18 with blocks, two anchor sizes at each level."""
    folder = tmp_path_factory.mktemp("peers")
    sizes = {"anchor_sizes": TOLD["anchor_sizes"]}
    state = small_mmdet_state(torch.float32, **sizes)
    torch.save({"state_dict": state, "meta": {"epoch": 12}, "optimizer": {}}, folder / "epoch_12.pth")
    torch.save({"model": detectron2_names(state), "iteration": 9}, folder / "model_final.pth")
    return {"mmdetection": folder / "epoch_12.pth", "detectron2": folder / "model_final.pth"}


def read(path: Path, **told: Any) -> LoadedCheckpoint:
    return read_checkpoint(path, overrides={**TOLD, **told})


@pytest.fixture
def _float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def assert_graph_equals_reference(
    checkpoint: LoadedCheckpoint, options: ExportOptions, images: NDArray
) -> torch.Tensor:
    """In float64, on whole pictures and on padded ones. Returns the proposals that boxes were pooled from."""
    assert checkpoint.origin
    configure(checkpoint.model, options)
    eager = Eager(checkpoint.model, checkpoint.origin).doubled()
    graph = DeployGraph(eager.model, options, checkpoint.origin.conventions)
    pool = NodeRoIAlign if options.target == "cpu" else CellRoIAlign
    assert isinstance(graph.detect.box_pool, pool)
    whole = np.tile(np.array(images.shape[1:3], np.int32), (len(images), 1))
    proposals = []
    for image, content in ((images, whole), padded(images)):
        found, features = eager.detections(image, content)
        with torch.no_grad():
            boxes, real = graph.rpn(features, limits(torch.from_numpy(content).double()))
            proposals.append(boxes[real])
            outputs = graph(torch.from_numpy(image), torch.from_numpy(content))
        ours = {name: value.numpy() for name, value in zip(NAMES, outputs, strict=True)}
        for i, expected in enumerate(found):
            own = {name: value[i] for name, value in ours.items()}
            heads = checkpoint.model.roi_heads
            pairs, missing, extra = match(expected, own, heads.score_thresh, nms_threshold=heads.nms_thresh)
            assert (missing, extra, int(own["count"])) == (0, 0, len(expected["scores"]))
            assert len(pairs) >= 3
            for a, b in pairs:
                for name in ("boxes", "scores", "masks"):
                    np.testing.assert_allclose(own[name][b], expected[name][a], rtol=0, atol=1e-7)
    return torch.cat(proposals)


@pytest.mark.usefixtures("_float64")
@pytest.mark.parametrize("target", ["cpu", "gpu"])
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_the_graph_computes_what_the_reference_computes(files: dict[str, Path], framework: str, target: str) -> None:
    options = ExportOptions(64, 96, batch=3, target=target)
    assert_graph_equals_reference(read(files[framework]), options, dark_scene((3, 64, 96, 3)))


@pytest.mark.usefixtures("_float64")
@pytest.mark.parametrize(("style", "stride"), [("caffe", 2), ("pytorch", 1)])
def test_lis(tmp_path: Path, style: str, stride: int) -> None:
    """Adaptive downsampling, smooth convolutions and one of mmcv's blocks, norms of another epsilon."""
    shapes = {**peer_keys.mmdet_keys(18, neck=32, fc=32), **peer_keys.lis_keys(18, smooth=False)}
    shapes |= peer_keys.mmcv_block("backbone.layer3.2", 256)
    state = {name: value.float() for name, value in lively_state(shapes).items()}
    torch.save({"state_dict": state}, tmp_path / "c.pth")
    told = {"anchor_sizes": [[16], [32], [64], [128], [256]], "interpolation": "nearest", "norm_eps": 1e-2}
    checkpoint = read(tmp_path / "c.pth", style=style, adaptive_stride=stride, **told)
    assert checkpoint.config.adaptive_stride == stride
    assert_graph_equals_reference(checkpoint, ExportOptions(64, 96, batch=2), dark_scene((2, 64, 96, 3)))


@pytest.mark.usefixtures("_float64")
@pytest.mark.parametrize("target", ["cpu", "gpu"])
def test_boxes_of_the_coarse_levels(tmp_path: Path, target: str) -> None:
    """Of 224 px and more, which belong to P4, and 448, P5; no blocks, whose attention would take most of the time."""
    sizes = [[60], [120], [240], [900], [900]]
    torch.save(small_mmdet_state(torch.float32, levels=()), tmp_path / "c.pth")
    checkpoint = read(tmp_path / "c.pth", anchor_sizes=sizes, scale=[480, 480], detections=40, post_nms_top_n=1000)
    options = ExportOptions(480, 480, target=target)
    proposals = assert_graph_equals_reference(checkpoint, options, dark_scene((1, 480, 480, 3)))
    counts = levels(proposals, 1e-6).bincount(minlength=4)
    assert counts.min() >= 2


@pytest.mark.parametrize(("framework", "target"), [("mmdetection", "gpu"), ("detectron2", "cpu")])
def test_from_the_file_to_detections(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], framework: str, target: str
) -> None:
    """A training checkpoint of mmengine holds its configuration, besides a message hub with objects in it."""
    checkpoint, path = tmp_path / "c.pth", tmp_path / "model.onnx"
    words = ["export", str(checkpoint), "-o", str(path), "--size", "64x96", "--target", target]
    words += ["--post-nms", "50", "--pre-nms", "100", "--candidates", "400", "--detections", "12", "--nms-rounds", "20"]
    if framework == "mmdetection":
        write_mmdet_checkpoint(checkpoint)
    else:
        write_detectron2_checkpoint(checkpoint, tmp_path / "config.yaml")
        words += ["--config", str(tmp_path / "config.yaml")]
    assert main(words) == 0
    told = capsys.readouterr().out
    assert f"{framework}, style pytorch, resnet18, 8 classes, embedded blocks inline" in told
    contract = contract_of(onnx.load(path))
    assert contract
    scale, interpolation = ((608, 416), "bilinear") if framework == "mmdetection" else ((608, 400), "antialiased")
    assert (contract.framework, contract.scale, contract.interpolation) == (framework, scale, interpolation)
    assert (contract.detections, contract.post_nms_top_n, contract.pad_rgb) == (12, 50, (124, 116, 104))
    assert contract.checkpoint_settings["style"] == "pytorch"
    if target == "gpu":
        assert build_in_tensorrt_rtx(path) > 0
    frame = dark_scene((1, 120, 130, 3))[0]
    with Predictor(path) as predictor:
        found = predictor(frame)
    assert len(found) > 3
    # What compares a checkpoint with its files needs no more than them.
    with Predictor(EagerBackend(checkpoint, contract)) as predictor:
        eager = predictor(frame)
    np.testing.assert_allclose(found.boxes, eager.boxes, atol=0.1)
    np.testing.assert_array_equal(found.labels, eager.labels)


def test_images_that_hold_nothing_are_nothing_to_the_reference(files: dict[str, Path]) -> None:
    checkpoint = read(files["mmdetection"])
    images = np.repeat(dark_scene((1, 64, 96, 3)), 2, 0)
    found, _ = Eager(checkpoint.model, checkpoint.origin).detections(images, np.array([[0, 0], [64, 96]], np.int32))
    assert len(found[0]["scores"]) == 0 < len(found[1]["scores"])


def test_what_nothing_tells_is_asked_for(
    files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "m.onnx"
    for path, kind in zip(files.values(), ("FILE.py", "FILE.yaml"), strict=True):
        assert main(["export", str(path), "-o", str(out), "--size", "64x96"]) == 2
        told = capsys.readouterr().err.splitlines()[-1]
        assert "style (pytorch or caffe)" in told
        assert f"--config {kind}" in told
        assert not out.exists()


def test_settings_for_another_framework_are_refused(files: dict[str, Path], small_checkpoint_path: Path) -> None:
    with pytest.raises(CheckpointError, match="setting 'detail' is not known; expected num_classes"):
        read(files["mmdetection"], detail=1)
    with pytest.raises(CheckpointError, match="--config is for mmdetection and detectron2"):
        read_checkpoint(small_checkpoint_path, trained_with=Path("config.py"))
    with pytest.raises(CheckpointError, match="the backbone resnet18, its configuration resnet50"):
        read(files["mmdetection"], backbone="resnet50")


def test_torchvision_s_code_does_not_run_them(files: dict[str, Path]) -> None:
    with pytest.raises(CheckpointError, match="is of mmdetection; expected a torchvision model"):
        load_checkpoint(files["mmdetection"], overrides=TOLD)


def test_a_checkpoint_of_another_framework_is_not_compared(
    files: dict[str, Path], small_checkpoint_path: Path, make_contract: Any
) -> None:
    contract = make_contract(framework="detectron2", class_names=TOLD["class_names"], checkpoint_settings=TOLD)
    with pytest.raises(WnlbError, match="is of mmdetection, the files are of detectron2"):
        EagerBackend(files["mmdetection"], contract)


def test_an_asked_for_resize_fills_the_input(files: dict[str, Path]) -> None:
    from wnlb.export.onnx_file.export_onnx import make_contract

    checkpoint = read(files["detectron2"], interpolation="antialiased")
    for resize, scale in ((None, (90, 60)), ("stretch", None)):
        options = ExportOptions(64, 96, resize=resize)
        graph = DeployGraph(checkpoint.model, options, checkpoint.origin.conventions)
        contract = make_contract(checkpoint.model, graph, options, (), checkpoint.origin)
        assert (contract.resize, contract.scale) == (resize or "fit", scale)
        assert contract.interpolation == "antialiased"
        image = prepared_inputs(contract, [dark_scene((1, 120, 130, 3))[0]])
        assert image["content"].tolist() == [[60, 65] if scale else [64, 96]]


def test_weights_of_a_teacher_and_a_student_are_told_apart(files: dict[str, Path], tmp_path: Path) -> None:
    state = torch.load(files["mmdetection"])["state_dict"]
    both = {f"{who}.{name}": value for who in ("student", "teacher") for name, value in state.items()}
    torch.save({"state_dict": both}, tmp_path / "semi.pth")
    checkpoint = read(tmp_path / "semi.pth")
    assert (checkpoint.weights, checkpoint.others) == ("state_dict.student", ("state_dict.teacher",))
    assert isinstance(checkpoint.origin, Origin)
    assert set(checkpoint.origin.state) == set(state)


@pytest.mark.slow
@pytest.mark.parametrize("target", ["cpu", "gpu"])
@pytest.mark.parametrize("family", ["mmdet-pytorch", "mmdet-caffe", "d2-msra"])
def test_pictures_to_masks_equal_those_of_the_framework(tmp_path: Path, family: str, target: str) -> None:
    """The whole way of a user, against what the frameworks themselves computed (``tests/data/oracles``)."""
    state, of_mmdet = peer_checkpoint.checkpoint(family), family.startswith("mmdet")
    torch.save({"state_dict" if of_mmdet else "model": state}, tmp_path / "c.pth")
    config = tmp_path / ("config.py" if of_mmdet else "config.yaml")
    config.write_text(peer_checkpoint.config(family))
    model = tmp_path / "model.onnx"
    words = ["-o", str(model), "--size", "416x608", "--config", str(config), "--target", target]
    assert main(["export", str(tmp_path / "c.pth"), *words]) == 0
    reference = peer_checkpoint.reference(family)
    with Predictor(model) as predictor:
        for name, picture in peer_checkpoint.pictures().items():
            cv2.imwrite(str(tmp_path / "p.png"), picture[..., ::-1])
            found = predictor(np.ascontiguousarray(picture[..., ::-1]))
            own = {key[2:]: reference[key] for key in reference if key.startswith(f"{name}_")}
            theirs_boxes = torch.from_numpy(own["boxes"]).double()
            overlap = box_iou(torch.from_numpy(found.boxes).double(), theirs_boxes).numpy()
            overlap *= found.labels[:, None] == own["labels"] + 1
            pairs = []
            while overlap.max() > 0.5:
                i, j = np.unravel_index(overlap.argmax(), overlap.shape)
                pairs.append((int(i), int(j)))
                overlap[i] = overlap[:, j] = 0
            ours, theirs = map(list, zip(*pairs, strict=True))
            box_error = np.abs(found.boxes[ours] - own["boxes"][theirs]).max()
            score_error = np.abs(found.scores[ours] - own["scores"][theirs]).max()
            print(f"{family} {target} {name}: {len(pairs)} matched, {box_error:.3f} px, scores {score_error:.4f}")
            assert len(pairs) >= 98
            np.testing.assert_allclose(found.boxes[ours], own["boxes"][theirs], rtol=0, atol=0.2)
            np.testing.assert_allclose(found.scores[ours], own["scores"][theirs], rtol=0, atol=0.005)
            masks = np.stack(list(found.full_masks()))[ours]
            expected = np.unpackbits(own["masks"][theirs], axis=-1, count=picture.shape[1]).astype(bool)
            shared, either = (masks & expected).sum((1, 2)), (masks | expected).sum((1, 2))
            print(f"    mask pixels shared: {100 * shared.sum() / either.sum():.2f} %")
            assert (shared >= 0.95 * either).all()
            assert shared.sum() >= 0.998 * either.sum()
