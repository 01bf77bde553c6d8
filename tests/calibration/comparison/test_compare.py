import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from model_inputs import whole
from onnx import numpy_helper

from wnlb.calibration.comparison.compare import TapError, compare_taps, detection_error, most_different, taps_of
from wnlb.calibration.precision.convert import Converter
from wnlb.calibration.scenes.dataset import write_scenes
from wnlb.runtime.cli import main


@pytest.fixture(scope="module")
def night(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("night")
    write_scenes(folder, 3, 64, 96, [300.0], seed=6, workers=1)
    return folder


def images() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (1, 64, 96, 3), dtype=np.uint8) for _ in range(2)]


def test_taps_in_the_order_of_the_network(brief_model_path: Path) -> None:
    taps = list(taps_of(onnx.load(brief_model_path)))
    blocks = [f"C{i} {side} block" for i in range(2, 6) for side in ("before", "after")]
    assert [tap for tap in taps if tap.startswith("C")] == blocks
    assert set(taps) == {*blocks, "P2", "P3", "P4", "P5", "proposals"}
    assert taps[-1] == "proposals"


def damaged(path: Path, weight: str) -> onnx.ModelProto:
    model = onnx.load(path)
    tensor = next(t for t in model.graph.initializer if t.name == weight)
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(1.5), weight))
    return model


@pytest.mark.parametrize(
    ("weight", "first"),
    [("fpn.layer_blocks.2.0.weight", "P4"), ("body.layer2.1.conv2.weight", "C3 before block"), (None, None)],
)
def test_the_first_tap_that_drifts(brief_model_path: Path, weight: str | None, first: str | None) -> None:
    model = onnx.load(brief_model_path)
    other = damaged(brief_model_path, weight) if weight else model
    (report,) = compare_taps([model, other], map(whole, images()))
    assert report.first_drift() == first
    relative = {error.tap: error.relative for error in report.errors}
    assert relative["C2 after block"] == 0
    if weight is None:
        assert report.proposals == (120, 120)
    if first == "P4":
        assert relative["P4"] == pytest.approx(0.5, rel=0.05)  # but for the bias
        assert relative["P3"] == 0


def test_relative_error_by_hand() -> None:
    error = TapError("t")
    error.add(np.array([3.0, 4.0]), np.array([3.0, 3.0], np.float16))
    assert (error.relative, error.largest) == (pytest.approx(0.2), 1.0)


def test_how_far_detections_are_apart_by_hand() -> None:
    def entry(image: int, box: list[float], score: float = 0.9, label: int = 1) -> dict[str, object]:
        return {"image_id": image, "category_id": label, "score": score, "bbox": box}

    first = [entry(1, [0, 0, 10, 10]), entry(1, [50, 0, 10, 10]), entry(2, [0, 0, 10, 10], label=2)]
    second = [entry(1, [1, 0, 11, 10], 0.7), entry(1, [80, 0, 10, 10]), entry(2, [0, 0, 10, 10])]
    error = detection_error(first, second)
    assert (error.pairs, error.box, error.mask_iou) == (1, 2.0, None)  # 0..10 against 1..12
    assert error.score == pytest.approx(0.2)
    assert detection_error(first, []).pairs == 0


def test_most_different_pictures() -> None:
    def entry(image: int, x: float, score: float = 0.9) -> dict[str, object]:
        return {"image_id": image, "category_id": 1, "score": score, "bbox": [x, 0, 10, 10]}

    first = [entry(1, 0), entry(2, 0), entry(3, 0), entry(3, 50), entry(4, 0, 0.2)]
    second = [entry(1, 0), entry(2, 30), entry(3, 80)]
    assert most_different(first, second, 5) == [3, 2]
    assert most_different(first, second, 1) == [3]


def test_command(
    small_checkpoint_path: Path,
    brief_model_path: Path,
    night: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The eager checkpoint, its file, and the file in FP16."""
    half = tmp_path / "half <b>.onnx"
    onnx.save(Converter(brief_model_path).half("fp16")[0], half)
    words = ["compare", small_checkpoint_path, brief_model_path, half, "-o", tmp_path / "out", "--json", "--images"]
    labels = ["--annotations", night / "annotations.json"]
    assert main([*map(str, words), str(night / "images"), *map(str, labels)]) == 0
    facts = json.loads(capsys.readouterr().out)
    eager, plain, _ = (model["overall"] for model in facts["models"])
    assert eager["box_ap"] == pytest.approx(plain["box_ap"], abs=0.05)
    assert facts["truth"] == "labels"
    assert facts["agreement"][0]["pairs"] == facts["agreement"][0]["first"] == facts["agreement"][0]["second"]
    assert facts["taps"][half.name]["first_drift"] is None
    assert 0 < facts["taps"][half.name]["errors"]["P2"]["relative"] < 0.05
    page = (tmp_path / "out" / "index.html").read_text()
    assert "half &lt;b&gt;.onnx" in page
    assert "half <b>" not in page
    assert "http" not in page.replace("https://", "http")  # works offline
    assert json.loads((tmp_path / "out" / "comparison.json").read_text()) == facts
    assert (
        main(["compare", str(brief_model_path), str(half), "--images", str(night / "images"), "-o", str(tmp_path)]) == 0
    )
    assert "look at" in capsys.readouterr().out


def test_refusals(
    small_checkpoint_path: Path, brief_model_path: Path, night: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    half = tmp_path / "half.onnx"
    onnx.save(onnx.load(brief_model_path), half)
    folder = tmp_path / "half.calibration"
    words = ["convert", brief_model_path, "--precision", "int8", "-o", half, "--images", night / "images"]
    assert main([*map(str, words), "--method", "max", "--trial-pictures", "1"]) == 0
    assert (folder / "ranges.npz").is_file()
    capsys.readouterr()
    common = ["--images", night / "images", "-o", tmp_path / "out"]
    for models, more, message in (
        ([brief_model_path], [], "expected a reference and at least one other"),
        ([small_checkpoint_path, small_checkpoint_path], [], "only checkpoints were given"),
        ([brief_model_path, half], ["--count", "0"], "--count is 0; expected 1 or more"),
        ([brief_model_path, half], ["--show", "-1"], "--show is -1; expected 0 or more"),
        ([brief_model_path, half], ["--tap-pictures", "-1"], "--tap-pictures is -1; expected 0 or more"),
        ([brief_model_path, night / "images" / "000000.png"], [], "is a picture; expected weights"),
        ([brief_model_path, "sampel"], [], "does not exist; expected a file"),
        ([small_checkpoint_path, brief_model_path], ["--weights", "ema"], "no weights named 'ema'"),
        ([small_checkpoint_path, brief_model_path], ["--set", "mode"], "expected NAME=VALUE"),
        (
            [brief_model_path, half],
            ["--annotations", night / "annotations.json"],
            "is among those that half was calibrated on",
        ),
    ):
        assert main([str(word) for word in ("compare", *models, *common, *more)]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out" / "index.html").exists()
