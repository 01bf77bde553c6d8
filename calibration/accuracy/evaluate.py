"""COCO accuracy of a model, as a whole, by class and by darkness, through the same Predictor that users run."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wnlb.calibration.scenes.camera import linear_from_srgb
from wnlb.runtime.coco import coco_results
from wnlb.runtime.errors import WnlbError
from wnlb.runtime.pictures import read_picture
from wnlb.runtime.predictor import Predictor

# Mean linear luminance of a picture, 1 is a white one: a starless street, ..., dusk, daylight.
BIN_EDGES = (0.0, 0.015, 0.03, 0.06, 0.12, 1.0)
AGREEMENT_IOU = 0.9
AGREEMENT_SCORE = 0.5
_LUMINANCE = np.array([0.0722, 0.7152, 0.2126], np.float32)  # of linear B, G, R (ITU-R BT.709)
# What Pascal VOC calls COCO's classes; LIS's annotations may use either.
_VOC_NAMES = {
    "aeroplane": "airplane",
    "diningtable": "dining table",
    "motorbike": "motorcycle",
    "pottedplant": "potted plant",
    "sofa": "couch",
    "tvmonitor": "tv",
}
Document = dict[str, Any]


@dataclass(frozen=True)
class Accuracy:
    """COCO's figures in percent; NaN where there is nothing to find, None without masks."""

    images: int
    objects: int
    box_ap: float  # over IoU 0.50:0.95
    box_ap50: float
    box_ap75: float
    mask_ap: float | None = None
    mask_ap50: float | None = None
    mask_ap75: float | None = None


@dataclass(frozen=True)
class Evaluation:
    """Accuracy of one model on one set."""

    model: str
    overall: Accuracy
    by_class: dict[str, tuple[float, float | None]]  # name -> box AP, mask AP
    by_darkness: dict[str, Accuracy]  # bin -> accuracy; empty bins are left out
    results: tuple[dict[str, Any], ...]  # COCO results, category ids of the set


def luminance(picture_bgr: NDArray[np.uint8]) -> float:
    """Mean linear luminance from 0 to 1 of a uint8 sRGB picture ``[h, w, 3]`` in BGR."""
    return float((linear_from_srgb(picture_bgr) @ _LUMINANCE).mean())


def darkness_bin(value: float) -> str:
    """The name of the bin that a mean linear luminance falls into."""
    upper = next((i for i in range(1, len(BIN_EDGES) - 1) if value < BIN_EDGES[i]), len(BIN_EDGES) - 1)
    return f"{BIN_EDGES[upper - 1]:g}-{BIN_EDGES[upper]:g}"


def evaluate(
    predictor: Predictor,
    document: Document,
    images: Path,
    name: str,
    on_done: Callable[[], object] = lambda: None,
) -> Evaluation:
    """Run a model over a COCO set and score it.

    Args:
        predictor: of the model; its own score threshold applies, so make it with 0.
        document: what ``read_coco`` gave.
        images: folder of the pictures.
        name: of the model, for the report.
        on_done: called after each picture.

    Raises:
        WnlbError: a picture is missing or unreadable, classes do not fit, or an annotation is broken.
    """
    check_annotations(document)
    check_files(document, images)
    return evaluate_pictures(
        predictor, document, lambda image: read_picture(images / image["file_name"]), name, on_done
    )


def evaluate_pictures(
    predictor: Predictor,
    document: Document,
    picture_of: Callable[[dict[str, Any]], NDArray[np.uint8]],
    name: str,
    on_done: Callable[[], object] = lambda: None,
) -> Evaluation:
    """As ``evaluate``, with pictures from anywhere: ``picture_of`` an entry of the document's images, uint8 BGR."""
    ids = category_ids(predictor.contract.class_names, document["categories"])
    results: list[dict[str, Any]] = []
    bins: dict[str, list[int]] = {}
    for image in document["images"]:
        picture = picture_of(image)
        if picture.shape[:2] != (image["height"], image["width"]):
            got = f"{picture.shape[1]}x{picture.shape[0]}"
            raise WnlbError(
                f"picture {image['file_name']} is {got}; its annotations say {image['width']}x{image['height']}"
            )
        bins.setdefault(darkness_bin(luminance(picture)), []).append(image["id"])
        for entry in coco_results(predictor(picture), image["id"]):
            if (category := ids[entry["category_id"] - 1]) is not None:
                results.append({**entry, "category_id": category})
        on_done()
    return score(document, results, bins, name)


def score(document: Document, results: Sequence[dict[str, Any]], bins: dict[str, list[int]], name: str) -> Evaluation:
    """COCO's evaluation (pycocotools) of results, as a whole and on the images of each bin."""
    kinds = ["bbox"] + (["segm"] if all("segmentation" in entry for entry in results) else [])
    tables = {kind: _coco_eval(document, results, kind) for kind in kinds}

    def accuracy(images: Sequence[int]) -> Accuracy:
        figures = [_summary(_coco_eval(document, results, kind, images)) for kind in kinds]
        wanted = set(images)
        objects = sum(e["image_id"] in wanted and not e.get("iscrowd") for e in document["annotations"])
        masks = figures[1] if len(figures) > 1 else (None, None, None)
        return Accuracy(len(images), objects, *figures[0], *masks)

    names = {category["id"]: category["name"] for category in document["categories"]}
    by_class = {}
    for i, category in enumerate(tables["bbox"].params.catIds):
        own = [_mean(table.eval["precision"][:, :, i, 0, -1]) for table in tables.values()]
        by_class[names[category]] = (own[0], own[1] if len(own) > 1 else None)
    by_darkness = {key: accuracy(bins[key]) for key in sorted(bins, key=lambda key: float(key.partition("-")[0]))}
    everything = accuracy([image["id"] for image in document["images"]])
    return Evaluation(name, everything, by_class, by_darkness, tuple(results))


def agreement(first: Sequence[dict[str, Any]], second: Sequence[dict[str, Any]]) -> tuple[int, int, int]:
    """How many detections of two models are the same.

    Only those that score 0.5 or more in their own model count; a pair is of one image and class, and their masks (boxes
    where there are none) overlap by an IoU of 0.9 or more.

    Returns:
        Pairs, detections of the first, detections of the second.
    """
    from pycocotools import mask as coco_mask

    groups: list[dict[tuple[int, int], list[dict[str, Any]]]] = [{}, {}]
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


def category_ids(class_names: Sequence[str], categories: Sequence[dict[str, Any]]) -> list[int | None]:
    """The category id of each class of a model, by name (COCO's or Pascal VOC's); None for one that the set lacks.

    Raises:
        WnlbError: the set has a category that the model does not know.
    """
    by_name = {_plain_name(category["name"]): category["id"] for category in categories}
    known = [_plain_name(name) for name in class_names]
    unknown = sorted(set(by_name) - set(known))
    if unknown:
        raise WnlbError(
            f"the model does not know {len(unknown)} of {len(by_name)} categories ({', '.join(unknown[:5])}); it knows "
            f"{', '.join(class_names[:10])}: export it with --classes, names as in the annotations"
        )
    return [by_name.get(name) for name in known]


def _plain_name(name: str) -> str:
    name = name.strip().lower()
    return _VOC_NAMES.get(name, name)


def check_annotations(document: Document) -> None:
    """Raise WnlbError for an empty polygon, or a mask of another size than its image."""
    sizes = {image["id"]: [image.get("height"), image.get("width")] for image in document["images"]}
    for image in document["images"]:
        if not all(isinstance(size, int) for size in sizes[image["id"]]):
            raise WnlbError(f"image {image['file_name']} has no whole numbers for height and width in its annotations")
    for entry in document["annotations"]:
        segmentation, where = entry.get("segmentation"), f"annotation {entry.get('id')}"
        if not segmentation:
            raise WnlbError(f"{where} has no segmentation; expected polygons or a run-length encoded mask")
        if isinstance(segmentation, dict):
            if segmentation.get("size") != sizes[entry["image_id"]]:
                raise WnlbError(
                    f"{where} has a mask of {segmentation.get('size')}; its image is {sizes[entry['image_id']]} (h, w)"
                )
        elif any(len(polygon) < 6 for polygon in segmentation):
            raise WnlbError(f"{where} has a polygon of fewer than three points")
        if len(entry.get("bbox", ())) != 4:
            raise WnlbError(f"{where} has no bbox of four numbers")


def check_files(document: Document, images: Path) -> None:
    """Raise WnlbError where a picture of the set is not in the folder."""
    missing = [image["file_name"] for image in document["images"] if not (images / image["file_name"]).is_file()]
    if missing:
        total = len(document["images"])
        raise WnlbError(f"{len(missing)} of {total} pictures are not in {images}; the first: {missing[0]}")


def _coco_eval(
    document: Document, results: Sequence[dict[str, Any]], kind: str, images: Sequence[int] | None = None
) -> Any:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = {
            **document,
            "annotations": [{"iscrowd": 0, "area": e["bbox"][2] * e["bbox"][3], **e} for e in document["annotations"]],
        }
        truth.createIndex()
        found = COCO()
        found.dataset = {
            "images": document["images"],
            "categories": document["categories"],
            "annotations": [{"id": i, "iscrowd": 0, **entry} for i, entry in enumerate(results, 1)],
        }
        found.createIndex()
        table = COCOeval(truth, found, kind)
        if images is not None:
            table.params.imgIds = list(images)
        table.evaluate()
        table.accumulate()
    return table


def _summary(table: Any) -> tuple[float, float, float]:
    """AP over all IoU, AP50 and AP75 in percent, over classes, all areas, 100 detections an image."""
    precision = table.eval["precision"][:, :, :, 0, -1]  # [IoU, recall, class]
    return _mean(precision), _mean(precision[0]), _mean(precision[5])


def _mean(precision: NDArray) -> float:
    known = precision[precision > -1]  # -1 marks classes without an object
    return float(100 * known.mean()) if known.size else float("nan")
