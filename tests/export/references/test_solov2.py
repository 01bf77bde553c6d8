"""The reference of SOLOv2 against what mmdetection itself computed, from a picture to pasted masks."""

from __future__ import annotations

import numpy as np
import peer_checkpoint
import pytest
import solo_checkpoint
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from wnlb.export.references import solov2
from wnlb.export.references.interface import SoloSettings
from wnlb.export.references.picture import mmdet_size, prepared, resized_by_opencv
from wnlb.runtime.errors import CheckpointError

CAFFE = {"style": "caffe", "channel_order": "bgr", "mean": (103.53, 116.28, 123.675), "std": (1, 1, 1)}


def test_equals_mmdetection_with_blocks() -> None:
    _compare("r18", SoloSettings(detections=50))


@pytest.mark.slow
def test_equals_mmdetection_with_the_full_head_in_the_style_caffe() -> None:
    _compare("r50-caffe", SoloSettings(detections=50, **CAFFE))


def _compare(family: str, settings: SoloSettings) -> None:
    """Both pictures as one batch, each padded in its own way."""
    expected, pictures = solo_checkpoint.reference(family), peer_checkpoint.pictures()
    frames, sizes = [], []
    for name, picture in pictures.items():
        frame, size = prepared(picture, mmdet_size(*picture.shape[:2], 416, 608), resized_by_opencv)
        assert size == tuple(expected[f"{name}_picture_size"])
        assert frame.shape[:2] == tuple(expected[f"{name}_input_size"])
        frames.append(frame)
        sizes.append(size)
    found = solov2.detections(solo_checkpoint.checkpoint(family), settings, np.stack(frames), np.array(sizes))
    for own, size, (name, picture) in zip(found.detections, sizes, pictures.items(), strict=True):
        assert expected[f"{name}_cells"] > 100  # pairs that passed the first threshold
        masks = _pasted(own["masks"], size, picture.shape[:2])
        solo_checkpoint.assert_equals(family, name, own["scores"], own["labels"], masks, empty_too=True)


def _pasted(masks: NDArray, size: tuple[int, int], picture: tuple[int, int]) -> NDArray[np.bool_]:
    """In mmdetection's order (solov2_head.py): enlarged by 4, cut, resized, above 0.5."""
    values = torch.from_numpy(masks)[None]
    values = F.interpolate(values, scale_factor=4, mode="bilinear")[:, :, : size[0], : size[1]]
    return (F.interpolate(values, size=picture, mode="bilinear")[0] > 0.5).numpy()


def test_the_box_is_where_the_mask_passes_a_half() -> None:
    mask = torch.zeros(6, 8)
    mask[2, 3:6] = torch.tensor([0.6, 0.9, 0.8])
    mask[3, 3] = 0.7
    # From 0 to 0.7 between the centres at 10 and 14 px; from 0.8 to 0 between 22 and 26; rows as well.
    x1, x2 = 14 - 4 * 0.2 / 0.7, 22 + 4 * 0.3 / 0.8
    y1, y2 = 10 - 4 * 0.4 / 0.9, 14 + 4 * 0.2 / 0.7
    assert solov2._extent(mask, (24, 32)) == pytest.approx((x1, y1, x2, y2), abs=1e-5)
    assert solov2._extent(mask, (24, 23)) == pytest.approx((x1, y1, 23, y2), abs=1e-5)  # cut to the picture
    # Of a picture of 20 px the mask's last column is beside it.
    assert solov2._extent(mask, (24, 20))[2] == 20
    assert solov2._extent(mask, (24, 12)) == (0, 0, 0, 0)
    mask[:, 0] = 0.6
    assert solov2._extent(mask, (24, 32))[:2] == (0, 0)


def test_matrix_nms_by_hand() -> None:
    """Three masks of four cells; the third is the first again, and of the same class."""
    inside = torch.tensor([[1, 1, 0, 0], [0, 1, 1, 0], [1, 1, 0, 0], [1, 1, 0, 0]], dtype=torch.float64)
    area, label = inside.sum(1), torch.tensor([0, 0, 0, 1])
    decay = solov2._decay(inside, area, label, 2.0)
    first, second = np.exp(-2 / 9), np.exp(-2.0)  # IoU 1/3 with the first; 1 with it, over nothing before it
    np.testing.assert_allclose(decay, [1, first, second, 1])


def test_weights_of_another_network_are_refused() -> None:
    state = solo_checkpoint.small_state(levels=())
    frames = np.zeros((1, 64, 64, 3), np.uint8)
    settings = SoloSettings(grids=solo_checkpoint.SMALL_GRIDS, norm_groups=8)
    with pytest.raises(CheckpointError, match="belong to no part of the mmdetection SOLOv2"):
        solov2.detections({**state, "mask_head.other.weight": torch.zeros(1)}, settings, frames)
    del state["mask_head.conv_cls.weight"]
    with pytest.raises(CheckpointError, match=r"no weight mask_head\.conv_cls\.weight: not the mmdetection SOLOv2"):
        solov2.detections(state, settings, frames)
