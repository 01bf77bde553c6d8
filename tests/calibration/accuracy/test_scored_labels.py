"""Labels as people write them, scored: the figures are those of the clean file, and of pycocotools on its own."""

from __future__ import annotations

import contextlib
import io
import json
import random
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
from coco_files import HEIGHT, OBJECTS, WIDTH, PlantedPredictor, damaged, document, labels_of, write_pictures
from numpy.typing import NDArray
from PIL import Image as PillowImage
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from wnlb.calibration.accuracy.evaluate import evaluate
from wnlb.calibration.accuracy.judge import Judge
from wnlb.calibration.accuracy.report import coco_results, markdown
from wnlb.calibration.accuracy.score import STATS, Accuracy, Evaluation
from wnlb.calibration.labels.pictures import LabelledPictures
from wnlb.calibration.labels.reader import read_labels
from wnlb.calibration.scenes.darkened_dataset import write_darkened
from wnlb.calibration.scenes.dataset import write_scenes
from wnlb.runtime.cli import main
from wnlb.runtime.detections import Detections, Mask
from wnlb.runtime.errors import WnlbError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("labelled")
    write_pictures(folder)
    return folder


def evaluated(content: Any, folder: Path, predictor: Any = None) -> Evaluation:
    path = folder / "a.json"
    path.write_text(json.dumps(content))
    return evaluate(predictor or PlantedPredictor(), read_labels(path), folder, "m")


def stats_of(annotations: Path, results: Path, kind: str, images: list[int] | None = None) -> NDArray[np.float64]:
    """pycocotools' twelve figures of two files, of all images or these, in percent, NaN for its -1."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(annotations))
        table = COCOeval(truth, truth.loadRes(str(results)), kind)
        table.params.imgIds = images or table.params.imgIds
        table.evaluate()
        table.accumulate()
        table.summarize()
    return np.where(table.stats > -1, 100 * table.stats, np.nan)


def figures(accuracy: Accuracy, kind: str) -> list[float]:
    return [getattr(accuracy, f"{kind}_{stat}") for stat in STATS]


def test_the_written_results_give_the_same_figures_in_pycocotools(
    brief_model_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also by size and of recall; annotations of three sizes."""
    write_scenes(tmp_path, 6, 160, 240, [1000, 10], seed=2, workers=1)
    annotations = tmp_path / "annotations.json"
    words = ["evaluate", str(brief_model_path), "--annotations", str(annotations), "--images", str(tmp_path / "images")]
    assert main([*words, "--baseline", str(brief_model_path), "-o", str(tmp_path / "report"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["notes"] == []
    results = json.loads((tmp_path / "report" / "results.json").read_text())
    assert {tuple(sorted(entry)) for entry in results} == {
        ("bbox", "category_id", "image_id", "score", "segmentation"),
    }
    for name in ("results", "baseline"):
        for word, kind in (("bbox", "box"), ("segm", "mask")):
            own = [told["models"][0]["overall"][f"{kind}_{stat}"] for stat in STATS]
            expected = stats_of(annotations, tmp_path / "report" / f"{name}.json", word)
            np.testing.assert_allclose(np.array(own, float), expected, atol=1e-9)
    report = (tmp_path / "report" / "report.md").read_text()
    assert "AP small" in report
    assert "AR 100" in report


def test_figures_of_the_planted_model_are_those_of_pycocotools(folder: Path, tmp_path: Path) -> None:
    found = evaluated(document(), folder)
    (tmp_path / "truth.json").write_text(json.dumps(document()))
    (tmp_path / "results.json").write_text(json.dumps(coco_results(found)))
    for word, kind in (("bbox", "box"), ("segm", "mask")):
        expected = stats_of(tmp_path / "truth.json", tmp_path / "results.json", word)
        np.testing.assert_allclose(figures(found.overall, kind), expected, atol=1e-9)
        for image, own in enumerate(found.by_darkness.values(), 1):  # one picture each
            expected = stats_of(tmp_path / "truth.json", tmp_path / "results.json", word, [image])
            np.testing.assert_allclose(figures(own, kind), expected, atol=1e-9)
    assert len(found.by_darkness) == 3
    assert 80 < found.overall.box_ap < 95


def ids_anew_in_each_picture(content: dict[str, Any]) -> None:
    counts: Counter[int] = Counter()
    for entry in content["annotations"]:
        counts[entry["image_id"]] += 1
        entry["id"] = counts[entry["image_id"]]


def no_ids(content: dict[str, Any]) -> None:
    for entry in content["annotations"]:
        del entry["id"]


def flat_polygons(content: dict[str, Any]) -> None:
    for entry in content["annotations"]:
        if isinstance(entry["segmentation"], list):
            entry["segmentation"] = entry["segmentation"][0]


def ids_of_many_kinds(content: dict[str, Any]) -> None:
    """Mixed, so that pycocotools' own np.unique would make texts of all."""
    names = {1: "one", 2: 10**30, 3: 3}
    for image in content["images"]:
        image["id"] = names[image["id"]]
    for entry in content["annotations"]:
        entry["image_id"] = names[entry["image_id"]]


def names_that_differ_in_case(content: dict[str, Any]) -> None:
    """One class under three names, as sets put together have it."""
    content["categories"] += [{"id": 3, "name": "Car"}, {"id": 4, "name": " CAR "}]
    for entry, identifier in zip(content["annotations"], (1, 2, 3, 4, 2), strict=True):
        entry["category_id"] = identifier


def unused_categories(content: dict[str, Any]) -> None:
    content["categories"] = [{"id": 0, "name": "objects"}, *content["categories"], {"id": 9, "name": "Bus"}]


@pytest.mark.parametrize(
    "change",
    [
        *(ids_anew_in_each_picture, no_ids, flat_polygons, ids_of_many_kinds),
        *(names_that_differ_in_case, unused_categories),
    ],
)
def test_what_people_write_scores_as_the_clean_file(folder: Path, change: Any) -> None:
    clean, content = evaluated(document(), folder), document()
    change(content)
    assert repr(evaluated(content, folder).overall) == repr(clean.overall)  # NaN equals NaN
    judge = Judge.on_labels(folder / "a.json", folder)
    assert bool(judge.notes) == (change not in (unused_categories, ids_of_many_kinds))
    assert judge.measure is not None


def test_categories_that_are_one_class_are_told(folder: Path) -> None:
    content = document()
    names_that_differ_in_case(content)
    (folder / "a.json").write_text(json.dumps(content))
    (note,) = [n for n in Judge.on_labels(folder / "a.json", folder).notes if "one class" in n]
    assert "'car' (id 1) and 'Car' (id 3) and 'CAR' (id 4) are one class to a model" in note


@pytest.mark.parametrize("without", [(0, 1, 2, 3, 4), (2,)])
def test_labels_without_masks_serve_for_box_ap(folder: Path, without: tuple[int, ...]) -> None:
    clean, content = evaluated(document(), folder), document()
    for i in without:
        del content["annotations"][i]["segmentation"]
    found = evaluated(content, folder)
    assert figures(found.overall, "mask") == [None] * 12
    assert repr(figures(found.overall, "box")) == repr(figures(clean.overall, "box"))
    assert found.by_class["car"] == (clean.by_class["car"][0], None)
    assert "m, mask" not in markdown([found], None)


class WithoutMasks(PlantedPredictor):
    """As a model of ``--masks none``."""

    def __call__(self, picture: NDArray[np.uint8]) -> Detections:
        found = super().__call__(picture)
        return Detections(found.height, found.width, found.boxes, found.scores, found.labels, None)


def test_models_without_masks_are_scored_by_boxes(folder: Path) -> None:
    content = document()
    for entry in content["annotations"]:
        entry["segmentation"] = []
    found, clean = evaluated(content, folder, WithoutMasks()), evaluated(document(), folder)
    assert (found.overall.box_ap, found.overall.mask_ap) == (clean.overall.box_ap, None)
    report = markdown([clean, found], None)
    assert "difference" in report
    assert all("segmentation" not in entry for entry in coco_results(found))


class FindsWhatIsBright:
    """One class; a bright rectangle is an object."""

    contract = SimpleNamespace(class_names=("lamp",), batch=1)

    def abreast(self) -> list[FindsWhatIsBright]:
        return [self]

    def predict_batch(self, pictures: list[NDArray[np.uint8]]) -> list[Detections]:
        return [self(picture) for picture in pictures]

    def __call__(self, picture: NDArray[np.uint8]) -> Detections:
        _, _, stats, _ = cv2.connectedComponentsWithStats((picture[..., 0] > 128).astype(np.uint8))
        boxes = [(int(x), int(y), int(w), int(h)) for x, y, w, h, _ in stats[1:]]
        corners = np.array([(x, y, x + w, y + h) for x, y, w, h in boxes], np.float32).reshape(-1, 4)
        masks = tuple(Mask(x, y, np.ones((h, w), bool)) for x, y, w, h in boxes)
        scores, labels = np.full(len(boxes), 0.9, np.float32), np.ones(len(boxes), np.int32)
        return Detections(*picture.shape[:2], corners, scores, labels, masks)


def bright_set(folder: Path, size: tuple[int, int], turn: int, of_what_is_seen: bool) -> Path:
    """One picture with a lamp, a PNG that EXIF turns, and its labels in one of both frames."""
    stored = np.zeros((*size, 3), np.uint8)
    stored[4:10, 3:15] = 255
    exif = PillowImage.Exif()
    exif[0x0112] = turn
    PillowImage.fromarray(stored).save(folder / "lamp.png", exif=exif)
    labelled = cv2.imread(str(folder / "lamp.png")) if of_what_is_seen else stored
    y, x = np.argwhere(labelled[..., 0] > 128).min(0).tolist()
    bottom, right = (np.argwhere(labelled[..., 0] > 128).max(0) + 1).tolist()
    height, width = labelled.shape[:2]
    entry = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [x, y, right - x, bottom - y], "iscrowd": 0}
    entry["segmentation"] = [[x, y, right, y, right, bottom, x, bottom]]
    content = {
        "images": [{"id": 1, "file_name": "lamp.png", "height": height, "width": width}],
        "categories": [{"id": 1, "name": "lamp"}],
        "annotations": [entry],
    }
    (folder / "a.json").write_text(json.dumps(content))
    return folder / "a.json"


@pytest.mark.parametrize(
    ("size", "turn", "of_what_is_seen"),
    [((24, 40), turn, frame) for turn in (5, 6, 7, 8) for frame in (False, True)]
    + [((40, 40), turn, False) for turn in (2, 3, 4, 5, 6, 7, 8)]
    + [((24, 40), turn, False) for turn in (1, 2, 3, 4)],
)
def test_turned_pictures_fit_their_labels(
    tmp_path: Path, size: tuple[int, int], turn: int, of_what_is_seen: bool
) -> None:
    """Evaluated and darkened: what is found is where the labels say, in the dark set too."""
    labels = read_labels(bright_set(tmp_path, size, turn, of_what_is_seen))
    found = evaluate(FindsWhatIsBright(), labels, tmp_path, "m")  # type: ignore[arg-type]
    assert found.overall.mask_ap == pytest.approx(100)
    assert write_darkened(labels, LabelledPictures(labels, tmp_path), tmp_path / "dark", [1000], 0, workers=1) == []
    dark = read_labels(tmp_path / "dark" / "1000" / "annotations.json")
    picture = cv2.imread(str(tmp_path / "dark" / "1000" / "images" / "lamp.png"))
    assert picture.shape[:2] == (dark.images[0].height, dark.images[0].width)
    found = evaluate(FindsWhatIsBright(), dark, tmp_path / "dark" / "1000" / "images", "m")  # type: ignore[arg-type]
    assert found.overall.box_ap == pytest.approx(100)


def test_pictures_of_another_size_get_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = json.loads(bright_set(tmp_path, (24, 40), 1, False).read_text())
    content["images"][0]["height"] = 30
    (tmp_path / "a.json").write_text(json.dumps(content))
    with pytest.raises(WnlbError, match=r"lamp\.png is 40x24; its annotations say 40x30"):
        evaluate(FindsWhatIsBright(), read_labels(tmp_path / "a.json"), tmp_path, "m")  # type: ignore[arg-type]
    words = ["darken", "--annotations", str(tmp_path / "a.json"), "--images", str(tmp_path)]
    assert main([*words, "-o", str(tmp_path / "dark"), "--darkness", "1000"]) == 2
    assert "its annotations say 40x30" in capsys.readouterr().err


def test_sizes_by_which_objects_are_small_are_those_of_the_file(folder: Path) -> None:
    """COCO's ranges: up to 32x32 pixels, up to 96x96. The objects are small; an area in the file says otherwise."""
    content = document()
    for image in content["images"]:
        image.update(height=4 * HEIGHT, width=4 * WIDTH)
    for entry in content["annotations"]:
        entry["segmentation"] = None
    content["annotations"][0]["area"] = 50 * 50
    content["annotations"][1]["area"] = 100 * 100
    for i in (1, 2, 3):
        cv2.imwrite(str(folder / f"large{i}.png"), np.full((4 * HEIGHT, 4 * WIDTH, 3), 40 * (i - 1), np.uint8))
        content["images"][i - 1]["file_name"] = f"large{i}.png"
    overall = evaluated(content, folder).overall
    assert not np.isnan([overall.box_ap_small, overall.box_ap_medium, overall.box_ap_large]).any()
    for entry in content["annotations"]:
        entry["area"] = None
    overall = evaluated(content, folder).overall
    assert np.isnan([overall.box_ap_medium, overall.box_ap_large]).all()


def test_damaged_label_files_give_one_line_or_the_right_figures(folder: Path) -> None:
    """400 files with one to three values changed. Silently the figures change only where objects are gone or moved."""
    clean, dice = evaluated(document(), folder).overall, random.Random(16)
    counts: Counter[str] = Counter()
    for _ in range(400):
        content = damaged(document(), dice)
        outcome = _outcome(content, folder, clean)
        counts[outcome] += 1
        assert outcome != "others" or _is_moved(content), content
    assert min(counts[outcome] for outcome in ("refused", "told", "the same")) > 10, counts


def _outcome(content: Any, folder: Path, clean: Accuracy) -> str:
    try:
        found = evaluated(content, folder).overall
    except WnlbError as error:
        return "refused" if "\n" not in str(error) and len(str(error)) < 1000 else f"too long: {error}"
    if Judge.on_labels(folder / "a.json", folder).notes:
        return "told"
    return "the same" if np.allclose(_aps(found), _aps(clean), rtol=0, atol=1e-9) else "others"


def test_what_was_read_is_written_and_read_the_same() -> None:
    """As ``darken`` carries labels over, repaired."""
    dice, repaired = random.Random(3), 0
    for _ in range(400):
        try:
            labels = labels_of(damaged(document(), dice))
        except WnlbError:
            continue
        again = labels_of(labels.document())
        assert (again.images, again.categories, again.annotations) == (
            labels.images,
            labels.categories,
            labels.annotations,
        )
        repaired += len(again.notes) < len(labels.notes)
    assert repaired > 10


def _aps(accuracy: Accuracy) -> tuple[float, float]:
    assert accuracy.mask_ap is not None
    return accuracy.box_ap, accuracy.mask_ap


def _is_moved(content: dict[str, Any]) -> bool:
    """Whether an object became another one, which no reader can know: its picture, class, place or crowd changed."""
    clean = document()["annotations"]
    read = ("image_id", "category_id", "bbox", "iscrowd", "segmentation")
    return [[e.get(key) for key in read] for e in clean] != [
        [e.get(key) for key in read] for e in content["annotations"]
    ]


def test_the_small_set_is_what_it_says() -> None:
    """Else the tests above would prove nothing."""
    assert sum(map(len, OBJECTS)) == len(document()["annotations"]) == 5
    assert {type(entry["segmentation"]) for entry in document()["annotations"]} == {list, dict}
    assert (HEIGHT, WIDTH) == (24, 32)
