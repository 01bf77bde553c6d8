"""What a configuration of mmdetection 2.x or 3.x says of a network, Mask R-CNN above all; read as data, never run.

The defaults are those of the classes that a configuration names (mmdet 2.28 and 3.3.0, mmcv 1.7 and 2.1.0).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wnlb.export.checkpoints.configurations.mmdet_parts import TRAINING, PartReader
from wnlb.export.checkpoints.configurations.mmdet_pipeline import Preparation, preparation, test_datasets
from wnlb.export.checkpoints.configurations.mmdet_solov2 import Solov2Reader
from wnlb.export.checkpoints.configurations.python_data import data_from_file, data_from_text
from wnlb.export.checkpoints.configurations.section import Section
from wnlb.export.checkpoints.configurations.settings import OWN_HEADS, DetectorSettings, NetworkSettings
from wnlb.runtime.errors import CheckpointError

STRIDES = (4, 8, 16, 32, 64)
BOX_STDS = (0.1, 0.1, 0.2, 0.2)
DETECTORS = ("MaskRCNN", "MaskRCNNNoiseInv")  # the second is LIS's: it differs in training alone
BOX_HEADS = ("Shared2FCBBoxHead", "Shared4Conv1FCBBoxHead", "ConvFCBBoxHead")
SHARED = {"Shared2FCBBoxHead": (0, 2), "Shared4Conv1FCBBoxHead": (4, 1)}  # convolutions, linear layers


def settings_from_meta(
    meta: Any, source: str, types: Mapping[str, str] | None = None, network: str = "mmdetection"
) -> NetworkSettings | None:
    """What the ``meta`` of a checkpoint says: ``cfg`` (3.x) or ``config`` (2.x), and the names of its classes.

    Args:
        types, network: see ``settings_from_data``.

    Returns:
        None where there is no configuration in it.

    Raises:
        CheckpointError: the configuration is no data, or of a network that is not supported exactly.
    """
    text = next((meta[name] for name in ("cfg", "config") if isinstance(meta.get(name), str)), None)
    if text is None:
        return None
    where = f"configuration in {source}"
    settings = settings_from_data(data_from_text(text, where), where, types, network)
    names = class_names_from_meta(meta)
    return settings.with_overrides({"class_names": names}) if names else settings


def class_names_from_meta(meta: Any) -> tuple[str, ...]:
    """Names of the classes that a checkpoint was trained on; () where it has none."""
    names = _names(meta.get("dataset_meta")) or _names(meta)
    return (names,) if isinstance(names, str) else names  # one class, of which its author forgot the list


def class_names_from_config(config: Section) -> tuple[str, ...]:
    """Those that the test data of a configuration name, 2.x ``classes``, 3.x ``metainfo``; () where there are none.

    A text names a file of names, and is left aside: configurations open no files.
    """
    found = (_names(place.get("metainfo")) or _names(place) for place in test_datasets(config))
    return next((names for names in found if names and not isinstance(names, str)), ())


def _names(holder: Any) -> tuple[str, ...] | str:
    if not isinstance(holder, Mapping):
        return ()
    found = next((names for key in ("classes", "CLASSES") if (names := holder.get(key))), ())
    fits = isinstance(found, (list, tuple)) and all(isinstance(name, str) for name in found)
    return found if isinstance(found, str) else tuple(found) if fits else ()


def settings_from_file(
    path: Path, types: Mapping[str, str] | None = None, network: str = "mmdetection"
) -> NetworkSettings:
    """The same of a configuration file and those that it builds on.

    Raises:
        CheckpointError: as ``settings_from_meta``.
    """
    return settings_from_data(data_from_file(path), str(path), types, network)


def settings_from_data(
    config: Mapping[str, Any], source: str, types: Mapping[str, str] | None = None, network: str = "mmdetection"
) -> NetworkSettings:
    """The settings of a configuration.

    Args:
        config: its variables.
        source: its name, for messages.
        types: classes of mmdetection that classes of the user's own are to be read as: ``{"backbone_type": "ResNet"}``.
        network: what the weights are of, "mmdetection" (Mask R-CNN) or "mmdetection-solov2".

    Raises:
        CheckpointError: it is of another network, or of one that is not supported exactly.
    """
    whole = Section(config, "", source)
    try:
        settings = READERS[network](whole, types or {}).settings()
        return settings.with_overrides({"class_names": class_names_from_config(whole)})
    except RecursionError as error:
        raise CheckpointError(f"{source} is nested too deeply to be a configuration") from error


class MaskRcnnReader(PartReader):
    """A configuration of a Mask R-CNN with FPN."""

    def settings(self) -> DetectorSettings:
        model = self.model
        self.type_of(model, "detector_type", DETECTORS, "Mask R-CNN with FPN, of a ResNet or ResNeXt")
        model.ignore(*TRAINING, "use_syncbn")
        backbone, style, adaptive_stride, eps = self.backbone(model.section("backbone"))
        self.neck(model.section("neck"))
        anchor_sizes, ratios = self.rpn_head(model.section("rpn_head"))
        classes, head_layers = self.roi_head(model.section("roi_head"))
        head_layers = (model.section("rpn_head").number("num_convs", 1), *head_layers)
        counts = self.test_cfg()
        prepared: Preparation = preparation(self.config, model)
        model.finish()
        return DetectorSettings(
            framework="mmdetection",
            style=style,
            adaptive_stride=adaptive_stride,
            anchor_sizes=anchor_sizes,
            aspect_ratios=ratios,
            norm_eps=eps,
            backbone=backbone,
            num_classes=classes + 1,
            # A class of the user's own may have others.
            head_layers=() if self.types.keys() & OWN_HEADS else head_layers,
            **counts,
            **prepared,
            **self.blocks(),
        )

    def rpn_head(self, section: Section) -> tuple[tuple[tuple[float, ...], ...], tuple[float, ...]]:
        """Sizes and ratios of the anchors (dense_heads/rpn_head.py, task_modules/prior_generators/)."""
        self.type_of(section, "rpn_head_type", ("RPNHead",))
        anchors = section.section("anchor_generator")
        anchors.kind("AnchorGenerator")
        anchors.expect("strides", STRIDES)
        anchors.only("scale_major", True)
        anchors.only("center_offset", 0)
        for name in ("base_sizes", "octave_base_scale", "scales_per_octave", "centers"):
            anchors.only(name, None)
        anchors.ignore("use_box_type")
        scales, ratios = anchors.numbers("scales"), anchors.numbers("ratios")
        anchors.finish()
        coder = section.section("bbox_coder", {"type": "DeltaXYWHBBoxCoder"})
        coder.only("target_stds", (1, 1, 1, 1))
        self.coder(coder)
        loss = section.section("loss_cls", {"type": "CrossEntropyLoss", "use_sigmoid": True})
        kind = loss.kind("CrossEntropyLoss", "FocalLoss")
        loss.expect("use_sigmoid", True, **({"default": True} if kind == "FocalLoss" else {}))
        section.only("num_classes", 1)
        section.ignore(*TRAINING, "in_channels", "feat_channels", "num_convs", "reg_decoded_bbox", "test_cfg")
        self.finish(section, "rpn_head_type")
        sizes = tuple(tuple(_whole(scale * stride) for scale in scales) for stride in STRIDES)
        return sizes, ratios

    def coder(self, coder: Section) -> None:
        """task_modules/coders/delta_xywh_bbox_coder.py; its target_stds are looked at before."""
        coder.kind("DeltaXYWHBBoxCoder")
        coder.only("target_means", (0, 0, 0, 0))
        coder.only("clip_border", True)
        coder.only("add_ctr_clamp", False)
        coder.ignore("ctr_clamp", "use_box_type")
        coder.finish()

    def roi_head(self, section: Section) -> tuple[int, tuple[Any, ...]]:
        """Classes without background; layers of the box head, see ``bbox_head`` (roi_heads/standard_roi_head.py)."""
        self.type_of(section, "roi_head_type", ("StandardRoIHead",))
        section.only("shared_head", None)
        self.extractor(section.section("bbox_roi_extractor"), 7)
        self.extractor(section.section("mask_roi_extractor"), 14)
        classes, *layers = self.bbox_head(section.section("bbox_head"))
        masks = self.mask_head(section.section("mask_head"))
        if masks not in (classes, None):
            section.refuse("mask_head.num_classes", masks, f"{classes}, as bbox_head has")
        section.ignore(*TRAINING, "test_cfg")
        self.finish(section, "roi_head_type")
        return classes, tuple(layers)

    def extractor(self, section: Section, size: int) -> None:
        """roi_extractors/single_level_roi_extractor.py; mmcv/ops/roi_align.py."""
        section.kind("SingleRoIExtractor")
        section.expect("featmap_strides", STRIDES[:4])
        section.only("finest_scale", 56)
        section.ignore("out_channels", "init_cfg")
        layer = section.section("roi_layer")
        section.finish()
        layer.kind("RoIAlign")
        layer.expect("output_size", size, (size, size))
        layer.only("sampling_ratio", 0)
        layer.only("aligned", True)
        layer.only("pool_mode", "avg")
        layer.ignore("use_torchvision")
        layer.finish()

    def bbox_head(self, section: Section) -> tuple[int, Any, Any]:
        """Classes, convolutions and linear layers (roi_heads/bbox_heads/convfc_bbox_head.py)."""
        kind = self.type_of(section, "bbox_head_type", BOX_HEADS)
        given = section.number("num_shared_convs", 0), section.number("num_shared_fcs", 0)
        for name, value in (
            *dict.fromkeys(("num_cls_convs", "num_cls_fcs", "num_reg_convs", "num_reg_fcs"), 0).items(),
            *dict.fromkeys(("with_cls", "with_reg"), True).items(),
            *((name, {"type": "Linear"}) for name in ("cls_predictor_cfg", "reg_predictor_cfg")),
            ("conv_cfg", None),
            ("with_avg_pool", False),
            ("roi_feat_size", 7),
        ):
            section.only(name, value)
        coder = section.section("bbox_coder", {"type": "DeltaXYWHBBoxCoder", "target_stds": BOX_STDS})
        coder.expect("target_stds", BOX_STDS)
        self.coder(coder)
        loss = section.section("loss_cls", {"type": "CrossEntropyLoss"})
        loss.kind("CrossEntropyLoss")
        loss.only("use_sigmoid", False)
        self.norm(section)
        section.ignore(*TRAINING, "in_channels", "fc_out_channels", "conv_out_channels")
        section.ignore("reg_class_agnostic", "reg_decoded_bbox")
        classes = section.count("num_classes", 80)
        self.finish(section, "bbox_head_type")
        return classes, *SHARED.get(kind, given)

    def mask_head(self, section: Section) -> int | None:
        """roi_heads/mask_heads/fcn_mask_head.py; None: one mask for all classes."""
        self.type_of(section, "mask_head_type", ("FCNMaskHead",))
        for name, value in (
            ("roi_feat_size", 14),
            ("conv_kernel_size", 3),
            ("conv_cfg", None),
            ("predictor_cfg", {"type": "Conv"}),
            ("upsample_cfg", {"type": "deconv", "scale_factor": 2}),
        ):
            section.only(name, value)
        self.norm(section)
        section.ignore(*TRAINING, "num_convs", "in_channels", "conv_out_channels")
        agnostic, classes = section.truth("class_agnostic", False), section.count("num_classes", 80)
        self.finish(section, "mask_head_type")
        return None if agnostic else classes

    def test_cfg(self) -> dict[str, Any]:
        """Counts and thresholds: inside the model, or beside it before 2.8."""
        top = self.config.get("test_cfg")
        inside = self.model.get("test_cfg") or (top if isinstance(top, Mapping) and "rcnn" in top else None)
        section = Section(inside, "model.test_cfg", self.config.source)
        rpn, rcnn = section.section("rpn"), section.section("rcnn")
        rpn.only("nms_across_levels", False)
        rpn.required("min_bbox_size", -1, 0)  # below 0 none is dropped, not even one without extent
        rcnn.only("mask_thr_binary", 0.5)
        counts: dict[str, Any] = {
            "pre_nms_top_n": rpn.count("nms_pre"),
            "post_nms_top_n": rpn.count("max_per_img" if "max_per_img" in rpn else "max_num"),
            "rpn_nms_threshold": self.nms(rpn) if "nms" in rpn else rpn.number("nms_thr"),
            "score_threshold": rcnn.number("score_thr"),
            "nms_threshold": self.nms(rcnn),
            "detections": rcnn.count("max_per_img"),
        }
        # Names of 2.x; which one counts where they differ depends on its version.
        rpn.only("max_num", counts["post_nms_top_n"])
        rpn.only("nms_post", counts["post_nms_top_n"])
        rpn.only("nms_thr", counts["rpn_nms_threshold"])
        for each in (rpn, rcnn, section):
            each.finish()
        return counts

    def nms(self, section: Section) -> float:
        """The threshold of plain NMS (mmcv/ops/nms.py)."""
        nms = section.section("nms")
        nms.kind("nms", default="nms")
        nms.only("class_agnostic", False)
        nms.ignore("split_thr")  # classes one by one or all at once: the same boxes
        threshold = nms.number("iou_threshold" if "iou_threshold" in nms else "iou_thr")
        nms.finish()
        return threshold


def _whole(value: float) -> float:
    """32.0 as 32: sizes are shown, and mostly whole."""
    return int(value) if value == int(value) else value


READERS: dict[str, type[PartReader]] = {"mmdetection": MaskRcnnReader, "mmdetection-solov2": Solov2Reader}
