"""What stands before and behind a YOLO-seg network in a static file: the frame as it wants it, and its detections.

As ultralytics computes them (utils/nms.py, ``non_max_suppression`` for one label a box; utils/ops.py), for networks
whose file decodes boxes itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wnlb.export.graph.mask_branch import row_count
from wnlb.export.graph.node_nms import NodeNMS
from wnlb.export.graph.output_graph import OutputGraph
from wnlb.export.graph.static_ops import StaticNMS, take_rows

CLASS_OFFSET = 7680.0  # px between the boxes of two classes, before they are suppressed together
PADDING = 114  # of 255, what the network sees beside the picture


@dataclass(frozen=True)
class YoloCounts:
    """Sizes and thresholds of the detections."""

    classes: int  # C
    candidates: int  # K, of the A anchors, that enter suppression
    detections: int  # D
    score_threshold: float
    nms_threshold: float
    nms_rounds: int
    target: str = "gpu"
    masks: bool = True


class YoloInput(nn.Module):
    """``image`` uint8 ``[N, H, W, 3]`` and ``content`` int32 ``[N, 2]`` to ``[N, 3, H, W]``, RGB in 0..1.

    The picture lies in the middle, an odd pixel of padding right or below; what is beside it is ``PADDING``.
    """

    rows: Tensor  # [H, 1] 0, 1, ...
    columns: Tensor  # [W]

    def __init__(self, height: int, width: int) -> None:
        super().__init__()
        self.register_buffer("rows", torch.arange(height).unsqueeze(1) * 1.0, persistent=False)
        self.register_buffer("columns", torch.arange(width) * 1.0, persistent=False)

    def forward(self, image: Tensor, content: Tensor) -> Tensor:
        sizes = content.to(self.rows.dtype)
        height, width = sizes[:, :1].unsqueeze(2), sizes[:, 1:].unsqueeze(2)  # [N, 1, 1]
        top, left = (torch.floor((self.rows.shape[0] - height) / 2), torch.floor((self.columns.shape[0] - width) / 2))
        inside = (self.rows >= top) & (self.rows < top + height)
        inside = (inside & (self.columns >= left) & (self.columns < left + width)).unsqueeze(1)  # [N, 1, H, W]
        share = inside.to(self.rows.dtype)
        # Exact, of whole numbers; where() takes ONNX Runtime's CPU more than twice as long.
        return (image.to(self.rows.dtype).permute(0, 3, 1, 2) * share + PADDING * (1 - share)) / 255


class YoloOutput(OutputGraph):
    """From what a YOLO-seg file gives to the outputs of the contract.

    ``predictions [N, 4 + C + M, A]``: for each anchor centre x, centre y, width, height in input pixels, probabilities
    of the classes, mask coefficients. ``prototypes [N, M, H/4, W/4]``.
    """

    def __init__(self, counts: YoloCounts) -> None:
        super().__init__()
        self.detect = YoloDetections(counts)

    def forward(self, predictions: Tensor, prototypes: Tensor, content: Tensor) -> tuple[Tensor, ...]:
        return self.detect(predictions, prototypes, content)

    def best_scores(self, outputs: Sequence[Tensor]) -> Tensor:
        """Of the best class of each anchor, ``[N, A]``."""
        return outputs[0][:, 4 : 4 + self.detect.counts.classes].amax(1)

    def chain(self, outputs: Sequence[Tensor], content: Tensor, threshold: float) -> int | None:
        boxes, scores, labels, _, _ = self.detect.ranked(outputs[0], content)
        if not isinstance(self.detect.nms, StaticNMS):
            return None
        return self.detect.nms.chain_length(self.detect.apart(boxes, labels), (scores > threshold).to(boxes.dtype))

    def lacks_candidates(self, outputs: Sequence[Tensor], content: Tensor) -> bool:
        boxes, scores, labels, _, _ = self.detect.ranked(outputs[0], content)
        valid = (scores > self.detect.score_threshold).to(boxes.dtype)
        kept = self.detect.nms(self.detect.apart(boxes, labels), valid).sum(1)
        full = (valid.sum(1) == valid.shape[1]) & (kept < self.detect.counts.detections)
        return valid.shape[1] < outputs[0].shape[2] and bool(full.any())


class YoloDetections(nn.Module):
    """The best class of each anchor, above the threshold, suppressed with ``CLASS_OFFSET``, the D best of them."""

    score_threshold: Tensor  # []

    def __init__(self, counts: YoloCounts) -> None:
        super().__init__()
        self.counts = counts
        # A buffer, so that the file holds it under this name: it can be changed there.
        self.register_buffer("score_threshold", torch.tensor(float(counts.score_threshold)), persistent=False)
        self.static_nms = counts.target != "cpu"
        if self.static_nms:
            self.nms: StaticNMS | NodeNMS = StaticNMS(counts.nms_threshold, counts.nms_rounds)
        else:
            self.nms = NodeNMS(counts.nms_threshold)
        if counts.masks:
            self.mask = FoundMasks() if counts.target == "cpu" else FrameMasks()

    def forward(self, predictions: Tensor, prototypes: Tensor, content: Tensor) -> tuple[Tensor, ...]:
        boxes, scores, labels, index, valid = self.ranked(predictions, content)
        kept = scores * self.nms(self.apart(boxes, labels), valid)
        detections = self.counts.detections
        scores, order = kept.topk(min(detections, boxes.shape[1]), 1)
        missing = detections - order.shape[1]
        scores, order = (F.pad(t, (0, missing)) for t in (scores, order)) if missing else (scores, order)
        found = scores > 0
        boxes = take_rows(boxes, order) * found.unsqueeze(-1)
        outputs = [boxes, scores, (labels.gather(1, order) * found).int()]
        if self.counts.masks:
            coefficients = predictions[:, 4 + self.counts.classes :].transpose(1, 2)  # [N, A, M]
            outputs.append(self.mask(take_rows(coefficients, index.gather(1, order)), prototypes, found))
        return (*outputs, found.sum(1).int())

    def ranked(self, predictions: Tensor, content: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """What enters suppression: boxes ``[N, K, 4]`` x1 y1 x2 y2, scores, labels 1..C, anchors, validity (0 or 1).

        Best first. Where there is no picture nothing is valid.
        """
        best, label = predictions[:, 4 : 4 + self.counts.classes].max(1)  # [N, A]
        scores, index = best.topk(min(self.counts.candidates, best.shape[1]), 1)
        boxes = take_rows(predictions[:, :4].transpose(1, 2), index)
        center, half = boxes[..., :2], boxes[..., 2:] / 2
        boxes = torch.cat((center - half, center + half), -1)
        there = content.to(boxes.dtype).amin(1, keepdim=True) > 0
        valid = (scores > self.score_threshold) & there
        return boxes, scores, label.gather(1, index) + 1, index, valid.to(boxes.dtype)

    def apart(self, boxes: Tensor, labels: Tensor) -> Tensor:
        """Boxes of different classes far from each other: also the rounding of such coordinates is theirs."""
        return boxes + ((labels - 1) * CLASS_OFFSET).unsqueeze(-1)


class FrameMasks(nn.Module):
    """Logits ``[N, D, h, w]`` of coefficients ``[N, D, M]`` and prototypes ``[N, M, h, w]``."""

    def forward(self, coefficients: Tensor, prototypes: Tensor, found: Tensor) -> Tensor:
        """``found``, bool ``[N, D]``, tells which rows count; the others may hold anything."""
        return (coefficients @ prototypes.flatten(2)).reshape(*coefficients.shape[:2], *prototypes.shape[2:])


class FoundMasks(FrameMasks):
    """``FrameMasks`` for a CPU: of as many rows as the image with the most has; the others are zero."""

    def forward(self, coefficients: Tensor, prototypes: Tensor, found: Tensor) -> Tensor:
        rows, detections = row_count(found.sum(0) > 0), coefficients.shape[1]
        # One row of zeros behind them; the others are read from it, so that each is written once.
        masks = super().forward(F.pad(coefficients, (0, 0, 0, 1)).narrow(1, 0, rows + 1), prototypes, found)
        return masks.index_select(1, torch.arange(detections).clamp(max=rows))
