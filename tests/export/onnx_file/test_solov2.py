"""SOLOv2 from the checkpoint to detections, and what becomes of its file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import peer_checkpoint
import pytest
import solo_checkpoint
import torch
from tensorrt_rtx_build import build_in_tensorrt_rtx

from wnlb.calibration.precision.groups import groups_of
from wnlb.calibration.precision.mixed import heavy_nodes
from wnlb.export.checkpoints.checkpoint import read_checkpoint
from wnlb.export.graph.solov2 import Solov2Graph
from wnlb.export.onnx_file.eager import EagerBackend
from wnlb.export.onnx_file.export_onnx import export_onnx
from wnlb.export.onnx_file.verify import dark_scene
from wnlb.export.options import ExportOptions
from wnlb.runtime.cli import main
from wnlb.runtime.errors import VerificationError
from wnlb.runtime.onnx_file import contract_of
from wnlb.runtime.predictor import Predictor
from wnlb.runtime.profile.stages import stage_of


@pytest.fixture(scope="module")
def checkpoint_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("solo") / "epoch_12.pth"
    solo_checkpoint.write_small(path)
    return path


@pytest.fixture(scope="module")
def files(checkpoint_path: Path) -> dict[str, Path]:
    """For both targets; that for a GPU with a block as a plugin node, that for a CPU for 1 to 3 frames."""
    paths = {}
    for target, more in (("gpu", ["--attention", "c3=plugin"]), ("cpu", ["--batch", "1-3"])):
        paths[target] = checkpoint_path.with_name(f"{target}.onnx")
        words = ["export", str(checkpoint_path), "-o", str(paths[target]), "--size", "96x128", "--target", target]
        assert main([*words, *more]) == 0
    return paths


def test_the_contract(files: dict[str, Path]) -> None:
    contract = contract_of(onnx.load(files["gpu"]))
    assert contract
    assert (contract.framework, contract.masks, contract.format) == ("mmdetection-solov2", "frame", 3)
    assert (contract.scale, contract.detections, contract.candidates) == ((608, 416), 20, 1000)
    assert (contract.score_threshold, contract.nms_threshold, contract.nms_rounds) == (0.05, None, None)
    assert contract.attention == {
        "c2": "embedded/standard",
        "c3": "embedded/plugin",
        "c4": "embedded/standard",
        "c5": "embedded/standard",
    }
    assert contract.checkpoint_settings["cell_threshold"] == 0.1


def test_builds_in_tensorrt_rtx(files: dict[str, Path]) -> None:
    assert build_in_tensorrt_rtx(files["gpu"]) > 0


def test_detections_of_frames_equal_those_of_the_checkpoint(files: dict[str, Path], checkpoint_path: Path) -> None:
    """Several frames of several sizes; boxes are those of the masks."""
    frames = [dark_scene((1, *size, 3))[0] for size in ((96, 128), (70, 120), (200, 160))]
    contract = contract_of(onnx.load(files["cpu"]))
    assert contract
    with Predictor(EagerBackend(checkpoint_path, contract)) as predictor:
        expected = [predictor(frame) for frame in frames]
    for path, found in (
        (files["cpu"], lambda predictor: predictor.predict_batch(frames)),
        (files["gpu"], lambda predictor: [predictor(frame) for frame in frames]),
    ):
        with Predictor(path) as predictor:
            for own, theirs in zip(found(predictor), expected, strict=True):
                assert len(own) == len(theirs) > 3
                np.testing.assert_array_equal(own.labels, theirs.labels)
                np.testing.assert_allclose(own.scores, theirs.scores, atol=1e-4)
                masks, their_masks = np.stack(list(own.full_masks())), np.stack(list(theirs.full_masks()))
                assert (masks != their_masks).sum() <= 1e-3 * their_masks.sum() + 1
                for box, mask in zip(own.boxes, masks, strict=True):
                    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
                    np.testing.assert_array_equal(box, [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])


def test_every_layer_has_its_place(files: dict[str, Path]) -> None:
    """In precision groups and in the profile; and what decides on masks stays in FP32."""
    model = onnx.load(files["cpu"])
    groups = groups_of(model)
    layers = {node.name for node in model.graph.node if node.op_type == "Conv"}
    assert layers <= set(groups)
    assert {"cell head", "mask features", "predictors", "c3 block"} <= set(groups.values())
    heavy = heavy_nodes(model)
    assert layers <= heavy
    full = {node.name for node in model.graph.node} - heavy
    assert {node.name for node in model.graph.node if node.op_type == "InstanceNormalization"} <= full
    assert {node.name for node in model.graph.node if node.name.startswith("detect")} <= full
    stages = {stage_of(node.name) for node in model.graph.node}
    assert {"cells", "mask features", "masks", "matrix nms", "detections", "c5 block"} <= stages


def test_options_of_mask_rcnn_are_refused(checkpoint_path: Path, wnlb_here: Callable[..., Any], tmp_path: Path) -> None:
    words = ("export", checkpoint_path, "-o", tmp_path / "m.onnx", "--size", "96x128")
    told = wnlb_here(*words, "--nms-threshold", "0.3").refused()
    assert "nms_threshold is 0.3, but SOLOv2 has neither proposals nor NMS of boxes" in told
    assert "masks is 'box', which this network does not make" in wnlb_here(*words, "--masks", "box").refused()


def test_too_few_candidates_leave_no_file(checkpoint_path: Path, tmp_path: Path) -> None:
    checkpoint = read_checkpoint(checkpoint_path)
    path = tmp_path / "m.onnx"
    with pytest.raises(VerificationError, match="more candidates pass the score threshold than --candidates holds"):
        export_onnx(checkpoint.model, path, ExportOptions(64, 96, candidates=6), origin=checkpoint.origin)
    assert not path.exists()


@pytest.mark.slow
def test_another_graph_is_noticed(checkpoint_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph whose Matrix NMS has another sigma than the checkpoint says."""
    checkpoint = read_checkpoint(checkpoint_path)

    class Other(Solov2Graph):
        def __init__(self, model: Any, options: ExportOptions) -> None:
            super().__init__(model, options)
            self.detect.found.nms.sigma *= 0.9

    monkeypatch.setattr("wnlb.export.onnx_file.export_onnx.Solov2Graph", Other)
    with pytest.raises(VerificationError, match=r"scores differ|are missing"):
        export_onnx(checkpoint.model, tmp_path / "m.onnx", ExportOptions(64, 96), origin=checkpoint.origin)


@pytest.mark.slow
@pytest.mark.parametrize("target", ["cpu", "gpu"])
@pytest.mark.parametrize("family", ["r18", "r50-caffe"])
def test_pictures_to_masks_equal_those_of_mmdetection(tmp_path: Path, family: str, target: str) -> None:
    """The whole way of a user, against what mmdetection itself computed."""
    config = bytes(solo_checkpoint.reference(family)["config"]).decode()
    torch.save({"state_dict": solo_checkpoint.checkpoint(family), "meta": {"cfg": config}}, tmp_path / "c.pth")
    words = ["-o", str(tmp_path / "m.onnx"), "--size", "416x608", "--target", target, "--set", "backbone_type=ResNet"]
    assert main(["export", str(tmp_path / "c.pth"), *words]) == 0
    with Predictor(tmp_path / "m.onnx") as predictor:
        for name, picture in peer_checkpoint.pictures().items():
            found = predictor(cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
            masks = np.stack(list(found.full_masks()))
            solo_checkpoint.assert_equals(family, name, found.scores, found.labels, masks, empty_too=False)
