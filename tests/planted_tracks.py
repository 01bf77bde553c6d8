"""Two videos with objects of two classes whose tracks go wrong in known ways, as COCO-VID and results."""

from __future__ import annotations

from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from wnlb.calibration.labels.labels import Annotation, Category, Image, Labels, Segmentation

FRAMES, SIDE = 30, 160


def planted_tracks() -> tuple[Labels, list[dict[str, Any]]]:
    """Labels, and tracked results: boxes that are off, missing, invented, and identities that change or swap."""
    rng = np.random.default_rng(11)
    images, annotations, results = [], [], []
    for video in (1, 2):
        starts = rng.uniform(5, 100, (5, 2))
        speeds = rng.uniform(-1.5, 1.5, (5, 2))
        for frame in range(FRAMES):
            image = 100 * video + frame
            images.append(Image(image, f"{image}.png", SIDE, SIDE, {"video_id": video, "frame_id": frame}))
            for item in range(5):
                category = 1 + (item == 4)
                corner = starts[item] + frame * speeds[item]
                box = [*np.clip(corner, 0, SIDE - 40).tolist(), 30.0 + 2 * item, 24.0]
                if not (item == 2 and 10 <= frame < 14):  # hidden for some frames
                    rle = ellipse(box)
                    track = {"track_id": 10 * video + item}
                    own = (len(annotations) + 1, image, category, tuple(box), box[2] * box[3])
                    annotations.append(Annotation(*own, False, Segmentation(rle, rle), track))
                if rng.random() < 0.12 or (video == 2 and item == 4):  # missed, and one of them always
                    continue
                found = (np.array(box) + rng.normal(0, 2.5, 4)).tolist()
                identity = item + 1
                if item == 1 and frame >= 15:
                    identity = 77  # goes on under another one
                if frame >= 20 and item in (0, 3):
                    identity = {0: 4, 3: 1}[item]  # these two swap
                results.append(entry(image, category, found, identity))
            if rng.random() < 0.3:
                results.append(entry(image, 1, [*rng.uniform(0, 100, 2), 25.0, 25.0], 900 + frame // 10))
            results.append(entry(image, 1, [*rng.uniform(0, 100, 2), 25.0, 25.0], None))  # of no track: does not count
            results.append({**results[0], "image_id": image, "score": 0.4, "track_id": 2})  # nor what is not shown
    categories = (Category(1, "car"), Category(2, "bus"))
    videos = [{"id": video, "fps": 10} for video in (1, 2)]
    return Labels(tuple(images), categories, tuple(annotations), extra={"videos": videos}), results


def entry(image: int, category: int, box: list[float], identity: int | None) -> dict[str, Any]:
    whole = {"image_id": image, "category_id": category, "bbox": box, "score": 0.9, "segmentation": ellipse(box)}
    return whole if identity is None else {**whole, "track_id": identity}


def ellipse(box: list[float]) -> dict[str, Any]:
    """The mask that fills a box x y width height, run-length encoded."""
    y, x = np.mgrid[:SIDE, :SIDE] + 0.5
    inside = ((x - box[0]) / box[2] * 2 - 1) ** 2 + ((y - box[1]) / box[3] * 2 - 1) ** 2 <= 1
    rle = coco_mask.encode(np.asfortranarray(inside, np.uint8))
    return {"size": rle["size"], "counts": rle["counts"].decode("ascii")}
