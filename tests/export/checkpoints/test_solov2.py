"""SOLOv2 checkpoints of mmdetection: recognised, their configuration read strictly, their network rebuilt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import solo_checkpoint
import torch
from torch import Tensor

from wnlb.export.checkpoints.checkpoint import LoadedCheckpoint, load_checkpoint, read_checkpoint
from wnlb.export.checkpoints.configurations.mmdet_config import settings_from_data
from wnlb.export.checkpoints.configurations.python_data import data_from_text
from wnlb.export.checkpoints.configurations.solov2_settings import Solov2Settings
from wnlb.export.checkpoints.frameworks import recognise
from wnlb.export.solov2 import Selection, Solov2, Solov2Config
from wnlb.runtime.errors import CheckpointError

FRAMEWORK = "mmdetection-solov2"


def read(path: Path, state: dict[str, Tensor], text: str = "", **told: Any) -> LoadedCheckpoint:
    meta = {"cfg": text or solo_checkpoint.small_config(), "dataset_meta": {"classes": tuple("abcdefgh")}}
    torch.save({"state_dict": state, "meta": meta}, path / "c.pth")
    return read_checkpoint(path / "c.pth", overrides=told)


def test_a_training_checkpoint(tmp_path: Path) -> None:
    state = solo_checkpoint.small_state()
    checkpoint = read(tmp_path, {f"module.{name}": value for name, value in state.items()})
    assert isinstance(checkpoint.config, Solov2Config)
    config, model = checkpoint.config, checkpoint.model
    assert (config.backbone, config.num_classes, config.class_names) == ("resnet18", 9, tuple("abcdefgh"))
    assert (config.levels, config.placement, config.weighted) == (("c2", "c3", "c4", "c5"), "inline", True)
    assert (config.head_convs, config.head_channels, config.feature_channels, config.kernel_channels) == (1, 32, 16, 16)
    assert (config.grids, config.cell_strides, config.norm_groups) == (
        solo_checkpoint.SMALL_GRIDS,
        (8, 8, 16, 32, 32),
        8,
    )
    assert isinstance(model, Solov2)
    assert model.selection == Selection(0.1, 500, 2.0, 0.05, 20)
    for ours, theirs in (
        ("head.kernel_convs.0.conv", "mask_head.kernel_convs.0.conv"),
        ("head.cls_convs.0.norm", "mask_head.cls_convs.0.gn"),
        ("head.conv_cls", "mask_head.conv_cls"),
        ("head.mask_convs.3.2.norm", "mask_head.mask_feature_head.convs_all_levels.3.conv2.gn"),
        ("head.conv_pred.conv", "mask_head.mask_feature_head.conv_pred.conv"),
        ("backbone.body.layer2.wnlb.theta", "backbone.layer2.wnlb.theta"),
        ("backbone.fpn.layer_blocks.1.0", "neck.fpn_convs.1.conv"),
    ):
        assert torch.equal(model.get_parameter(f"{ours}.weight"), state[f"{theirs}.weight"]), ours
    assert checkpoint.origin
    assert set(checkpoint.origin.state) == set(state)
    with pytest.raises(CheckpointError, match="is of mmdetection-solov2; expected a torchvision model"):
        load_checkpoint(tmp_path / "c.pth")


def test_what_is_told_wins_and_what_nothing_tells_is_asked_for(tmp_path: Path) -> None:
    state = solo_checkpoint.small_state(levels=())
    assert read(tmp_path, state, nms_sigma=1.5, cell_threshold=0.3).model.selection.nms_sigma == 1.5
    torch.save(state, tmp_path / "bare.pth")
    with pytest.raises(CheckpointError, match=r"tell style .*, grids \(five numbers of cells.*--config FILE\.py"):
        read_checkpoint(tmp_path / "bare.pth")
    with pytest.raises(CheckpointError, match=r"grids is \[4, 4\]; expected five numbers"):
        read(tmp_path, state, grids=[4, 4])
    with pytest.raises(CheckpointError, match="has the num_classes 9, its configuration 5"):
        read(tmp_path, state, num_classes=5)


def test_bgr_and_the_style_of_a_real_configuration() -> None:
    text = bytes(solo_checkpoint.reference("r50-caffe")["config"]).decode()
    settings = settings_from_data(data_from_text(text, "c.py"), "c.py", None, FRAMEWORK)
    assert settings == Solov2Settings(
        framework=FRAMEWORK,
        style="caffe",
        channel_order="bgr",
        mean=(103.53, 116.28, 123.675),
        std=(1.0, 1.0, 1.0),
        resize="fit",
        scale=(608, 416),
        interpolation="bilinear",
        pad_divisor=32,
        score_threshold=0.05,
        detections=50,
        backbone="resnet50",
        num_classes=9,
        grids=(40, 36, 24, 16, 12),
        cell_strides=(8, 8, 16, 32, 32),
        norm_groups=32,
        cell_threshold=0.1,
        nms_candidates=500,
        nms_sigma=2.0,
    )


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("kernel='gaussian'", "kernel='linear'", "kernel is 'linear'; expected 'gaussian'"),
        ("mask_thr=0.5", "mask_thr=0.4", "mask_thr is 0.4; expected 0.5"),
        ("filter_thr=0.05", "filter=0.05", "filter_thr is None; expected a number"),
        ("stacked_convs=2", "stacked_convs=2, dcn_cfg=dict(type='DCNv2')", "dcn_cfg is"),
        ("stacked_convs=2", "stacked_convs=2, dynamic_conv_size=3", "dynamic_conv_size is 3; expected 1"),
        ("stacked_convs=2", "stacked_convs=2, new=3", "new is 3, which is not known"),
        ("end_level=3", "end_level=2", "end_level is 2; expected 3"),
        ("mask_stride=4", "mask_stride=8", "mask_stride is 8; expected 4"),
        ("type='GN'", "type='BN'", "norm_cfg.type is 'BN'; expected GN"),
        ("type='SOLOV2Head'", "type='SOLOHead'", "mask_head is of the type 'SOLOHead'; expected SOLOV2Head"),
        ("type='SOLOv2'", "type='SOLO'", "model is of the type 'SOLO'; expected SOLOv2 with FPN"),
    ],
)
def test_other_networks_are_refused_by_name(old: str, new: str, message: str) -> None:
    text = solo_checkpoint.small_config()
    assert old in text
    with pytest.raises(CheckpointError, match=message):
        settings_from_data(data_from_text(text.replace(old, new), "c.py"), "c.py", None, FRAMEWORK)


def test_other_heads_are_refused_by_their_weights(tmp_path: Path) -> None:
    state = solo_checkpoint.small_state(levels=())
    assert recognise(state) == FRAMEWORK
    with pytest.raises(CheckpointError, match=r"conv_offset\.weight, of a deformable convolution"):
        read(tmp_path, {**state, "mask_head.cls_convs.0.conv.conv_offset.weight": torch.zeros(1)})
    with pytest.raises(CheckpointError, match="of a head with batch norms"):
        read(tmp_path, {**state, "mask_head.cls_convs.0.bn.weight": torch.zeros(1)})
    with pytest.raises(CheckpointError, match=r"belong to no SOLOv2 of mmdetection: mask_head\.more\.weight"):
        read(tmp_path, {**state, "mask_head.more.weight": torch.zeros(1)})
    del state["mask_head.conv_kernel.weight"]
    with pytest.raises(CheckpointError, match="has no kernel branch, or not all of it; expected a SOLOv2"):
        read(tmp_path, state)


def test_a_student_and_its_teacher(tmp_path: Path) -> None:
    state = solo_checkpoint.small_state(levels=())
    both = {f"{who}.{name}": value for who in ("student", "teacher") for name, value in state.items()}
    checkpoint = read(tmp_path, both)
    assert (checkpoint.weights, checkpoint.others) == ("state_dict.student", ("state_dict.teacher",))
