"""Names of weights in detectron2."""

from __future__ import annotations

import re

from torch import Tensor

from wnlb.export.checkpoints.names.name_table import NameTable, Row, background_first, box_rows, mask_rows, whole_norm

_BODY = r"backbone\.bottom_up"
_RPN = r"proposal_generator\.rpn_head"
_NUMBERED = re.compile(
    r"(\.box_head\.(?:conv|fc)|\.mask_head\.mask_fcn|backbone\.fpn_(?:lateral|output)|bottom_up\.res)(\d+)"
)


def counted_from_zero(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """``fc1`` as ``fc0``, ``fpn_output2`` as ``fpn_output0``, ``res2`` as ``layer1``: torchvision's numbers.

    Without ``pixel_mean`` and ``pixel_std``, which old files have and the configuration says.
    """

    def number(found: re.Match[str]) -> str:
        name, old = found[1], int(found[2])
        if name.endswith(".res"):
            return f"bottom_up.layer{old - 1}"
        return f"{name}{old - (2 if 'fpn_' in name else 1)}"

    left = {name: value for name, value in state.items() if name not in ("pixel_mean", "pixel_std")}
    return {_NUMBERED.sub(number, name, count=1): value for name, value in left.items()}


TABLE = NameTable(
    framework="detectron2",
    rows=(
        Row(rf"{_BODY}\.stem\.conv1", "backbone.body.conv1"),
        Row(rf"{_BODY}\.stem\.conv1\.norm", "backbone.body.bn1", whole_norm),
        Row(rf"{_BODY}\.(layer[1-4]\.\d+\.conv[123])", r"backbone.body.\1"),
        Row(rf"{_BODY}\.(layer[1-4]\.\d+\.)conv([123])\.norm", r"backbone.body.\1bn\2", whole_norm),
        Row(rf"{_BODY}\.(layer[1-4]\.\d+\.)shortcut", r"backbone.body.\1downsample.0"),
        Row(rf"{_BODY}\.(layer[1-4]\.\d+\.)shortcut\.norm", r"backbone.body.\1downsample.1", whole_norm),
        Row(r"backbone\.fpn_lateral([0-3])", r"backbone.fpn.inner_blocks.\1.0"),
        Row(r"backbone\.fpn_lateral([0-3])\.norm", r"backbone.fpn.inner_blocks.\1.0", whole_norm, folded=True),
        Row(r"backbone\.fpn_output([0-3])", r"backbone.fpn.layer_blocks.\1.0"),
        Row(r"backbone\.fpn_output([0-3])\.norm", r"backbone.fpn.layer_blocks.\1.0", whole_norm, folded=True),
        Row(rf"{_RPN}\.conv", "rpn.head.conv.0.0"),
        Row(rf"{_RPN}\.conv\.conv(\d)", r"rpn.head.conv.\1.0"),
        Row(rf"{_RPN}\.objectness_logits", "rpn.head.cls_logits"),
        Row(rf"{_RPN}\.anchor_deltas", "rpn.head.bbox_pred"),
        Row(r"roi_heads\.box_head\.(conv|fc)(\d)", r"roi_heads.box_head.\1\2"),
        Row(r"roi_heads\.box_head\.conv(\d)\.norm", r"roi_heads.box_head.conv\1", whole_norm, folded=True),
        Row(r"roi_heads\.box_predictor\.cls_score", "roi_heads.box_predictor.cls_score", background_first),
        Row(r"roi_heads\.box_predictor\.bbox_pred", "roi_heads.box_predictor.bbox_pred", box_rows),
        Row(r"roi_heads\.mask_head\.mask_fcn(\d)", r"roi_heads.mask_head.\1.0"),
        Row(r"roi_heads\.mask_head\.mask_fcn(\d)\.norm", r"roi_heads.mask_head.\1.0", whole_norm, folded=True),
        Row(r"roi_heads\.mask_head\.deconv", "roi_heads.mask_predictor.conv5_mask"),
        Row(r"roi_heads\.mask_head\.predictor", "roi_heads.mask_predictor.mask_fcn_logits", mask_rows),
        Row(r"proposal_generator\.anchor_generator\.cell_anchors", ""),  # old files stored what the configuration says
    ),
    refused=(
        (r"\.conv2_offset\.", "a deformable convolution"),
        (r"^roi_heads\.(box_head|box_predictor)\.\d\.", "a cascade of heads"),
        (r"^roi_heads\.mask_(coarse|point)_head\.|^roi_heads\.mask_head\.(coarse|point)_head\.", "PointRend"),
        (r"^sem_seg_head\.", "a semantic branch"),
        (r"^roi_heads\.keypoint_head\.", "a keypoint head"),
        (r"^backbone\.top_block\.", "an FPN with extra convolutions"),
    ),
    scores="roi_heads.box_predictor.cls_score",
    block_homes=(
        (rf"{_BODY}\.layer([1-4])\.([^.]+)", r"backbone.body.layer\1.\2"),
        (rf"{_BODY}\.(?!layer\d)(.+)", ""),
        (r"backbone\.(?!bottom_up)(.+)", r"backbone.fpn.\1"),
    ),
    prepare=counted_from_zero,
)
