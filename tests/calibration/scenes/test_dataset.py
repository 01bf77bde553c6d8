import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from pycocotools.coco import COCO

from wnlb.calibration.labels.labels import Image, Labels
from wnlb.calibration.labels.pictures import LabelledPictures
from wnlb.calibration.labels.reader import read_labels
from wnlb.calibration.scenes.darkened_dataset import write_darkened
from wnlb.calibration.scenes.dataset import write_scenes
from wnlb.calibration.scenes.scene import make_scene
from wnlb.runtime.cli import main
from wnlb.runtime.errors import WnlbError


@pytest.fixture(scope="module")
def night(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("night")
    write_scenes(folder, 9, 96, 128, [300, 30], seed=5, workers=2)
    return folder


def test_scenes_are_the_same_with_any_number_of_workers(night: Path, tmp_path: Path) -> None:
    write_scenes(tmp_path, 9, 96, 128, [300, 30], seed=5, workers=1)
    for path in night.rglob("*.*"):
        assert path.read_bytes() == (tmp_path / path.relative_to(night)).read_bytes(), path.name


def test_annotations_are_the_masks_of_the_scenes(night: Path, capsys: pytest.CaptureFixture[str]) -> None:
    coco = COCO(str(night / "annotations.json"))
    assert [image["darkness"] for image in coco.dataset["images"]] == [300, 30] * 4 + [300]
    assert len({entry["id"] for entry in coco.dataset["annotations"]}) == len(coco.dataset["annotations"])
    for image in coco.dataset["images"]:
        scene = make_scene(5, image["id"] - 1, 96, 128)
        entries = coco.loadAnns(coco.getAnnIds(image["id"]))
        assert [entry["category_id"] for entry in entries] == [o.label for o in scene.objects]
        for entry, item in zip(entries, scene.objects, strict=True):
            assert np.array_equal(coco.annToMask(entry), item.mask)
            assert entry["area"] == item.mask.sum()
            rows, columns = np.nonzero(item.mask)
            box = [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]
            assert entry["bbox"] == box
        clean = cv2.imread(str(night / "clean" / image["file_name"]))[..., ::-1]
        assert np.array_equal(clean, scene.clean)


def darken(annotations: Path, images: Path, output: Path, darkness: list[float]) -> list[str]:
    labels = read_labels(annotations)
    return write_darkened(labels, LabelledPictures(labels, images), output, darkness, seed=1)


def test_darkened_sets_keep_annotations_and_get_darker(night: Path, tmp_path: Path) -> None:
    failures = darken(night / "annotations.json", night / "clean", tmp_path, [1000, 30])
    assert failures == []
    original = json.loads((night / "annotations.json").read_text())
    means = []
    for level in ("1000", "30"):
        document = json.loads((tmp_path / level / "annotations.json").read_text())
        assert document["annotations"] == original["annotations"]
        assert {image["darkness"] for image in document["images"]} == {float(level)}
        pictures = [cv2.imread(str(tmp_path / level / "images" / i["file_name"])) for i in document["images"]]
        means.append(np.mean(pictures))
    clean = np.mean([cv2.imread(str(path)) for path in (night / "clean").iterdir()])
    assert clean > means[0] > means[1]
    assert clean == pytest.approx(means[0], rel=0.05)  # 1000 electrons are full exposure


def test_a_picture_that_cannot_be_read_is_left_out(night: Path, tmp_path: Path) -> None:
    for path in (night / "clean").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes() if path.stem != "000004" else b"")
    failures = darken(night / "annotations.json", tmp_path, tmp_path / "dark", [30])
    assert len(failures) == 1
    assert "000004.png is empty" in failures[0]
    document = json.loads((tmp_path / "dark" / "30" / "annotations.json").read_text())
    assert len(document["images"]) == 8
    assert all(entry["image_id"] != 5 for entry in document["annotations"])


def test_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    night, dark = tmp_path / "night", tmp_path / "dark"
    assert main(["scenes", "-o", str(night), "--count", "2", "--size", "64x96", "--darkness", "50"]) == 0
    assert "2 scenes" in capsys.readouterr().out
    source = ["--annotations", str(night / "annotations.json"), "--images", str(night / "clean")]
    assert main(["darken", *source, "-o", str(dark), "--darkness", "200,20", "--bits", "16"]) == 0
    assert cv2.imread(str(dark / "20" / "images" / "000001.png"), cv2.IMREAD_UNCHANGED).dtype == np.uint16
    (night / "clean" / "000001.png").unlink()
    assert main(["darken", *source, "-o", str(dark), "--darkness", "200"]) == 3
    for bad in ("0", "a", "20,20", "inf", ""):
        assert main(["scenes", "-o", str(night), "--darkness", bad]) == 2
        assert capsys.readouterr().err.splitlines()[-1].startswith("wnlb scenes: error: darkness is")
    assert main(["scenes", "-o", str(night), "--count", "0"]) == 2
    assert main(["scenes", "-o", str(night), "--size", "10x10"]) == 2
    assert main(["scenes", "-o", str(night), "--count", "9", "--workers", "-1"]) == 2
    assert main(["scenes", "-o", str(night), "--seed", "-1"]) == 2
    assert main(["darken", *source, "-o", str(dark), "--seed", "-1"]) == 2


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["../a.png"], "leaves its folder"),
        (["/tmp/a.png"], "leaves its folder"),
        (["b\\\\..\\\\..\\\\a.png"], "leaves its folder"),
        (["."], "leaves its folder"),
        (["a.jpg", "a.png"], "would become a"),
    ],
)
def test_darkening_writes_only_where_it_should(tmp_path: Path, names: list[str], said: str) -> None:
    labels = Labels(tuple(Image(i, name, 4, 4) for i, name in enumerate(names, 1)), (), ())
    with pytest.raises(WnlbError, match=said):
        write_darkened(labels, LabelledPictures(labels, tmp_path), tmp_path / "dark", [30], seed=0)
    assert not (tmp_path / "dark").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--size", "99999x99999"], "expected sizes from 64 to 8192"),
        (["--darkness", "1e300"], "expected different numbers of photo-electrons from 0.1 to 100000"),
        (["--darkness", "1e-300"], "expected different numbers of photo-electrons from 0.1 to 100000"),
        (["--darkness", "99999.91,99999.92"], "expected different numbers"),  # one folder's name
        (["--frames", "5"], "--frames is of videos; give --video too"),
        (["--fps", "5"], "--fps is of videos; give --video too"),
    ],
)
def test_what_makes_no_scene_is_refused_before_a_folder_is_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    assert main(["scenes", "-o", str(tmp_path / "night"), "--count", "1", *words]) == 2
    told = capsys.readouterr().err
    assert said in told
    assert told.count("\n") == 1
    assert not (tmp_path / "night").exists()


def test_a_set_is_not_put_among_pictures_of_another(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["scenes", "-o", str(tmp_path), "--size", "64x64", "--workers", "1", "--darkness", "30", "--count"]
    assert main([*words, "2"]) == 0
    labels = (tmp_path / "annotations.json").read_bytes()
    assert main([*words, "1"]) == 2
    assert "images holds 1 file(s) of something else (the first: 000001.png)" in capsys.readouterr().err
    assert main([*words[:3], "--video", "--frames", "1", *words[3:], "1"]) == 2
    dark = ["darken", "--annotations", str(tmp_path / "annotations.json"), "--images", str(tmp_path / "images")]
    (tmp_path / "dark" / "30" / "images").mkdir(parents=True)
    (tmp_path / "dark" / "30" / "images" / "mine.jpg").touch()
    assert main([*dark, "-o", str(tmp_path / "dark"), "--darkness", "300,30"]) == 2
    assert "the first: mine.jpg" in capsys.readouterr().err
    assert not (tmp_path / "dark" / "300").exists()
    assert (tmp_path / "annotations.json").read_bytes() == labels
