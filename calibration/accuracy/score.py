"""COCO's figures of results, by pycocotools: as a whole, by class and by darkness; and how far two models agree."""

from __future__ import annotations

import contextlib
import copy
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wnlb.calibration.labels.labels import Id, Labels

AGREEMENT_IOU = 0.9
AGREEMENT_SCORE = 0.5
# pycocotools' twelve figures, in its order: AP over IoU 0.50:0.95, at 0.50, at 0.75, of objects up to 32x32, up to
# 96x96 and of larger ones; average recall with 1, 10 and 100 detections an image, and with 100 by size.
STATS = (
    *("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large"),
    *("ar1", "ar10", "ar100", "ar_small", "ar_medium", "ar_large"),
)
Results = Sequence[dict[str, Any]]


@dataclass(frozen=True)
class Accuracy:
    """COCO's figures in percent (``STATS``); NaN where there is nothing to find, None without masks."""

    images: int
    objects: int
    box_ap: float
    box_ap50: float
    box_ap75: float
    box_ap_small: float
    box_ap_medium: float
    box_ap_large: float
    box_ar1: float
    box_ar10: float
    box_ar100: float
    box_ar_small: float
    box_ar_medium: float
    box_ar_large: float
    mask_ap: float | None = None
    mask_ap50: float | None = None
    mask_ap75: float | None = None
    mask_ap_small: float | None = None
    mask_ap_medium: float | None = None
    mask_ap_large: float | None = None
    mask_ar1: float | None = None
    mask_ar10: float | None = None
    mask_ar100: float | None = None
    mask_ar_small: float | None = None
    mask_ar_medium: float | None = None
    mask_ar_large: float | None = None


@dataclass(frozen=True)
class Evaluation:
    """Accuracy of one model on one set."""

    model: str
    overall: Accuracy
    by_class: dict[str, tuple[float, float | None]]  # name -> box AP, mask AP
    by_darkness: dict[str, Accuracy]  # bin -> accuracy; empty bins are left out
    results: tuple[dict[str, Any], ...]  # COCO results, image and category ids of the set


def score(labels: Labels, results: Results, bins: dict[str, list[Id]], name: str, masks: bool = True) -> Evaluation:
    """COCO's evaluation of results, as a whole and on the images of each bin.

    Args:
        labels: no two categories of one name.
        results: COCO results with the ids of ``labels``.
        bins: name of a bin, ``LOW-HIGH``, to the ids of its images.
        name: of the model, for the report.
        masks: whether the model has them. Mask AP is given where the results and all labels have them too.
    """
    masks = masks and labels.has_masks and all("segmentation" in entry for entry in results)
    kinds = {"box": "bbox", "mask": "segm"} if masks else {"box": "bbox"}
    numbers = {image.id: i for i, image in enumerate(labels.images, 1)}
    sets = _coco_sets(labels, results, numbers)

    def accuracy(tables: dict[str, Any], images: set[Id]) -> Accuracy:
        objects = sum(not a.crowd and a.image_id in images for a in labels.annotations)
        figures = {f"{kind}_{stat}": value for kind in tables for stat, value in _figures(tables[kind]).items()}
        return Accuracy(len(images), objects, **figures)

    whole = {kind: _matched(*sets, word) for kind, word in kinds.items()}

    def tables(images: Sequence[Id]) -> dict[str, Any]:
        return {kind: _summed_up(table, {numbers[i] for i in images}) for kind, table in whole.items()}

    by_darkness = {
        key: accuracy(tables(bins[key]), set(bins[key]))
        for key in sorted(bins, key=lambda key: float(key.partition("-")[0]))
    }
    whole = tables(list(numbers))
    by_class = {}
    for i, category in enumerate(labels.categories):
        own = [_mean(table.eval["precision"][:, :, i, 0, -1]) for table in whole.values()]
        by_class[category.name] = (own[0], own[1] if masks else None)
    return Evaluation(name, accuracy(whole, set(numbers)), by_class, by_darkness, tuple(results))


def agreement(first: Results, second: Results) -> tuple[int, int, int]:
    """How many detections of two models are the same.

    Only those that score 0.5 or more in their own model count; a pair is of one image and class, and their masks (boxes
    where there are none) overlap by an IoU of 0.9 or more.

    Returns:
        Pairs, detections of the first, detections of the second.
    """
    from pycocotools import mask as coco_mask

    groups: list[dict[tuple[Id, Id], list[dict[str, Any]]]] = [{}, {}]
    for group, results in zip(groups, (first, second), strict=True):
        for entry in results:
            if entry["score"] >= AGREEMENT_SCORE:
                group.setdefault((entry["image_id"], entry["category_id"]), []).append(entry)
    kind = "segmentation" if all("segmentation" in entry for entry in (*first, *second)) else "bbox"
    pairs = 0
    for key in groups[0].keys() & groups[1].keys():
        shapes = [[entry[kind] for entry in group[key]] for group in groups]
        overlap = coco_mask.iou(shapes[0], shapes[1], [0] * len(shapes[1]))
        while overlap.size and overlap.max() >= AGREEMENT_IOU:
            i, j = np.unravel_index(overlap.argmax(), overlap.shape)
            overlap = np.delete(np.delete(overlap, i, 0), j, 1)
            pairs += 1
    return pairs, *(sum(map(len, group.values())) for group in groups)  # type: ignore[return-value]


def _coco_sets(labels: Labels, results: Results, numbers: dict[Id, int]) -> tuple[Any, Any]:
    """Truth and results as pycocotools wants them, with ids of our own: whole numbers, in the order of ``labels``."""
    from pycocotools.coco import COCO

    classes = {category.id: i for i, category in enumerate(labels.categories, 1)}
    truth = [
        {
            "id": i,
            "image_id": numbers[a.image_id],
            "category_id": classes[a.category_id],
            "bbox": list(a.bbox),
            "area": a.area,
            "iscrowd": int(a.crowd),
            **({"segmentation": a.segmentation.rle} if a.segmentation else {}),
        }
        for i, a in enumerate(labels.annotations, 1)
    ]
    found = [
        {
            **entry,
            "id": i,
            "image_id": numbers[entry["image_id"]],
            "category_id": classes[entry["category_id"]],
            "area": entry["bbox"][2] * entry["bbox"][3],  # as COCO.loadRes takes it, of masks too
            "iscrowd": 0,
        }
        for i, entry in enumerate(results, 1)
    ]
    sets = []
    with contextlib.redirect_stdout(io.StringIO()):
        for annotations in (truth, found):
            sets.append(COCO())
            sets[-1].dataset = {
                "images": [{"id": numbers[i.id], "height": i.height, "width": i.width} for i in labels.images],
                "categories": [{"id": i} for i in classes.values()],
                "annotations": annotations,
            }
            sets[-1].createIndex()
    return sets[0], sets[1]


def _matched(truth: Any, found: Any, kind: str) -> Any:
    """pycocotools' evaluation with the matches of each image, which takes the most time."""
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        table = COCOeval(truth, found, kind)
        table.evaluate()
    return table


def _summed_up(matched: Any, images: set[int]) -> Any:
    """Its figures of these images alone: to pycocotools one without matches, None, is an image with nothing in it."""
    table = copy.copy(matched)
    table.evalImgs = [own if own and own["image_id"] in images else None for own in matched.evalImgs]
    with contextlib.redirect_stdout(io.StringIO()):
        table.accumulate()
        table.summarize()
    return table


def _figures(table: Any) -> dict[str, float]:
    """pycocotools' figures in percent; its -1 is where there is nothing to find."""
    return {
        stat: float(100 * value) if value > -1 else float("nan") for stat, value in zip(STATS, table.stats, strict=True)
    }


def _mean(precision: NDArray) -> float:
    known = precision[precision > -1]  # -1 marks classes without an object
    return float(100 * known.mean()) if known.size else float("nan")
