"""What a configuration of detectron2 says of a Mask R-CNN with FPN; read as data, never run.

What a file leaves out has detectron2's own default (detectron2/config/defaults.py, 02b5c4e2), stated beside each entry.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wnlb.export.checkpoints.configurations.section import Section, same
from wnlb.export.checkpoints.configurations.setting_checks import shown
from wnlb.export.checkpoints.configurations.settings import NO_STYLE, OWN_HEADS, DetectorSettings, Triple, backbone_name
from wnlb.export.checkpoints.configurations.yaml_data import data_from_yaml
from wnlb.export.coco_names import coco_names
from wnlb.runtime.errors import CheckpointError

PYRAMID = ("p2", "p3", "p4", "p5", "p6")
STAGES = ("res2", "res3", "res4", "res5")
NORMS = ("FrozenBN", "BN", "SyncBN", "nnSyncBN", "naiveSyncBN", "naiveSyncBN_N")
_RPN_TRAINING = (
    *("BATCH_SIZE_PER_IMAGE", "BBOX_REG_LOSS_TYPE", "BBOX_REG_LOSS_WEIGHT", "BOUNDARY_THRESH", "IOU_LABELS"),
    *("IOU_THRESHOLDS", "LOSS_WEIGHT", "POSITIVE_FRACTION", "POST_NMS_TOPK_TRAIN", "PRE_NMS_TOPK_TRAIN"),
    *("SMOOTH_L1_BETA",),
)
_BOX_TRAINING = (
    *("BBOX_REG_LOSS_TYPE", "BBOX_REG_LOSS_WEIGHT", "FED_LOSS_FREQ_WEIGHT_POWER", "FED_LOSS_NUM_CLASSES"),
    *("SMOOTH_L1_BETA", "TRAIN_ON_PRED_BOXES", "USE_FED_LOSS"),
)
_HEADS_TRAINING = (
    *("BATCH_SIZE_PER_IMAGE", "IOU_LABELS", "IOU_THRESHOLDS", "POSITIVE_FRACTION", "PROPOSAL_APPEND_GT"),
)  # fmt: skip
# Parts of other networks, and what changes no detection; a checkpoint with weights of theirs is refused by their names.
_MODEL_BESIDES = (
    *("DEVICE", "KEYPOINT_ON", "PANOPTIC_FPN", "RETINANET", "ROI_BOX_CASCADE_HEAD", "ROI_KEYPOINT_HEAD"),
    *("SEM_SEG_HEAD", "WEIGHTS"),
)
_INPUT_TRAINING = (
    *("CROP", "MASK_FORMAT", "MAX_SIZE_TRAIN", "MIN_SIZE_TRAIN", "MIN_SIZE_TRAIN_SAMPLING", "RANDOM_FLIP"),
)  # fmt: skip
_TEST_BESIDES = ("EVAL_PERIOD", "EXPECTED_RESULTS", "KEYPOINT_OKS_SIGMAS", "PRECISE_BN")
_BESIDES = (
    "CUDNN_BENCHMARK",
    "DATALOADER",
    "FLOAT32_PRECISION",
    "GLOBAL",
    "OUTPUT_DIR",
    "SEED",
    "SOLVER",
    "VIS_PERIOD",
)


def settings_from_file(path: Path, types: Mapping[str, str] | None = None) -> DetectorSettings:
    """The settings of a configuration file and those that it builds on.

    Args:
        types: classes of detectron2 that classes of the user's own are to be read as:
            ``{"backbone_type": "build_resnet_fpn_backbone"}``.

    Raises:
        CheckpointError: it is no data, or of a network that is not supported exactly.
        MissingDependency: PyYAML is not installed.
    """
    return settings_from_data(data_from_yaml(path), str(path), types)


def settings_from_data(
    config: Mapping[str, Any], source: str, types: Mapping[str, str] | None = None
) -> DetectorSettings:
    """The settings of a configuration; see ``settings_from_file``."""
    whole = Section(config, "", source)
    model = whole.section("MODEL", {})
    reader = _Reader(model, types or {})
    reader.architecture()
    settings = DetectorSettings(
        framework="detectron2",
        **reader.backbone(),
        **reader.input(whole.section("INPUT", {})),
        **reader.anchors(),
        **reader.proposals(),
        **reader.heads(),
        head_layers=() if reader.types.keys() & OWN_HEADS else reader.head_layers(),
        detections=reader.test(whole.section("TEST", {})),
    )
    settings = settings.with_overrides({"class_names": _class_names(whole, settings.num_classes - 1)})
    model.ignore(*_MODEL_BESIDES)
    reader.finish(model)
    whole.only("VERSION", 2)
    whole.ignore(*_BESIDES)
    reader.finish(whole)
    return settings


class _Reader:
    def __init__(self, model: Section, types: Mapping[str, str]) -> None:
        self.model, self.types = model, types

    def named(self, section: Section, name: str, part: str, allowed: str, default: str) -> None:
        """A class, or what it is to be read as."""
        found = section.text(name, default)
        if self.types.get(part, found) != allowed:
            raise CheckpointError(
                f"{section.source}: {section.full(name)} is {shown(found)}; expected {allowed}: supported is Mask "
                "R-CNN with a ResNet or ResNeXt and FPN. If it is a class of your own that computes the same, but for "
                f"non-local blocks, say so: --set {part}={allowed}"
            )

    def architecture(self) -> None:
        model = self.model
        self.named(model, "META_ARCHITECTURE", "detector_type", "GeneralizedRCNN", "GeneralizedRCNN")
        backbone = model.section("BACKBONE", {})
        self.named(backbone, "NAME", "backbone_type", "build_resnet_fpn_backbone", "build_resnet_backbone")
        backbone.ignore("FREEZE_AT")
        self.finish(backbone)
        model.required("MASK_ON", False, True)
        model.only("LOAD_PROPOSALS", False)
        generator = model.section("PROPOSAL_GENERATOR", {})
        generator.only("NAME", "RPN")
        generator.only("MIN_SIZE", 0)
        self.finish(generator)
        fpn = model.section("FPN", {})
        fpn.required("IN_FEATURES", (), STAGES)
        fpn.expect("NORM", "", *NORMS, default="")
        fpn.only("FUSE_TYPE", "sum")
        fpn.ignore("OUT_CHANNELS")
        self.finish(fpn)

    def finish(self, section: Section) -> None:
        """Builders of the user's own may read entries of their own."""
        if not self.types:
            section.finish()

    def backbone(self) -> dict[str, Any]:
        """Its name and style (modeling/backbone/resnet.py). The norms' epsilon is 1e-5 (layers/batch_norm.py)."""
        resnets = self.model.section("RESNETS", {})
        depth = resnets.expect("DEPTH", 18, 34, 50, 101, 152, default=50)
        groups, width = resnets.count("NUM_GROUPS", 1), resnets.count("WIDTH_PER_GROUP", 64)
        in_1x1 = resnets.truth("STRIDE_IN_1X1", True)
        name = backbone_name(depth, groups, width)
        resnets.expect("NORM", *NORMS, default="FrozenBN")
        resnets.required("OUT_FEATURES", ("res4",), STAGES)
        resnets.only("RES5_DILATION", 1)
        resnets.required("RES2_OUT_CHANNELS", 256, 64 if name in NO_STYLE else 256)
        resnets.only("STEM_OUT_CHANNELS", 64)
        resnets.only("DEFORM_ON_PER_STAGE", (False, False, False, False))
        resnets.ignore("DEFORM_MODULATED", "DEFORM_NUM_GROUPS")
        self.finish(resnets)
        return {"backbone": name, "style": "caffe" if in_1x1 and name not in NO_STYLE else "pytorch"}

    def input(self, section: Section) -> dict[str, Any]:
        """data/transforms/augmentation_impl.py, ResizeShortestEdge; modeling/meta_arch/rcnn.py, preprocess_image."""
        order = section.expect("FORMAT", "BGR", "RGB", default="BGR")
        if same(section.get("MIN_SIZE_TEST", 800), 0):
            raise CheckpointError(
                f"{section.source}: INPUT.MIN_SIZE_TEST is 0, which leaves pictures in their own sizes; expected the "
                "short edge in px, for a file has one input size: give a copy of the configuration with that of your "
                "pictures"
            )
        short, long = section.count("MIN_SIZE_TEST", 800), section.count("MAX_SIZE_TEST", 1333)
        if short > long:
            section.refuse("MIN_SIZE_TEST", short, f"at most MAX_SIZE_TEST, {long}")
        section.ignore(*_INPUT_TRAINING)
        self.finish(section)
        return {
            "channel_order": order.lower(),
            "mean": _triple(self.model, "PIXEL_MEAN", (103.53, 116.28, 123.675)),
            "std": _triple(self.model, "PIXEL_STD", (1.0, 1.0, 1.0)),
            "resize": "fit",
            "scale": (long, short),
            "interpolation": "antialiased",
            "pad_divisor": 32,  # size_divisibility of the FPN: the stride of its last input
        }

    def test(self, section: Section) -> int:
        """Detections of a picture; augmentation is modeling/test_time_augmentation.py."""
        augmented = section.section("AUG", {})
        if augmented.truth("ENABLED", False):
            raise CheckpointError(
                f"{section.source}: TEST.AUG.ENABLED is True, with which each picture is run at several sizes and "
                "flipped; expected False, for a file runs it once: give a copy of the configuration with that, which "
                "detects as DefaultPredictor does"
            )
        section.ignore(*_TEST_BESIDES)
        detections = section.count("DETECTIONS_PER_IMAGE", 100)
        self.finish(section)
        return detections

    def anchors(self) -> dict[str, Any]:
        """modeling/anchor_generator.py."""
        section = self.model.section("ANCHOR_GENERATOR", {})
        section.only("NAME", "DefaultAnchorGenerator")
        section.only("OFFSET", 0.0)
        section.ignore("ANGLES")
        sizes = self.by_level(section, "SIZES", [[32, 64, 128, 256, 512]])
        ratios = self.by_level(section, "ASPECT_RATIOS", [[0.5, 1.0, 2.0]])
        if len(set(ratios)) > 1:
            section.refuse("ASPECT_RATIOS", ratios, "the same at each level")
        self.finish(section)
        return {"anchor_sizes": sizes, "aspect_ratios": ratios[0]}

    def by_level(self, section: Section, name: str, default: Any) -> tuple[tuple[float, ...], ...]:
        """Lists of numbers for five levels; one stands for all."""
        value = section.get(name, default)
        levels = value if isinstance(value, (list, tuple)) else []
        rows = Section({str(i): level for i, level in enumerate(levels)}, section.full(name), section.source)
        numbers = tuple(rows.numbers(str(i)) for i in range(len(levels)))
        numbers = numbers * 5 if len(numbers) == 1 else numbers
        if len(numbers) != 5:
            section.refuse(name, value, "lists for five levels, P2 to P6, or one for all")
        return numbers

    def proposals(self) -> dict[str, Any]:
        """modeling/proposal_generator/rpn.py."""
        rpn = self.model.section("RPN", {})
        rpn.only("HEAD_NAME", "StandardRPNHead")
        rpn.required("IN_FEATURES", ("res4",), PYRAMID)
        rpn.only("BBOX_REG_WEIGHTS", (1.0, 1.0, 1.0, 1.0))
        rpn.ignore(*_RPN_TRAINING, "CONV_DIMS")
        counts = {
            "pre_nms_top_n": rpn.count("PRE_NMS_TOPK_TEST", 6000),
            "post_nms_top_n": rpn.count("POST_NMS_TOPK_TEST", 1000),
            "rpn_nms_threshold": rpn.number("NMS_THRESH", 0.7),
        }
        self.finish(rpn)
        return counts

    def head_layers(self) -> tuple[Any, ...]:
        """How many the weights have to have."""
        box, convs = self.model.section("ROI_BOX_HEAD", {}), self.model.section("RPN", {}).get("CONV_DIMS", [-1])
        count = len(convs) if isinstance(convs, (list, tuple)) else 1
        return count, box.number("NUM_CONV", 0), box.number("NUM_FC", 0)

    def heads(self) -> dict[str, Any]:
        """modeling/roi_heads/roi_heads.py, box_head.py, fast_rcnn.py, mask_head.py."""
        heads = self.model.section("ROI_HEADS", {})
        self.named(heads, "NAME", "roi_head_type", "StandardROIHeads", "Res5ROIHeads")
        heads.required("IN_FEATURES", ("res4",), PYRAMID[:4])
        heads.ignore(*_HEADS_TRAINING)
        box = self.model.section("ROI_BOX_HEAD", {})
        self.named(box, "NAME", "bbox_head_type", "FastRCNNConvFCHead", "")
        box.only("BBOX_REG_WEIGHTS", (10.0, 10.0, 5.0, 5.0))
        box.only("USE_SIGMOID_CE", False)
        box.ignore(*_BOX_TRAINING, "NUM_FC", "FC_DIM", "NUM_CONV", "CONV_DIM", "CLS_AGNOSTIC_BBOX_REG")
        mask = self.model.section("ROI_MASK_HEAD", {})
        self.named(mask, "NAME", "mask_head_type", "MaskRCNNConvUpsampleHead", "MaskRCNNConvUpsampleHead")
        mask.ignore("NUM_CONV", "CONV_DIM", "CLS_AGNOSTIC_MASK")
        for head, size in ((box, 7), (mask, 14)):
            head.required("POOLER_RESOLUTION", 14, size)
            head.only("POOLER_SAMPLING_RATIO", 0)
            head.only("POOLER_TYPE", "ROIAlignV2")
            head.expect("NORM", "", *NORMS, default="")
            self.finish(head)
        settings = {
            "num_classes": heads.count("NUM_CLASSES", 80) + 1,
            "score_threshold": heads.number("SCORE_THRESH_TEST", 0.05),
            "nms_threshold": heads.number("NMS_THRESH_TEST", 0.5),
        }
        self.finish(heads)
        return settings


def _class_names(whole: Section, classes: int) -> tuple[str, ...]:
    """COCO's, where it was trained on that (data/datasets/builtin.py); those of other data are in no configuration."""
    datasets = whole.get("DATASETS", {})
    names = datasets.get("TRAIN") if isinstance(datasets, Mapping) else None
    on_coco = isinstance(names, list) and names and all(re.match(r"coco_20\d\d_", str(name)) for name in names)
    return coco_names() if on_coco and classes == 80 else ()


def _triple(section: Section, name: str, default: Triple) -> Triple:
    first, second, third = section.numbers(name, 3, default)
    return float(first), float(second), float(third)
