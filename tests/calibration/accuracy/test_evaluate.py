import json
from argparse import Namespace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from coco_files import labels_of
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from wnlb.calibration.accuracy.classes import category_ids
from wnlb.calibration.accuracy.command import _evenly_taken
from wnlb.calibration.accuracy.evaluate import evaluate
from wnlb.calibration.accuracy.score import agreement, score
from wnlb.calibration.labels.reader import read_labels
from wnlb.calibration.scenes.dataset import write_scenes
from wnlb.calibration.scenes.writing import mask_entry
from wnlb.runtime.cli import main
from wnlb.runtime.errors import WnlbError
from wnlb.runtime.predictor import Predictor


def rectangle(x: int, y: int, w: int, h: int) -> dict[str, Any]:
    mask = np.zeros((100, 100), bool)
    mask[y : y + h, x : x + w] = True
    return mask_entry(mask)


def planted() -> dict[str, Any]:
    """Two images, two classes, three objects of the first class and one of the second."""
    objects = [(1, 1, (0, 0, 10, 10)), (1, 1, (50, 0, 10, 10)), (2, 1, (0, 0, 10, 10)), (2, 2, (30, 30, 20, 20))]
    return {
        "images": [{"id": i, "file_name": f"{i}.png", "height": 100, "width": 100} for i in (1, 2)],
        "categories": [{"id": 1, "name": "car"}, {"id": 2, "name": "bus"}],
        "annotations": [
            {"id": n, "image_id": image, "category_id": label, "iscrowd": 0, **rectangle(*where)}
            for n, (image, label, where) in enumerate(objects, 1)
        ],
    }


def result(image: int, label: int, where: tuple[int, int, int, int], confidence: float) -> dict[str, Any]:
    return {"image_id": image, "category_id": label, "score": confidence, **rectangle(*where)}


def test_ap_computed_by_hand() -> None:
    results = [
        result(1, 1, (0, 0, 10, 10), 0.9),  # right
        result(1, 1, (80, 80, 10, 10), 0.8),  # nothing is there
        result(2, 1, (0, 0, 10, 8), 0.7),  # IoU 0.8: right up to a threshold of 0.8
        result(2, 2, (30, 30, 20, 20), 0.6),  # right
    ]
    found = score(labels_of(planted()), results, {"0-0.1": [1], "0.1-1": [2]}, "m")
    # Car at IoU 0.5: precision 1 up to recall 1/3, then 2/3 up to recall 2/3: 34 and 33 of the 101 points of recall.
    ap50 = 100 * (34 * 1 + 33 * 2 / 3) / 101
    assert found.overall.mask_ap50 == pytest.approx((ap50 + 100) / 2, abs=1e-6)
    # At thresholds 0.85, 0.9 and 0.95 the third does not count. (At 0.8 it does: IoU is 0.8 exactly.)
    strict = 100 * 34 / 101
    assert found.by_class["car"][1] == pytest.approx((7 * ap50 + 3 * strict) / 10, abs=1e-6)
    assert found.by_class["bus"] == pytest.approx((100, 100))
    assert found.by_darkness["0-0.1"].box_ap50 == pytest.approx(100 * 51 / 101)
    assert found.by_darkness["0-0.1"].objects == 2
    assert found.overall.objects == 4


def test_perfect_and_empty_results() -> None:
    truth = planted()
    perfect = [{**entry, "score": 0.9} for entry in truth["annotations"]]
    labels = labels_of(truth)
    assert score(labels, perfect, {}, "m").overall.mask_ap == pytest.approx(100)
    assert score(labels, [], {}, "m").overall.mask_ap == 0
    assert score(labels, [], {}, "m", masks=False).overall.mask_ap is None
    boxes_only = [{k: v for k, v in entry.items() if k != "segmentation"} for entry in perfect]
    found = score(labels, boxes_only, {}, "m").overall
    assert (found.box_ap, found.mask_ap) == (pytest.approx(100), None)


@pytest.fixture(scope="module")
def night(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("night")
    write_scenes(folder, 6, 64, 96, [1000, 10], seed=2, workers=1)
    return folder


def test_equals_the_library_called_directly(
    night: Path, brief_model_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = read_labels(night / "annotations.json")
    with Predictor(brief_model_path) as predictor:
        found = evaluate(predictor, labels, night / "images", "small")
    assert len(found.results) > 50
    truth = COCO(str(night / "annotations.json"))
    (tmp_path / "results.json").write_text(json.dumps(found.results))
    results = truth.loadRes(str(tmp_path / "results.json"))
    for kind, figures in (
        ("bbox", (found.overall.box_ap, found.overall.box_ap50, found.overall.box_ap75)),
        ("segm", (found.overall.mask_ap, found.overall.mask_ap50, found.overall.mask_ap75)),
    ):
        table = COCOeval(truth, results, kind)
        table.evaluate()
        table.accumulate()
        table.summarize()
        np.testing.assert_allclose(figures, 100 * table.stats[:3], atol=1e-9)
    assert sum(accuracy.images for accuracy in found.by_darkness.values()) == 6
    assert len(found.by_darkness) > 1


def test_agreement_counts_pairs_of_one_class_and_shape() -> None:
    first = [result(1, 1, (0, 0, 20, 20), 0.9), result(1, 1, (50, 50, 20, 20), 0.8), result(2, 2, (0, 0, 9, 9), 0.9)]
    assert agreement(first, first) == (3, 3, 3)
    other = [result(1, 1, (0, 0, 20, 19), 0.6), result(1, 2, (50, 50, 20, 20), 0.8), result(2, 2, (0, 0, 9, 9), 0.3)]
    assert agreement(first, other) == (1, 3, 2)  # IoU 0.95; another class; below 0.5
    twice = [first[0], first[0]]
    assert agreement(first[:1], twice) == (1, 1, 2)
    assert agreement([], first) == (0, 0, 3)


def test_classes_are_matched_by_name_whatever_the_ids() -> None:
    document = planted()
    document["categories"] = [{"id": 1, "name": "Bicycle"}, {"id": 2, "name": "chair "}, {"id": 0, "name": "objects"}]
    labels = labels_of(document)
    assert category_ids(("chair", "lamp", "bicycle "), labels) == [2, None, 1]  # "objects" has none: it does not block
    with pytest.raises(WnlbError, match=r"does not know 1 of 3 categories \(chair\)"):
        category_ids(("bicycle",), labels)


def test_lis_in_its_own_folders_names_and_ids(tmp_path: Path, brief_model_path: Path) -> None:
    """Folders and file names as its page lists them, Pascal VOC's class names, category ids from 0."""
    write_scenes(tmp_path / "made", 2, 64, 96, (300.0,), seed=11)
    document = json.loads((tmp_path / "made" / "annotations.json").read_text())
    pictures = tmp_path / "LIS" / "RGB-dark" / "JPEGImages"
    for folder in (pictures, tmp_path / "LIS" / "annotations"):
        folder.mkdir(parents=True)
    for image, name in zip(document["images"], ("2.JPG", "4.JPG"), strict=True):
        picture = cv2.imread(str(tmp_path / "made" / "images" / image["file_name"]))
        (pictures / name).write_bytes(cv2.imencode(".jpg", picture)[1].tobytes())
        image["file_name"] = name
    voc = ("bicycle", "chair", "diningtable", "bottle", "motorbike", "car", "tvmonitor", "bus")
    document["categories"] = [{"id": i, "name": name} for i, name in enumerate(voc)]
    for entry in document["annotations"]:
        entry["category_id"] -= 1
    path = tmp_path / "LIS" / "annotations" / "lis_coco_JPG_test+1.json"
    path.write_text(json.dumps(document))
    with Predictor(brief_model_path) as predictor:
        found = evaluate(predictor, read_labels(path), pictures, "m")
    assert found.overall.images == 2
    assert set(found.by_class) == set(voc)
    assert {entry["category_id"] for entry in found.results} <= set(range(8))
    labels = read_labels(path)
    assert category_ids((*voc[:2], "dining table", "bottle", "motorcycle", "car", "tv", "bus"), labels) == [*range(8)]


def test_crowds_are_ignored_not_missed() -> None:
    truth = planted()
    truth["annotations"][1]["iscrowd"] = 1
    results = [{**entry, "score": 0.9} for entry in truth["annotations"] if not entry["iscrowd"]]
    found = score(labels_of(truth), results, {}, "m").overall
    assert (found.mask_ap, found.objects) == (pytest.approx(100), 3)


def test_command(night: Path, brief_model_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--annotations", str(night / "annotations.json"), "--images", str(night / "images")]
    model = str(brief_model_path)
    assert main(["evaluate", model, "--baseline", model, *arguments, "-o", str(tmp_path / "r"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["models"][0] == told["models"][1]
    assert told["agreement"]["pairs"] == told["agreement"]["first"] == told["agreement"]["second"]
    assert "| difference" in (tmp_path / "r" / "report.md").read_text()
    assert cv2.imread(str(tmp_path / "r" / "darkness.png")).shape[0] > 200
    (tmp_path / "empty").mkdir()
    arguments[-1] = str(tmp_path / "empty")
    assert main(["evaluate", model, *arguments]) == 2
    assert "6 of 6 pictures are not in" in capsys.readouterr().err


def test_command_without_labels(
    night: Path, brief_model_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A model's own sure detections are the truth, and it finds them all."""
    model, images = str(brief_model_path), ["--images", str(night / "images")]
    assert main(["evaluate", model, "--baseline", model, *images, "--count", "2", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["truth"] == "reference"
    (first,) = told["models"]
    assert told["agreement"]["pairs"] == told["agreement"]["first"] == told["agreement"]["second"]
    assert (first["overall"]["images"], first["overall"]["objects"]) == (2, told["agreement"]["first"])
    assert first["overall"]["box_ap"] > 99
    assert main(["evaluate", model, "--baseline", model, *images, "--count", "2"]) == 0
    assert "objects that brief.onnx finds with a score of 0.5 or more" in capsys.readouterr().out
    assert main(["evaluate", model, *images]) == 2
    assert "neither --annotations nor --baseline" in capsys.readouterr().err
    assert [frame.name for frame in _evenly_taken(Namespace(images=images[1], count=3))] == [
        f"{number:06d}.png" for number in (0, 2, 5)
    ]
    assert main(["evaluate", model, "--baseline", model, *images, "--count", "0"]) == 2
    assert "--count is 0; expected 1 or more" in capsys.readouterr().err
