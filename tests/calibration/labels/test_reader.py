"""What label files hold, field by field: read, noted or refused in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from coco_files import document, labels_of

from wnlb.calibration.labels.labels import Labels
from wnlb.calibration.labels.reader import read_labels
from wnlb.runtime.errors import WnlbError

NAN = float("nan")


def changed(kind: str, index: int = 0, **fields: Any) -> dict[str, Any]:
    """The small set with fields of one entry changed; ``...`` leaves one out."""
    content = document()
    content[kind][index] = {k: v for k, v in {**content[kind][index], **fields}.items() if v is not ...}
    return content


def refused(content: Any, said: str) -> None:
    with pytest.raises(WnlbError, match=said) as error:
        labels_of(content)
    assert "\n" not in str(error.value)
    assert str(error.value).startswith("annotations /")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "cannot be read as JSON"),
        (b"{", "cannot be read as JSON"),
        (b"[" * 100_000, "cannot be read as JSON"),
        (b'{"images": ' + b"9" * 5000 + b"}", "cannot be read as JSON"),
        ('{"é": 1}'.encode("latin-1"), "line 1: byte 0xE9 is not UTF-8"),
        (b'{"images": [{"id": 7, "id": 8}]}', r"an object \(id 8\) has the key 'id' twice"),
        (b"[]", "a list, as COCO's results are"),
        (b"3", "no list images"),
        (b"{}", "no list images"),
        (b'{"images": {}, "annotations": [], "categories": []}', "no list images"),
        (b'{"images": [{}], "categories": []}', "no list annotations"),
        (b'{"images": [], "annotations": [], "categories": []}', "list no images"),
        (b'{"images": [1], "annotations": [], "categories": []}', "image 1 is 1; expected an object"),
    ],
)
def test_files_that_are_no_labels(tmp_path: Path, data: bytes, said: str) -> None:
    (tmp_path / "a.json").write_bytes(data)
    with pytest.raises(WnlbError, match=said) as error:
        read_labels(tmp_path / "a.json")
    assert "\n" not in str(error.value)
    for missing in (tmp_path, tmp_path / "none.json"):
        with pytest.raises(WnlbError, match=r"cannot be read: it (is a folder|does not exist)"):
            read_labels(missing)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_other_encodings_and_byte_order_marks(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "a.json").write_text(json.dumps(document()), encoding=encoding)
    assert read_labels(tmp_path / "a.json") == labels_of(document())


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"id": ...}, r"image 1: id is missing; expected a whole number or a text"),
        ({"id": None}, r"image 1 \(id None\): id is None"),
        ({"id": True}, "id is True"),
        ({"id": 1.5}, "id is 1.5"),
        ({"id": NAN}, "id is nan"),
        ({"id": [1]}, r"id is \[1\]"),
        ({"id": ""}, "id is ''"),
        ({"id": 2}, r"image 2 \(id 2\): its id is that of '1.png', its file '2.png'"),
        ({"file_name": ...}, "file_name is missing"),
        ({"file_name": 3}, "file_name is 3; expected a text of one line"),
        ({"file_name": " "}, "file_name is ' '"),
        ({"file_name": "a\nb"}, r"file_name is 'a\\nb'"),
        ({"file_name": "a\0b"}, r"file_name is 'a\\x00b'"),
        ({"file_name": "\ud800"}, r"file_name is '\\ud800'"),
        ({"file_name": "2.png", "height": 25}, "'2.png' is listed twice, as 32x24 here and 32x25 before"),
        ({"height": ...}, "height is missing; expected a whole number of pixels"),
        ({"height": None}, "height is None"),
        ({"height": 0}, "height is 0"),
        ({"height": -24}, "height is -24"),
        ({"height": 24.5}, "height is 24.5"),
        ({"height": NAN}, "height is nan"),
        ({"height": float("inf")}, "height is inf"),
        ({"height": True}, "height is True"),
        ({"height": "tall"}, "height is 'tall'"),
        ({"height": 10**400}, "height is "),
        ({"height": 10**9}, "height is 1000000000"),
        ({"height": 2**20, "width": 2**20}, "expected no more than 1073741824 pixels"),
    ],
)
def test_images_that_are_none(fields: dict[str, Any], said: str) -> None:
    refused(changed("images", **fields), said)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"id": ...}, "category 1: id is missing"),
        ({"id": {}}, "id is {}"),
        ({"id": 2}, "its id is that of 'car', its name 'bus'"),
        ({"id": 9}, r"annotation 1 \(id 1\): category_id is 1, which categories of the file do not list"),
        ({"name": ...}, "name is missing"),
        ({"name": None}, "name is None"),
        ({"name": ["car"]}, r"name is \['car'\]"),
        ({"name": ""}, "name is ''"),
        ({"name": "a\nb"}, "name is "),
    ],
)
def test_categories_that_are_none(fields: dict[str, Any], said: str) -> None:
    refused(changed("categories", **fields), said)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"image_id": ...}, r"annotation 1 \(id 1\): image_id is missing"),
        ({"image_id": 9}, "image_id is 9, which images of the file do not list"),
        ({"image_id": "x"}, "image_id is 'x', which"),
        ({"image_id": []}, r"image_id is \[\]"),
        ({"category_id": None}, "category_id is None"),
        ({"category_id": "9" * 50}, "category_id is '999"),
        ({"category_id": True}, "category_id is True"),
        ({"bbox": [1, 2, 3]}, r"bbox is \[1, 2, 3\]; expected four finite numbers: x y width height; correct it"),
        ({"bbox": [1, 2, 3, 4, 5]}, "expected four finite numbers"),
        ({"bbox": [1, 2, 3, None]}, "expected four finite numbers"),
        ({"bbox": [1, 2, 3, NAN]}, "expected four finite numbers"),
        ({"bbox": [1, 2, True, 4]}, "expected four finite numbers"),
        ({"bbox": [1, 2, 10**400, 4]}, "expected four finite numbers"),
        ({"bbox": "1 2 3 4"}, "expected four finite numbers"),
        ({"bbox": 5}, "expected four finite numbers"),
        ({"bbox": {"x": 1}}, "expected four finite numbers"),
        ({"bbox": [[1, 2, 3, 4]]}, "expected four finite numbers"),
        ({"bbox": [10, 9, -8, -6]}, "none of the last two below 0"),
        ({"bbox": [32, 3, 8, 6]}, "expected a part of its 32x24 image"),
        ({"bbox": [-9, 3, 8, 6]}, "expected a part of its 32x24 image"),
        ({"bbox": [2, 3, 1e9, 6]}, r"bbox reaches from \(2, 3\) to \(1e\+09, 9\), far outside of its 32x24 image"),
        ({"bbox": ..., "segmentation": ...}, "bbox is missing; expected four numbers"),
        ({"iscrowd": 2}, "iscrowd is 2; expected 0 or 1"),
        ({"iscrowd": "yes"}, "iscrowd is 'yes'"),
        ({"iscrowd": []}, r"iscrowd is \[\]"),
        ({"iscrowd": NAN}, "iscrowd is nan"),
    ],
)
def test_annotations_that_are_none(fields: dict[str, Any], said: str) -> None:
    refused(changed("annotations", **fields), said)


def same(labels: Labels) -> bool:
    """Whether the labels say what the unchanged file says."""
    clean = labels_of(document())
    return (labels.images, labels.categories, labels.annotations) == (
        clean.images,
        clean.categories,
        clean.annotations,
    )


@pytest.mark.parametrize(
    ("content", "noted"),
    [
        (changed("images", height=24.0), "height is not written as a whole number"),
        (changed("images", width="32.0"), "width is not written as a whole number"),
        (changed("images", id=1.0), ""),
        (changed("images", file_name="1.png\r\n"), "blanks around file_name, left out"),
        (changed("categories", name=" car "), "blanks around name, left out"),
        (changed("annotations", image_id="1"), "image_id is a number in one place and a text in another"),
        (changed("annotations", category_id=1.0), ""),
        (changed("annotations", id=2), "(id 2) repeats: all annotations were numbered anew"),
        (changed("annotations", 1, id=1), "(id 1) repeats: all annotations were numbered anew"),
        (changed("annotations", id=0), "is no whole number above 0: all annotations were numbered anew"),
        (changed("annotations", id=...), "is no whole number above 0"),
        (changed("annotations", id="a"), "is no whole number above 0"),
        (changed("annotations", id=[]), "is no whole number above 0"),
        (changed("annotations", bbox=["2", 3, 8, 6]), "bbox holds numbers written as texts"),
        (changed("annotations", bbox=...), "no bbox, that of its mask was taken"),
        (changed("annotations", bbox=None), "no bbox, that of its mask was taken"),
        (changed("annotations", bbox=[]), "no bbox, that of its mask was taken"),
        (changed("annotations", bbox=[0, 0, 0, 0]), "no bbox, that of its mask was taken"),
        (changed("annotations", area=...), "no area: that of its mask was taken"),
        (
            changed("annotations", area="large"),
            "area is no number above 0, or more than its image has: that of its mask was taken",
        ),
        (changed("annotations", area=0), "area is no number above 0"),
        (changed("annotations", area=769), "or more than its image has"),
        (changed("annotations", area=10**40), "or more than its image has"),  # COCO's range "all" ends at 1e10
        (changed("annotations", area=NAN), "area is no number above 0"),
        (changed("annotations", iscrowd=...), ""),
        (changed("annotations", iscrowd=None), ""),
        (changed("annotations", iscrowd=False), "iscrowd is not written as 0 or 1"),
        (changed("annotations", iscrowd="0"), "iscrowd is not written as 0 or 1"),
        ({**document(), "images": document()["images"] * 2}, "3 images: listed twice, read as one"),
        ({**document(), "categories": document()["categories"] * 2}, "2 categories: listed twice, read as one"),
    ],
)
def test_what_can_be_read_in_one_way_is(content: dict[str, Any], noted: str) -> None:
    labels = labels_of(content)
    assert same(labels)
    assert [noted in note for note in labels.notes] == ([True] if noted else [])


def test_ids_that_are_texts_stay_texts() -> None:
    content = document()
    for image in content["images"]:
        image["id"] = f"night-{image['id']}"
    for entry in content["annotations"]:
        entry["image_id"] = f"night-{entry['image_id']}"
    labels = labels_of(content)
    assert [image.id for image in labels.images] == ["night-1", "night-2", "night-3"]
    assert labels.notes == ()
    assert labels.document()["annotations"] == content["annotations"]


def test_a_picture_under_two_ids_is_one_and_what_both_have_counts_once() -> None:
    """As when sets that share pictures are put together."""
    content = document()
    content["images"].append({**content["images"][0], "id": 9, "file_name": "./1.png"})
    again = [{**entry, "id": 6 + i, "image_id": 9} for i, entry in enumerate(content["annotations"][:1])]
    other = {**content["annotations"][2], "id": 8, "image_id": 9}
    content["annotations"] += [*again, other]
    labels = labels_of(content)
    assert labels.images == labels_of(document()).images
    assert [a.id for a in labels.annotations] == [1, 2, 3, 4, 5, 8]
    assert labels.annotations[-1].image_id == 1
    assert len(labels.notes) == 2


def test_boxes_that_are_odd_but_possible_are_noted() -> None:
    for box, noted in (
        ([2, 3, 10, 9], ""),  # corners here; close enough to its mask
        ([15, 10, 17, 15], "bbox is not that of its mask"),
        ([28, 3, 8, 6], "bbox leaves its image by more than a pixel"),
    ):
        notes = labels_of(changed("annotations", bbox=box)).notes
        assert any(noted in note for note in notes) == bool(noted), box
    (note,) = labels_of(changed("annotations", bbox=[2, 3, 0, 6], segmentation=None)).notes[:1]
    assert "without width or height" in note


def test_fractions_are_no_pixels() -> None:
    content = document()
    for entry in content["annotations"]:
        entry.update(bbox=[0.1, 0.2, 0.3, 0.25], segmentation=None)
    refused(content, "fractions of the image do; expected pixels")


def test_corners_are_no_sizes() -> None:
    content = document()
    for entry in content["annotations"]:
        x, y, w, h = entry["bbox"]
        entry["bbox"] = [x, y, x + w, y + h]
    refused(content, "every bbox is x1 y1 x2 y2, as the masks show; expected COCO's x y width height")
    content["annotations"][2:] = document()["annotations"][2:]  # some that are right: noted, not refused
    assert any("bbox is not that of its mask" in note for note in labels_of(content).notes)


def test_what_is_not_read_is_kept() -> None:
    content = {"info": {"year": 2024}, "licenses": [1], **changed("annotations", keypoints=[1], score=0.5)}
    content["images"][0]["coco_url"] = "x"
    content["categories"][0]["supercategory"] = "vehicle"
    assert labels_of(content).document() == content
    part = labels_of(content).part(labels_of(content).images[1:2])
    assert {a.image_id for a in part.annotations} == {2}
    assert part.document()["info"] == {"year": 2024}


def test_all_entries_of_a_kind_are_counted_in_one_line() -> None:
    content = document()
    for entry in content["annotations"]:
        entry["area"] = None
    assert labels_of(content).notes == (
        "5 annotations: no area: that of its mask was taken (the first: annotation 1 (id 1))",
    )
