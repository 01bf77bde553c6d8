"""The trained model that comes with the package: what it is, and that it detects as well as when it was trained."""

from __future__ import annotations

import pytest

from wnlb.calibration.accuracy.evaluate import Evaluation, evaluate
from wnlb.calibration.labels.reader import read_labels
from wnlb.calibration.scenes.camera import DARKNESS_LEVELS
from wnlb.calibration.scenes.dataset import write_scenes
from wnlb.calibration.scenes.shapes import CLASSES
from wnlb.export.backbone import blocks_by_level
from wnlb.export.checkpoints.checkpoint import load_checkpoint
from wnlb.export.checkpoints.files.fetched import SAMPLE
from wnlb.export.onnx_file.export_onnx import export_onnx
from wnlb.export.options import ExportOptions
from wnlb.runtime.predictor import Predictor

MASK_AP, BOX_AP = 52.2, 65.6  # of these 25 scenes when the sample was trained


def test_what_it_is() -> None:
    assert SAMPLE.stat().st_size < 32e6
    model, config = load_checkpoint(SAMPLE)
    assert config.class_names == CLASSES
    assert config.backbone == "resnet18"
    blocks = {level: block for level, _, block in blocks_by_level(model)}
    assert list(blocks) == ["c2", "c3", "c4", "c5"]
    assert all(block.w is not None and block.w.item() != 0 for block in blocks.values())


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory: pytest.TempPathFactory) -> Evaluation:
    folder = tmp_path_factory.mktemp("sample")
    write_scenes(folder, 25, 320, 320, DARKNESS_LEVELS, seed=3000)
    model, config = load_checkpoint(SAMPLE)
    options = ExportOptions(320, 320, target="cpu")  # which a CPU is through with sooner
    export_onnx(model, folder / "sample.onnx", options, class_names=config.class_names)
    with Predictor(folder / "sample.onnx") as predictor:
        return evaluate(predictor, read_labels(folder / "annotations.json"), folder / "images", "sample")


def test_accuracy_on_fixed_scenes(evaluation: Evaluation) -> None:
    """Within 0.3 AP: other versions of PyTorch and ONNX Runtime round differently."""
    assert evaluation.overall.images == 25
    assert evaluation.overall.mask_ap == pytest.approx(MASK_AP, abs=0.3)
    assert evaluation.overall.box_ap == pytest.approx(BOX_AP, abs=0.3)
