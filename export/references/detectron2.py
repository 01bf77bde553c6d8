"""Mask R-CNN as detectron2 runs it at test time (source: 02b5c4e2, 2026-06; no code of theirs).

The path behind a step names the file that it was read in, from detectron2/ on.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.ops import batched_nms

from wnlb.export.references.boxes import (
    STRIDES,
    anchors,
    by_anchor,
    clipped,
    decoded,
    levels,
    not_empty,
    pooled,
)
from wnlb.export.references.interface import Found, Settings, content_sizes, network_input
from wnlb.export.references.layers import conv, linear, normed_conv, up_conv
from wnlb.export.references.network import ResNetNames, blocks_of_neck, fpn, resnet, through_blocks, with_p6
from wnlb.export.references.weights import Weights

BOTTOM_UP = "backbone.bottom_up."
RESNET = ResNetNames(
    stem=f"{BOTTOM_UP}stem.conv1",
    stem_norm=f"{BOTTOM_UP}stem.conv1.norm",
    stages=(f"{BOTTOM_UP}res2", f"{BOTTOM_UP}res3", f"{BOTTOM_UP}res4", f"{BOTTOM_UP}res5"),
    norm="conv{}.norm",
    shortcut="shortcut",
    shortcut_norm="shortcut.norm",
)
FPN = [(f"backbone.fpn_lateral{i}", f"backbone.fpn_output{i}") for i in (2, 3, 4, 5)]
BOX_WEIGHTS = (10.0, 10.0, 5.0, 5.0)  # the box head's deltas are so many times larger, those of the RPN once
LEVEL_EPSILON = 1e-8


def detections(
    state: Mapping[str, Tensor],
    settings: Settings,
    frames: NDArray[np.uint8],
    content: NDArray[np.integer] | None = None,
) -> Found:
    """Run the network on frames that already have the input's size, in the dtype of the weights.

    Args:
        state: float32 or float64, by the names of the framework.
        settings: STRIDE_IN_1X1 is ``style="caffe"``.
        frames: uint8 RGB ``[N, H, W, 3]``, H and W multiples of 32.
        content: ``[N, 2]`` height and width of the picture at the top left of each frame; None: it fills the frame.

    Raises:
        CheckpointError: a weight is missing, or belongs to a part that is not computed here.
    """
    weights = Weights(state, "detectron2")
    sizes = content_sizes(frames, content)
    found, proposals = [], []
    with torch.no_grad():
        pyramid = pyramid_of(weights, settings, network_input(frames, sizes, settings, weights.dtype))
        for i, size in enumerate(sizes):
            own = [level[i : i + 1] for level in pyramid]
            proposals.append(_proposals(weights, settings, own, size))
            boxes, scores, labels = _boxes(weights, settings, own, proposals[-1], size)
            masks = _masks(weights, own, boxes, labels)
            values = {"boxes": boxes, "scores": scores, "labels": labels + 1, "masks": masks}
            found.append({name: value.numpy() for name, value in values.items()})
    weights.check_all_used()
    return Found(found, proposals, pyramid)


def _conv_norm(weights: Weights, path: str, x: Tensor) -> Tensor:
    """layers/wrappers.py, ``Conv2d`` without its activation: its norm, where it has one, is a child of it."""
    return normed_conv(weights, path, (f"{path}.norm",), x)


def pyramid_of(weights: Weights, settings: Settings, x: Tensor) -> list[Tensor]:
    """P2 .. P6 (modeling/backbone/resnet.py, fpn.py with FUSE_TYPE sum and LastLevelMaxPool)."""

    def module(path: str, x: Tensor) -> Tensor:
        return _conv_norm(weights, path, x)

    width = weights[f"{FPN[0][0]}.weight"].shape[0]
    before, behind = blocks_of_neck(weights, "backbone.", BOTTOM_UP, width)
    stages = through_blocks(weights, settings, before, resnet(weights, RESNET, settings, x))
    return with_p6(through_blocks(weights, settings, behind, fpn(stages, module, FPN)))


def _proposals(weights: Weights, settings: Settings, pyramid: list[Tensor], size: tuple[int, int]) -> Tensor:
    """``[R, 4]``, best first (modeling/proposal_generator/rpn.py, proposal_utils.py ``find_top_rpn_proposals``)."""
    head = "proposal_generator.rpn_head"
    boxes, scores, numbers = [], [], []
    for k, x in enumerate(pyramid):
        for path in [f"{head}.conv"] if f"{head}.conv.weight" in weights else weights.children(f"{head}.conv"):
            x = _conv_norm(weights, path, x).relu()
        # Anchors: the sizes outside, the ratios inside; width and height so that their product is size^2.
        sizes = settings.anchor_sizes[k]
        shapes = [(one / ratio**0.5, one * ratio**0.5) for one in sizes for ratio in settings.aspect_ratios]
        own = anchors(shapes, STRIDES[k], x)
        logits = by_anchor(conv(weights, f"{head}.objectness_logits", x), len(shapes))[:, 0]
        deltas = by_anchor(conv(weights, f"{head}.anchor_deltas", x), len(shapes))
        score, best = logits.topk(min(settings.pre_nms_top_n, len(logits)))  # no sigmoid: it would make ties
        boxes.append(decoded(own[best], deltas[best], clamped="above"))
        scores.append(score)
        numbers.append(torch.full_like(best, k))
    box, score, number = torch.cat(boxes), torch.cat(scores), torch.cat(numbers)
    finite = box.isfinite().all(1) & score.isfinite()
    box = clipped(box, size)
    some = finite & not_empty(box)
    box, score, number = box[some], score[some], number[some]
    return box[batched_nms(box, score, number, settings.rpn_nms_threshold)[: settings.post_nms_top_n]]


def _boxes(
    weights: Weights, settings: Settings, pyramid: list[Tensor], proposals: Tensor, size: tuple[int, int]
) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes ``[D, 4]``, scores ``[D]`` and labels ``[D]`` from 0, best first.

    modeling/roi_heads/box_head.py; fast_rcnn.py, ``fast_rcnn_inference_single_image``.
    """
    head, predictor = "roi_heads.box_head", "roi_heads.box_predictor"
    x = pooled(pyramid, proposals, levels(proposals, LEVEL_EPSILON), 7)
    layers = weights.children(head)
    for path in (path for path in layers if path.startswith(f"{head}.conv")):
        x = _conv_norm(weights, path, x).relu()
    x = x.flatten(1)  # [R, C*7*7]
    for path in (path for path in layers if path.startswith(f"{head}.fc")):
        x = linear(weights, path, x).relu()
    scores = linear(weights, f"{predictor}.cls_score", x).softmax(1)  # [R, C + 1], the background is last
    deltas = linear(weights, f"{predictor}.bbox_pred", x).unflatten(1, (-1, 4))  # [R, C, 4], or [R, 1, 4]
    finite = scores.isfinite().all(1) & deltas.isfinite().flatten(1).all(1)
    scores = scores[:, :-1]
    deltas = (deltas / deltas.new_tensor(BOX_WEIGHTS)).expand(-1, scores.shape[1], -1)
    row, label = ((scores > settings.score_threshold) & finite[:, None]).nonzero().unbind(1)
    boxes = clipped(decoded(proposals[row], deltas[row, label], clamped="above"), size)
    score = scores[row, label]
    best = batched_nms(boxes, score, label, settings.nms_threshold)[: settings.detections]
    return boxes[best], score[best], label[best]


def _masks(weights: Weights, pyramid: list[Tensor], boxes: Tensor, labels: Tensor) -> Tensor:
    """``[D, 28, 28]`` probabilities of the own class (modeling/roi_heads/mask_head.py)."""
    head = "roi_heads.mask_head"
    x = pooled(pyramid, boxes, levels(boxes, LEVEL_EPSILON), 14)
    for path in (path for path in weights.children(head) if path.startswith(f"{head}.mask_fcn")):
        x = _conv_norm(weights, path, x).relu()
    x = up_conv(weights, f"{head}.deconv", x).relu()
    logits = conv(weights, f"{head}.predictor", x)  # [D, C, 28, 28], or [D, 1, 28, 28] for all classes
    own = labels if logits.shape[1] > 1 else torch.zeros_like(labels)
    return logits[torch.arange(len(own)), own].sigmoid()
