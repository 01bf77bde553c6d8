"""Names of weights of SOLOv2 in mmdetection 2.x and 3.x."""

from __future__ import annotations

from wnlb.export.checkpoints.names.mmdet import BLOCK_HOMES, BODY, REFUSED_BODIES, with_smooth_convolutions
from wnlb.export.checkpoints.names.name_table import NameTable, Row

_FEATURES = r"mask_head\.mask_feature_head"

TABLE = NameTable(
    framework="mmdetection",
    network="SOLOv2",
    rows=(
        *BODY,
        Row(r"mask_head\.(kernel|cls)_convs\.(\d)\.conv", r"head.\1_convs.\2.conv"),
        Row(r"mask_head\.(kernel|cls)_convs\.(\d)\.gn", r"head.\1_convs.\2.norm"),
        Row(r"mask_head\.conv_(kernel|cls)", r"head.conv_\1"),
        Row(rf"{_FEATURES}\.convs_all_levels\.([0-3])\.conv(\d)\.conv", r"head.mask_convs.\1.\2.conv"),
        Row(rf"{_FEATURES}\.convs_all_levels\.([0-3])\.conv(\d)\.gn", r"head.mask_convs.\1.\2.norm"),
        Row(rf"{_FEATURES}\.conv_pred\.conv", "head.conv_pred.conv"),
        Row(rf"{_FEATURES}\.conv_pred\.gn", "head.conv_pred.norm"),
    ),
    refused=(
        *REFUSED_BODIES,
        (r"^(backbone|neck)\..*\.gn\d?\.", "a group norm outside the head"),
        (r"^mask_head\..*\.bn\.", "a head with batch norms"),
    ),
    parts={
        "backbone.body.conv1": "stem",
        "backbone.fpn.inner_blocks.0.0": "FPN",
        "head.kernel_convs.0.conv": "kernel branch",
        "head.conv_kernel": "kernel branch",
        "head.cls_convs.0.conv": "class branch",
        "head.conv_cls": "class branch",
        "head.mask_convs.3.2.conv": "mask feature branch",
        "head.conv_pred.conv": "mask feature branch",
    },
    block_homes=BLOCK_HOMES,
    prepare=with_smooth_convolutions,
)
