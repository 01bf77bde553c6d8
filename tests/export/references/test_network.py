"""ResNet, FPN and blocks of the references, against torchvision's modules and ours with the same weights."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torchvision
from small_peers import detectron2_names
from torch import Tensor, nn
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.resnet import Bottleneck
from torchvision.ops import FeaturePyramidNetwork

from wnlb.export.block import MODES, WeightedNonLocalBlock
from wnlb.export.references import blocks, detectron2, mmdet
from wnlb.export.references.blocks import block
from wnlb.export.references.interface import Settings
from wnlb.export.references.layers import normed_conv
from wnlb.export.references.network import blocks_of_neck, fpn, resnet, with_p6
from wnlb.export.references.weights import Weights
from wnlb.runtime.errors import CheckpointError

SETTINGS = Settings()


def lively(module: nn.Module) -> nn.Module:
    """In float64, with norms that do something."""
    torch.manual_seed(5)
    for part in module.modules():
        if isinstance(part, (nn.BatchNorm2d, nn.GroupNorm)):
            nn.init.uniform_(part.weight, 0.2, 0.6)
            nn.init.uniform_(part.bias, -0.5, 0.5)
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.uniform_(-0.5, 0.5)
            part.running_var.uniform_(0.5, 2)
        if isinstance(part, (nn.Conv2d, nn.Linear)) and part.bias is not None:
            nn.init.uniform_(part.bias, -0.5, 0.5)
    return module.double().eval()


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("style", ["pytorch", "caffe"])
@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnext50_32x4d"])
def test_resnet_is_torchvisions_with_the_stride_of_the_style(name: str, style: str) -> None:
    network = lively(getattr(torchvision.models, name)())
    for unit in network.modules():
        if isinstance(unit, Bottleneck) and style == "caffe":
            unit.conv1.stride, unit.conv2.stride = unit.conv2.stride, unit.conv1.stride
    body = IntermediateLayerGetter(network, {f"layer{i}": str(i) for i in (1, 2, 3, 4)})
    state = {f"backbone.{name}": value for name, value in body.state_dict().items()}
    x = torch.randn(2, 3, 64, 96, dtype=torch.float64)
    settings = replace(SETTINGS, style=style)
    with torch.no_grad():
        expected = list(body(x).values())
        for own, names in ((state, mmdet.RESNET), (detectron2_names(state), detectron2.RESNET)):
            weights = Weights(own, "test")
            for level, theirs in zip(resnet(weights, names, settings, x), expected, strict=True):
                close(level, theirs)
            weights.check_all_used()


@pytest.mark.parametrize("norm", [None, nn.BatchNorm2d, lambda channels: nn.GroupNorm(32, channels)])
def test_fpn_is_torchvisions(norm: object) -> None:
    widths = (8, 16, 24, 32)
    network = lively(FeaturePyramidNetwork(list(widths), 64, norm_layer=norm))
    state = {}
    for name, value in network.state_dict().items():
        kind, level, part, last = name.split(".")
        prefix = {"inner_blocks": "neck.lateral_convs", "layer_blocks": "neck.fpn_convs"}[kind]
        state[
            f"{prefix}.{level}.{('conv', 'gn' if norm not in (None, nn.BatchNorm2d) else 'bn')[int(part)]}.{last}"
        ] = value
    levels = [torch.randn(1, width, 16 >> i, 24 >> i, dtype=torch.float64) for i, width in enumerate(widths)]
    weights = Weights(state, "test")

    def module(path: str, x: Tensor) -> Tensor:
        return normed_conv(weights, f"{path}.conv", (f"{path}.bn", f"{path}.gn"), x)

    with torch.no_grad():
        expected = list(network({str(i): x for i, x in enumerate(levels)}).values())
        found = with_p6(fpn(levels, module, mmdet.FPN))
    weights.check_all_used()
    for level, theirs in zip(found[:4], expected, strict=True):
        close(level, theirs)
    close(found[4], nn.functional.max_pool2d(expected[3], 1, 2))


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("mode", MODES)
def test_weighted_block_is_the_module_that_is_trained(
    mode: str, weighted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "ROW_ELEMENTS", 200)  # 5 rows of 35 at a time
    module = lively(WeightedNonLocalBlock(6, mode, weighted=weighted))
    if weighted:
        nn.init.constant_(module.w, 0.4)
    x = torch.randn(2, 6, 5, 7, dtype=torch.float64)
    weights = Weights({f"a.{name}": value for name, value in module.state_dict().items()}, "test")
    with torch.no_grad():
        close(block(weights, "a", x, "dot" if mode == "dot" else "embedded", scaled=True), module(x))
    weights.check_all_used()


@pytest.mark.parametrize("mode", [*MODES, "unscaled"])
def test_mmcvs_block_position_by_position(mode: str) -> None:
    """mmcv/cnn/bricks/non_local.py: 1/sqrt(d) for embedded alone, a W_f without bias."""
    torch.manual_seed(0)
    shapes = {"g": (3, 6), "theta": (3, 6), "phi": (3, 6), "concat_project": (1, 6), "conv_out": (6, 3)}
    for name in {"gaussian": ("theta", "phi", "concat_project"), "concatenate": ()}.get(mode, ("concat_project",)):
        del shapes[name]
    state = {f"a.{name}.conv.weight": torch.randn(*shape, 1, 1).double() for name, shape in shapes.items()}
    state |= {
        f"a.{name}.conv.bias": torch.randn(shapes[name][0]).double() for name in shapes if name in ("g", "theta", "phi")
    }
    state |= {
        f"a.conv_out.bn.{name}": torch.rand(6).double() + 0.5
        for name in ("weight", "bias", "running_mean", "running_var")
    }
    x = torch.randn(1, 6, 3, 4, dtype=torch.float64)
    positions = list(x[0].flatten(1).T)

    def project(name: str, position: Tensor) -> Tensor:
        bias = state.get(f"a.{name}.conv.bias", torch.zeros(1).double())
        return state[f"a.{name}.conv.weight"][:, :, 0, 0] @ position + bias

    def pair(xi: Tensor, xj: Tensor) -> Tensor:
        if mode == "gaussian":
            return xi @ xj
        theta, phi = project("theta", xi), project("phi", xj)
        if mode == "concatenate":
            return project("concat_project", torch.cat([theta, phi]))[0].relu()
        return theta @ phi / (3**0.5 if mode == "embedded" else 1)

    expected = torch.empty_like(x)
    for i, xi in enumerate(positions):
        f = torch.stack([pair(xi, xj) for xj in positions])
        f = f / len(positions) if mode in ("dot", "concatenate") else f.softmax(0)
        y = project("conv_out", sum(own * project("g", xj) for own, xj in zip(f, positions, strict=True)))
        bn = {name: state[f"a.conv_out.bn.{name}"] for name in ("weight", "bias", "running_mean", "running_var")}
        y = (y - bn["running_mean"]) / (bn["running_var"] + 1e-5).sqrt() * bn["weight"] + bn["bias"]
        expected[0].flatten(1)[:, i] = xi + y
    weights = Weights(state, "test")
    close(block(weights, "a", x, "dot" if mode == "dot" else "embedded", scaled=mode != "unscaled"), expected)
    weights.check_all_used()


def test_blocks_of_the_neck_are_found_by_name_and_by_width() -> None:
    def find(*names: tuple[str, int]) -> tuple[dict[int, str], dict[int, str]]:
        state = {}
        for name, width in names:
            state |= {
                f"{name}.g.weight": torch.zeros(2, width, 1, 1),
                f"{name}.W_z.0.weight": torch.zeros(width, 2, 1, 1),
            }
        return blocks_of_neck(Weights(state, "test"), "neck.", "neck.fpn_convs.", 256)

    assert find(("neck.wnlb.c2", 256), ("neck.wnlb.p5", 256)) == ({2: "neck.wnlb.c2"}, {5: "neck.wnlb.p5"})
    assert find(("neck.lateral.0", 256), ("neck.out.3", 256)) == ({2: "neck.lateral.0"}, {5: "neck.out.3"})
    assert find(("neck.nlb.1", 512), ("neck.nlb2", 256)) == ({3: "neck.nlb.1"}, {4: "neck.nlb2"})
    with pytest.raises(CheckpointError, match=r"neck\.some does not tell its level"):
        find(("neck.some", 256))


def test_sorted_names_run_in_the_order_of_their_numbers() -> None:
    """A safetensors file is sorted: unit 10 before unit 2."""
    names = ("layer.10.a", "layer.2.a", "layer.wnlb.a", "layer.0.a", "layers.0.a")
    weights = Weights({name: torch.zeros(1) for name in names}, "test")
    assert weights.children("layer") == ["layer.0", "layer.2", "layer.10", "layer.wnlb"]
    assert weights.owners_of("a") == [name.removesuffix(".a") for name in names]


def test_weights_of_two_dtypes_or_of_half_are_refused() -> None:
    for state in (
        {"a": torch.zeros(1), "b": torch.zeros(1, dtype=torch.float64)},
        {"a": torch.zeros(1, dtype=torch.float16)},
        {},
    ):
        with pytest.raises(CheckpointError, match="expected all of torch"):
            Weights(state, "test")
