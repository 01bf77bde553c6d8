"""``wnlb label`` on pictures whose labels are known, in every format."""

from __future__ import annotations

import csv
import json
import os
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
from pycocotools import mask as coco_mask

from wnlb.runtime.errors import WnlbError
from wnlb.runtime.labelling.inputs import blocks_of, find_inputs
from wnlb.runtime.labelling.job import check_same, read_job
from wnlb.runtime.source import VideoSource

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of pycocotools
BRIGHT = {"a.png": 255, "b/c.png": 153, "b/d.jpg": 102, "e.png": 0}  # lamp's scores 1, 0.6, 0.4, 0


@pytest.fixture
def night(tmp_path: Path, picture: Callable[..., Path]) -> str:
    for name, value in BRIGHT.items():
        picture(tmp_path / "night" / name, value)
    (tmp_path / "night" / "bad.png").write_bytes(b"")
    return f"{tmp_path}/night/**/*"


def images(folder: Path) -> list[str]:
    return [image["file_name"] for image in json.loads((folder / "detections.json").read_text())["images"]]


def shards(folder: Path) -> list[dict[str, Any]]:
    return [row for path in sorted((folder / "shards").iterdir()) for row in pq.read_table(path).to_pylist()]


def test_the_same_labels_as_predict_and_bad_pictures_are_rows(
    label: Any, wnlb_here: Any, planted_model_path: Path, night: str, tmp_path: Path
) -> None:
    ran = label(night, tmp_path / "out", "--block", "2")
    assert ran.code == 3
    assert ran.err == f"wnlb label: picture {tmp_path}/night/bad.png is empty (0 bytes)\n"
    assert ran.out.startswith(
        "4 pictures, 1 could not be read; labels: lamp 2, dark cat 1\ndetections.json, review.csv"
    )
    assert wnlb_here("predict", planted_model_path, night, "-o", tmp_path / "predicted").code == 3
    assert (tmp_path / "out/detections.json").read_text() == (tmp_path / "predicted/detections.json").read_text()
    assert [path.name for path in sorted((tmp_path / "out/shards").iterdir())] == [
        f"00000{i}.parquet" for i in range(3)
    ]
    rows = shards(tmp_path / "out")
    assert [(row["name"], row["height"], row["error"] is None) for row in rows] == [
        ("a.png", 32, True), ("b/c.png", 32, True), ("b/d.jpg", 32, True), ("bad.png", None, False), ("e.png", 32, True)
    ]  # fmt: skip
    assert [round(row["luminance"], 3) for row in rows if row["error"] is None] == [1, 0.319, 0.133, 0]
    assert [[found["score"] for found in row["objects"]] for row in rows] == [[1, 0.5], [0.6, 0.3], [0.4, 0.2], [], []]


def test_a_finished_job_is_written_anew_without_the_model(label: Any, inline: Any, night: str, tmp_path: Path) -> None:
    label(night, tmp_path / "out", "--min-score", "0.55")
    document = json.loads((tmp_path / "out/detections.json").read_text())
    assert [entry["score"] for entry in document["annotations"]] == [1, 0.6]
    ran = label(night, tmp_path / "out", "--min-score", "0.15", "--format", "parquet", "--quiet", "--review", "0")
    assert (ran.code, ran.out, inline.runs) == (3, "", 1)
    rows = pq.read_table(tmp_path / "out/detections.parquet").to_pylist()
    assert [len(row["objects"]) for row in rows] == [2, 2, 2, 0, 0]
    cat = rows[1]["objects"][1]
    assert cat["area"] == coco_mask.area({"size": [32, 48], "counts": cat.pop("rle")}) == cat.pop("area")
    assert cat == {"category_id": 2, "category": "dark cat", "score": 0.3, "bbox": [16, 0, 32, 32]}


def test_yolo_is_a_data_set_with_links_and_labelme_has_polygons(label: Any, night: str, tmp_path: Path) -> None:
    label(night, tmp_path / "out", "--format", "yolo,labelme", "--min-score", "0.15")
    out = tmp_path / "out"
    assert not (out / "detections.json").exists()
    assert [path.relative_to(out).as_posix() for path in sorted((out / "yolo/labels").rglob("*.txt"))] == [
        "yolo/labels/a.txt", "yolo/labels/b/c.txt", "yolo/labels/b/d.txt", "yolo/labels/e.txt"
    ]  # fmt: skip
    assert (out / "yolo/labels/e.txt").read_text() == ""
    lamp, cat = (line.split() for line in (out / "yolo/labels/b/c.txt").read_text().splitlines())
    assert (lamp[0], cat[0]) == ("0", "1")
    ((found, *_),) = [row["objects"] for row in shards(out) if row["name"] == "b/c.png"]
    x, y, w, h = coco_mask.toBbox({"size": [32, 48], "counts": found["rle"]})
    corners = (x + 0.5, y + 0.5), (x + w - 0.5, y + h - 0.5)  # centres of its outermost pixels
    points = np.array(lamp[1:], float).reshape(-1, 2) * (48, 32)
    np.testing.assert_allclose([points.min(0), points.max(0)], corners, atol=1e-4)
    assert (out / "yolo/images/b/d.jpg").samefile(tmp_path / "night/b/d.jpg")
    assert '  1: "dark cat"' in (out / "yolo/data.yaml").read_text()
    shown = json.loads((out / "labelme/b/c.json").read_text())
    assert (out / "labelme/b" / shown["imagePath"]).samefile(tmp_path / "night/b/c.png")
    assert (shown["imageHeight"], shown["imageWidth"]) == (32, 48)
    assert [(shape["label"], shape["shape_type"], shape["group_id"]) for shape in shown["shapes"]] == [
        ("lamp", "polygon", None), ("dark cat", "polygon", None)
    ]  # fmt: skip
    np.testing.assert_allclose(np.max(shown["shapes"][0]["points"], 0), corners[1])


def test_a_model_without_masks_gives_boxes(
    wnlb_here: Any, inline: Any, planted_model: Any, make_contract: Any, night: str, tmp_path: Path
) -> None:
    model = planted_model(tmp_path / "boxes.onnx", make_contract(masks="none"))
    out = tmp_path / "out"
    assert wnlb_here("label", model, night, "-o", out, "--format", "coco,yolo,labelme").code == 3
    assert "segmentation" not in json.loads((out / "detections.json").read_text())["annotations"][0]
    assert (out / "yolo/labels/b/c.txt").read_text() == "0 0.250000 0.500000 0.333333 0.500000\n"
    (shape,) = json.loads((out / "labelme/b/c.json").read_text())["shapes"]
    assert (shape["shape_type"], shape["points"]) == ("rectangle", [[4, 8], [20, 24]])


def test_videos_frame_by_frame_in_blocks(label: Any, tmp_path: Path, picture: Callable[..., Path]) -> None:
    """Also one that is shorter than it states, and one that cannot be opened."""
    for name, frames in (("drive.avi", 10), ("short.avi", 40)):
        (tmp_path / "in").mkdir(exist_ok=True)
        writer = cv2.VideoWriter(str(tmp_path / "in" / name), cv2.VideoWriter.fourcc(*"MJPG"), 10, (48, 32))
        for number in range(frames):
            writer.write(np.full((32, 48, 3), 25 * (number % 10), np.uint8))
        writer.release()
    data = (tmp_path / "in/short.avi").read_bytes()
    (tmp_path / "in/short.avi").write_bytes(data[: len(data) // 2])
    (tmp_path / "in/broken.mp4").write_bytes(b"no film")
    picture(tmp_path / "in/empty.png", 0)
    ran = label(f"{tmp_path}/in/*", tmp_path / "out", "--block", "4")
    assert ran.code == 3
    broken, short = ran.err.splitlines()
    assert broken.startswith(f"wnlb label: video {tmp_path}/in/broken.mp4 cannot be opened")
    assert short.startswith("wnlb label: video short ended after ")
    assert short.endswith(" of the 40 frames that its file states")
    names = images(tmp_path / "out")
    assert names[:11] == [*(f"drive_{number:06d}" for number in range(10)), "empty.png"]
    assert 12 < len(names) < 51
    scores = {row["name"]: row["objects"][0]["score"] if row["objects"] else 0 for row in shards(tmp_path / "out")}
    assert [round(scores[f"drive_{number:06d}"] * 255 / 25) for number in range(10)] == list(range(10))


def test_lists_coco_files_and_addresses(label: Any, night: str, tmp_path: Path) -> None:
    folder = tmp_path / "night"
    (tmp_path / "list.txt").write_text("night/b/d.jpg\nnight\\a.png\n")
    label(tmp_path / "list.txt", tmp_path / "1")
    assert images(tmp_path / "1") == ["a.png", "b/d.jpg"]
    (tmp_path / "coco.json").write_text(json.dumps({"images": [{"id": 9, "file_name": "b/d.jpg"}]}))
    label(tmp_path / "coco.json", tmp_path / "2", "--images", folder)
    assert images(tmp_path / "2") == ["b/d.jpg"]
    with zipfile.ZipFile(tmp_path / "night.zip", "w") as archive:
        for name in ("a.png", "b/d.jpg", "bad.png"):
            archive.write(folder / name, name)
    ran = label(f"zip://**/*.*::file://{tmp_path}/night.zip", tmp_path / "3", "--format", "coco,yolo")
    assert (ran.code, images(tmp_path / "3")) == (3, ["a.png", "b/d.jpg"])
    assert ran.err == "wnlb label: picture bad.png is empty (0 bytes)\n"
    assert not (tmp_path / "3/yolo/images").exists()
    rows = [shards(tmp_path / number) for number in "123"]
    assert rows[2][1] == rows[0][1] == rows[1][0]


def test_a_job_goes_on_from_another_working_folder(
    label: Any, night: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    label("night", "out", "--block", "1")
    (tmp_path / "out/shards/000000.parquet").unlink()
    monkeypatch.chdir(tmp_path / "night")
    ran = label("../night", "../out")
    assert ran.err == f"wnlb label: picture {tmp_path}/night/bad.png is empty (0 bytes)\n"
    assert images(tmp_path / "out") == ["a.png", "e.png"]


def test_what_came_later_is_told_and_what_is_gone_is_a_row(
    label: Any, night: str, picture: Callable[..., Path], tmp_path: Path
) -> None:
    label(night, tmp_path / "out", "--block", "1")
    before = shards(tmp_path / "out")
    for name in ("000001", "000004"):
        (tmp_path / "out/shards" / f"{name}.parquet").unlink()
    picture(tmp_path / "night/new.png", 9)
    (tmp_path / "night/e.png").unlink()
    ran = label(night, tmp_path / "out")
    later, bad, gone = ran.err.splitlines()
    assert "1 pictures came after this job began and are left out (the first: new.png)" in later
    assert "bad.png is empty" in bad
    assert gone == f"wnlb label: picture {tmp_path}/night/e.png cannot be read: No such file or directory"
    assert shards(tmp_path / "out")[:4] == before[:4]
    assert images(tmp_path / "out") == ["a.png", "b/c.png", "b/d.jpg"]


def test_review_has_what_two_models_disagree_on_first(
    label: Any, wnlb_here: Any, planted_model: Any, make_contract: Any, night: str, tmp_path: Path
) -> None:
    """The other model calls the lamp a cat and the cat a lamp: it agrees where there is nothing."""
    other = planted_model(tmp_path / "other.onnx", make_contract(batch=2, class_names=("dark cat", "lamp")))
    wnlb_here("label", other, night, "-o", tmp_path / "other")
    label(night, tmp_path / "out", "--against", tmp_path / "other", "--review", "2")
    with open(tmp_path / "out/review.csv") as file:
        rows = list(csv.DictReader(file))
    assert [(row["name"], row["labels"], row["disagreement"]) for row in rows] == [
        ("a.png", "2", "4"),
        ("b/c.png", "1", "2"),
    ]
    assert [row["doubt"] for row in rows] == ["0.50", "0.70"]
    assert rows[0]["luminance"] == "1.0000"
    same = label(night, tmp_path / "out", "--against", tmp_path / "out", "--review", "9")
    assert same.code == 3
    with open(tmp_path / "out/review.csv") as file:
        assert {row["disagreement"] for row in csv.DictReader(file)} == {"0"}


@pytest.mark.parametrize(
    ("package", "words", "extra"), [("ray", ["--address", "local"], "ray"), ("pyarrow", [], "label")]
)
def test_a_package_that_is_missing_is_one_line(
    label: Any, night: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str, words: list[str], extra: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    said = label(night, tmp_path / "out", *words).refused()
    assert "is not installed: pip install 'wnlb-deploy[" + extra in said
    assert not (tmp_path / "out/manifest.json").exists()


def test_refusals(
    label: Any, wnlb_here: Any, planted_model: Any, make_contract: Any, picture: Any, tmp_path: Path
) -> None:
    one = picture(tmp_path / "one/a.png", 9)
    picture(tmp_path / "two/a.png", 9)
    picture(tmp_path / "two/a.jpg", 9)
    (tmp_path / "coco.json").write_text('{"images": [{"file_name": "gone.png"}]}')
    (tmp_path / "odd.json").write_text('{"images": [{"file_name": 7}]}')
    (tmp_path / "empty").mkdir()
    os.mkfifo(tmp_path / "empty/pipe.png")
    for source, words, message in (
        ("", [], "source is empty"),
        (tmp_path / "empty", [], "holds no pictures"),
        (tmp_path / "gone", [], "does not exist"),
        ("0", [], "source 0 is a camera, which has no end; use 'wnlb run' with --jsonl"),
        (tmp_path / "coco.json", [], "gone.png is not in"),
        (tmp_path / "odd.json", [], "the file_name of an image is 7; expected text"),
        ("nothing://a", [], "source nothing://a cannot be opened: Protocol not known: nothing"),
        (f"file://{tmp_path}/one/*.jpg", [], "holds no pictures"),
        (tmp_path / "one", ["--images", tmp_path], "--images is for a list or a COCO file"),
        (tmp_path / "one", ["--min-score", "0.01"], "--min-score is 0.01; expected 0.05 to 1"),
        (tmp_path / "one", ["--format", "coco,voc"], "--format is voc; expected coco, parquet, yolo, labelme"),
        (tmp_path / "two", ["--format", "yolo"], "a.jpg and a.png would have one label file"),
        (tmp_path / "one", ["--workers", "-1"], "--workers is -1; expected 0 or more"),
        (tmp_path / "one", ["--bits", "20"], "bits are 20"),
        (tmp_path / "one", ["--against", tmp_path / "two"], "holds no finished labels"),
    ):
        assert message in label(source, tmp_path / "out", *words).refused(), (source, words)
        assert not (tmp_path / "out" / "manifest.json").exists()
    assert "expected .onnx or .engine" in wnlb_here("label", one, tmp_path / "one", "-o", tmp_path / "out").refused()
    assert label(tmp_path / "one", tmp_path / "out").code == 0
    for source, words, message in (
        (tmp_path / "two", [], "out holds labels of another job: source"),
        (tmp_path / "one", ["--bits", "12"], "bits 0 was given then, 12 now; give the same, or another -o"),
    ):
        assert message in label(source, tmp_path / "out", *words).refused(), (source, words)
    other = planted_model(tmp_path / "other.onnx", make_contract())
    assert ": model " in wnlb_here("label", other, tmp_path / "one", "-o", tmp_path / "out").refused()
    (tmp_path / "out/shards/000000.parquet").write_bytes(b"damaged")
    assert "delete it, and the next start makes it again" in label(tmp_path / "one", tmp_path / "out").refused()


def test_a_damaged_manifest_is_one_line(label: Any, night: str, tmp_path: Path) -> None:
    """Each of its entries, of each other kind: refused, or the job is read as it was."""
    assert label(night, tmp_path / "out").code == 3
    manifest = tmp_path / "out" / "manifest.json"
    values = json.loads(manifest.read_text())
    before, refused = read_job(tmp_path / "out"), 0
    assert before
    for name in values:
        for other in (None, -1, 0.5, "x", [], {}, [[]], True):
            manifest.write_text(json.dumps({**values, name: other}))
            try:
                job = read_job(tmp_path / "out")
                assert job is not None
                list(job.blocks())
                check_same(job, values["settings"])
            except WnlbError as error:
                refused += "\n" not in str(error)
            else:
                assert (job.settings, job.inputs) == (before.settings, before.inputs)
    assert refused >= 6 * len(values)
    manifest.write_text(json.dumps({**values, "settings": None}))
    assert "no labels of wnlb that can be read" in label(night, tmp_path / "out").refused()


def test_a_video_that_does_not_state_its_length_is_counted(
    label: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = cv2.VideoWriter(str(tmp_path / "drive.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 30, (48, 32))
    for number in range(7):
        writer.write(np.full((32, 48, 3), 30 * number, np.uint8))
    writer.release()
    stated = list(blocks_of(find_inputs(str(tmp_path / "drive.avi")), 3))
    assert len(stated) == 3
    monkeypatch.setattr(VideoSource, "__len__", lambda self: 0)
    assert list(blocks_of(find_inputs(str(tmp_path / "drive.avi")), 3)) == stated
    assert label(tmp_path / "drive.avi", tmp_path / "out", "--block", "3").code == 0
    assert images(tmp_path / "out") == [f"drive_{i:06d}" for i in range(7)]
