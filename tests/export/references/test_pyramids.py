"""The network that is exported against the reference: one state dict, its pyramids P2 .. P6 in float64."""

from __future__ import annotations

from dataclasses import replace
from types import ModuleType

import peer_keys
import pytest
import torch
from small_peers import lively_state
from torch import Tensor

from wnlb.export.checkpoints.configurations.settings import DetectorSettings
from wnlb.export.checkpoints.frameworks import torchvision_state
from wnlb.export.checkpoints.names.dialect import infer_config
from wnlb.export.model import model_from_config
from wnlb.export.references import detectron2, mmdet
from wnlb.export.references.interface import Settings
from wnlb.export.references.weights import Weights
from wnlb.runtime.errors import CheckpointError

REFERENCES = {"mmdetection": mmdet, "detectron2": detectron2}
SMALL = {"neck": 16, "fc": 8}
RESNET50 = peer_keys.mmdet_keys(50, **SMALL)


def pyramids(
    framework: str, state: dict[str, Tensor], style: str, adaptive_stride: int = 0, size: tuple[int, int] = (64, 96)
) -> tuple[list[Tensor], list[Tensor]]:
    """Of the model and of the reference."""
    told = DetectorSettings(framework, style=style, adaptive_stride=adaptive_stride)
    ours = torchvision_state(state, framework, told, "x.pth")
    with torch.device("meta"):
        model = model_from_config(infer_config(ours, told.model_fields())).eval()
    model.load_state_dict(ours, strict=False, assign=True)
    assert not [name for name, value in model.backbone.named_parameters() if value.is_meta]
    x = 2 * torch.randn(2, 3, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    x[1, :, size[0] // 2 :] = 0  # padding of the frame
    reference: ModuleType = REFERENCES[framework]
    settings = replace(Settings(), style=style, adaptive_stride=adaptive_stride)
    with torch.no_grad():
        return list(model.backbone(x).values()), reference.pyramid_of(Weights(state, framework), settings, x)


def assert_same(levels: tuple[list[Tensor], list[Tensor]]) -> None:
    for own, theirs in zip(*levels, strict=True):
        assert theirs.std() > 0.1
        torch.testing.assert_close(own, theirs, rtol=1e-9, atol=1e-9)


@pytest.fixture(scope="module")
def lis_state() -> dict[str, Tensor]:
    return lively_state({**RESNET50, **peer_keys.lis_keys()})


@pytest.mark.parametrize("smooth", [True, False])
@pytest.mark.parametrize(("style", "stride"), [("caffe", 2), ("pytorch", 1), ("pytorch", 2)])
def test_lis(lis_state: dict[str, Tensor], style: str, stride: int, smooth: bool) -> None:
    """ResNetAdaDSmoothPrior in both styles, and ResNetAdaD, whose units have no stride."""
    names = {**RESNET50, **peer_keys.lis_keys(smooth=smooth)}
    assert_same(pyramids("mmdetection", {name: lis_state[name] for name in names}, style, stride))


@pytest.mark.parametrize("style", ["pytorch", "caffe"])
def test_mmdetection(lis_state: dict[str, Tensor], style: str) -> None:
    assert_same(pyramids("mmdetection", {name: lis_state[name] for name in RESNET50}, style))


def test_the_style_matters(lis_state: dict[str, Tensor]) -> None:
    state = {name: lis_state[name] for name in RESNET50}
    model, _ = pyramids("mmdetection", state, "pytorch")
    _, reference = pyramids("mmdetection", state, "caffe")
    assert (model[3] - reference[3]).std() > 0.01


@pytest.mark.parametrize("style", ["pytorch", "caffe"])
def test_detectron2_with_frozen_norms(style: str) -> None:
    assert_same(pyramids("detectron2", lively_state(peer_keys.detectron2_keys(50, **SMALL)), style))


def test_resnext() -> None:
    """32 groups of 4 channels."""
    assert_same(pyramids("mmdetection", lively_state(peer_keys.mmdet_keys(50, 8, 32, 4, **SMALL)), "pytorch"))


def test_basic_units_have_their_stride_in_the_first_convolution() -> None:
    state = lively_state({**peer_keys.mmdet_keys(18, **SMALL), **peer_keys.lis_keys(18, smooth=False)})
    for style in ("pytorch", "caffe"):
        for stride in (1, 2):
            assert_same(pyramids("mmdetection", state, style, stride, size=(32, 32)))


def test_downsampling_that_nobody_told_of_is_not_left_out(lis_state: dict[str, Tensor]) -> None:
    body = {name: value for name, value in lis_state.items() if name.startswith(("backbone.", "neck."))}
    weights = Weights(body, "mmdetection")
    mmdet.pyramid_of(weights, Settings(), torch.zeros(1, 3, 32, 32, dtype=torch.float64))
    with pytest.raises(CheckpointError, match=r"backbone\.AdaD\.1"):
        weights.check_all_used()
