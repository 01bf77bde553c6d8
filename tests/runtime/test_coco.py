import json

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from wnlb.runtime.coco import CocoDocument, coco_results, encode_mask
from wnlb.runtime.detections import Detections, Mask

H, W = 23, 31


def full_of(mask: Mask, height: int, width: int) -> np.ndarray:
    full = np.zeros((height, width), bool)
    full[mask.y : mask.y + mask.pixels.shape[0], mask.x : mask.x + mask.pixels.shape[1]] = mask.pixels
    return full


def assert_encodes_as_pycocotools(mask: Mask, height: int, width: int) -> None:
    expected = coco_mask.encode(np.asfortranarray(full_of(mask, height, width).astype(np.uint8)))
    encoded = encode_mask(mask, height, width)
    assert encoded == {"size": [height, width], "counts": expected["counts"].decode()}
    json.dumps(encoded)


@pytest.mark.parametrize("density", [0.0, 0.05, 0.5, 0.95, 1.0])
def test_random_crops(density):
    rng = np.random.default_rng(3)
    for _ in range(100):
        h, w = (int(v) for v in rng.integers(1, [H + 1, W + 1]))
        x, y = int(rng.integers(0, W - w + 1)), int(rng.integers(0, H - h + 1))
        assert_encodes_as_pycocotools(Mask(x, y, rng.random((h, w)) < density), H, W)


CROPS = {
    "full frame": Mask(0, 0, np.ones((H, W), bool)),
    "left": Mask(0, 5, np.ones((4, 3), bool)),
    "top": Mask(5, 0, np.ones((4, 3), bool)),
    "right": Mask(W - 3, 5, np.ones((4, 3), bool)),
    "bottom": Mask(5, H - 4, np.ones((4, 3), bool)),
    "last corner": Mask(W - 3, H - 4, np.ones((4, 3), bool)),
    "empty": Mask(4, 4, np.zeros((3, 3), bool)),
    "no pixels": Mask(4, 4, np.zeros((0, 0), bool)),
    "no rows": Mask(4, H, np.zeros((0, 5), bool)),
    "no columns": Mask(W, 4, np.zeros((5, 0), bool)),
    "first pixel": Mask(0, 0, np.ones((1, 1), bool)),
    "last pixel": Mask(W - 1, H - 1, np.ones((1, 1), bool)),
    "a full column": Mask(7, 0, np.ones((H, 1), bool)),
    "five full columns": Mask(7, 0, np.ones((H, 5), bool)),
    # Down to the bottom of a column, and on at the top of the next: one run in COCO's order.
    "wraps": Mask(7, 0, np.array([[row >= 9, row < 4] for row in range(H)])),
    "wraps twice": Mask(7, 0, np.array([[row >= 9, True, row < 4] for row in range(H)])),
    "ends at the bottom only": Mask(7, 0, np.array([[row >= 9, 0 < row < 4] for row in range(H)])),
}


@pytest.mark.parametrize("mask", CROPS.values(), ids=CROPS)
def test_runs_at_the_border(mask):
    assert_encodes_as_pycocotools(mask, H, W)


@pytest.mark.parametrize("frame", [(1, 1), (1, 9), (9, 1)])
def test_thin_frames(frame):
    assert_encodes_as_pycocotools(Mask(0, 0, np.ones(frame, bool)), *frame)


def found(masks: bool = True) -> Detections:
    rng = np.random.default_rng(4)
    return Detections(
        H,
        W,
        np.array([[2, 3, 12.25, 9], [0, 0, W, H]], np.float32),
        np.array([0.875, 0.25], np.float32),
        np.array([2, 1], np.int32),
        (Mask(2, 3, rng.random((6, 10)) < 0.7), Mask(0, 0, rng.random((H, W)) < 0.5)) if masks else None,
    )


def nothing() -> Detections:
    return Detections(5, 7, np.empty((0, 4), np.float32), np.empty(0, np.float32), np.empty(0, np.int32), masks=())


# pycocotools 2.0.11 answers NumPy 2's new argument of __array__ with a warning.
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("masks", [True, False], ids=["masks", "boxes"])
def test_pycocotools_reads_the_document_and_its_annotations(tmp_path, masks):
    document = CocoDocument(["lamp", "dark cat"])
    for name, detections in (("a.png", found(masks)), ("dark.png", nothing()), ("sub/b.png", found(masks))):
        document.add(name, detections)
    (tmp_path / "detections.json").write_text(document.to_json())
    data = COCO(tmp_path / "detections.json")

    assert {key: value["name"] for key, value in data.cats.items()} == {1: "lamp", 2: "dark cat"}
    images = [(v["id"], v["file_name"], v["height"], v["width"]) for v in data.imgs.values()]
    assert images == [(1, "a.png", H, W), (2, "dark.png", 5, 7), (3, "sub/b.png", H, W)]
    assert [(a["image_id"], a["category_id"]) for a in data.anns.values()] == [(1, 2), (1, 1), (3, 2), (3, 1)]
    if masks:
        for annotation, full in zip(data.imgToAnns[3], found().full_masks(), strict=True):
            np.testing.assert_array_equal(data.annToMask(annotation), full)
            assert annotation["area"] == full.sum()

    results = data.loadRes(list(data.anns.values()))
    assert [(a["score"], a["bbox"]) for a in results.imgToAnns[1]] == [
        (0.875, [2, 3, 10.25, 6]),
        (0.25, [0, 0, W, H]),
    ]


def test_results_of_a_model_without_masks():
    first, second = coco_results(found(masks=False), 5)
    assert first == {"image_id": 5, "category_id": 2, "bbox": [2, 3, 10.25, 6], "score": 0.875, "area": 61.5}
    assert second["area"] == H * W
    assert coco_results(nothing(), 1) == []
