"""Non-maximum suppression by the standard operator NonMaxSuppression, for files that are for a CPU alone.

The operator gives as many indices as boxes remain, a number that depends on data. It is hidden in one operation of
ours, ``wnlb::suppress``, whose output has a known shape; only the file has the tensors between.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import nms


@torch.library.custom_op("wnlb::suppress", mutates_args=())
def suppress(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Which boxes survive greedy suppression among those of one class.

    Args:
        boxes: ``[G, K, 4]``, x1 y1 x2 y2.
        scores: ``[G, C, K]``; a box takes part in a class where its score is above 0.
        iou_threshold: more overlap than this suppresses.

    Returns:
        ``[G, K]`` of the type of ``boxes``: 1 for a box that survives in any class.
    """
    keep = boxes.new_zeros(boxes.shape[:2])
    for group, (own_boxes, own_scores) in enumerate(zip(boxes, scores, strict=True)):
        for of_class in own_scores:
            rows = (of_class > 0).nonzero()[:, 0]
            keep[group, rows[nms(own_boxes[rows], of_class[rows], iou_threshold)]] = 1
    return keep


@suppress.register_fake
def _(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    return boxes.new_empty(boxes.shape[:2])


def onnx_suppress(boxes: Any, scores: Any, iou_threshold: float) -> Any:
    """``suppress`` in operators of ONNX, opset 18, for ``torch.onnx.export``."""
    from onnxscript import opset18

    op: Any = opset18
    # ONNX has y before x: the overlap of two boxes is the same when both are mirrored.
    most = op.Constant(value_ints=[2**31])
    kept = op.NonMaxSuppression(
        boxes, scores, most, op.Constant(value_floats=[iou_threshold]), op.Constant(value_floats=[0.0])
    )  # [n, 3]: group, class, box
    index = op.Gather(kept, op.Constant(value_ints=[0, 2]), axis=1)
    ones = op.Cast(op.GreaterOrEqual(op.Gather(kept, op.Constant(value_int=0), axis=1), op.Constant(value_int=0)), to=1)
    none = op.Mul(op.ReduceMax(scores, op.Constant(value_ints=[1]), keepdims=0), op.Constant(value_float=0.0))  # [G, K]
    return op.ScatterND(none, index, ones)


class NodeNMS(nn.Module):
    """``StaticNMS`` without rounds, hence exact for any boxes.

    Args:
        iou_threshold: more overlap than this suppresses.
        classes: groups are 1 to ``classes``; 1 where none are given.
    """

    def __init__(self, iou_threshold: float, classes: int = 1) -> None:
        super().__init__()
        self.iou_threshold = iou_threshold
        self.classes: Tensor
        self.register_buffer("classes", torch.arange(1, classes + 1).reshape(1, -1, 1), persistent=False)

    def forward(self, boxes: Tensor, valid: Tensor, groups: Tensor | None = None) -> Tensor:
        """As ``StaticNMS.forward``."""
        # Their order is the boxes' order, whatever the scores: no two are equal.
        rank = torch.arange(boxes.shape[1], 0, -1, dtype=boxes.dtype, device=boxes.device)
        scores = (valid * rank).unsqueeze(1)  # [B, 1, K]
        if groups is not None:
            scores = scores * (groups.unsqueeze(1) == self.classes)
        return suppress(boxes, scores, self.iou_threshold)
