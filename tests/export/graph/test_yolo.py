"""YOLO's decoding, suppression and masks against what ultralytics itself found in the same planted outputs.

tests/data/oracles/ultralytics-planted.npz holds numbers alone: random outputs of a network, and what
``non_max_suppression``, ``scale_boxes`` and ``process_mask_native`` of ultralytics 8.4.190 made of them, called with
its predictor's defaults.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from wnlb.export.graph.yolo import YoloCounts, YoloInput, YoloOutput
from wnlb.export.references.yolo import YoloSettings, yolo_detections, yolo_input
from wnlb.runtime.contract import Contract
from wnlb.runtime.predictor import Predictor

ORACLE = np.load(Path(__file__).parents[2] / "data" / "oracles" / "ultralytics-planted.npz")
CLASSES = 3
COUNTS = YoloCounts(CLASSES, candidates=100, detections=80, score_threshold=0.25, nms_threshold=0.7, nms_rounds=8)
FORMS = [COUNTS, dataclasses.replace(COUNTS, target="cpu")]


def planted() -> tuple[torch.Tensor, torch.Tensor]:
    predictions, prototypes = (ORACLE[name].astype(np.float32)[None] for name in ("predictions", "prototypes"))
    return torch.from_numpy(predictions), torch.from_numpy(prototypes)


def outputs_of(counts: YoloCounts, content: list[list[int]]) -> dict[str, np.ndarray]:
    predictions, prototypes = (values.repeat(len(content), 1, 1, *[1] * (values.ndim - 3)) for values in planted())
    found = YoloOutput(counts)(predictions, prototypes, torch.tensor(content, dtype=torch.int32))
    return dict(zip(("boxes", "scores", "labels", "masks", "count"), (value.numpy() for value in found), strict=True))


class Planted:
    """A backend that gives the same every time."""

    description, takes_device_arrays, at_once = "planted", False, 1

    def __init__(self, contract: Contract, outputs: dict[str, np.ndarray]) -> None:
        self.contract, self.outputs = contract, outputs

    def run(self, inputs: dict[str, Any]) -> dict[str, np.ndarray]:
        return self.outputs

    def close(self) -> None:
        pass


@pytest.mark.parametrize("counts", FORMS, ids=lambda counts: counts.target)
@pytest.mark.parametrize("name", ["same", "large", "tall"])
def test_detections_are_ultralytics(name: str, counts: YoloCounts, make_contract: Callable[..., Contract]) -> None:
    height, width = ORACLE[f"{name}.shape"].tolist()
    contract = make_contract(
        framework="ultralytics", masks="frame", padding="centre", detections=80, class_names=("a", "b", "c")
    )
    with Predictor(Planted(contract, outputs_of(counts, [[64, 96]]))) as predictor:
        found = predictor(np.zeros((height, width, 3), np.uint8))
    assert len(found) == len(ORACLE[f"{name}.scores"])
    np.testing.assert_allclose(found.boxes, ORACLE[f"{name}.boxes"], atol=1e-4)
    np.testing.assert_array_equal(found.scores, ORACLE[f"{name}.scores"])
    np.testing.assert_array_equal(found.labels, ORACLE[f"{name}.labels"])
    expected = np.unpackbits(ORACLE[f"{name}.masks"])[: len(found) * height * width].reshape(-1, height, width) > 0
    others = (np.stack([*found.full_masks()]) != expected).sum()
    assert others == 0


def test_the_reference_is_ultralytics() -> None:
    predictions, prototypes = planted()
    found = yolo_detections(predictions[0].numpy(), prototypes[0].numpy(), YoloSettings(CLASSES, 0.25, 0.7, 300))
    kept = np.isin(found["scores"], ORACLE["same.scores"])  # those without a pixel are dropped when they are pasted
    np.testing.assert_array_equal(found["scores"][kept], ORACLE["same.scores"])
    np.testing.assert_array_equal(found["labels"][kept], ORACLE["same.labels"])
    boxes = np.clip(found["boxes"][kept], 0, [96, 64, 96, 64])
    np.testing.assert_allclose(boxes, ORACLE["same.boxes"], atol=1e-4)


@pytest.mark.parametrize("counts", FORMS, ids=lambda counts: counts.target)
def test_only_pictures_count(counts: YoloCounts) -> None:
    """No picture, no detections; the neighbours are as alone."""
    together, alone = outputs_of(counts, [[64, 96], [0, 0], [30, 96]]), outputs_of(counts, [[64, 96]])
    assert together["count"].tolist() == [alone["count"][0], 0, alone["count"][0]]
    assert not together["scores"][1].any()
    count = int(alone["count"][0])
    for name in ("boxes", "scores", "labels", "masks"):
        np.testing.assert_array_equal(together[name][0, :count], alone[name][0, :count])


def test_fewer_rows_and_fewer_candidates() -> None:
    """The best rows; with rows to spare and few candidates, zeros."""
    whole = outputs_of(COUNTS, [[64, 96]])
    few = outputs_of(dataclasses.replace(COUNTS, detections=5), [[64, 96]])
    np.testing.assert_array_equal(few["scores"], whole["scores"][:, :5])
    spare = outputs_of(dataclasses.replace(COUNTS, candidates=10, detections=40), [[64, 96]])
    assert spare["boxes"].shape == (1, 40, 4)
    assert 0 < spare["count"][0] <= 10
    assert not spare["boxes"][0, spare["count"][0] :].any()


def test_the_input_is_what_ultralytics_pads_to() -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (4, 64, 96, 3), np.uint8)
    content = np.array([[64, 96], [63, 96], [64, 41], [1, 1]], np.int32)
    ours = YoloInput(64, 96)(torch.from_numpy(image), torch.from_numpy(content)).numpy()
    np.testing.assert_array_equal(ours, yolo_input(image, content))
    assert (ours[1, :, -1] == np.float32(114) / 255).all()  # the odd row is below
    assert ours[3, 0, 31, 47] == np.float32(image[3, 31, 47, 0]) / 255
