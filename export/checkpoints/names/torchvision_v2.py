"""Names of weights in torchvision's ``maskrcnn_resnet50_fpn_v2``: those of the first version, with norms to fold."""

from __future__ import annotations

from wnlb.export.checkpoints.names.name_table import NameTable, Row

TABLE = NameTable(
    framework="torchvision",
    rows=(
        Row(r"(backbone\.fpn\.(?:inner|layer)_blocks\.\d\.)1", r"\g<1>0", folded=True),
        Row(r"(roi_heads\.(?:box|mask)_head\.\d\.)1", r"\g<1>0", folded=True),
        Row(r"((?:backbone\.(?:body|fpn)|rpn\.head|roi_heads\.(?:box|mask)_(?:head|predictor))\..+)", r"\1"),
    ),
    refused=(),
    scores="roi_heads.box_predictor.cls_score",
    block_homes=((r"(backbone\.(?:body\.layer[1-4]\.[^.]+|fpn\..+))", r"\1"),),
)
