"""A night whose every frame is known."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import cv2
import numpy as np

from wnlb.runtime.detections import Detections
from wnlb.runtime.night.record import Record
from wnlb.runtime.sensors import Reading

FACTS = {"source": "camera <0>", "model": "m.engine", "backend": "none"}
BEGAN = datetime.fromisoformat("2026-11-27T22:10:05+01:00")
BOX = (16.0, 16.0, 80.0, 80.0)


def found(labels: list[int], tracks: list[int] | None = None, size: int = 96) -> Detections:
    rows = len(labels)
    boxes, scores = np.tile(np.array([BOX], np.float32), (rows, 1)), np.full(rows, 0.75, np.float32)
    ids = None if tracks is None else np.array(tracks, np.int32)
    return Detections(size, size, boxes, scores, np.array(labels, np.int32), None, ids)


def frame(blur: float = 0.0, light: int = 200) -> Any:
    """Stripes, from sharp to none."""
    picture = np.zeros((96, 96, 3), np.uint8)
    picture[:, np.arange(96) // 8 % 2 == 1] = light
    return cv2.GaussianBlur(picture, (0, 0), blur) if blur else picture


def a_night(tracked: bool) -> Record:
    record = Record(FACTS, ("car", "chair", "bus"), BEGAN)
    for i in range(600):
        labels = [1, 1] * (i % 3 == 0) + [2] * (i % 100 == 0)
        tracks = [1 + i // 60, 0, 900][: len(labels)] if tracked else None
        record.add(60.0 * i, frame(blur=1 + i % 7), found(labels, tracks), 20.0 + i % 10)
    record.add_losses(30000.0, 7, 1)
    record.add_reading(100.0, Reading(total_watts=8.0, celsius={"cpu": 51.0}))
    return record
