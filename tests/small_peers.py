"""Small Mask R-CNNs as mmdetection and detectron2 name their weights: a torchvision model of ours under other names."""

from __future__ import annotations

import re
from pathlib import Path

import peer_checkpoint
import torch
from peer_keys import Shapes
from small_models import small_model
from torch import Tensor

# torchvision's name -> mmdetection's; the background is the first class there and the last here.
_MMDET = (
    (r"^backbone\.body\.", "backbone."),
    (r"^backbone\.fpn\.inner_blocks\.(\d)\.0", r"neck.lateral_convs.\1.conv"),
    (r"^backbone\.fpn\.layer_blocks\.(\d)\.0", r"neck.fpn_convs.\1.conv"),
    (r"^backbone\.fpn\.(lateral|output)\.", r"neck.\1."),
    (r"^rpn\.head\.conv\.0\.0", "rpn_head.rpn_conv"),
    (r"^rpn\.head\.cls_logits", "rpn_head.rpn_cls"),
    (r"^rpn\.head\.bbox_pred", "rpn_head.rpn_reg"),
    (r"^roi_heads\.box_head\.fc6", "roi_head.bbox_head.shared_fcs.0"),
    (r"^roi_heads\.box_head\.fc7", "roi_head.bbox_head.shared_fcs.1"),
    (r"^roi_heads\.box_predictor\.cls_score", "roi_head.bbox_head.fc_cls"),
    (r"^roi_heads\.box_predictor\.bbox_pred", "roi_head.bbox_head.fc_reg"),
    (r"^roi_heads\.mask_head\.(\d)\.0", r"roi_head.mask_head.convs.\1.conv"),
    (r"^roi_heads\.mask_predictor\.conv5_mask", "roi_head.mask_head.upsample"),
    (r"^roi_heads\.mask_predictor\.mask_fcn_logits", "roi_head.mask_head.conv_logits"),
)
_DETECTRON2 = (
    (r"^backbone\.conv1\.", "backbone.bottom_up.stem.conv1."),
    (r"^backbone\.bn1\.", "backbone.bottom_up.stem.conv1.norm."),
    (r"^backbone\.layer(\d)\.", lambda m: f"backbone.bottom_up.res{int(m[1]) + 1}."),
    (r"^(backbone\.bottom_up\.res\d\.\d+)\.bn(\d)\.", r"\1.conv\2.norm."),
    (r"\.downsample\.0\.", ".shortcut."),
    (r"\.downsample\.1\.", ".shortcut.norm."),
    (r"^neck\.lateral_convs\.(\d)\.conv", lambda m: f"backbone.fpn_lateral{int(m[1]) + 2}"),
    (r"^neck\.fpn_convs\.(\d)\.conv", lambda m: f"backbone.fpn_output{int(m[1]) + 2}"),
    (r"^neck\.(lateral|output)\.", r"backbone.\1."),
    (r"^rpn_head\.rpn_conv", "proposal_generator.rpn_head.conv"),
    (r"^rpn_head\.rpn_cls", "proposal_generator.rpn_head.objectness_logits"),
    (r"^rpn_head\.rpn_reg", "proposal_generator.rpn_head.anchor_deltas"),
    (r"^roi_head\.bbox_head\.shared_fcs\.(\d)", lambda m: f"roi_heads.box_head.fc{int(m[1]) + 1}"),
    (r"^roi_head\.bbox_head\.fc_cls", "roi_heads.box_predictor.cls_score"),
    (r"^roi_head\.bbox_head\.fc_reg", "roi_heads.box_predictor.bbox_pred"),
    (r"^roi_head\.mask_head\.convs\.(\d)\.conv", lambda m: f"roi_heads.mask_head.mask_fcn{int(m[1]) + 1}"),
    (r"^roi_head\.mask_head\.upsample", "roi_heads.mask_head.deconv"),
    (r"^roi_head\.mask_head\.conv_logits", "roi_heads.mask_head.predictor"),
)


def small_mmdet_state(dtype: torch.dtype = torch.float64, **fields: object) -> dict[str, Tensor]:
    """mmdetection's state dict of ``small_model``: a narrow ResNet-18 with LIS's eight classes and four blocks."""
    state = _renamed(small_model(**fields).state_dict(), _MMDET)
    for name, rows in (("bbox_head.fc_cls", 1), ("bbox_head.fc_reg", 4), ("mask_head.conv_logits", 1)):
        for kind in ("weight", "bias"):
            value = state[f"roi_head.{name}.{kind}"]
            background = value[:rows] if name == "bbox_head.fc_cls" else value[:0]
            state[f"roi_head.{name}.{kind}"] = torch.cat([value[rows:], background])
    return {name: value.to(dtype) if value.is_floating_point() else value for name, value in state.items()}


def detectron2_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same weights, by detectron2's names."""
    return _renamed(state, _DETECTRON2)


def write_mmdet_checkpoint(path: Path, **fields: object) -> None:
    """As mmengine saves while training: weights, optimizer, message hub, and the configuration in ``meta``."""
    code = (
        peer_checkpoint.config("mmdet-pytorch")
        .replace("depth=50", "depth=18")
        .replace("max_per_img=100", "max_per_img=12")
    )
    content = {"state_dict": small_mmdet_state(torch.float32, **fields), "meta": {"cfg": code, "epoch": 12}}
    torch.save({**content, "optimizer": {"param_groups": []}, "message_hub": {"log": object}}, path)


def write_detectron2_checkpoint(path: Path, config: Path, **fields: object) -> None:
    """Weights, and the configuration beside them: RGB, torchvision's statistics and style."""
    text = peer_checkpoint.config("d2-msra")
    for pattern, value in (
        (r"DEPTH: 50", "DEPTH: 18"),
        (r"RES2_OUT_CHANNELS: 256", "RES2_OUT_CHANNELS: 64"),
        (r"STRIDE_IN_1X1: true", "STRIDE_IN_1X1: false"),
        (r"FORMAT: BGR", "FORMAT: RGB"),
        (r"PIXEL_MEAN:\n( *- .*\n){3}", "PIXEL_MEAN: [123.675, 116.28, 103.53]\n"),
        (r"PIXEL_STD:\n( *- .*\n){3}", "PIXEL_STD: [58.395, 57.12, 57.375]\n"),
    ):
        text, count = re.subn(pattern, value, text)
        assert count == 1, pattern
    config.write_text(text)
    torch.save({"model": detectron2_names(small_mmdet_state(torch.float32, **fields)), "iteration": 9}, path)


def _renamed(state: dict[str, Tensor], table: tuple) -> dict[str, Tensor]:
    renamed = {}
    for name, value in state.items():
        for pattern, replacement in table:
            name = re.sub(pattern, replacement, name)
        renamed[name] = value
    return renamed


def lively_state(shapes: Shapes, seed: int = 0) -> dict[str, Tensor]:
    """Random weights of these shapes in float64: as wide as their inputs are many, norms that shift and scale."""
    random = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in shapes.items():
        if name.endswith("num_batches_tracked"):
            state[name] = torch.zeros(shape, dtype=torch.int64)
        elif len(shape) > 1:
            weight = torch.randn(shape, generator=random, dtype=torch.float64)
            state[name] = weight * (2 / weight[0].numel()) ** 0.5
        else:
            low, high = (-0.3, 0.3) if name.endswith(("bias", "running_mean")) else (0.3, 0.6)
            low, high = (0.6, 1.5) if name.endswith("running_var") else (low, high)
            state[name] = torch.empty(shape, dtype=torch.float64).uniform_(low, high, generator=random)
    return state
