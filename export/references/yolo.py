"""What ultralytics finds in the outputs of a YOLO-seg network, written to be read: NumPy and loops, one image.

Follows ultralytics 8.4: utils/nms.py ``non_max_suppression`` (one label a box, suppression within classes) and
utils/ops.py ``process_mask``, as its predictor calls them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

CLASS_OFFSET = 7680  # px


@dataclass(frozen=True)
class YoloSettings:
    """What a prediction is called with; the names are ultralytics'."""

    classes: int
    conf: float
    iou: float
    max_det: int


def yolo_input(image: NDArray[np.uint8], content: NDArray[np.int32]) -> NDArray[np.float32]:
    """RGB frames ``[N, H, W, 3]`` to the network's ``[N, 3, H, W]`` in 0..1, all but the pictures replaced by 114.

    ``content [N, 2]``: height and width of each picture, in the middle, where ``LetterBox`` (data/augment.py) puts it.
    """
    batch, height, width = image.shape[:3]
    out = np.full((batch, height, width, 3), 114, np.uint8)
    for padded, frame, (h, w) in zip(out, image, content.tolist(), strict=True):
        top, left = round((height - h) / 2 - 0.1), round((width - w) / 2 - 0.1)
        padded[top : top + h, left : left + w] = frame[top : top + h, left : left + w]
    return np.ascontiguousarray(out.transpose(0, 3, 1, 2)).astype(np.float32) / np.float32(255)


def yolo_detections(
    predictions: NDArray[np.float32], prototypes: NDArray[np.float32], settings: YoloSettings
) -> dict[str, NDArray]:
    """Detections of one image, best first.

    Args:
        predictions: ``[4 + C + M, A]``: centre, size, probabilities, mask coefficients of each anchor.
        prototypes: ``[M, H/4, W/4]``.

    Returns:
        boxes ``[D, 4]`` x1 y1 x2 y2 in input pixels, not clipped; scores ``[D]``; labels ``[D]``, 1..C; masks
        ``[D, H/4, W/4]``, logits, of the whole input.
    """
    rows = predictions.T
    classes = rows[:, 4 : 4 + settings.classes]
    label, score = classes.argmax(1), classes.max(1)
    chosen = np.flatnonzero(score > settings.conf)
    chosen = chosen[np.argsort(-score[chosen], kind="stable")]
    boxes = corners(rows[chosen, :4])
    moved = boxes + (label[chosen, None] * CLASS_OFFSET).astype(np.float32)
    kept = suppressed(moved, settings.iou)[: settings.max_det]
    anchors = chosen[kept]
    masks = np.einsum("dm,mhw->dhw", rows[anchors, 4 + settings.classes :], prototypes)
    return {"boxes": boxes[kept], "scores": score[anchors], "labels": label[anchors] + 1, "masks": masks}


def corners(boxes: NDArray[np.float32]) -> NDArray[np.float32]:
    """``[D, 4]`` centre x, centre y, width, height to x1 y1 x2 y2."""
    half = boxes[:, 2:] / 2
    return np.concatenate([boxes[:, :2] - half, boxes[:, :2] + half], 1)


def suppressed(boxes: NDArray[np.float32], threshold: float) -> list[int]:
    """Rows of boxes ``[D, 4]``, best first, that no better one that stays overlaps by more than ``threshold``."""
    kept: list[int] = []
    for i, box in enumerate(boxes):
        if not any(overlap(boxes[j], box) > threshold for j in kept):
            kept.append(i)
    return kept


def overlap(first: NDArray[np.float32], second: NDArray[np.float32]) -> np.float32:
    """Intersection over union of two boxes, in float32, as torchvision's ``nms`` computes it."""
    low, high = np.maximum(first[:2], second[:2]), np.minimum(first[2:], second[2:])
    width, height = np.maximum(high - low, np.float32(0))
    shared = width * height
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (first, second)]
    with np.errstate(invalid="ignore"):  # of two boxes without extent: NaN, which is above no threshold
        return shared / (areas[0] + areas[1] - shared)
