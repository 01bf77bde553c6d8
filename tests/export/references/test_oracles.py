"""The references against what mmdetection and detectron2 themselves computed: from a picture to pasted masks."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import peer_checkpoint
import pytest
import torch
from numpy.typing import NDArray
from torchvision.ops import box_iou

from wnlb.export.references import detectron2, mmdet
from wnlb.export.references.interface import Found, Settings, network_input
from wnlb.export.references.picture import (
    detectron2_size,
    mmdet_size,
    pasted,
    prepared,
    resized_by_opencv,
    resized_by_pillow,
)

# These networks amplify rounding, as random weights do: the frameworks' float32 is up to 0.093 px, 0.0012 and 0.009
# from ours, and 0.066 px, 0.0028 and 0.010 from float64. Near ties change places.
BOX_TOLERANCE, SCORE_TOLERANCE, MASK_TOLERANCE = 0.2, 0.003, 0.02
MATCHED, PROPOSALS_FOUND = 98, 995  # of 100 and 1000
CAFFE = Settings(style="caffe", channel_order="bgr", mean=(103.53, 116.28, 123.675), std=(1, 1, 1))
MMDET = (mmdet, mmdet_size, 416, resized_by_opencv)
FAMILIES: dict[str, tuple[Settings, Any]] = {
    "mmdet-pytorch": (Settings(), MMDET),
    "mmdet-caffe": (CAFFE, MMDET),
    "d2-msra": (CAFFE, (detectron2, detectron2_size, 400, resized_by_pillow)),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_equals_the_framework_in_float32(family: str) -> None:
    _compare(family, torch.float32)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_equals_the_framework_in_float64(family: str) -> None:
    _compare(family, torch.float64)


def _compare(family: str, dtype: torch.dtype) -> None:
    """Both pictures as one batch, each padded in its own way."""
    settings, (framework, size_of, short, resize) = FAMILIES[family]
    expected, pictures = peer_checkpoint.reference(family), peer_checkpoint.pictures()
    frames, sizes = [], []
    for name, picture in pictures.items():
        assert hashlib.sha256(picture.tobytes()).hexdigest() == str(expected[f"{name}_picture_sha256"])
        frame, size = prepared(picture, size_of(*picture.shape[:2], short, 608), resize)
        assert size == tuple(expected[f"{name}_picture_size"])
        assert frame.shape[:2] == tuple(expected[f"{name}_input_size"])
        frames.append(frame)
        sizes.append(size)
    batch = np.stack(frames)
    sample = network_input(batch, sizes, settings, torch.float32)[:, :, ::13, ::13].numpy()
    state = {name: value.to(dtype) for name, value in peer_checkpoint.checkpoint(family).items()}
    found = framework.detections(state, settings, batch, np.array(sizes))
    assert found.pyramid[0].dtype == dtype
    for i, (name, picture) in enumerate(pictures.items()):
        own = {key[2:]: expected[key] for key in expected if key.startswith(f"{name}_")}
        np.testing.assert_allclose(sample[i], own["input_sample"], atol=1e-6)
        _compare_proposals(found.proposals[i].double(), torch.from_numpy(own["proposals"]).double())
        ours, theirs = _matched(found, i, own)
        _compare_detections(found.detections[i], own, ours, theirs)
        _compare_in_the_picture(found.detections[i], own, ours, theirs, sizes[i], picture.shape[:2])


def _compare_proposals(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert len(found) == len(expected) == 1000
    nearest = torch.cdist(expected, found, p=float("inf")).min(1).values
    assert (nearest <= BOX_TOLERANCE).sum() >= PROPOSALS_FOUND


def _matched(found: Found, i: int, own: dict[str, NDArray]) -> tuple[list[int], list[int]]:
    """Rows of ours and of the framework's that belong together: same class, most overlap first."""
    detections = found.detections[i]
    boxes, expected = (torch.from_numpy(b).double() for b in (detections["boxes"], own["boxes_input"]))
    overlap = box_iou(boxes, expected).numpy() * (detections["labels"][:, None] == own["labels"] + 1)
    ours, theirs = [], []
    while (best := np.unravel_index(overlap.argmax(), overlap.shape)) and overlap[best] > 0.5:
        ours.append(int(best[0]))
        theirs.append(int(best[1]))
        overlap[best[0]] = overlap[:, best[1]] = 0
    return ours, theirs


def _compare_detections(found: dict[str, NDArray], own: dict[str, NDArray], ours: list[int], theirs: list[int]) -> None:
    assert len(found["scores"]) == len(own["scores"]) == 100
    assert len(ours) >= MATCHED
    np.testing.assert_allclose(found["boxes"][ours], own["boxes_input"][theirs], rtol=0, atol=BOX_TOLERANCE)
    np.testing.assert_allclose(found["scores"][ours], own["scores"][theirs], rtol=0, atol=SCORE_TOLERANCE)
    np.testing.assert_allclose(found["masks"][ours], own["mask_probs"][theirs], rtol=0, atol=MASK_TOLERANCE)


def _compare_in_the_picture(
    found: dict[str, NDArray],
    own: dict[str, NDArray],
    ours: list[int],
    theirs: list[int],
    content: tuple[int, int],
    picture: tuple[int, int],
) -> None:
    boxes, masks = pasted(found["boxes"][ours], found["masks"][ours], content, picture)
    np.testing.assert_allclose(boxes, own["boxes"][theirs], rtol=0, atol=BOX_TOLERANCE)
    expected = np.unpackbits(own["masks"][theirs], axis=-1, count=picture[1]).astype(bool)
    overlap, area = (masks & expected).sum((1, 2)), (masks | expected).sum((1, 2))
    assert (overlap >= 0.95 * area).all()
    assert overlap.sum() >= 0.998 * area.sum()
