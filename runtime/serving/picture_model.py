"""Encoded pictures in, detections out: the Python model of ``wnlb triton --variant full``, without Triton.

Input ``picture``: BYTES ``[N, 1]``, N files as they are (JPEG, PNG, ...). Outputs, N rows, padded to the picture with
the most detections:

- ``size``: INT32 ``[N, 2]``, height and width of the picture, turned as its EXIF orientation says
- ``count``: INT32 ``[N, 1]``, rows that are detections
- ``boxes``: FP32 ``[N, D, 4]``, x1 y1 x2 y2 in pixels of the picture
- ``scores``: FP32 ``[N, D]``, descending
- ``labels``: INT32 ``[N, D]``, 1..C
- ``class_names``: BYTES ``[N, D]``
- ``masks``: BYTES ``[N, D]``, COCO run-length encodings of the picture's size, as JSON; absent where a model has none
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from wnlb.runtime.coco import encode_mask
from wnlb.runtime.contract import Contract
from wnlb.runtime.detections import Detections
from wnlb.runtime.errors import PictureError
from wnlb.runtime.pictures import decode_picture
from wnlb.runtime.predictor import Predictor


class PictureModel:
    """A model file of ours for encoded pictures. Raises WnlbError where it cannot be opened."""

    def __init__(self, file: Path, score_threshold: float) -> None:
        self._predictor = Predictor(file, score_threshold=score_threshold)

    def answers(self, requests: Sequence[Sequence[bytes]]) -> list[dict[str, NDArray] | PictureError]:
        """What each request, of any number of pictures, is answered: an error where one of its pictures is bad.

        Pictures of different requests run together, as many as the model takes.
        """
        decoded = [_decoded(request) for request in requests]
        found = iter(self._found([frame for frames in decoded if isinstance(frames, list) for frame in frames]))
        answers: list[dict[str, NDArray] | PictureError] = []
        for frames in decoded:
            own = [next(found) for _ in frames] if isinstance(frames, list) else [frames]
            bad = next((one for one in own if isinstance(one, PictureError)), None)
            good = [one for one in own if isinstance(one, Detections)]
            answers.append(bad or outputs_of(good, self._predictor.contract))
        return answers

    def close(self) -> None:
        """Free the model."""
        self._predictor.close()

    def _found(self, frames: list[NDArray[np.uint8]]) -> list[Detections | PictureError]:
        found: list[Detections | PictureError] = []
        size = self._predictor.contract.batch
        for i in range(0, len(frames), size):
            batch = frames[i : i + size]
            try:
                found += self._predictor.predict_batch(batch)
            except (PictureError, cv2.error) as error:  # of one size of picture: it must not cost its neighbours
                alone = PictureError(f"picture of {batch[0].shape[1]}x{batch[0].shape[0]} cannot be prepared: {error}")
                found += [alone] if len(batch) == 1 else [one for frame in batch for one in self._found([frame])]
        return found


def outputs_of(found: Sequence[Detections], contract: Contract) -> dict[str, NDArray]:
    """Detections of N pictures as the outputs that are described above."""
    rows = max(map(len, found), default=0)
    outputs: dict[str, NDArray] = {
        "size": np.array([(one.height, one.width) for one in found], np.int32),
        "count": np.array([[len(one)] for one in found], np.int32),
        "boxes": np.zeros((len(found), rows, 4), np.float32),
        "scores": np.zeros((len(found), rows), np.float32),
        "labels": np.zeros((len(found), rows), np.int32),
        "class_names": np.full((len(found), rows), b"", np.object_),
    }
    if contract.masks != "none":
        outputs["masks"] = np.full((len(found), rows), b"", np.object_)
    for i, one in enumerate(found):
        count = len(one)
        outputs["boxes"][i, :count], outputs["scores"][i, :count] = one.boxes, one.scores
        outputs["labels"][i, :count] = one.labels
        outputs["class_names"][i, :count] = [contract.class_names[label - 1].encode() for label in one.labels]
        if "masks" in outputs:
            for j, mask in enumerate(one.masks or ()):
                outputs["masks"][i, j] = json.dumps(encode_mask(mask, one.height, one.width)).encode()
    return outputs


def _decoded(request: Sequence[bytes]) -> list[NDArray[np.uint8]] | PictureError:
    try:
        return [decode_picture(data, f"{i + 1} of {len(request)}") for i, data in enumerate(request)]
    except PictureError as error:
        return error
