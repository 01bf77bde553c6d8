"""Masks in every form in which they are met, against masks drawn by numpy."""

import copy
from typing import Any

import numpy as np
import pytest
from coco_files import HEIGHT, WIDTH, document, labels_of, rectangle_mask, runs_of
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from wnlb.calibration.labels.labels import Annotation, Labels
from wnlb.calibration.labels.segmentation import _decoded
from wnlb.runtime.errors import WnlbError

BOX = (2, 3, 8, 6)  # of the first annotation
POLYGON = [2, 3, 10, 3, 10, 9, 2, 9]


def with_first(**fields: Any) -> dict[str, Any]:
    content = document()
    content["annotations"][0].update(fields)
    return content


def read(**fields: Any) -> tuple[Annotation, Labels]:
    labels = labels_of(with_first(**fields))
    return labels.annotations[0], labels


def mask_of(annotation: Annotation) -> NDArray[np.bool_]:
    assert annotation.segmentation is not None
    return coco_mask.decode(annotation.segmentation.rle).astype(bool)


def code_of(mask: NDArray[np.bool_]) -> str:
    return coco_mask.encode(np.asfortranarray(mask, np.uint8))["counts"].decode()


@pytest.mark.parametrize(
    ("form", "noted"),
    [
        ([POLYGON], ""),
        ([[float(v) for v in POLYGON]], ""),
        (POLYGON, "flat polygon read as a polygon"),
        ([[str(v) for v in POLYGON]], "numbers written as texts"),
        ([[2, 3], [10, 3], [10, 9], [2, 9]], "polygon of points"),
        ([[[2, 3], [10, 3], [10, 9], [2, 9]]], "polygon of points"),
        ([[2, 3, 8, 6]], "four numbers, read as its box"),  # x y width height, as pycocotools takes it
        ([[2, 3, 10, 9]], "four numbers, read as its box"),  # corners
        ([2, 3, 8, 6], "four numbers, read as its box"),
        ([[2, 3, 6, 3, 6, 9, 2, 9], [6, 3, 10, 3, 10, 9, 6, 9]], ""),
        ([POLYGON, [2, 3, 4, 4]], "fewer than three points beside others, left out"),
        ([POLYGON, []], ""),
        ({"size": [HEIGHT, WIDTH], "counts": runs_of(rectangle_mask(BOX))}, ""),
        ({"size": [HEIGHT, WIDTH], "counts": [float(v) for v in runs_of(rectangle_mask(BOX))]}, ""),
        ({"size": [float(HEIGHT), WIDTH], "counts": code_of(rectangle_mask(BOX))}, ""),
    ],
)
def test_forms_of_one_mask(form: Any, noted: str) -> None:
    annotation, labels = read(segmentation=form)
    assert np.array_equal(mask_of(annotation), rectangle_mask(BOX))
    assert [noted in note for note in labels.notes] == ([True] if noted else [])


@pytest.mark.parametrize("empty", [None, [], [[]], [[], []], {}, ""])
def test_no_mask_serves_for_boxes(empty: Any) -> None:
    annotation, labels = read(segmentation=empty)
    assert annotation.segmentation is None
    assert not labels.has_masks
    assert labels.notes == (
        "1 of 5 annotations have no segmentation (the first: annotation 1 (id 1)): box AP alone, no mask AP",
    )
    content = document()
    for entry in content["annotations"]:
        del entry["segmentation"]
    assert labels_of(content).notes == ("no annotation has a segmentation: box AP alone, no mask AP",)


FULL = {"size": [HEIGHT, WIDTH], "counts": runs_of(rectangle_mask(BOX))}


@pytest.mark.parametrize(
    ("form", "said"),
    [
        (0, "is 0; expected polygons or a run-length"),
        ("polygon", "is 'polygon'; expected polygons"),
        ([[1, 2, 3, 4, 5, 6, 7]], "a polygon of 7 numbers; expected x y"),
        ([[1, 2, 3, 4]], "a polygon of fewer than three points"),
        ([[1, 2]], "a polygon of fewer than three points"),
        ([[1, 2, 3, None, 5, 6]], "expected finite numbers"),
        ([[1, 2, 3, float("nan"), 5, 6]], "expected finite numbers"),
        ([["a"] * 6], "expected finite numbers"),
        ([None], "expected finite numbers"),
        ([POLYGON, None], "expected finite numbers"),
        ([[1, 2, 3, 4, 5, 1e9]], "far outside of its 32x24 image"),
        ([[1, 2, 3, 4, 5, -1e300]], "far outside of its 32x24 image"),
        ({**FULL, "size": [WIDTH, HEIGHT]}, r"mask of \[32, 24\]; its image is \[24, 32\]"),
        ({**FULL, "size": None}, "mask of None; its image"),
        ({"counts": FULL["counts"]}, "mask of no size; its image"),
        ({"size": [HEIGHT, WIDTH]}, "the counts None; expected a list of runs"),
        ({**FULL, "counts": FULL["counts"][:-1]}, "runs of 225 pixels together; expected 768"),
        ({**FULL, "counts": [*FULL["counts"], 1]}, "runs of 769 pixels together; expected 768"),
        ({**FULL, "counts": []}, "runs of 0 pixels together"),
        ({**FULL, "counts": [-1, 769]}, "no run lengths"),
        ({**FULL, "counts": [1.5, 766.5]}, "no run lengths"),
        ({**FULL, "counts": [10**30]}, "no run lengths"),
        ({**FULL, "counts": [None]}, "no run lengths"),
        ({**FULL, "counts": ""}, "no run lengths"),
        ({**FULL, "counts": "b'abc'"}, "no run lengths"),
        ({**FULL, "counts": "é"}, "no run lengths"),
        ({**FULL, "counts": code_of(rectangle_mask(BOX))[:-1]}, "runs of|no run lengths"),
        ({**FULL, "counts": "o" * 7}, "no run lengths"),  # each goes on in the next
        ({**FULL, "counts": code_of(np.ones((HEIGHT, WIDTH + 1), bool))}, "runs of 792 pixels together; expected 768"),
    ],
)
def test_what_is_no_mask_gets_one_line(form: Any, said: str) -> None:
    with pytest.raises(
        WnlbError, match=f"a.json: annotation 1 \\(id 1\\): segmentation .*(?:{said}).*; correct it"
    ) as refused:
        read(segmentation=form)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 400


def test_codes_are_decoded_as_pycocotools_made_them() -> None:
    random = np.random.default_rng(0)
    for density in (0.001, 0.02, 0.5, 0.98, 1.0):
        for height, width in ((1, 1), (7, 13), (300, 500)):
            mask = random.random((height, width)) < density
            runs = _decoded(code_of(mask))
            assert runs is not None
            edges = np.flatnonzero(np.diff(np.concatenate([[False], mask.T.ravel()]).astype(np.int8)))
            expected = np.diff(np.concatenate([[0], edges, [mask.size]]))
            assert np.array_equal(runs, expected)


def test_polygons_that_leave_the_image_a_little_are_cut_and_noted() -> None:
    annotation, labels = read(segmentation=[[-3, 3, 10, 3, 10, 9, -3, 9]], bbox=[-3, 3, 13, 6])
    assert np.array_equal(mask_of(annotation), rectangle_mask((0, 3, 10, 6)))
    assert [note.split(" (")[0] for note in labels.notes] == [
        "1 annotation: bbox leaves its image by more than a pixel",
        "1 annotation: segmentation leaves its image by more than a pixel",
    ]
    assert not labels_of(with_first(segmentation=[[-0.6, 3, 10, 3, 10, 9, -0.6, 9]])).notes


def test_a_file_is_not_changed_by_reading() -> None:
    content = document()
    before = copy.deepcopy(content)
    assert labels_of(content).document() == before
