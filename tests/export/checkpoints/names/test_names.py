"""Weights of other frameworks under torchvision's names: every name, every shape, and what becomes of the numbers."""

from __future__ import annotations

import peer_keys
import pytest
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead

from wnlb.export.block import WeightedNonLocalBlock
from wnlb.export.checkpoints.configurations.settings import DetectorSettings
from wnlb.export.checkpoints.frameworks import recognise, torchvision_state
from wnlb.export.checkpoints.names.dialect import infer_config
from wnlb.export.model import ModelConfig, model_from_config
from wnlb.runtime.errors import CheckpointError

SETTINGS = {
    name: DetectorSettings(name.removesuffix("_v2"))
    for name in ("mmdetection", "detectron2", "torchvision_v2", "torchvision")
}
KEYS = {"mmdetection": peer_keys.mmdet_keys, "detectron2": peer_keys.detectron2_keys}
NETWORKS = {
    "resnet18": (18, 1, 64),
    "resnet34": (34, 1, 64),
    "resnet50": (50, 1, 64),
    "resnet101": (101, 1, 64),
    "resnet152": (152, 1, 64),
    "resnext50_32x4d": (50, 32, 4),
    "resnext101_32x8d": (101, 32, 8),
    "resnext101_64x4d": (101, 64, 4),
    "resnext101_32x4d": (101, 32, 4),
    "resnext152_32x8d": (152, 32, 8),
}


def empty(shapes: peer_keys.Shapes) -> dict[str, Tensor]:
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def shapes_of(state: dict[str, Tensor]) -> peer_keys.Shapes:
    return {name: tuple(value.shape) for name, value in state.items()}


def without_counters(shapes: peer_keys.Shapes) -> peer_keys.Shapes:
    return {name: shape for name, shape in shapes.items() if not name.endswith("num_batches_tracked")}


def torchvision_shapes(backbone: str = "resnet50", **fields: object) -> peer_keys.Shapes:
    """Of the model that ours builds."""
    with torch.device("meta"):
        config = ModelConfig(**{"num_classes": 9, "backbone": backbone, "levels": (), **fields})
        return without_counters(shapes_of(model_from_config(config).state_dict()))


def converted(framework: str, state: dict[str, Tensor], placement: str | None = None, **fields: object) -> dict:
    settings = SETTINGS[framework].with_overrides(fields)
    return torchvision_state(state, framework, settings, "x.pth", placement)


@pytest.mark.parametrize("framework", KEYS)
@pytest.mark.parametrize("backbone", NETWORKS)
def test_every_name_has_its_place_and_shape(framework: str, backbone: str) -> None:
    depth, groups, width = NETWORKS[backbone]
    state = empty(KEYS[framework](depth, 8, groups, width))
    assert recognise(state) == framework
    found = shapes_of(converted(framework, state))
    assert without_counters(found) == torchvision_shapes(backbone)
    assert infer_config(converted(framework, state), {}).backbone == backbone


def test_torchvision_v2_has_the_names_of_a_model_without_norms_in_its_heads() -> None:
    with torch.device("meta"):
        theirs = torchvision.models.detection.maskrcnn_resnet50_fpn_v2(
            weights=None, weights_backbone=None, num_classes=9
        )
        ours = model_from_config(ModelConfig(9, levels=(), rpn_convs=2, box_convs=(256,) * 4, box_fcs=1))
    state = theirs.state_dict()
    assert recognise(state) == "torchvision_v2"
    assert recognise(ours.state_dict()) == "torchvision"
    found = without_counters(shapes_of(converted("torchvision_v2", state)))
    assert found == without_counters(shapes_of(ours.state_dict()))


def test_torchvision_v2_computes_the_same_with_its_norms_folded() -> None:
    torch.manual_seed(0)
    theirs = torchvision.models.detection.maskrcnn_resnet50_fpn_v2(weights=None, weights_backbone=None, num_classes=3)
    theirs.eval().double()
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):
            for value, low, high in (
                (module.weight, 0.5, 1.5),
                (module.bias, -0.5, 0.5),
                (module.running_mean, -0.5, 0.5),
                (module.running_var, 0.5, 1.5),
            ):
                nn.init.uniform_(value, low, high)
    state = converted("torchvision_v2", theirs.state_dict())
    head = FastRCNNConvFCHead((256, 7, 7), [256] * 4, [1024])
    start = "roi_heads.box_head."
    head.load_state_dict({name.removeprefix(start): state[name] for name in state if name.startswith(start)})
    x = torch.randn(2, 256, 7, 7)
    expected = theirs.roi_heads.box_head(x.double()).float()
    torch.testing.assert_close(head(x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("framework", KEYS)
def test_classes_move_and_the_background_is_first(framework: str) -> None:
    """Rows are told by their numbers: class k is k everywhere, the background 99."""
    state = {name: torch.zeros(shape) for name, shape in KEYS[framework](18, 3).items()}
    roots = {
        "mmdetection": ("bbox_head.fc_cls", "bbox_head.fc_reg", "mask_head.conv_logits"),
        "detectron2": ("box_predictor.cls_score", "box_predictor.bbox_pred", "mask_head.predictor"),
    }[framework]
    start = "roi_head." if framework == "mmdetection" else "roi_heads."
    scores, boxes, masks = (f"{start}{root}" for root in roots)
    state[f"{scores}.bias"] = torch.tensor([1.0, 2.0, 3.0, 99.0])
    state[f"{boxes}.bias"] = torch.arange(12.0) + 10
    state[f"{masks}.bias"] = torch.tensor([1.0, 2.0, 3.0])
    state[f"{scores}.weight"] += state[f"{scores}.bias"][:, None]
    found = converted(framework, state)
    assert found["roi_heads.box_predictor.cls_score.bias"].tolist() == [99, 1, 2, 3]
    assert found["roi_heads.box_predictor.cls_score.weight"][:, 5].tolist() == [99, 1, 2, 3]
    assert found["roi_heads.box_predictor.bbox_pred.bias"].tolist() == [0] * 4 + list(range(10, 22))
    assert found["roi_heads.mask_predictor.mask_fcn_logits.bias"].tolist() == [0, 1, 2, 3]
    # One regressor and one mask for all classes: repeated.
    state[f"{boxes}.weight"], state[f"{boxes}.bias"] = torch.zeros(4, 1024), torch.tensor([1.0, 2.0, 3.0, 4.0])
    state[f"{masks}.weight"], state[f"{masks}.bias"] = torch.zeros(1, 256, 1, 1), torch.tensor([7.0])
    found = converted(framework, state)
    assert found["roi_heads.box_predictor.bbox_pred.bias"].tolist() == [0] * 4 + [1, 2, 3, 4] * 3
    assert found["roi_heads.mask_predictor.mask_fcn_logits.bias"].tolist() == [0, 7, 7, 7]
    state[f"{boxes}.bias"] = torch.zeros(5)
    with pytest.raises(CheckpointError, match=r"\[5\]; expected 12 rows for 3 classes, or 4"):
        converted(framework, state)


@pytest.mark.parametrize("framework", KEYS)
def test_norms_of_neck_and_heads_are_folded(framework: str) -> None:
    torch.manual_seed(1)
    shapes = KEYS[framework](18, 3)
    pairs = {  # convolution, norm -> place
        "mmdetection": {
            ("neck.fpn_convs.1.conv", "neck.fpn_convs.1.bn"): "backbone.fpn.layer_blocks.1.0",
            ("roi_head.mask_head.convs.2.conv", "roi_head.mask_head.convs.2.bn"): "roi_heads.mask_head.2.0",
        },
        "detectron2": {
            ("backbone.fpn_output3", "backbone.fpn_output3.norm"): "backbone.fpn.layer_blocks.1.0",
            ("roi_heads.mask_head.mask_fcn3", "roi_heads.mask_head.mask_fcn3.norm"): "roi_heads.mask_head.2.0",
        },
    }[framework]
    for conv, norm in pairs:
        del shapes[f"{conv}.bias"]
        shapes |= peer_keys.norm(norm, 256)
    state = {name: torch.rand(shape) + 0.1 for name, shape in shapes.items()}
    found = converted(framework, state)
    x = torch.randn(1, 256, 5, 6)
    for (conv, norm), place in pairs.items():
        y = nn.functional.conv2d(x, state[f"{conv}.weight"], padding=1)
        w = [state[f"{norm}.{kind}"].view(-1, 1, 1) for kind in ("weight", "bias", "running_mean", "running_var")]
        expected = (y - w[2]) / (w[3] + 1e-5).sqrt() * w[0] + w[1]
        got = nn.functional.conv2d(x, found[f"{place}.weight"], found[f"{place}.bias"], padding=1)
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-3)
    assert not [name for name in found if ".fpn.layer_blocks.1.1" in name]


def test_box_heads_with_convolutions_have_the_names_of_torchvision_s() -> None:
    def shapes(head: nn.Module) -> peer_keys.Shapes:
        return {f"roi_heads.box_head.{name}": tuple(value.shape) for name, value in head.state_dict().items()}

    for framework, path, first in (("mmdetection", "roi_head.bbox_head.shared_", 0), ("detectron2", "box", 1)):
        state = KEYS[framework](18, 3)
        state = {
            name: shape for name, shape in state.items() if ".shared_fcs." not in name and ".box_head." not in name
        }
        for i in range(4):
            conv = f"{path}convs.{i}.conv" if first == 0 else f"roi_heads.box_head.conv{i + 1}"
            state |= peer_keys.layer(conv, 256, 256, 3, 3)
        state |= peer_keys.layer(f"{path}fcs.0" if first == 0 else "roi_heads.box_head.fc1", 1024, 12544)
        found = shapes_of(converted(framework, empty(state)))
        with torch.device("meta"):
            expected = shapes(FastRCNNConvFCHead((256, 7, 7), [256] * 4, [1024]))
        assert {name: shape for name, shape in found.items() if ".box_head." in name} == expected


@pytest.mark.parametrize(("convs", "fcs"), [((), 1), ((), 2), ((), 3), ((16,), 1), ((16, 8), 2), ((8, 8, 8), 3)])
def test_box_heads_of_any_depth_are_read(convs: tuple[int, ...], fcs: int) -> None:
    """From mmdetection's names, and from torchvision's own head."""
    path = "roi_head.bbox_head.shared_"
    shapes = {name: shape for name, shape in peer_keys.mmdet_keys(18, fc=24).items() if ".shared_fcs." not in name}
    channels = 256
    for i, width in enumerate(convs):
        shapes |= peer_keys.layer(f"{path}convs.{i}.conv", width, channels, 3, 3)
        channels = width
    for i in range(fcs):
        shapes |= peer_keys.layer(f"{path}fcs.{i}", 24, 24 if i else 49 * channels)
    found = converted("mmdetection", empty(shapes))
    config = infer_config(found, {})
    assert (config.box_convs, config.box_fcs, config.box_features) == (convs, fcs, 24)
    expected = torchvision_shapes("resnet18", box_convs=convs, box_fcs=fcs, box_features=24)
    assert without_counters(shapes_of(found)) == expected
    with torch.device("meta"):
        head = FastRCNNConvFCHead((256, 7, 7), list(convs), [24] * fcs).state_dict()
    theirs = {name: value for name, value in found.items() if ".box_head." not in name}
    theirs |= {f"roi_heads.box_head.{name}": value for name, value in head.items()}
    assert without_counters(shapes_of(converted("torchvision", theirs))) == expected


def test_rpn_of_several_convolutions() -> None:
    for framework, one, each in (
        ("mmdetection", "rpn_head.rpn_conv", "rpn_head.rpn_conv.{}.conv"),
        ("detectron2", "proposal_generator.rpn_head.conv", "proposal_generator.rpn_head.conv.conv{}"),
    ):
        shapes = KEYS[framework](18)
        for kind in ("weight", "bias"):
            del shapes[f"{one}.{kind}"]
        for i in range(2):
            shapes |= peer_keys.layer(each.format(i), 256, 256, 3, 3)
        found = without_counters(shapes_of(converted(framework, empty(shapes))))
        assert found == torchvision_shapes("resnet18", rpn_convs=2)


@pytest.mark.parametrize(
    ("framework", "path", "channels", "fields"),
    [
        ("mmdetection", "backbone.layer2.wnlb", 512, {"levels": ("c3",)}),
        ("mmdetection", "backbone.layer2.4", 512, {"levels": ("c3",)}),  # appended to the nn.Sequential
        ("mmdetection", "neck.blocks.1", 512, {"levels": ("c3",), "placement": "lateral"}),
        ("mmdetection", "neck.denoise.p4", 256, {"levels": ("p4",), "placement": "fpn"}),
        ("detectron2", "backbone.bottom_up.res4.denoise", 1024, {"levels": ("c4",)}),
        ("detectron2", "backbone.out_blocks.3", 256, {"levels": ("p5",), "placement": "fpn"}),
    ],
)
@pytest.mark.parametrize("kind", ["weighted", "mmcv"])
def test_blocks_are_found_wherever_they_lie(framework: str, path: str, channels: int, fields: dict, kind: str) -> None:
    block = peer_keys.weighted_block if kind == "weighted" else peer_keys.mmcv_block
    state = empty({**KEYS[framework](), **block(path, channels)})
    found = without_counters(shapes_of(converted(framework, state)))
    assert found == torchvision_shapes(weighted=kind == "weighted", **fields)


def test_the_place_of_a_block_that_its_name_does_not_tell_is_asked_for() -> None:
    state = empty({**peer_keys.mmdet_keys(), **peer_keys.weighted_block("backbone.denoise.1", 512)})
    with pytest.raises(CheckpointError, match="--set placement=inline"):
        converted("mmdetection", state)
    for placement in ("inline", "lateral"):
        found = without_counters(shapes_of(converted("mmdetection", state, placement)))
        assert found == torchvision_shapes(levels=("c3",), placement=placement)


class NonLocal2d(nn.Module):
    """mmcv's, by its published formula: x + BN(conv_out(softmax(theta phi^T / sqrt(d)) g)), or theta phi^T / N."""

    def __init__(self, channels: int, mode: str, scaled: bool, norm: bool) -> None:
        super().__init__()
        inner = channels // 2
        self.mode, self.scaled = mode, scaled
        for name in ("g", "theta", "phi"):
            setattr(self, name, nn.Sequential())
            getattr(self, name).conv = nn.Conv2d(channels, inner, 1)
        self.conv_out = nn.Sequential()
        self.conv_out.conv = nn.Conv2d(inner, channels, 1, bias=not norm)
        if norm:
            self.conv_out.bn = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        theta, phi, g = (part(x).flatten(2).transpose(1, 2) for part in (self.theta, self.phi, self.g))
        pairs = theta @ phi.transpose(1, 2)
        if self.mode == "embedded":
            pairs = (pairs / theta.shape[2] ** 0.5 if self.scaled else pairs).softmax(-1)
        else:
            pairs = pairs / pairs.shape[-1]
        y = (pairs @ g).transpose(1, 2).unflatten(2, x.shape[2:])
        return x + self.conv_out(y)


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize(("mode", "scaled"), [("embedded", True), ("embedded", False), ("dot", True)])
def test_mmcv_s_block_computes_the_same_as_ours(mode: str, scaled: bool, norm: bool) -> None:
    torch.manual_seed(2)
    theirs = NonLocal2d(64, mode, scaled, norm).eval()
    if norm:
        nn.init.uniform_(theirs.conv_out.bn.weight, 0.5, 1.5)
        nn.init.uniform_(theirs.conv_out.bn.running_mean, -1, 1)
        nn.init.uniform_(theirs.conv_out.bn.running_var, 0.5, 1.5)
    state = {name: torch.zeros(shape) for name, shape in peer_keys.mmdet_keys(18).items()}
    state |= {f"backbone.layer1.nl.{name}": value for name, value in theirs.state_dict().items()}
    found = converted("mmdetection", state, block_mode=mode, non_local_scaled=scaled)
    start = "backbone.body.layer1.wnlb."
    ours = WeightedNonLocalBlock(64, mode, weighted=False).eval()
    own = {name.removeprefix(start): value for name, value in found.items() if name.startswith(start)}
    missing, unexpected = ours.load_state_dict(own, strict=False)
    assert not unexpected
    assert all(name.endswith("num_batches_tracked") for name in missing)
    x = 3 * torch.randn(2, 64, 7, 5)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-5)


def test_lis_s_smooth_convolutions_go_into_the_convolution_beside_them() -> None:
    torch.manual_seed(3)
    unit = "backbone.layer2.0"
    shapes = {
        **peer_keys.mmdet_keys(),
        f"{unit}.learnable_conv1.weight": (128, 128, 1, 1),
        f"{unit}.llpf.weight": (128, 1, 3, 3),
    }
    state = empty(shapes)
    names = [f"{unit}.{name}.weight" for name in ("conv2", "learnable_conv1", "llpf")]
    conv, mixing, filters = (torch.randn(shapes[name]) for name in names)
    state |= dict(zip(names, (conv, mixing, filters), strict=True))
    found = converted("mmdetection", state)
    x = torch.randn(1, 128, 9, 8)
    smooth = nn.functional.conv2d(
        x, filters.reshape(128, 1, -1).softmax(-1).reshape(128, 1, 3, 3), padding=1, groups=128
    )
    expected = nn.functional.conv2d(x, conv, padding=1) + nn.functional.conv2d(smooth, mixing)
    got = nn.functional.conv2d(x, found["backbone.body.layer2.0.conv2.weight"], padding=1)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-3)


def test_lis_s_downsampling_comes_first_in_a_stage() -> None:
    found = converted("mmdetection", empty({**peer_keys.mmdet_keys(), **peer_keys.lis_keys()}))
    assert without_counters(shapes_of(found)) == torchvision_shapes(adaptive_stride=2)
    assert infer_config(found, {"adaptive_stride": 1, "style": "caffe"}) == ModelConfig(
        9, levels=(), adaptive_stride=1, style="caffe"
    )
    with pytest.raises(
        CheckpointError, match=r"adaptive downsampling, whose stride .* --set adaptive_stride=2"
    ) as error:
        infer_config(found, {})
    assert "\n" not in str(error.value)
    without = converted("mmdetection", empty(peer_keys.mmdet_keys()))
    with pytest.raises(CheckpointError, match="adaptive_stride is 2, but the checkpoint has no adaptive downsampling"):
        infer_config(without, {"adaptive_stride": 2})


def test_detectron2_files_without_statistics_scale_and_shift_alone() -> None:
    state = {name: torch.zeros(shape) for name, shape in peer_keys.detectron2_keys(18).items()}
    norm = "backbone.bottom_up.res2.0.conv1.norm"
    state = {name: value for name, value in state.items() if not name.startswith(f"{norm}.running")}
    state |= {
        "pixel_mean": torch.zeros(3, 1, 1),
        "proposal_generator.anchor_generator.cell_anchors.0": torch.zeros(3, 4),
    }
    found = converted("detectron2", state)
    assert found["backbone.body.layer1.0.bn1.running_mean"].eq(0).all()
    assert found["backbone.body.layer1.0.bn1.running_var"].eq(1).all()
    assert without_counters(shapes_of(found)) == torchvision_shapes("resnet18")


def test_prefixes_of_wrappers_go() -> None:
    for framework in KEYS:
        shapes = KEYS[framework](18)
        state = empty({f"module.student.{name}": shape for name, shape in shapes.items()})
        assert recognise(state) == framework
        assert without_counters(shapes_of(converted(framework, state))) == torchvision_shapes("resnet18")


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("bbox_head.fc_cls.weight", "mmdetection 1.x"),
        ("roi_head.bbox_head.0.fc_cls.weight", "a cascade"),
        ("neck.lateral_convs.0.conv.weight", "of another kind"),  # SOLO, say
        ("backbone.stem.conv1.weight", "without FPN"),
        ("res2_0_branch2a_w", "matching_heuristics"),
    ],
)
def test_other_networks_are_refused_by_name(name: str, what: str) -> None:
    with pytest.raises(CheckpointError, match=what) as error:
        recognise([name, "other.weight"])
    assert "\n" not in str(error.value)
    assert recognise(["other.weight"]) == ""


@pytest.mark.parametrize(
    ("framework", "name", "shape", "what"),
    [
        ("mmdetection", "neck.fpn_convs.0.gn.weight", (256,), "a group norm"),
        ("mmdetection", "backbone.layer3.0.conv2.conv_offset.weight", (18, 256, 3, 3), "a deformable convolution"),
        ("mmdetection", "roi_head.point_head.fcs.0.conv.weight", (256, 256, 1), "PointRend"),
        ("mmdetection", "neck.fpn_convs.4.conv.weight", (256, 256, 3, 3), "extra convolutions"),
        ("mmdetection", "backbone.extra.weight", (3,), "no Mask R-CNN of mmdetection: backbone.extra.weight"),
        ("mmdetection", "rpn_head.rpn_cls.weight", (6, 256, 1, 1), "6 scores for 12 box offsets"),
        ("mmdetection", "roi_head.bbox_head.fc_cls.weight", (9,), r"the shape \[9\]"),
        ("mmdetection", "neck.lateral_convs.0.bn.weight", (256,), "is not whole"),
        ("mmdetection", "backbone.layer3.0.nl.g.weight", (8, 8, 1, 1), "no Mask R-CNN"),
        ("detectron2", "roi_heads.keypoint_head.conv_fcn1.weight", (512, 256, 3, 3), "a keypoint head"),
        ("detectron2", "sem_seg_head.predictor.weight", (54, 128, 1, 1), "a semantic branch"),
        ("detectron2", "fresh", (3,), "no Mask R-CNN"),
    ],
)
def test_weights_that_have_no_place_are_named(framework: str, name: str, shape: tuple[int, ...], what: str) -> None:
    state = empty({**KEYS[framework](18), name: shape})
    with pytest.raises(CheckpointError, match=what) as error:
        converted(framework, state)
    assert "\n" not in str(error.value)


def test_a_block_inside_a_residual_unit_is_refused() -> None:
    state = empty({**peer_keys.mmdet_keys(), **peer_keys.mmcv_block("backbone.layer3.0.nonlocal_block", 1024)})
    with pytest.raises(CheckpointError, match="not inside a residual unit"):
        converted("mmdetection", state)


@pytest.mark.parametrize(
    ("framework", "left_out", "part"),
    [
        ("mmdetection", "roi_head.mask_head.", "mask head"),
        ("mmdetection", "rpn_head.", "RPN"),
        ("mmdetection", "neck.", "FPN"),
        ("detectron2", "roi_heads.mask_head.predictor.", "mask head"),
        ("detectron2", "proposal_generator.rpn_head.anchor_deltas.", "RPN"),
    ],
)
def test_a_part_that_is_not_there_is_named(framework: str, left_out: str, part: str) -> None:
    state = {name: value for name, value in empty(KEYS[framework](18)).items() if not name.startswith(left_out)}
    with pytest.raises(CheckpointError, match=f"has no {part}, or not all of it; expected a Mask R-CNN .*{framework}"):
        converted(framework, state)


def test_counters_beside_the_weights_are_left_out() -> None:
    """``steps``, which mmengine stores with a moving average."""
    state = empty(KEYS["mmdetection"](18))
    counted = {"steps": torch.tensor(3), **{f"module.{name}": value for name, value in state.items()}}
    assert converted("mmdetection", counted).keys() == converted("mmdetection", state).keys()
