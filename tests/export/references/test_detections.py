"""Whole small networks: both frameworks, float64, content sizes, nothing found, weights missing or left over."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from small_peers import detectron2_names, small_mmdet_state
from torch import Tensor

from wnlb.export.references import detectron2, mmdet
from wnlb.export.references.interface import Found, Settings, network_input
from wnlb.runtime.errors import CheckpointError, WnlbError

State = dict[str, Tensor]
Reference = Callable[[Mapping[str, Tensor], Settings, NDArray[np.uint8], NDArray | None], Found]
SETTINGS = Settings(pre_nms_top_n=200, post_nms_top_n=100, detections=30)
REFERENCES = {"mmdet": mmdet.detections, "detectron2": detectron2.detections}


@pytest.fixture(scope="module")
def states() -> dict[str, State]:
    state = small_mmdet_state()
    return {"mmdet": state, "detectron2": detectron2_names(state)}


@pytest.fixture(scope="module")
def frames() -> NDArray[np.uint8]:
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 90, (2, 8, 12, 3), dtype=np.uint8)
    return coarse.repeat(8, 1).repeat(8, 2) + rng.integers(0, 20, (2, 64, 96, 3), dtype=np.uint8)


def equal(found: Found, expected: Found, tolerance: float) -> None:
    for own, theirs in zip(found.detections, expected.detections, strict=True):
        for name, value in theirs.items():
            np.testing.assert_allclose(own[name], value, rtol=0, atol=tolerance, err_msg=name)


def test_shapes_ranges_and_dtypes(states: dict[str, State], frames: NDArray[np.uint8]) -> None:
    for name, detections in REFERENCES.items():
        found = detections(states[name], SETTINGS, frames, None)
        assert [tuple(level.shape[2:]) for level in found.pyramid] == [(16, 24), (8, 12), (4, 6), (2, 3), (1, 2)]
        for own, proposals in zip(found.detections, found.proposals, strict=True):
            rows = len(own["scores"])
            assert 5 < rows <= 30
            assert 30 < len(proposals) <= 100
            assert (own["boxes"].shape, own["masks"].shape) == ((rows, 4), (rows, 28, 28))
            assert {own[key].dtype for key in ("boxes", "scores", "masks")} == {np.dtype(np.float64)}
            assert (np.diff(own["scores"]) <= 0).all()
            assert own["scores"].min() > 0.05
            assert own["labels"].min() >= 1
            assert own["labels"].max() <= 8
            assert len(set(own["labels"])) > 1
            assert 0 <= own["masks"].min() < 0.5 < own["masks"].max() <= 1


def test_float32_is_float64_rounded(states: dict[str, State], frames: NDArray[np.uint8]) -> None:
    for name, detections in REFERENCES.items():
        single = {key: value.float() if value.is_floating_point() else value for key, value in states[name].items()}
        found = detections(single, SETTINGS, frames, None)
        assert found.detections[0]["boxes"].dtype == np.float32
        equal(found, detections(states[name], SETTINGS, frames, None), 5e-3)


def test_the_frameworks_differ_by_no_more_than_their_rules(states: dict[str, State], frames: NDArray[np.uint8]) -> None:
    """The same weights, no delta beyond its clamp, no box on the edge of a level: the same detections."""
    found, expected = (detections(states[name], SETTINGS, frames, None) for name, detections in REFERENCES.items())
    equal(found, expected, 1e-9)


@pytest.mark.parametrize("name", REFERENCES)
def test_images_of_a_batch_and_their_padding_do_not_matter(
    name: str, states: dict[str, State], frames: NDArray[np.uint8]
) -> None:
    content = np.array([(50, 96), (64, 71)])
    found = REFERENCES[name](states[name], SETTINGS, frames, content)
    for i, (height, width) in enumerate(content):
        other = frames[i : i + 1].copy()
        other[:, height:] = 255
        other[:, :, width:] = 200
        alone = REFERENCES[name](states[name], SETTINGS, other, content[i : i + 1])
        equal(Found(found.detections[i : i + 1], [], []), alone, 1e-9)
        for boxes in (found.detections[i]["boxes"], found.proposals[i].numpy()):
            assert boxes.min() >= 0
            assert boxes[:, [0, 2]].max() == width  # some box reaches the edge and is cut there
            assert boxes[:, [1, 3]].max() == height
    whole = REFERENCES[name](states[name], SETTINGS, frames, None)
    assert whole.proposals[0][:, 3].max() > 50


def test_outside_the_picture_the_input_is_exactly_zero(frames: NDArray[np.uint8]) -> None:
    settings = Settings(channel_order="bgr", mean=(1, 2, 3), std=(2, 4, 8))
    x = network_input(frames, [(50, 96), (64, 71)], settings, torch.float64)
    assert not x[0, :, 50:].any()
    assert not x[1, :, :, 71:].any()
    blue, green, red = (frames[0, :50, :, channel].astype(float) for channel in (2, 1, 0))
    expected = np.stack([(blue - 1) / 2, (green - 2) / 4, (red - 3) / 8])
    np.testing.assert_array_equal(x[0, :, :50], expected)


@pytest.mark.parametrize("name", REFERENCES)
def test_nothing_found(name: str, states: dict[str, State], frames: NDArray[np.uint8]) -> None:
    found = REFERENCES[name](states[name], replace(SETTINGS, score_threshold=1.0), frames, None)
    for own in found.detections:
        assert {key: value.shape for key, value in own.items()} == {
            "boxes": (0, 4),
            "scores": (0,),
            "labels": (0,),
            "masks": (0, 28, 28),
        }


@pytest.mark.parametrize("name", REFERENCES)
def test_no_proposal_at_all(name: str, states: dict[str, State], frames: NDArray[np.uint8]) -> None:
    """All boxes lie beyond the picture and are empty once they are cut."""
    head = {"mmdet": "rpn_head.rpn_reg", "detectron2": "proposal_generator.rpn_head.anchor_deltas"}[name]
    state = dict(states[name])
    bias = torch.zeros_like(state[f"{head}.bias"])
    bias[0::4] = 1e4  # dx
    state[f"{head}.bias"] = bias
    found = REFERENCES[name](state, SETTINGS, frames, None)
    assert [len(boxes) for boxes in found.proposals] == [0, 0]
    assert [len(own["scores"]) for own in found.detections] == [0, 0]


@pytest.mark.parametrize(("name", "smallest"), [("mmdet", 16 / 1000), ("detectron2", np.exp(-9))])
def test_only_mmdetection_keeps_boxes_from_shrinking(
    name: str, smallest: float, states: dict[str, State], frames: NDArray[np.uint8]
) -> None:
    """Every anchor of 32 to 512 px is asked to shrink to exp(-9) of its size."""
    head = {"mmdet": "rpn_head.rpn_reg", "detectron2": "proposal_generator.rpn_head.anchor_deltas"}[name]
    state = dict(states[name])
    state[f"{head}.weight"] = torch.zeros_like(state[f"{head}.weight"])
    state[f"{head}.bias"] = torch.tensor([0.1, 0.1, -9, -9] * 3).double()  # moved off the edge of the picture
    found = REFERENCES[name](state, SETTINGS, frames, None)
    sizes = torch.cat([boxes[:, 2:] - boxes[:, :2] for boxes in found.proposals])
    np.testing.assert_allclose(sizes.min(), 32 / 2**0.5 * smallest, rtol=1e-6)


def test_heads_of_one_class_for_all(states: dict[str, State], frames: NDArray[np.uint8]) -> None:
    """Class-agnostic boxes and masks: every class gets the same; of the first class nothing changes."""
    state = dict(states["mmdet"])
    for head, rows in (("bbox_head.fc_reg", 4), ("mask_head.conv_logits", 1)):
        for kind in ("weight", "bias"):
            value = state[f"roi_head.{head}.{kind}"]
            state[f"roi_head.{head}.{kind}"] = value[:rows]
    repeated = dict(state)
    for head in ("bbox_head.fc_reg", "mask_head.conv_logits"):
        for kind in ("weight", "bias"):
            value = state[f"roi_head.{head}.{kind}"]
            repeated[f"roi_head.{head}.{kind}"] = value.repeat(8, *[1] * (value.ndim - 1))
    own = mmdet.detections(state, SETTINGS, frames, None)
    equal(own, mmdet.detections(repeated, SETTINGS, frames, None), 1e-9)
    equal(detectron2.detections(detectron2_names(state), SETTINGS, frames, None), own, 1e-9)


def test_softmax_objectness_is_sigmoid_of_the_difference(states: dict[str, State], frames: NDArray[np.uint8]) -> None:
    state = dict(states["mmdet"])
    for kind in ("weight", "bias"):
        value = state[f"rpn_head.rpn_cls.{kind}"]
        state[f"rpn_head.rpn_cls.{kind}"] = torch.stack([value, torch.zeros_like(value)], 1).flatten(0, 1)
    expected = mmdet.detections(states["mmdet"], SETTINGS, frames, None)
    equal(mmdet.detections(state, SETTINGS, frames, None), expected, 1e-9)


@pytest.mark.parametrize("placement", ["lateral", "fpn"])
def test_blocks_of_the_neck_count(placement: str, frames: NDArray[np.uint8]) -> None:
    state = small_mmdet_state(placement=placement, levels=("c4",))
    path = {"lateral": "neck.lateral.c4", "fpn": "neck.output.p4"}[placement]
    without = {name: value for name, value in state.items() if not name.startswith(path)}
    assert len(without) < len(state)
    plain = mmdet.detections(without, SETTINGS, frames, None)
    found = mmdet.detections(state, SETTINGS, frames, None)
    other = detectron2.detections(detectron2_names(state), SETTINGS, frames, None)
    equal(other, found, 1e-9)
    changed = [not torch.equal(a, b) for a, b in zip(found.pyramid, plain.pyramid, strict=True)]
    assert changed == (
        [True, True, True, False, False] if placement == "lateral" else [False, False, True, False, False]
    )


@pytest.mark.parametrize("name", REFERENCES)
def test_weights_that_are_missing_or_left_over_are_named(
    name: str, states: dict[str, State], frames: NDArray[np.uint8]
) -> None:
    state = dict(states[name])
    extra = next(key for key in state if key.endswith("conv2.weight")).replace("conv2", "conv2_offset")
    with pytest.raises(CheckpointError, match=f"1 weights belong to no part .*: {extra}"):
        REFERENCES[name]({**state, extra: torch.zeros(1).double()}, SETTINGS, frames, None)
    del state[next(key for key in state if "fc_cls" in key or "cls_score" in key)]
    with pytest.raises(CheckpointError, match=r"has no weight .*cls"):
        REFERENCES[name](state, SETTINGS, frames, None)


def test_a_norm_that_is_lost_is_missed(states: dict[str, State], frames: NDArray[np.uint8]) -> None:
    state = {name: value for name, value in states["mmdet"].items() if not name.startswith("backbone.layer2.0.bn1.")}
    with pytest.raises(CheckpointError, match=r"neither a bias nor a norm for backbone\.layer2\.0\.conv1"):
        mmdet.detections(state, SETTINGS, frames, None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"style": "tensorflow"}, "style is 'tensorflow'; expected pytorch or caffe"),
        ({"channel_order": "gbr"}, "channel_order is 'gbr'"),
        ({"block_mode": "gaussian"}, "block_mode is 'gaussian'"),
        ({"anchor_sizes": ((32,),)}, "anchor sizes of 1 levels; expected 5"),
    ],
)
def test_settings_are_checked(change: dict[str, object], message: str) -> None:
    with pytest.raises(WnlbError, match=message):
        Settings(**change)


@pytest.mark.parametrize(
    ("shape", "content", "message"),
    [
        ((1, 64, 96, 4), None, "expected uint8"),
        ((1, 60, 96, 3), None, "60 x 96; expected multiples of 32"),
        ((1, 64, 96, 3), [(65, 96)], "expected one inside each"),
        ((1, 64, 96, 3), [(64, 96)] * 2, "expected one inside each"),
    ],
)
def test_frames_are_checked(
    shape: tuple[int, ...], content: list | None, message: str, states: dict[str, State]
) -> None:
    sizes = None if content is None else np.array(content)
    with pytest.raises(WnlbError, match=message):
        mmdet.detections(states["mmdet"], SETTINGS, np.zeros(shape, np.uint8), sizes)
