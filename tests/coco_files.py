"""Label files of tests: a small set with each kind of mask, random damage to it, and a model that finds it."""

from __future__ import annotations

import copy
import json
import random
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from wnlb.calibration.labels.labels import Labels
from wnlb.calibration.labels.reader import read_labels
from wnlb.runtime.detections import Detections, Mask

HEIGHT, WIDTH = 24, 32
# Objects of each picture: category, then x y width height of a rectangle, which is its mask too.
OBJECTS = (
    ((1, (2, 3, 8, 6)), (2, (15, 4, 10, 12))),
    ((1, (0, 0, 12, 10)), (1, (16, 10, 9, 9))),
    ((2, (5, 5, 20, 15)),),
)


def labels_of(document: Any) -> Labels:
    """What the reader makes of a COCO document."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.json"
        path.write_text(json.dumps(document))
        return read_labels(path)


def rectangle_mask(box: tuple[int, int, int, int]) -> NDArray[np.bool_]:
    x, y, w, h = box
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[y : y + h, x : x + w] = True
    return mask


def runs_of(mask: NDArray[np.bool_]) -> list[int]:
    """COCO's uncompressed runs, counted pixel by pixel down the columns."""
    runs, value = [0], False
    for pixel in mask.T.ravel().tolist():
        if pixel != value:
            runs.append(0)
            value = pixel
        runs[-1] += 1
    return runs


def segmentation(box: tuple[int, int, int, int], form: int) -> Any:
    """A rectangle as a polygon, as runs or as their code."""
    x, y, w, h = box
    if form == 0:
        return [[x, y, x + w, y, x + w, y + h, x, y + h]]
    if form == 1:
        return {"size": [HEIGHT, WIDTH], "counts": runs_of(rectangle_mask(box))}
    code = coco_mask.encode(np.asfortranarray(rectangle_mask(box), np.uint8))
    return {"size": [HEIGHT, WIDTH], "counts": code["counts"].decode("ascii")}


def document() -> dict[str, Any]:
    """Three pictures, two categories, five objects with masks of three forms."""
    annotations: list[dict[str, Any]] = []
    for image_id, objects in enumerate(OBJECTS, 1):
        for category, box in objects:
            form = len(annotations) % 3
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": category,
                    "bbox": list(box),
                    "area": box[2] * box[3],
                    "iscrowd": 0,
                    "segmentation": segmentation(box, form),
                }
            )
    return {
        "images": [{"id": i, "file_name": f"{i}.png", "height": HEIGHT, "width": WIDTH} for i in (1, 2, 3)],
        "categories": [{"id": 1, "name": "car"}, {"id": 2, "name": "bus"}],
        "annotations": annotations,
    }


def write_pictures(folder: Path) -> None:
    """Grey ones; the shade tells the planted model which it is."""
    for i in range(len(OBJECTS)):
        cv2.imwrite(str(folder / f"{i + 1}.png"), np.full((HEIGHT, WIDTH, 3), 40 * i, np.uint8))


class PlantedPredictor:
    """Finds what is in the pictures, the boxes a pixel too narrow, each class with a wrong one."""

    contract = SimpleNamespace(class_names=("car", "bus"), batch=2)

    def abreast(self) -> list[PlantedPredictor]:
        return [self, self]  # it holds nothing

    def predict_batch(self, pictures: list[NDArray[np.uint8]]) -> list[Detections]:
        assert len(pictures) <= self.contract.batch
        return [self(picture) for picture in pictures]

    def __call__(self, picture: NDArray[np.uint8]) -> Detections:
        objects = OBJECTS[int(picture[0, 0, 0]) // 40]
        found = [(label, (x, y, w - 1, h)) for label, (x, y, w, h) in objects] + [(1, (26, 18, 4, 4))]
        boxes = np.array([(x, y, x + w, y + h) for _, (x, y, w, h) in found], np.float32)
        scores = np.linspace(0.9, 0.3, len(found)).astype(np.float32)
        masks = tuple(Mask(x, y, np.ones((h, w), bool)) for _, (x, y, w, h) in found)
        height, width = picture.shape[:2]
        return Detections(height, width, boxes, scores, np.array([label for label, _ in found], np.int32), masks)


_ODD = (
    *(None, True, False, 0, -1, 1, 2, 3.5, 320.0, 1e9, -1e9, 1e300, 10**40, float("nan"), float("inf")),
    *("", " ", "a", "1", "320.0", "\n", "\ud800", "Car", "nan"),
    *([], {}, [[]], [1, 2], [1.0] * 4, [1.0] * 5, [0, 0, 9, 0, 9, 9], [[1, 2, 3]], [[0, 0, 5, 5]], [None], ["a"] * 6),
    *({"a": 1}, {"size": [24, 32]}, {"size": [24, 32], "counts": [5]}, {"size": [24, 32], "counts": "0P"}),
)


def damaged(content: Any, random: random.Random) -> Any:
    """A document with one to three of its values changed, left out, repeated or broken off."""
    content = copy.deepcopy(content)
    for _ in range(random.choice((1, 1, 2, 3))):
        if content:
            _damage(*_place(content, random), random)
    return content


def _place(content: Any, random: random.Random) -> tuple[Any, Any]:
    """A value in a document, as what holds it and where: fields of entries more often than single runs."""
    while True:
        key = random.choice(list(content) if isinstance(content, dict) else range(len(content)))
        deeper = content[key]
        if not isinstance(deeper, (dict, list)) or not deeper or random.random() < 0.1:
            return content, key
        content = deeper


def _damage(container: Any, key: Any, random: random.Random) -> None:
    value = container[key]
    kind = random.randrange(6)
    if kind <= 1:
        container[key] = copy.deepcopy(random.choice(_ODD))
    elif kind == 2:
        del container[key]
    elif kind == 3 and isinstance(container, list):
        container.insert(random.randrange(len(container) + 1), copy.deepcopy(value))
    elif isinstance(value, bool) or not isinstance(value, (int, float)):
        container[key] = random.choice([f" {value}", str(value).upper(), [value], None])
    else:
        container[key] = random.choice([-value, value + 1, value * 1000, float(value), str(value), value / 3])
