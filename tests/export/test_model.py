import pytest
import torch
from small_models import NARROW, small_config
from torchvision.models.detection import MaskRCNN, maskrcnn_resnet50_fpn, maskrcnn_resnet50_fpn_v2

from wnlb.export.backbone import OTHER_RESNEXTS, PLACEMENTS, blocks_by_level
from wnlb.export.model import ModelConfig, model_from_config, wnlb_maskrcnn
from wnlb.runtime.errors import WnlbError


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_trains_with_torchvisions_api(placement: str) -> None:
    torch.manual_seed(0)
    options = {"min_size": 64, "max_size": 96}
    model = wnlb_maskrcnn("resnet18", 3, placement=placement, detector_options=options, **NARROW).train()
    assert isinstance(model, MaskRCNN)
    masks = torch.zeros(1, 64, 96, dtype=torch.uint8)
    masks[:, 10:40, 20:60] = 1
    target = {"boxes": torch.tensor([[20.0, 10, 60, 40]]), "labels": torch.tensor([1]), "masks": masks}
    losses = model([torch.rand(3, 64, 96), torch.rand(3, 64, 96)], [target, target])
    assert set(losses) == {"loss_classifier", "loss_box_reg", "loss_mask", "loss_objectness", "loss_rpn_box_reg"}
    sum(losses.values()).backward()
    for level, _, block in blocks_by_level(model):
        assert block.w.grad is not None, level
        assert block.w.grad.abs().item() > 0, level


def test_without_blocks_it_is_torchvisions_own_network() -> None:
    ours = wnlb_maskrcnn("resnet50", 91, levels=()).state_dict()
    theirs = maskrcnn_resnet50_fpn(weights=None, weights_backbone=None).state_dict()
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.items()}


def test_box_head_is_torchvisions_second_one_without_its_norms() -> None:
    with torch.device("meta"):
        ours = model_from_config(ModelConfig(91, rpn_convs=2, box_convs=(256,) * 4, box_fcs=1)).roi_heads.box_head
        theirs = maskrcnn_resnet50_fpn_v2(weights=None, weights_backbone=None).roi_heads.box_head
        assert ours(torch.empty(3, 256, 7, 7)).shape == theirs(torch.empty(3, 256, 7, 7)).shape == (3, 1024)
    found, expected = (
        [type(part).__name__ for part in head.modules() if not isinstance(part, torch.nn.BatchNorm2d)]
        for head in (ours, theirs)
    )
    assert found == expected


@pytest.mark.parametrize("backbone", ["resnet18", "resnet50", "resnext101_32x4d"])
@pytest.mark.parametrize("adaptive_stride", [0, 1, 2])
def test_what_halves_each_stage(backbone: str, adaptive_stride: int) -> None:
    """Strides of the first two convolutions and of the shortcut of each stage, of its downsampling, and sizes."""
    for style in ("pytorch", "caffe"):
        with torch.device("meta"):
            fields = {"backbone": backbone, "style": style, "adaptive_stride": adaptive_stride}
            model = model_from_config(small_config(levels=("c3", "c5"), **fields)).eval()
            sizes = [tuple(level.shape[2:]) for level in model.backbone(torch.empty(1, 3, 64, 96)).values()]
        assert sizes == [(16, 24), (8, 12), (4, 6), (2, 3), (1, 2)]
        stride = 1 if adaptive_stride == 2 else 2
        first = backbone == "resnet18" or style == "caffe"
        for i in (2, 3, 4):
            stage = model.backbone.body[f"layer{i}"]
            unit = dict(stage.named_children())["0"]
            found = [conv.stride[0] for conv in (unit.conv1, unit.conv2, unit.downsample[0])]
            assert found == [stride if first else 1, 1 if first else stride, stride]
            names = [name for name, _ in stage.named_children() if not name.isdigit()]
            assert names == ["adad"] * (adaptive_stride > 0) + ["wnlb"] * (i in (2, 4))
            assert not adaptive_stride or next(stage.children()).stride == adaptive_stride


def test_weights_that_torchvision_does_not_have_are_refused() -> None:
    for backbone in OTHER_RESNEXTS:
        with torch.device("meta"), pytest.raises(WnlbError, match=f"no weights of a {backbone}"):
            wnlb_maskrcnn(backbone, weights_backbone="IMAGENET1K_V1")


@pytest.mark.parametrize(
    ("placement", "paths"),
    [
        ("inline", {"c3": "backbone.body.layer2.wnlb", "c5": "backbone.body.layer4.wnlb"}),
        ("lateral", {"c3": "backbone.fpn.lateral.c3", "c5": "backbone.fpn.lateral.c5"}),
        ("fpn", {"p3": "backbone.fpn.output.p3", "p5": "backbone.fpn.output.p5"}),
    ],
)
def test_blocks_lie_where_they_should(placement: str, paths: dict[str, str]) -> None:
    model = wnlb_maskrcnn("resnet18", 2, levels=("c5", "c3"), placement=placement, **NARROW)
    assert {level: path for level, path, _ in blocks_by_level(model)} == paths


@pytest.mark.parametrize(
    ("placement", "reached"),
    [("inline", {"0", "1", "2", "3", "pool"}), ("lateral", {"0"}), ("fpn", {"0"})],
)
def test_what_a_block_on_c2_reaches(placement: str, reached: set[str]) -> None:
    """Inline feeds every later stage; the others only P2, for the FPN runs from coarse to fine."""
    torch.manual_seed(0)
    model = wnlb_maskrcnn("resnet18", 2, levels=("c2",), placement=placement, **NARROW).eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        before = model.backbone(x)
        next(blocks_by_level(model))[2].w.fill_(0.5)
        after = model.backbone(x)
    assert {name for name in before if not torch.equal(before[name], after[name])} == reached


def test_p6_is_pooled_from_the_denoised_p5() -> None:
    model = wnlb_maskrcnn("resnet18", 2, levels=("c5",), placement="fpn", **NARROW).eval()
    with torch.no_grad():
        next(blocks_by_level(model))[2].w.fill_(0.5)
        levels = model.backbone(torch.randn(1, 3, 128, 128))
    torch.testing.assert_close(levels["pool"], levels["3"][:, :, ::2, ::2])


def test_config_survives_its_dictionary() -> None:
    config = ModelConfig(num_classes=3, levels=("p3", "c2"), inner_channels=(8, 4), class_names=("a", "b"))
    assert config.levels == ("c2", "c3")
    as_json = {k: list(v) if isinstance(v, tuple) else v for k, v in config.to_dict().items()}
    assert ModelConfig.from_dict(as_json) == config


@pytest.mark.parametrize(
    "fields",
    [
        {"backbone": "resnet20"},
        {"placement": "outside"},
        {"mode": "scaled"},
        {"levels": ("c1",)},
        {"num_classes": 1},
        {"inner_channels": (1, 2)},
        {"class_names": ("a",)},
        {"anchor_sizes": (32, 64)},
        {"norm": "group"},
        {"no_such_field": 1},
        {"norm_eps": "abc"},
        {"norm_eps": -1},
        {"levels": 5},
        {"num_classes": "x"},
        {"num_classes": True},
        {"weighted": 1},
        {"anchor_sizes": [16, 32, 64, 128, 0]},
        {"mask_channels": []},
        {"aspect_ratios": ["1"]},
        {"style": "tensorflow"},
        {"adaptive_stride": 3},
        {"adaptive_stride": True},
        {"box_fcs": 0},
        {"box_convs": [0]},
        {"box_convs": 256},
    ],
)
def test_bad_configurations_are_refused_by_name(fields: dict[str, object]) -> None:
    with pytest.raises(WnlbError, match=r"expected|unknown"):
        ModelConfig.from_dict({"num_classes": 3, **fields})
