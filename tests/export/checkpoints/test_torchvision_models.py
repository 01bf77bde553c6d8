"""Models made with torchvision's own functions alone: what is read of their weights detects what they detect."""

import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fresh_checkpoint import enlivened
from model_inputs import whole
from torch import nn
from torchvision.models.detection import MaskRCNN, maskrcnn_resnet50_fpn_v2
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.mask_rcnn import MaskRCNNPredictor
from torchvision.models.detection.rpn import RPNHead

from wnlb.export.arguments import overrides_of
from wnlb.export.checkpoints.checkpoint import read_checkpoint
from wnlb.export.checkpoints.frameworks import recognise, settings_for, torchvision_state
from wnlb.export.checkpoints.names.dialect import infer_config
from wnlb.export.graph.deploy import DeployGraph
from wnlb.export.model import model_from_config
from wnlb.export.onnx_file.export_onnx import export_onnx
from wnlb.export.onnx_file.reference import eager_detections, match
from wnlb.export.onnx_file.verify import dark_scene
from wnlb.export.options import ExportOptions
from wnlb.runtime.errors import CheckpointError, GraphError, WnlbError
from wnlb.runtime.onnxruntime_backend import OnnxRuntimeBackend

SIZE = (64, 96)
FRAME = dark_scene((1, *SIZE, 3))
SIZES = ((16, 24), (32, 48), (64, 96), (128, 160), (200, 256))


def torchvision_model(backbone: str, **options: Any) -> MaskRCNN:
    torch.manual_seed(0)
    body = resnet_fpn_backbone(backbone_name=backbone, weights=None, trainable_layers=5, norm_layer=nn.BatchNorm2d)
    return enlivened(MaskRCNN(body, num_classes=5, **options), size=64).eval()


def torchvision_detections(model: MaskRCNN) -> dict[str, np.ndarray]:
    """By its ordinary call on one picture; masks as it pastes them are left out."""
    model.transform.min_size, model.transform.max_size = (SIZE[0],), SIZE[1]
    with torch.no_grad():
        found = model([torch.from_numpy(FRAME[0]).permute(2, 0, 1) / 255])[0]
    return {name: found[name].numpy() for name in ("boxes", "scores", "labels")}


def assert_same(theirs: dict[str, np.ndarray], ours: dict[str, np.ndarray]) -> None:
    pairs, missing, extra = match(theirs, ours, 0.05, nms_threshold=0.5)  # torchvision's default
    assert (missing, extra) == (0, 0)
    assert len(pairs) > 20
    for i, j in pairs:
        assert np.abs(theirs["boxes"][i] - ours["boxes"][j]).max() <= 0.05
        assert abs(theirs["scores"][i] - ours["scores"][j]) <= 1e-4


def graph_detections(model: MaskRCNN) -> dict[str, np.ndarray]:
    with torch.no_grad():
        outputs = DeployGraph(model, ExportOptions(*SIZE))(*map(torch.from_numpy, whole(FRAME).values()))
    names = ("boxes", "scores", "labels", "masks", "count")
    return {name: value[0].numpy() for name, value in zip(names, outputs, strict=True)}


@pytest.mark.parametrize("backbone", ["resnext50_32x4d", "wide_resnet50_2"])
def test_other_resnets_detect_what_torchvision_detects(tmp_path: Path, backbone: str) -> None:
    theirs = torchvision_model(backbone)
    torch.save({"model": theirs.state_dict()}, tmp_path / "c.pth")
    read = read_checkpoint(tmp_path / "c.pth")
    assert (read.config.backbone, read.config.levels) == (backbone, ())
    assert_same(torchvision_detections(theirs), graph_detections(read.model))


@pytest.mark.slow
def test_the_second_version_detects_what_torchvision_detects() -> None:
    """Norms in the FPN and the heads, two convolutions in the RPN, four and one linear layer in the box head."""
    torch.manual_seed(0)
    theirs = maskrcnn_resnet50_fpn_v2(weights=None, weights_backbone=None, num_classes=5, rpn_post_nms_top_n_test=200)
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):
            for value, low, high in ((module.weight, 0.5, 1), (module.bias, -0.3, 0.3)):
                nn.init.uniform_(value, low, high)
            module.running_mean.uniform_(-0.3, 0.3)
            module.running_var.uniform_(0.5, 1.5)
    theirs = enlivened(theirs, size=64).eval()
    for module in (*theirs.rpn.modules(), *theirs.roi_heads.modules()):  # those of the backbone were measured
        assert not isinstance(module, nn.BatchNorm2d) or module.running_var.std() > 0.1
    content = theirs.state_dict()
    framework = recognise(content)
    settings = settings_for(framework, content, "v2.pth")
    state = torchvision_state(content, framework, settings, "v2.pth")
    config = infer_config(state, settings.model_fields())
    assert (config.box_convs, config.box_fcs, config.rpn_convs) == ((256,) * 4, 1, 2)
    ours = model_from_config(config, rpn_post_nms_top_n_test=200).eval()
    missing, unexpected = ours.load_state_dict(state, strict=False)
    assert not unexpected
    assert all(name.endswith("num_batches_tracked") for name in missing)
    expected = torchvision_detections(theirs)
    own = torchvision_detections(ours)
    assert_same(expected, {**own, "count": np.array(len(own["scores"]))})
    assert_same(expected, graph_detections(ours))


@pytest.fixture(scope="module")
def own_choices(tmp_path_factory: pytest.TempPathFactory) -> tuple[MaskRCNN, Path]:
    """Two anchor sizes a level, ratios, mean and deviation of its own, and a mask predictor for more classes."""
    anchors = AnchorGenerator(SIZES, ((0.7, 1.4),) * 5)
    model = torchvision_model(
        "resnet18",
        rpn_anchor_generator=anchors,
        rpn_head=RPNHead(256, 4),
        image_mean=[0.1, 0.2, 0.3],
        image_std=[0.5, 0.4, 0.3],
        rpn_post_nms_top_n_test=200,
        box_detections_per_img=30,
    )
    model.roi_heads.mask_predictor = MaskRCNNPredictor(256, 256, 91)
    path = tmp_path_factory.mktemp("own") / "c.pth"
    torch.save(model.state_dict(), path)
    return model, path


def test_own_choices_are_exported_exactly(tmp_path: Path, own_choices: tuple[MaskRCNN, Path]) -> None:
    theirs, path = own_choices
    words = (
        "anchor_sizes=[[16,24],[32,48],[64,96],[128,160],[200,256]]",
        "aspect_ratios=[0.7, 1.4]",
        "image_mean=[0.1, 0.2, 0.3]",
        "image_std=[0.5, 0.4, 0.3]",
    )
    model, config = (read := read_checkpoint(path, overrides=overrides_of(words))).model, read.config
    assert (config.mask_classes, config.anchors_per_position) == (91, 4)
    report = export_onnx(model, tmp_path / "m.onnx", ExportOptions(*SIZE, post_nms_top_n=200, detections=30))
    assert report.contract.mean == (0.1, 0.2, 0.3)
    found = OnnxRuntimeBackend(tmp_path / "m.onnx", device="cpu", threads=1).run(whole(FRAME))
    ours = {name: value[0] for name, value in found.items()}
    assert_same(torchvision_detections(theirs), ours)
    eager = eager_detections(theirs, FRAME)[0][0]
    for i, j in match(eager, ours, 0.05)[0]:
        assert np.abs(eager["masks"][i] - ours["masks"][j]).max() <= 1e-3


@pytest.mark.parametrize("anchors", [1, 2, 4, 5, 6, 9, 12, 15])
def test_the_settings_that_the_error_proposes_work(own_choices: tuple[MaskRCNN, Path], anchors: int) -> None:
    state = own_choices[0].state_dict()
    state["rpn.head.cls_logits.weight"] = torch.zeros(anchors, 256, 1, 1)
    with pytest.raises(CheckpointError, match=f"has {anchors} anchors per position") as refused:
        infer_config(state, {})
    proposal = str(refused.value)[str(refused.value).index("--set") :]
    words = [word for word in shlex.split(proposal) if word != "--set"]
    config = infer_config(state, overrides_of(words))
    assert AnchorGenerator(*config.anchors).num_anchors_per_location() == [anchors] * 5


def test_fewer_masks_than_classes_export_without_masks(own_choices: tuple[MaskRCNN, Path], tmp_path: Path) -> None:
    """torchvision's own call fails on such a model: there is nothing that masks could be compared with."""
    theirs = torchvision_model("resnet18")
    theirs.roi_heads.mask_predictor = MaskRCNNPredictor(256, 256, 2)
    torch.save(theirs.state_dict(), tmp_path / "c.pth")
    model = read_checkpoint(tmp_path / "c.pth").model
    with pytest.raises(GraphError, match=r"2 classes and the box predictor 5.*--masks none"):
        DeployGraph(model, ExportOptions(*SIZE))
    with pytest.raises(IndexError):
        torchvision_detections(theirs)
    DeployGraph(model, ExportOptions(*SIZE, masks="none"))
    assert "masks" not in eager_detections(model, FRAME)[0][0]
    assert model.roi_heads.has_mask()


def test_frozen_batch_norm_gets_a_hint_about_its_epsilon(tmp_path: Path) -> None:
    body = resnet_fpn_backbone(backbone_name="resnet18", weights=None, trainable_layers=3)  # torchvision's frozen norms
    torch.save(MaskRCNN(body, num_classes=3).state_dict(), tmp_path / "c.pth")
    hints = read_checkpoint(tmp_path / "c.pth").hints
    assert len(hints) == 2
    assert "--classes" in hints[1]
    word = re.search(r"--set (\S+)", hints[0])
    assert word
    set_to = read_checkpoint(tmp_path / "c.pth", overrides=overrides_of([word[1]]))
    assert (set_to.hints[:-1], set_to.config.norm_eps, set_to.model.backbone.body.bn1.eps) == ((), 0, 0)


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("anchor_sizes=[[32],[64],[128],[256]]", "5 of each"),
        ("anchor_sizes=[[32],[64],[128],[256],[512,600]]", "as many at each level"),
        ("anchor_sizes=[[32],64,[128],[256],[512]]", "anchor_sizes"),
        ("anchor_sizes=[[],[],[],[],[]]", "anchor_sizes"),
        ("anchor_sizes=[[32],[64],[128],[256],[-1]]", "anchor_sizes"),
        ("anchor_sizes=32", "anchor_sizes"),
        ("anchor_sizes={}", "anchor_sizes"),
        ("aspect_ratios=[[1],[1]]", "5 of each"),
        ("aspect_ratios=[]", "aspect_ratios"),
        ("aspect_ratios=[true]", "aspect_ratios"),
        ("image_mean=[123.7, 116.3, 103.5]", "over 255"),
        ("image_mean=[0.5]", "three"),
        ("image_mean=0.5", "three"),
        ("image_std=[0, 0, 0]", "image_std"),
        ("image_std=[58.4, 57.1, 57.4]", "over 255"),
        ("mask_classes=0", "mask_classes"),
        ("mask_classes=x", "mask_classes"),
        ("norm_eps=NaN", "expected"),
    ],
)
def test_settings_that_do_not_fit_are_named(own_choices: tuple[MaskRCNN, Path], word: str, said: str) -> None:
    with pytest.raises(WnlbError, match=said) as refused:
        infer_config(own_choices[0].state_dict(), overrides_of([word]))
    assert "\n" not in str(refused.value)
