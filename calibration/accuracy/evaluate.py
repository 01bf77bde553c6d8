"""COCO accuracy of a model, as a whole, by class and by darkness, through the same Predictor that users run."""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wnlb.calibration.accuracy.classes import category_ids, one_category_a_name
from wnlb.calibration.accuracy.score import Evaluation, score
from wnlb.calibration.accuracy.tracks import VideoTracks
from wnlb.calibration.labels.labels import Id, Image, Labels
from wnlb.calibration.labels.pictures import LabelledPictures
from wnlb.runtime.coco import coco_results
from wnlb.runtime.darkness import darkness_bin, luminance
from wnlb.runtime.detections import Detections
from wnlb.runtime.overlap import abreast, ahead
from wnlb.runtime.predictor import Predictor

_Read = tuple[Image, float, NDArray[np.uint8]]  # with its luminance
_Found = tuple[Image, float, Detections]


def evaluate(
    predictor: Predictor,
    labels: Labels,
    images: Path,
    name: str,
    on_done: Callable[[], object] = lambda: None,
) -> Evaluation:
    """Run a model over a labelled set and score it.

    Args:
        predictor: of the model; its own score threshold applies, so make it with 0.
        labels: what ``read_labels`` gave.
        images: folder of the pictures.
        name: of the model, for the report.
        on_done: called after each picture.

    Raises:
        WnlbError: a picture is missing, unreadable or of another size than its labels say, or classes do not fit.
    """
    labels = one_category_a_name(labels)
    pictures = LabelledPictures(labels, images)
    pictures.check_all_there()
    return evaluate_pictures(predictor, labels, pictures, name, on_done)


def evaluate_pictures(
    predictor: Predictor,
    labels: Labels,
    picture_of: Callable[[Image], NDArray[np.uint8]],
    name: str,
    on_done: Callable[[], object] = lambda: None,
    tracks: VideoTracks | None = None,
) -> Evaluation:
    """As ``evaluate``, of labels without two categories of one name, with pictures from anywhere.

    ``picture_of`` gives the picture of an image, uint8 BGR of its height and width; it is called by a thread, and
    ``predictor`` by others: reading, inference and encoding of masks overlap. ``on_done`` is called by this one. With
    ``tracks``, of these labels, results that belong to a track have its ``track_id``.
    """
    ids = category_ids(predictor.contract.class_names, labels)
    results: list[dict[str, Any]] = []
    bins: dict[str, list[Id]] = {}
    masks = True
    works = [functools.partial(_found, one) for one in predictor.abreast()]
    batches = ahead(_batches(_read(labels, picture_of), predictor.contract.batch))
    with contextlib.closing(ahead(abreast(batches, works))) as runs:
        for image, light, detections in itertools.chain.from_iterable(runs):
            bins.setdefault(darkness_bin(light), []).append(image.id)
            detections = tracks.update(image, light, detections) if tracks else detections
            masks = masks and detections.masks is not None
            for entry in coco_results(detections, image.id):
                if (category := ids[entry["category_id"] - 1]) is not None:
                    results.append({**entry, "category_id": category})
            on_done()
    return score(labels, results, bins, name, masks)


def _read(labels: Labels, picture_of: Callable[[Image], NDArray[np.uint8]]) -> Generator[_Read, None, None]:
    for image in labels.images:
        picture = picture_of(image)
        yield image, luminance(picture), picture


def _batches(pictures: Generator[_Read, None, None], size: int) -> Generator[list[_Read], None, None]:
    while batch := list(itertools.islice(pictures, size)):
        yield batch


def _found(predictor: Predictor, batch: list[_Read]) -> list[_Found]:
    images, lights, frames = zip(*batch, strict=True)
    return list(zip(images, lights, predictor.predict_batch(list(frames)), strict=True))
