"""Mask R-CNN as mmdetection 2.x and 3.x run it at test time (sources: mmdet 3.3.0, mmcv 2.1.0; no code of theirs).

The path behind a step names the file that it was read in, from mmdet/models/ on.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.ops import nms

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
from wnlb.export.references.interface import Found, NetworkSettings, Settings, content_sizes, network_input
from wnlb.export.references.layers import conv, linear, normed_conv, up_conv
from wnlb.export.references.network import ResNetNames, blocks_of_neck, fpn, resnet, through_blocks, with_p6
from wnlb.export.references.weights import Weights

RESNET = ResNetNames(
    stem="backbone.conv1",
    stem_norm="backbone.bn1",
    stages=("backbone.layer1", "backbone.layer2", "backbone.layer3", "backbone.layer4"),
    norm="bn{}",
    shortcut="downsample.0",
    shortcut_norm="downsample.1",
    downsampling="backbone.AdaD.{}",
)
FPN = [(f"neck.lateral_convs.{i}", f"neck.fpn_convs.{i}") for i in range(4)]
BOX_STDS = (0.1, 0.1, 0.2, 0.2)  # the box head's deltas are in these units, those of the RPN in 1
LEVEL_EPSILON = 1e-6


def detections(
    state: Mapping[str, Tensor],
    settings: Settings,
    frames: NDArray[np.uint8],
    content: NDArray[np.integer] | None = None,
) -> Found:
    """Run the network on frames that already have the input's size, in the dtype of the weights.

    Args:
        state: float32 or float64, by the names of the framework.
        frames: uint8 RGB ``[N, H, W, 3]``, H and W multiples of 32.
        content: ``[N, 2]`` height and width of the picture at the top left of each frame; None: it fills the frame.

    Raises:
        CheckpointError: a weight is missing, or belongs to a part that is not computed here.
    """
    weights = Weights(state, "mmdetection")
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


def _conv_module(weights: Weights, path: str, x: Tensor) -> Tensor:
    """mmcv's ConvModule without its activation: a convolution, and BN or GN where it was built with one."""
    return normed_conv(weights, f"{path}.conv", (f"{path}.bn", f"{path}.gn"), x)


def pyramid_of(weights: Weights, settings: NetworkSettings, x: Tensor) -> list[Tensor]:
    """P2 .. P6 (backbones/resnet.py, necks/fpn.py)."""

    def module(path: str, x: Tensor) -> Tensor:
        return _conv_module(weights, path, x)

    width = weights[f"{FPN[0][0]}.conv.weight"].shape[0]
    before, behind = blocks_of_neck(weights, "neck.", "neck.fpn_convs.", width)
    stages = through_blocks(weights, settings, before, resnet(weights, RESNET, settings, x))
    return with_p6(through_blocks(weights, settings, behind, fpn(stages, module, FPN)))


def _proposals(weights: Weights, settings: Settings, pyramid: list[Tensor], size: tuple[int, int]) -> Tensor:
    """``[R, 4]``, best first (dense_heads/rpn_head.py, ``_predict_by_feat_single``)."""
    boxes, scores, numbers = [], [], []
    for k, x in enumerate(pyramid):
        for path in _rpn_convs(weights):
            x = normed_conv(weights, path, (), x).relu()
        # Anchors: the ratios outside, the sizes inside; width and height so that their product is size^2.
        sizes = settings.anchor_sizes[k]
        shapes = [(one / ratio**0.5, one * ratio**0.5) for ratio in settings.aspect_ratios for one in sizes]
        own = anchors(shapes, STRIDES[k], x)
        logits = by_anchor(
            conv(weights, "rpn_head.rpn_cls", x), len(shapes)
        )  # [K, 1], or [K, 2] with the background last
        score = logits[:, 0].sigmoid() if logits.shape[1] == 1 else logits.softmax(1)[:, 0]
        deltas = by_anchor(conv(weights, "rpn_head.rpn_reg", x), len(shapes))
        score, best = score.sort(descending=True, stable=True)
        score, best = score[: settings.pre_nms_top_n], best[: settings.pre_nms_top_n]
        boxes.append(clipped(decoded(own[best], deltas[best], clamped="both"), size))
        scores.append(score)
        numbers.append(torch.full_like(best, k))
    box, score, number = torch.cat(boxes), torch.cat(scores), torch.cat(numbers)
    some = not_empty(box)
    box, score, number = box[some], score[some], number[some]
    return box[_kept(box, score, number, settings.rpn_nms_threshold)[: settings.post_nms_top_n]]


def _rpn_convs(weights: Weights) -> list[str]:
    """One convolution, or ConvModules in a row (num_convs > 1)."""
    path = "rpn_head.rpn_conv"
    return [path] if f"{path}.weight" in weights else [f"{child}.conv" for child in weights.children(path)]


def _boxes(
    weights: Weights, settings: Settings, pyramid: list[Tensor], proposals: Tensor, size: tuple[int, int]
) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes ``[D, 4]``, scores ``[D]`` and labels ``[D]`` from 0, best first (roi_heads/bbox_heads/)."""
    head = "roi_head.bbox_head"
    x = pooled(pyramid, proposals, levels(proposals, LEVEL_EPSILON), 7)
    for path in weights.children(f"{head}.shared_convs"):
        x = _conv_module(weights, path, x).relu()
    x = x.flatten(1)  # [R, C*7*7]
    for path in weights.children(f"{head}.shared_fcs"):
        x = linear(weights, path, x).relu()
    scores = linear(weights, f"{head}.fc_cls", x).softmax(1)[:, :-1]  # [R, C], the background is last
    deltas = linear(weights, f"{head}.fc_reg", x).unflatten(1, (-1, 4))  # [R, C, 4], or [R, 1, 4] for all classes
    deltas = (deltas * deltas.new_tensor(BOX_STDS)).expand(-1, scores.shape[1], -1)
    row, label = (scores > settings.score_threshold).nonzero().unbind(1)
    boxes = clipped(decoded(proposals[row], deltas[row, label], clamped="both"), size)
    score = scores[row, label]
    best = _kept(boxes, score, label, settings.nms_threshold)[: settings.detections]
    return boxes[best], score[best], label[best]


def _masks(weights: Weights, pyramid: list[Tensor], boxes: Tensor, labels: Tensor) -> Tensor:
    """``[D, 28, 28]`` probabilities of the own class (roi_heads/mask_heads/fcn_mask_head.py)."""
    head = "roi_head.mask_head"
    x = pooled(pyramid, boxes, levels(boxes, LEVEL_EPSILON), 14)
    for path in weights.children(f"{head}.convs"):
        x = _conv_module(weights, path, x).relu()
    x = up_conv(weights, f"{head}.upsample", x).relu()
    logits = conv(weights, f"{head}.conv_logits", x)  # [D, C, 28, 28], or [D, 1, 28, 28] for all classes
    own = labels if logits.shape[1] > 1 else torch.zeros_like(labels)
    return logits[torch.arange(len(own)), own].sigmoid()


def _kept(boxes: Tensor, scores: Tensor, group: Tensor, threshold: float) -> Tensor:
    """Rows that survive NMS within their group, best first: groups are moved apart (mmcv/ops/nms.py, ``batched_nms``).

    mmcv takes the groups one by one where there are 10000 boxes: the same boxes are kept.
    """
    if not len(boxes):
        return group
    offset = group.to(boxes.dtype) * (boxes.max() + 1)
    return nms(boxes + offset[:, None], scores, threshold)
