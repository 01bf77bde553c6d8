"""SOLOv2 as mmdetection 2.x and 3.x run it at test time (source: mmdet 3.3.0; no code of theirs).

Wang, Zhang, Kong, Li, Shen: "SOLOv2: Dynamic and Fast Instance Segmentation", NeurIPS 2020. The path behind a step
names the file that it was read in, from mmdet/models/ on. mmdetection gives no boxes; those here are the extents of the
masks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from wnlb.export.references.interface import Found, SoloSettings, content_sizes, network_input
from wnlb.export.references.layers import conv, norm
from wnlb.export.references.mmdet import pyramid_of
from wnlb.export.references.weights import Weights

HEAD = "mask_head"
MASK_THRESHOLD = 0.5
MASK_STRIDE = 4  # px of the frame that a cell of a mask covers


def detections(
    state: Mapping[str, Tensor],
    settings: SoloSettings,
    frames: NDArray[np.uint8],
    content: NDArray[np.integer] | None = None,
) -> Found:
    """Run the network on frames that already have the input's size, in the dtype of the weights.

    Args:
        state: float32 or float64, by mmdetection's names.
        frames: uint8 RGB ``[N, H, W, 3]``, H and W multiples of 32.
        content: ``[N, 2]`` height and width of the picture at the top left of each frame; None: it fills the frame.
            The head sees the whole frame; what of a mask lies beside the picture is cut off when it is pasted, and is
            not in its box.

    Returns:
        Masks are probabilities ``[D, H/4, W/4]`` of the whole frame. A detection whose mask lies beside the picture has
        the box 0 0 0 0.

    Raises:
        CheckpointError: a weight is missing, or belongs to a part that is not computed here.
    """
    weights = Weights(state, "mmdetection", "SOLOv2")
    sizes = content_sizes(frames, content)
    found = []
    with torch.no_grad():
        pyramid = pyramid_of(weights, settings, network_input(frames, sizes, settings, weights.dtype))
        features = mask_features(weights, settings, pyramid)  # [N, E, H/4, W/4]
        kernels, scores = branches(weights, settings, pyramid)
        for i, size in enumerate(sizes):
            own_kernels, own_scores = [level[i] for level in kernels], [level[i].sigmoid() for level in scores]
            found.append(instances(settings, own_kernels, own_scores, features[i], size))
    weights.check_all_used()
    return Found(found, [], pyramid)


def instances(
    settings: SoloSettings, kernels: list[Tensor], scores: list[Tensor], features: Tensor, size: tuple[int, int]
) -> dict[str, NDArray]:
    """Detections of one image, from what the head gave for it.

    Args:
        kernels, scores: of each grid ``[E, g, g]`` and ``[C, g, g]``, the latter probabilities.
        features: ``[E, H/4, W/4]``.
        size: height and width of the picture.

    Returns:
        As ``detections``.
    """
    with torch.no_grad():
        cells = [torch.cat([level.flatten(1).T for level in levels]) for levels in (kernels, _peaks(scores))]
        masks, score, label = _instances(settings, cells[0], cells[1], features)
        boxes = [_extent(mask, size) for mask in masks]
        values = {"boxes": score.new_tensor(boxes).reshape(-1, 4), "scores": score, "labels": label + 1, "masks": masks}
        return {name: value.numpy() for name, value in values.items()}


def _module(weights: Weights, settings: SoloSettings, path: str, x: Tensor) -> Tensor:
    """mmcv's ConvModule: convolution, group norm, ReLU."""
    return norm(weights, f"{path}.gn", conv(weights, f"{path}.conv", x), groups=settings.norm_groups).relu()


def _with_coordinates(x: Tensor) -> Tensor:
    """``[N, C, h, w]`` and two channels more: x and y, from -1 in the first to 1 in the last (utils/misc.py)."""
    height, width = x.shape[2:]
    across = torch.linspace(-1, 1, width, dtype=x.dtype).expand(height, width)
    down = torch.linspace(-1, 1, height, dtype=x.dtype)[:, None].expand(height, width)
    return torch.cat([x, torch.stack([across, down]).expand(len(x), -1, -1, -1)], 1)


def _resized(x: Tensor, height: int, width: int) -> Tensor:
    return F.interpolate(x, size=(height, width), mode="bilinear", align_corners=False)


def mask_features(weights: Weights, settings: SoloSettings, pyramid: list[Tensor]) -> Tensor:
    """``[N, E, H/4, W/4]``: P2 .. P5 by convolutions and doubling, summed (dense_heads/solov2_head.py)."""
    head = f"{HEAD}.mask_feature_head"
    total = torch.zeros(())
    for level in range(4):
        x = _with_coordinates(pyramid[level]) if level == 3 else pyramid[level]
        for path in weights.children(f"{head}.convs_all_levels.{level}"):
            x = _module(weights, settings, path, x)
            x = x if level == 0 else _resized(x, 2 * x.shape[2], 2 * x.shape[3])
        total = total + x
    return _module(weights, settings, f"{head}.conv_pred", total)


def branches(weights: Weights, settings: SoloSettings, pyramid: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Kernels ``[N, E, g, g]`` and scores ``[N, C, g, g]``, logits, of each grid (``resize_feats`` of
    solo_head.py, ``forward`` of solov2_head.py)."""
    levels = list(pyramid)
    levels[0] = _resized(levels[0], levels[0].shape[2] // 2, levels[0].shape[3] // 2)
    levels[4] = _resized(levels[4], *levels[3].shape[2:])
    kernels, scores = [], []
    for x, grid in zip(levels, settings.grids, strict=True):
        kernel = _resized(_with_coordinates(x), grid, grid)
        score = kernel[:, :-2]
        for path in weights.children(f"{HEAD}.kernel_convs"):
            kernel = _module(weights, settings, path, kernel)
        for path in weights.children(f"{HEAD}.cls_convs"):
            score = _module(weights, settings, path, score)
        kernels.append(conv(weights, f"{HEAD}.conv_kernel", kernel))
        scores.append(conv(weights, f"{HEAD}.conv_cls", score))
    return kernels, scores


def _peaks(scores: list[Tensor]) -> list[Tensor]:
    """Scores ``[C, g, g]`` of grids, 0 where the cell left, above, or left above has more (``predict_by_feat``)."""
    found = []
    for score in scores:
        most = F.max_pool2d(F.pad(score[None], (1, 0, 1, 0), value=-math.inf), 2, 1)[0]
        found.append(score * (score == most))
    return found


def _instances(
    settings: SoloSettings, kernels: Tensor, scores: Tensor, features: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Masks ``[D, h, w]`` (probabilities), scores and labels ``[D]`` from 0, best first, of one image
    (``_predict_by_feat_single``)."""
    cell, label = (scores > settings.cell_threshold).nonzero().unbind(1)
    score = scores[cell, label]
    masks = torch.einsum("ke,ehw->khw", kernels[cell], features).sigmoid()
    inside = masks > MASK_THRESHOLD
    area = inside.sum((1, 2)).to(masks.dtype)
    stride = torch.cat(
        [
            scores.new_full((grid**2,), stride)
            for grid, stride in zip(settings.grids, settings.cell_strides, strict=True)
        ]
    )
    large = area > stride[cell]
    masks, inside, area, score, label = (value[large] for value in (masks, inside, area, score, label))
    score = score * (masks * inside).sum((1, 2)) / area
    score, best = score.sort(descending=True, stable=True)
    score, best = score[: settings.nms_candidates], best[: settings.nms_candidates]
    score = score * _decay(inside[best].flatten(1).to(masks.dtype), area[best], label[best], settings.nms_sigma)
    kept = score >= settings.score_threshold
    score, best = score[kept], best[kept]
    score, order = score.sort(descending=True, stable=True)
    score, best = score[: settings.detections], best[order][: settings.detections]
    return masks[best], score, label[best]


def _decay(inside: Tensor, area: Tensor, label: Tensor, sigma: float) -> Tensor:
    """Matrix NMS: decay_j = min over i of f(iou_ij) / f(the most that i shares with one before it).

    f(x) = exp(- sigma x^2); equations 5 and 6 of the paper, of the same class alone, i before j (layers/matrix_nms.py).

    Args:
        inside: ``[K, h*w]``, 0 or 1, best first.
        area: ``[K]``.
        label: ``[K]``.
    """
    if not len(area):
        return area
    shared = inside @ inside.T
    overlap = shared / (area[:, None] + area - shared) * (label[:, None] == label)
    overlap = overlap.triu(1)
    most = overlap.max(0).values[:, None]
    return (torch.exp(-sigma * overlap**2) / torch.exp(-sigma * most**2)).min(0).values


def _extent(mask: Tensor, size: tuple[int, int]) -> tuple[float, float, float, float]:
    """x1 y1 x2 y2, px of the frame: where the mask ``[h, w]``, linear between its cells' centres, passes 0.5."""
    height, width = size
    part = mask[: math.ceil(height / MASK_STRIDE), : math.ceil(width / MASK_STRIDE)]
    if not (part > MASK_THRESHOLD).any():
        return 0.0, 0.0, 0.0, 0.0
    # Along an axis the cell beside the picture is looked at as well: it tells where the mask ends.
    x1, x2 = _ends(mask[: part.shape[0]].amax(0).tolist(), part.shape[1])
    y1, y2 = _ends(mask[:, : part.shape[1]].amax(1).tolist(), part.shape[0])
    return x1, y1, min(x2, width), min(y2, height)


def _ends(profile: list[float], count: int) -> tuple[float, float]:
    """Where a profile of cells passes 0.5 for the first time, and for the last within the first ``count`` cells."""
    above = [i for i in range(count) if profile[i] > MASK_THRESHOLD]

    def edge(i: int, neighbour: int) -> float:
        """Between two centres; at the frame's edge where there is no neighbour."""
        if not 0 <= neighbour < len(profile):
            return i + 0.5 + (neighbour - i) / 2
        if profile[neighbour] > MASK_THRESHOLD:  # beside the picture
            return neighbour + 0.5
        share = (profile[i] - MASK_THRESHOLD) / (profile[i] - profile[neighbour])
        return i + 0.5 + (neighbour - i) * share

    return MASK_STRIDE * edge(above[0], above[0] - 1), MASK_STRIDE * edge(above[-1], above[-1] + 1)
