"""Detections in COCO's format, with run-length encoded masks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from wnlb.runtime.detections import Detections, Mask


class CocoDocument:
    """Collects detections into one COCO document: images, categories and annotations with scores.

    pycocotools reads it as a data set; its annotations are a COCO results list. Of tracks it is one of COCO-VID.

    Args:
        class_names: label 1 is the first.
        video: name and frames a second, where the frames are those of one video whose objects are tracked.
    """

    def __init__(self, class_names: Sequence[str], video: tuple[str, float] | None = None) -> None:
        self._video = video
        self._categories = categories(class_names)
        self._images: list[dict[str, Any]] = []
        self._annotations: list[dict[str, Any]] = []

    def add(self, file_name: str, detections: Detections, number: int | None = None) -> None:
        """Add one frame; its image id is how many there are, from 1 up.

        Args:
            number: of the frame in its video, from 0, where some are missing; None: they follow one another.
        """
        image_id = len(self._images) + 1
        of_video = {"video_id": 1} if self._video else {}
        frame = {**of_video, "frame_id": image_id - 1 if number is None else number} if self._video else {}
        self._images.append({**image_entry(image_id, file_name, detections.height, detections.width), **frame})
        for entry in coco_results(detections, image_id):
            instance = {"instance_id": entry["track_id"]} if "track_id" in entry else {}
            whole = {**of_video, **entry, **instance}
            self._annotations.append(annotation_entry(len(self._annotations) + 1, whole))

    def to_json(self) -> str:
        videos = {}
        if self._video:
            size = {key: self._images[0][key] for key in ("width", "height")} if self._images else {}
            videos = {"videos": [{"id": 1, "name": self._video[0], "fps": self._video[1], **size}]}
        rest = {"images": self._images, "categories": self._categories, "annotations": self._annotations}
        return json.dumps({**videos, **rest})


def categories(class_names: Sequence[str]) -> list[dict[str, Any]]:
    """COCO's categories; label 1 is the first."""
    return [{"id": i + 1, "name": name} for i, name in enumerate(class_names)]


def image_entry(identifier: int, file_name: str, height: int, width: int) -> dict[str, Any]:
    """One of COCO's images; sizes in pixels."""
    return {"id": identifier, "file_name": file_name, "width": width, "height": height}


def annotation_entry(identifier: int, result: dict[str, Any]) -> dict[str, Any]:
    """One of COCO's annotations, made from an entry of ``coco_results``."""
    return {"id": identifier, "iscrowd": 0, **result}


def coco_results(detections: Detections, image_id: int | str) -> list[dict[str, Any]]:
    """Entries of a COCO results list: ``bbox`` is x y width height in frame pixels, ``category_id`` the label.

    What belongs to a track has its ``track_id``.
    """
    entries = []
    for i in range(len(detections)):
        x1, y1, x2, y2 = (float(v) for v in detections.boxes[i])
        entry: dict[str, Any] = {
            "image_id": image_id,
            "category_id": int(detections.labels[i]),
            "bbox": [round(v, 2) for v in (x1, y1, x2 - x1, y2 - y1)],
            "score": round(float(detections.scores[i]), 5),
            "area": round((x2 - x1) * (y2 - y1), 1),
        }
        if detections.track_ids is not None and detections.track_ids[i]:
            entry["track_id"] = int(detections.track_ids[i])
        if detections.masks is not None:
            entry["area"] = int(np.count_nonzero(detections.masks[i].pixels))
            entry["segmentation"] = encode_mask(detections.masks[i], detections.height, detections.width)
        entries.append(entry)
    return entries


def encode_mask(mask: Mask, height: int, width: int) -> dict[str, Any]:
    """COCO's compressed RLE of the frame-sized mask, made from the crop alone: ``{"size": [h, w], "counts": str}``."""
    from pycocotools import mask as coco_mask

    rle = coco_mask.frPyObjects({"size": [height, width], "counts": _counts(mask, height, width)}, height, width)
    return {"size": [height, width], "counts": rle["counts"].decode("ascii")}


def _counts(mask: Mask, height: int, width: int) -> list[int]:
    """Lengths of the runs of 0, 1, 0, ... down the columns of the frame."""
    h, w = mask.pixels.shape
    padded = np.zeros((w, h + 2), bool)  # columns, between pixels of 0, so that none goes on in the next
    padded[:, 1:-1] = mask.pixels.T
    flat = padded.ravel()
    columns, rows = np.divmod(np.flatnonzero(flat[1:] != flat[:-1]), h + 2)  # starts and ends of the runs
    edges = (columns + mask.x) * height + rows + mask.y
    # A run that reaches the bottom of the frame goes on at the top of the next column.
    joined = edges[:-1] == edges[1:]
    keep = np.ones(len(edges), bool)
    keep[:-1] &= ~joined
    keep[1:] &= ~joined
    bounds = np.concatenate([[0], edges[keep], [height * width]])
    counts: list[int] = np.diff(bounds).tolist()
    return counts if counts[-1] else counts[:-1]
