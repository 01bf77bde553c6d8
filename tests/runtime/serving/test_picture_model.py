"""Encoded pictures in, detections out, as the Predictor finds them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco_mask

from wnlb.runtime.contract import Contract
from wnlb.runtime.errors import PictureError
from wnlb.runtime.predictor import Predictor
from wnlb.runtime.serving.picture_model import PictureModel


@pytest.fixture(scope="module")
def model(planted_model_path: Path) -> Iterator[PictureModel]:
    """Two frames a run: a lamp with the frame's brightness as its score, a cat with half of it."""
    model = PictureModel(planted_model_path, 0.3)
    yield model
    model.close()


def encoded(height: int, level: int) -> bytes:
    return cv2.imencode(".png", np.full((height, 96, 3), level, np.uint8))[1].tobytes()


def test_pictures_of_several_requests(model: PictureModel, planted_model_path: Path) -> None:
    """Three pictures in two requests, two frames a run: each request gets its own, padded to its fullest."""
    requests = [[encoded(64, 255), encoded(50, 40)], [encoded(40, 120)]]
    answers = model.answers(requests)
    with Predictor(planted_model_path, score_threshold=0.3) as predictor:
        for request, answer in zip(requests, answers, strict=True):
            assert isinstance(answer, dict)
            found = [predictor(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)) for data in request]
            assert answer["count"].tolist() == [[len(one)] for one in found]
            assert answer["scores"].shape == (len(request), max(map(len, found)))
            for row, one in enumerate(found):
                count = len(one)
                assert answer["size"][row].tolist() == [one.height, one.width]
                np.testing.assert_array_equal(answer["boxes"][row, :count], one.boxes)
                np.testing.assert_array_equal(answer["scores"][row, :count], one.scores)
                np.testing.assert_array_equal(answer["labels"][row, :count], one.labels)
                assert answer["class_names"][row, :count].tolist() == [b"lamp", b"dark cat"][:count]
                for text, mask in zip(answer["masks"][row, :count], one.full_masks(), strict=True):
                    np.testing.assert_array_equal(coco_mask.decode(json.loads(text)), mask)
                assert not answer["boxes"][row, count:].any()
                assert set(answer["masks"][row, count:]) <= {b""}
    assert [answer["count"].tolist() for answer in answers if isinstance(answer, dict)] == [[[2], [0]], [[1]]]


def test_a_bad_picture_costs_its_request_alone(model: PictureModel) -> None:
    good = encoded(64, 255)
    answers = model.answers([[good], [good, b"none"], [b""], [good], []])
    assert [isinstance(answer, dict) for answer in answers] == [True, False, False, True, True]
    assert "picture 2 of 2 is damaged" in str(answers[1])
    assert "picture 1 of 1 is empty" in str(answers[2])
    assert isinstance(answers[3], dict)
    assert answers[3]["count"].tolist() == [[2]]


def test_a_picture_that_cannot_be_prepared_costs_itself(model: PictureModel, monkeypatch: pytest.MonkeyPatch) -> None:
    inner = model._predictor.predict_batch

    def refusing(frames: list[np.ndarray]) -> list:
        if any(len(frame) == 33 for frame in frames):
            raise PictureError("too odd")
        return inner(frames)

    monkeypatch.setattr(model._predictor, "predict_batch", refusing)
    good, odd, other = model.answers([[encoded(64, 255)], [encoded(33, 255)], [encoded(50, 255)]])
    assert isinstance(good, dict)
    assert isinstance(other, dict)
    assert other["size"].tolist() == [[50, 96]]
    assert "picture of 96x33 cannot be prepared: too odd" in str(odd)


def test_without_masks(
    planted_model: Callable[..., Path], make_contract: Callable[..., Contract], tmp_path: Path
) -> None:
    model = PictureModel(planted_model(tmp_path / "boxes.onnx", make_contract(masks="none")), 0.0)
    (answer,) = model.answers([[encoded(64, 255)]])
    assert isinstance(answer, dict)
    assert "masks" not in answer
    model.close()
