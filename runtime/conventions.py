"""What frameworks each compute in a way of their own, where all call it the same.

The one place where these differences stand: the graph, the preparation of frames, the pasting of masks and the contract
read them here. Everything else is equal in all of them, or is written in the weights and the settings of a checkpoint.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Conventions:
    """How one framework computes around any network of a kind: what becomes of frames, and of what is found.

    The names behind the entries are those of the files that they were read in.

    Attributes:
        framework: its name.
        size_rule: of a frame's size in the input, see ``wnlb.runtime.geometry``.
        mask_paste: of masks inside their boxes, see ``wnlb.runtime.detections.paste_masks``: "resized": resized to the
            box's whole pixels, above 0.5; "sampled": at pixel centres, from 0.5 up. Of masks of the frame, see
            ``wnlb.runtime.frame_masks``: "enlarged" by 4 and cut to the picture before they are resized; "cut",
            enlarged only as far as that takes, and set inside their boxes alone.
        drops_empty: detections without extent in the frame's pixels are dropped; of masks of the frame, those whose
            mask is empty.
    """

    framework: str
    size_rule: str
    mask_paste: str
    drops_empty: bool

    @property
    def masks(self) -> str:
        """The form of the masks that ``mask_paste`` takes, as ``Contract.masks`` calls it."""
        return "box" if self.mask_paste in ("resized", "sampled") else "frame"

    @property
    def boxes_of_masks(self) -> bool:
        """Whether the box of a detection is the extent of its mask in the frame: such a network has no other."""
        return self.mask_paste == "enlarged"


@dataclass(frozen=True)
class MaskRcnnConventions(Conventions):
    """And how it computes Mask R-CNN at test time.

    Attributes:
        rounded_anchors: corners of the anchors around a position are rounded to whole pixels.
        map_strides: anchors stand as far apart as the input's side over the map's, rounded down; else 4, 8, 16, 32, 64.
        sizes_first: of the anchors of a position, those of one size follow each other; else those of one aspect ratio.
        scores_first: anchors are ranked by their probabilities, which may be equal where logits are not.
        two_sided_clamp: dw and dh of a box's deltas are limited from below too.
        proposal_side: proposals narrower or lower than this are dropped, in px; 0: those without extent.
        detection_side: the same of detections; None: none are dropped.
        aligned: RoIAlign has a pixel's centre at + 0.5, and as many samples in a bin as it has pixels; else the centre
            is at 0, RoIs have at least a pixel's side, and a bin 2 x 2 samples.
        level_epsilon: what is added to sqrt(area) / 56 px (``aligned``), or to its logarithm, before a box's level is
            rounded down.
    """

    rounded_anchors: bool
    map_strides: bool
    sizes_first: bool
    scores_first: bool
    two_sided_clamp: bool
    proposal_side: float
    detection_side: float | None
    aligned: bool
    level_epsilon: float


# torchvision/models/detection/anchor_utils.py, _utils.py, rpn.py, roi_heads.py; ops/poolers.py
TORCHVISION = MaskRcnnConventions(
    framework="torchvision",
    rounded_anchors=True,
    map_strides=True,
    sizes_first=False,
    scores_first=False,
    two_sided_clamp=False,
    proposal_side=1e-3,
    detection_side=1e-2,
    aligned=False,
    level_epsilon=1e-6,
    size_rule="down",
    mask_paste="resized",
    drops_empty=False,
)
# mmdet/models/task_modules/prior_generators/anchor_generator.py, coders/delta_xywh_bbox_coder.py,
# dense_heads/rpn_head.py, roi_heads/roi_extractors/single_level_roi_extractor.py, mask_heads/fcn_mask_head.py;
# mmcv/image/geometric.py
MMDETECTION = MaskRcnnConventions(
    framework="mmdetection",
    rounded_anchors=False,
    map_strides=False,
    sizes_first=False,
    scores_first=True,
    two_sided_clamp=True,
    proposal_side=0,
    detection_side=None,
    aligned=True,
    level_epsilon=1e-6,
    size_rule="nearest",
    mask_paste="sampled",
    drops_empty=False,
)
# detectron2/modeling/anchor_generator.py, box_regression.py, proposal_generator/proposal_utils.py, poolers.py,
# postprocessing.py; layers/mask_ops.py; data/transforms/augmentation_impl.py. Its epsilon, 1e-8, is added to
# sqrt(area) / 224 px.
DETECTRON2 = MaskRcnnConventions(
    framework="detectron2",
    rounded_anchors=False,
    map_strides=False,
    sizes_first=True,
    scores_first=False,
    two_sided_clamp=False,
    proposal_side=0,
    detection_side=None,
    aligned=True,
    level_epsilon=4e-8,
    size_rule="nearest, short side first",
    mask_paste="sampled",
    drops_empty=True,
)
# What YOLO-seg networks are trained in: the numbers of ultralytics 8.4, with retina_masks=True, which has the frame's
# pixels (data/augment.py LetterBox, utils/ops.py scale_boxes and process_mask_native, models/yolo/segment/predict.py).
ULTRALYTICS = Conventions(framework="ultralytics", size_rule="nearest even", mask_paste="cut", drops_empty=True)
# mmdet/models/dense_heads/solov2_head.py, _predict_by_feat_single; mmcv/image/geometric.py. mmdetection itself keeps a
# detection whose mask has no pixel in the picture; it has nothing to show, and no box.
MMDETECTION_SOLOV2 = Conventions(
    framework="mmdetection-solov2", size_rule="nearest", mask_paste="enlarged", drops_empty=True
)
MASK_RCNN = {each.framework: each for each in (TORCHVISION, MMDETECTION, DETECTRON2)}
FRAMEWORKS: dict[str, Conventions] = {
    **MASK_RCNN,
    **{each.framework: each for each in (ULTRALYTICS, MMDETECTION_SOLOV2)},
}
