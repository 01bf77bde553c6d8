"""Names of weights in mmdetection 2.x and 3.x, and in LIS, which is built on 2.x (Linwei-Chen/LIS, 95de45c)."""

from __future__ import annotations

import torch
from torch import Tensor

from wnlb.export.checkpoints.names.name_table import NameTable, Row, background_first, box_rows, mask_rows

_BOX, _MASK = "roi_head.bbox_head", "roi_head.mask_head"


def with_smooth_convolutions(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """LIS's smooth-oriented convolutions inside the 3 x 3 convolutions that they stand beside.

    ``conv2(x) + learnable_conv1(llpf(x))``, llpf a filter of each channel by the softmax of its nine weights, is one
    convolution: conv2[o, i] + learnable_conv1[o, i] softmax(llpf[i]) (SmoothPriorBottleneck, LLPFConv).
    """
    result = dict(state)
    for name in state:
        unit = name.removesuffix("learnable_conv1.weight")
        filters, conv = f"{unit}llpf.weight", f"{unit}conv2.weight"
        if unit == name or filters not in state or conv not in state:
            continue
        mixing, direct = result.pop(name).double(), result[conv]
        smooth = result.pop(filters).double().flatten(1).softmax(1).reshape(1, -1, 3, 3)  # [1, I, 3, 3]
        result[conv] = (direct.double() + mixing * smooth).to(torch.promote_types(direct.dtype, torch.float32))
    return result


BODY = (
    Row(r"backbone\.(conv1|bn1|layer[1-4]\.\d+\.(?:conv[123]|bn[123]|downsample\.[01]))", r"backbone.body.\1"),
    *(  # LIS's downsampling before the stage i
        Row(rf"backbone\.AdaD\.{i - 1}\.(weight_net\.[01]|channel_net\.[13])", rf"backbone.body.layer{i}.adad.\1")
        for i in (2, 3, 4)
    ),
    Row(r"neck\.lateral_convs\.([0-3])\.conv", r"backbone.fpn.inner_blocks.\1.0"),
    Row(r"neck\.lateral_convs\.([0-3])\.bn", r"backbone.fpn.inner_blocks.\1.0", folded=True),
    Row(r"neck\.fpn_convs\.([0-3])\.conv", r"backbone.fpn.layer_blocks.\1.0"),
    Row(r"neck\.fpn_convs\.([0-3])\.bn", r"backbone.fpn.layer_blocks.\1.0", folded=True),
)
REFUSED_BODIES = (
    (r"conv_offset", "a deformable convolution"),
    (r"^neck\.\d+\.", "a neck of several parts"),
    (r"^neck\.fpn_convs\.[4-9]\.", "an FPN with extra convolutions"),
    (r"^backbone\.stem\.", "a deep stem (ResNet-C, -D)"),
    (r"\.g\.0\.conv\.", "a non-local block with sub_sample"),
)
BLOCK_HOMES = (
    (r"backbone\.layer([1-4])\.([^.]+)", r"backbone.body.layer\1.\2"),
    (r"neck\.(.+)", r"backbone.fpn.\1"),
    (r"backbone\.(?!layer\d)(.+)", ""),
)
TABLE = NameTable(
    framework="mmdetection",
    rows=(
        *BODY,
        Row(r"rpn_head\.rpn_conv", r"rpn.head.conv.0.0"),
        Row(r"rpn_head\.rpn_conv\.(\d)\.conv", r"rpn.head.conv.\1.0"),
        Row(r"rpn_head\.rpn_cls", "rpn.head.cls_logits"),
        Row(r"rpn_head\.rpn_reg", "rpn.head.bbox_pred"),
        Row(rf"{_BOX}\.shared_convs\.(\d)\.conv", r"roi_heads.box_head.conv\1"),
        Row(rf"{_BOX}\.shared_convs\.(\d)\.bn", r"roi_heads.box_head.conv\1", folded=True),
        Row(rf"{_BOX}\.shared_fcs\.(\d)", r"roi_heads.box_head.fc\1"),
        Row(rf"{_BOX}\.fc_cls", "roi_heads.box_predictor.cls_score", background_first),
        Row(rf"{_BOX}\.fc_reg", "roi_heads.box_predictor.bbox_pred", box_rows),
        Row(rf"{_MASK}\.convs\.(\d)\.conv", r"roi_heads.mask_head.\1.0"),
        Row(rf"{_MASK}\.convs\.(\d)\.bn", r"roi_heads.mask_head.\1.0", folded=True),
        Row(rf"{_MASK}\.upsample", "roi_heads.mask_predictor.conv5_mask"),
        Row(rf"{_MASK}\.conv_logits", "roi_heads.mask_predictor.mask_fcn_logits", mask_rows),
    ),
    refused=(
        (r"\.gn\d?\.", "a group norm"),
        *REFUSED_BODIES,
        (r"^roi_head\.(bbox|mask)_head\.\d\.", "a cascade of heads"),
        (r"^roi_head\.point_head\.", "PointRend"),
        (r"^roi_head\.mask_iou_head\.", "Mask Scoring R-CNN"),
        (r"^roi_head\.semantic_head\.|^semantic_head\.", "a semantic branch"),
    ),
    scores=f"{_BOX}.fc_cls",
    block_homes=BLOCK_HOMES,
    prepare=with_smooth_convolutions,
)
