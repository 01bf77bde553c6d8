"""The static graph: a Mask R-CNN without one data-dependent shape, but for the rows of masks in the form for a CPU.

It computes what the eager model of the framework that trained it computes in evaluation mode, for inputs of one fixed
size. Nothing is filtered out: rows that the eager model would drop are masked and sorted to the end.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN

from wnlb.export.graph.adaptive_roi_align import (
    CellRoIAlign,
    Maps,
    NodeRoIAlign,
    Pool,
    default_buckets,
    level_areas,
    most_cells,
)
from wnlb.export.graph.anchors import pyramid_anchors
from wnlb.export.graph.mask_branch import MaskBranch, RowsMaskBranch
from wnlb.export.graph.node_nms import NodeNMS
from wnlb.export.graph.plane_roi_align import PlaneRoIAlign
from wnlb.export.graph.pyramid import PyramidGraph
from wnlb.export.graph.static_ops import (
    AtlasLayout,
    AtlasRoIAlign,
    StaticNMS,
    clip_boxes,
    decode_boxes,
    large_enough,
    take_rows,
)
from wnlb.export.graph.winograd_maps import TiledRpnHead, can_tile_head
from wnlb.export.options import ExportOptions
from wnlb.runtime.conventions import TORCHVISION, MaskRcnnConventions
from wnlb.runtime.errors import GraphError

_FINEST_SIDE = 56  # px, sqrt(area) from which on a box belongs to P3; Lin et al., "Feature Pyramid Networks", eq. 1


class DeployGraph(PyramidGraph):
    """``image`` uint8 ``[N, H, W, 3]`` and ``content`` int32 ``[N, 2]`` to boxes, scores, labels, masks, count.

    See ``wnlb.runtime.contract``. As all frameworks do with a padded batch: what lies beside the picture is zero after
    normalisation, and proposals and detections are clipped to the picture.

    ``model`` holds the weights and is left as it is; how they are used where frameworks differ, ``conventions`` say.
    ``plans`` says what became of each block. Constants take torch's default type, so that
    under a default of float64 the graph of a float64 model is the exact oracle of the file.
    """

    def __init__(self, model: MaskRCNN, options: ExportOptions, conventions: MaskRcnnConventions = TORCHVISION) -> None:
        model = copy.deepcopy(model).eval().requires_grad_(False)
        super().__init__(model, options, model.transform.image_mean, model.transform.image_std)
        self.rpn = ProposalStage(model, self.shapes, options, conventions)
        self.detect = DetectionStage(model, self.shapes, options, conventions, self.rpn.proposals)

    def forward(self, image: Tensor, content: Tensor) -> tuple[Tensor, ...]:
        levels, limit = self.pyramid(image, content)
        proposals, valid = self.rpn(levels, limit)
        return self.detect(levels[:4], proposals, valid, limit)


class ProposalStage(nn.Module):
    """Region proposal network, from the pyramid to ``[N, R, 4]`` proposals and which of them are real.

    ``limit`` is what ``limits`` gives for the pictures of the batch.
    """

    def __init__(
        self, model: MaskRCNN, shapes: list[tuple[int, int]], options: ExportOptions, conventions: MaskRcnnConventions
    ) -> None:
        super().__init__()
        rpn = model.rpn
        if rpn.score_thresh != 0.0:
            raise GraphError(f"the RPN has a score threshold of {rpn.score_thresh}; expected 0, torchvision's default")
        tiled = options.target == "cpu" and can_tile_head(rpn.head, shapes)
        self.head = TiledRpnHead(rpn.head, shapes) if tiled else rpn.head
        self.min_side = conventions.proposal_side
        self.scores_first = conventions.scores_first
        self.weights, self.log_scales = rpn.box_coder.weights, _log_scales(rpn.box_coder, conventions)
        self.nms = _nms(rpn.nms_thresh, options)
        generator, frame = rpn.anchor_generator, (options.height, options.width)
        anchors = pyramid_anchors(generator.sizes, generator.aspect_ratios, shapes, frame, conventions)
        self.counts = [min(len(level), rpn.pre_nms_top_n()) for level in anchors]
        self.proposals = min(rpn.post_nms_top_n(), sum(self.counts))
        for i, level in enumerate(anchors):
            self.register_buffer(f"anchors{i}", level, persistent=False)

    def forward(self, levels: list[Tensor], limit: Tensor) -> tuple[Tensor, Tensor]:
        boxes, scores, valid = self.ranked(levels, limit)
        keep = self.nms(boxes.flatten(0, 1), valid.flatten(0, 1)).reshape(valid.shape)
        best, index = (scores * keep).flatten(1).topk(self.proposals, 1)
        return take_rows(boxes.flatten(1, 2), index), best > 0

    def ranked(self, levels: list[Tensor], limit: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What enters NMS: boxes ``[N, L, K, 4]``, scores and validity (0 or 1) ``[N, L, K]``, L levels, best first."""
        boxes, scores = [], []
        widest = max(self.counts)
        for i, (logits, deltas) in enumerate(zip(*self.head(levels), strict=True)):
            anchors, count = getattr(self, f"anchors{i}"), self.counts[i]
            level_boxes, level_scores = self._level(logits, deltas, anchors, count)
            level_boxes = clip_boxes(level_boxes, limit)
            missing = widest - self.counts[i]
            boxes.append(F.pad(level_boxes, (0, 0, 0, missing)))
            scores.append(F.pad(level_scores, (0, missing)))
        all_boxes, all_scores = torch.stack(boxes, 1), torch.stack(scores, 1)
        valid = large_enough(all_boxes, self.min_side) & (all_scores > 0)
        return all_boxes, all_scores, valid.to(all_boxes.dtype)

    def _level(self, logits: Tensor, deltas: Tensor, anchors: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """The ``count`` best anchors of one level, decoded, with their probabilities."""
        batch = logits.shape[0]
        ranks = logits.permute(0, 2, 3, 1).flatten(1)  # [N, H*W*A]
        ranks = ranks.sigmoid() if self.scores_first else ranks
        deltas = deltas.reshape(batch, -1, 4, *deltas.shape[2:]).permute(0, 3, 4, 1, 2).reshape(batch, -1, 4)
        best, index = ranks.topk(count, 1)
        boxes = decode_boxes(take_rows(deltas, index), F.embedding(index, anchors), self.weights, *self.log_scales)
        return boxes, best if self.scores_first else best.sigmoid()


class DetectionStage(nn.Module):
    """Box and mask heads, from the pyramid and its proposals to the outputs of the contract.

    ``limit`` as in ``ProposalStage``.
    """

    score_threshold: Tensor  # []

    def __init__(
        self,
        model: MaskRCNN,
        shapes: list[tuple[int, int]],
        options: ExportOptions,
        conventions: MaskRcnnConventions,
        proposals: int,
    ) -> None:
        super().__init__()
        heads = model.roi_heads
        self.layout = AtlasLayout(tuple(shapes[:4]))
        scales = [shape[0] / options.height for shape in shapes[:4]]

        def pool(of_model: Any, boxes: int) -> Pool:
            if conventions.aligned:
                return _adaptive_roi_align(of_model, self.layout, scales, boxes, options.target, conventions)
            atlas = _atlas_roi_align(of_model, self.layout, scales)
            if options.target == "cpu":
                thresholds = atlas.area_thresholds.tolist()
                return PlaneRoIAlign(self.layout, scales, atlas.output_size, atlas.sampling_ratio, thresholds)
            return atlas

        self.box_pool = pool(heads.box_roi_pool, proposals)
        self.box_head, self.box_predictor = heads.box_head, heads.box_predictor
        self.weights, self.log_scales = heads.box_coder.weights, _log_scales(heads.box_coder, conventions)
        self.min_side = conventions.detection_side
        # A buffer, so that the file holds it under this name: it can be changed there.
        self.register_buffer("score_threshold", torch.tensor(float(heads.score_thresh)), persistent=False)
        self.candidates, self.detections = options.candidates, heads.detections_per_img
        self.nms = _nms(heads.nms_thresh, options, heads.box_predictor.cls_score.out_features - 1)
        self.mask_rows = min(options.mask_rows or self.detections, self.detections)
        self.with_masks = options.masks != "none"
        if self.with_masks:
            _check_mask_classes(heads)
            form = RowsMaskBranch if options.target == "cpu" else MaskBranch
            self.mask = form(pool(heads.mask_roi_pool, self.mask_rows), heads.mask_head, heads.mask_predictor)

    def forward(self, levels: list[Tensor], proposals: Tensor, valid: Tensor, limit: Tensor) -> tuple[Tensor, ...]:
        maps = self.maps(levels)
        boxes, scores, labels, found = self.boxes(maps, proposals, valid, limit)
        outputs = [boxes, scores, labels.int()]
        if self.with_masks:
            outputs.append(self._masks(maps, boxes, labels, found))
        return (*outputs, found.sum(1).int())

    def _masks(self, maps: Maps, boxes: Tensor, labels: Tensor, found: Tensor) -> Tensor:
        """``[N, D, 2S, 2S]``; zero in rows that are no detection, and behind the best ``mask_rows``."""
        missing = self.detections - self.mask_rows
        if missing:
            boxes, labels, found = (t.narrow(1, 0, self.mask_rows) for t in (boxes, labels, found))
        masks = self.mask(maps, boxes, labels, found) * found[:, :, None, None]
        return F.pad(masks, (0, 0, 0, 0, 0, missing)) if missing else masks

    def boxes(
        self, maps: Maps, proposals: Tensor, valid: Tensor, limit: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The detections but for their masks: boxes ``[N, D, 4]``, scores, labels, and which rows are one (bool)."""
        boxes, scores, labels, real = self.ranked(maps, proposals, valid, limit)
        kept_scores = scores * self.nms(boxes, real, labels)
        scores, index = kept_scores.topk(min(self.detections, boxes.shape[1]), 1)
        missing = self.detections - index.shape[1]
        scores, index = (F.pad(t, (0, missing)) for t in (scores, index)) if missing else (scores, index)
        found = scores > 0
        boxes = take_rows(boxes, index) * found.unsqueeze(-1)
        return boxes, scores, labels.gather(1, index) * found, found

    def maps(self, levels: list[Tensor]) -> Maps:
        """What RoIs are pooled from, of P2 .. P5 ``[N, C, h, w]``: themselves, their planes, or their atlas."""
        if isinstance(self.box_pool, PlaneRoIAlign):
            return self.box_pool.planes(levels)
        return levels if isinstance(self.box_pool, NodeRoIAlign) else self.layout.build(levels)

    def ranked(
        self, maps: Maps, proposals: Tensor, valid: Tensor, limit: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What enters NMS, the K best (proposal, class) pairs: boxes ``[N, K, 4]``, scores, labels, validity."""
        batch, rois = proposals.shape[:2]
        logits, deltas = self.box_predictor(self.box_head(self.box_pool(maps, proposals)))
        classes = logits.shape[1]
        scores = logits.softmax(1).reshape(batch, rois, classes)[..., 1:] * valid.unsqueeze(-1)
        best, index = scores.flatten(1).topk(min(self.candidates, rois * (classes - 1)), 1)
        row = index // (classes - 1)
        label = index - row * (classes - 1) + 1
        deltas = take_rows(deltas.reshape(batch, rois * classes, 4), row * classes + label)
        boxes = decode_boxes(deltas, take_rows(proposals, row), self.weights, *self.log_scales)
        boxes = clip_boxes(boxes, limit)
        real = best > self.score_threshold
        real = real if self.min_side is None else real & large_enough(boxes, self.min_side)
        return boxes, best, label, real.to(boxes.dtype)


def _check_mask_classes(heads: Any) -> None:
    """torchvision takes the mask of a box's own class: every class needs one."""
    classes, masks = heads.box_predictor.cls_score.out_features, heads.mask_predictor.mask_fcn_logits.out_channels
    if masks < classes:
        raise GraphError(
            f"the mask predictor has {masks} classes and the box predictor {classes}; expected at least as many masks, "
            "for torchvision itself fails on the others: export with --masks none, or train the mask predictor for all"
        )


def _atlas_roi_align(pool: Any, layout: AtlasLayout, scales: list[float]) -> AtlasRoIAlign:
    if pool.featmap_names != ["0", "1", "2", "3"] or pool.sampling_ratio < 1 or len(set(pool.output_size)) != 1:
        raise GraphError(
            f"RoI pooling is {pool}; expected MultiScaleRoIAlign over the maps 0, 1, 2, 3 with a square output "
            "and a fixed sampling ratio"
        )
    side = pool.output_size[0]
    return AtlasRoIAlign(layout, scales, side, pool.sampling_ratio, pool.canonical_scale, pool.canonical_level)


def _adaptive_roi_align(
    pool: Any, layout: AtlasLayout, scales: list[float], boxes: int, target: str, conventions: MaskRcnnConventions
) -> Pool:
    """RoIAlign of ``boxes`` boxes of a picture; of ``pool`` only its output's side is asked."""
    side, areas = pool.output_size[0], level_areas(_FINEST_SIDE, conventions.level_epsilon)
    if target == "cpu":
        return NodeRoIAlign(scales, side, areas)
    most = most_cells(layout, scales, side, areas)
    return CellRoIAlign(layout, scales, side, areas, default_buckets(boxes, side, most))


def _nms(threshold: float, options: ExportOptions, classes: int = 1) -> StaticNMS | NodeNMS:
    return NodeNMS(threshold, classes) if options.target == "cpu" else StaticNMS(threshold, options.nms_rounds)


def _log_scales(coder: Any, conventions: MaskRcnnConventions) -> tuple[float, float | None]:
    """The largest and the smallest dw and dh, as ``decode_boxes`` takes them."""
    return coder.bbox_xform_clip, -coder.bbox_xform_clip if conventions.two_sided_clamp else None
