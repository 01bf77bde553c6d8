"""What a configuration of mmdetection 2.x or 3.x says of a Mask R-CNN with FPN; read as data, never run.

The defaults are those of the classes that a configuration names (mmdet 2.28 and 3.3.0, mmcv 1.7 and 2.1.0).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wnlb.export.checkpoints.mmdet_pipeline import Preparation, preparation
from wnlb.export.checkpoints.python_data import data_from_file, data_from_text
from wnlb.export.checkpoints.section import Section
from wnlb.export.checkpoints.settings import NO_STYLE, OWN_HEADS, DetectorSettings, backbone_name, shown
from wnlb.runtime.errors import CheckpointError

STRIDES = (4, 8, 16, 32, 64)
BOX_STDS = (0.1, 0.1, 0.2, 0.2)
RESNETS = ("ResNet", "ResNeXt")
LIS_RESNETS = ("ResNetAdaDSmoothPrior", "ResNetAdaD")  # Linwei-Chen/LIS: adaptive downsampling, smooth convolutions
DETECTORS = ("MaskRCNN", "MaskRCNNNoiseInv")  # the second is LIS's: it differs in training alone
BOX_HEADS = ("Shared2FCBBoxHead", "Shared4Conv1FCBBoxHead", "ConvFCBBoxHead")
SHARED = {"Shared2FCBBoxHead": (0, 2), "Shared4Conv1FCBBoxHead": (4, 1)}  # convolutions, linear layers
NORMS = ("BN", "BN2d", "SyncBN", "MMSyncBN", "naiveSyncBN")
_TRAINING = ("init_cfg", "pretrained", "train_cfg", "loss_cls", "loss_bbox", "loss_mask")


def settings_from_meta(meta: Any, source: str, types: Mapping[str, str] | None = None) -> DetectorSettings | None:
    """What the ``meta`` of a checkpoint says: ``cfg`` (3.x) or ``config`` (2.x), and the names of its classes.

    Args:
        types: see ``settings_from_data``.

    Returns:
        None where there is no configuration in it.

    Raises:
        CheckpointError: the configuration is no data, or of a network that is not supported exactly.
    """
    text = next((meta[name] for name in ("cfg", "config") if isinstance(meta.get(name), str)), None)
    if text is None:
        return None
    where = f"configuration in {source}"
    settings = settings_from_data(data_from_text(text, where), where, types)
    names = class_names_from_meta(meta)
    return settings.with_overrides({"class_names": names}) if names else settings


def class_names_from_meta(meta: Any) -> tuple[str, ...]:
    """Names of the classes that a checkpoint was trained on; () where it has none."""
    dataset = meta.get("dataset_meta")
    dataset = dataset if isinstance(dataset, Mapping) else {}
    found = next((v for v in (dataset.get("classes"), dataset.get("CLASSES"), meta.get("CLASSES")) if v), ())
    names = (found,) if isinstance(found, str) else found
    fits = isinstance(names, (list, tuple)) and all(isinstance(name, str) for name in names)
    return tuple(names) if fits else ()


def settings_from_file(path: Path, types: Mapping[str, str] | None = None) -> DetectorSettings:
    """The same of a configuration file and those that it builds on.

    Raises:
        CheckpointError: as ``settings_from_meta``.
    """
    return settings_from_data(data_from_file(path), str(path), types)


def settings_from_data(
    config: Mapping[str, Any], source: str, types: Mapping[str, str] | None = None
) -> DetectorSettings:
    """The settings of a configuration.

    Args:
        config: its variables.
        source: its name, for messages.
        types: classes of mmdetection that classes of the user's own are to be read as: ``{"backbone_type": "ResNet"}``.

    Raises:
        CheckpointError: it is of another network, or of one that is not supported exactly.
    """
    reader = _Reader(Section(config, "", source), types or {})
    try:
        return reader.settings()
    except RecursionError as error:
        raise CheckpointError(f"{source} is nested too deeply to be a configuration") from error


class _Reader:
    def __init__(self, config: Section, types: Mapping[str, str]) -> None:
        self.config, self.types = config, types
        self.model = config.section("model")

    def settings(self) -> DetectorSettings:
        model = self.model
        self.type_of(model, "detector_type", DETECTORS, "Mask R-CNN with FPN, of a ResNet or ResNeXt")
        model.ignore(*_TRAINING, "use_syncbn")
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

    def type_of(self, section: Section, part: str, allowed: tuple[str, ...], supported: str = "") -> str:
        """The class that a part is of, or is to be read as."""
        named = section.kind()
        name = self.types.get(part, named)
        if name in allowed:
            return name
        raise CheckpointError(
            f"{section.source}: {section.path} is of the type {shown(named)}; expected "
            f"{supported or ' or '.join(allowed)}. If it is a class of your own that computes what {allowed[0]} does, "
            f"but for non-local blocks, say so: --set {part}={allowed[0]}"
        )

    def finish(self, section: Section, part: str) -> None:
        """A class of the user's own may have arguments of its own."""
        if part not in self.types:
            section.finish()

    def backbone(self, section: Section) -> tuple[str, str, int, float]:
        """Its name, style, stride of its adaptive downsampling (0: none) and the epsilon of its norms.

        backbones/resnet.py, resnext.py. Of LIS's two classes one leaves the stride to the residual units in the style
        "pytorch"; otherwise the downsampling before a stage has it.
        """
        kind = self.type_of(section, "backbone_type", (*RESNETS, *LIS_RESNETS), "ResNet or ResNeXt")
        depth = section.expect("depth", 18, 34, 50, 101, 152)
        style = section.expect("style", "pytorch", "caffe", default="pytorch")
        groups, width = section.count("groups", 1), section.count("base_width", 4 if kind == "ResNeXt" else 64)
        for name, value in {
            "in_channels": 3,
            "base_channels": 64,
            "num_stages": 4,
            "strides": (1, 2, 2, 2),
            "dilations": (1, 1, 1, 1),
            "out_indices": (0, 1, 2, 3),
            "deep_stem": False,
            "avg_down": False,
            **dict.fromkeys(("conv_cfg", "dcn", "plugins")),
        }.items():
            section.only(name, value)
        section.expect("stem_channels", 64, default=None)
        eps = self.norm(section, {"type": "BN"})
        section.ignore(*_TRAINING, "frozen_stages", "norm_eval", "with_cp", "zero_init_residual", "stage_with_dcn")
        self.finish(section, "backbone_type")
        backbone = backbone_name(depth, groups, width)
        adaptive_stride = 0
        if kind in LIS_RESNETS:
            adaptive_stride = 1 if kind == "ResNetAdaDSmoothPrior" and style == "pytorch" else 2
        return backbone, "pytorch" if backbone in NO_STYLE else style, adaptive_stride, eps

    def norm(self, section: Section, default: dict[str, Any] | None = None) -> float:
        """Epsilon of the norms of a part, which have to be batch norms, or none without a default."""
        if default is None and "norm_cfg" not in section:
            section.ignore("norm_cfg")
            return 1e-5
        norm = section.section("norm_cfg", default)
        norm.kind(*NORMS)
        norm.ignore("requires_grad", "momentum", "stats_mode")
        eps = norm.number("eps", 1e-5)
        if default is None:  # folded with that of torch.nn.BatchNorm2d
            norm.only("eps", 1e-5)
        norm.finish()
        return eps

    def neck(self, section: Section) -> None:
        """necks/fpn.py; the fifth level is pooled from the fourth."""
        self.type_of(section, "neck_type", ("FPN",))
        section.expect("num_outs", 5)
        section.expect("end_level", -1, 3, default=-1)
        for name, value in (
            ("start_level", 0),
            ("add_extra_convs", False),
            ("no_norm_on_lateral", False),
            ("conv_cfg", None),
            ("act_cfg", None),
            ("upsample_cfg", {"mode": "nearest"}),
        ):
            section.only(name, value)
        self.norm(section)
        section.ignore("in_channels", "out_channels", "relu_before_extra_convs", "extra_convs_on_inputs", "init_cfg")
        self.finish(section, "neck_type")

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
        section.ignore(*_TRAINING, "in_channels", "feat_channels", "num_convs", "reg_decoded_bbox", "test_cfg")
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
        section.ignore(*_TRAINING, "test_cfg")
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
        section.ignore(*_TRAINING, "in_channels", "fc_out_channels", "conv_out_channels")
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
        section.ignore(*_TRAINING, "num_convs", "in_channels", "conv_out_channels")
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

    def blocks(self) -> dict[str, Any]:
        """Mode and scale of mmcv's NonLocal2d, wherever a configuration builds it (mmcv/cnn/bricks/non_local.py)."""
        modes = {"embedded_gaussian": "embedded", "dot_product": "dot"}  # of others the weights tell
        told: dict[str, Any] = {}
        for found in _dictionaries_of("NonLocal2d", self.config.get("model")):
            section = Section(found, "NonLocal2d", self.config.source)
            mode = section.text("mode", "embedded_gaussian")
            own = {"block_mode": modes.get(mode, "embedded"), "non_local_scaled": section.truth("use_scale", True)}
            if told and own != told:
                raise CheckpointError(
                    f"{self.config.source} has blocks NonLocal2d of several kinds, {shown(told)} and {shown(own)}; "
                    "expected one mode and one use_scale"
                )
            told = own
        return told


def _dictionaries_of(kind: str, value: Any) -> list[Mapping[str, Any]]:
    """All dictionaries of one type inside a value."""
    found: list[Mapping[str, Any]] = []
    left, seen = [value], set()
    while left:
        one = left.pop()
        if id(one) in seen or not isinstance(one, (dict, list, tuple)):
            continue
        seen.add(id(one))
        named = one.get("type") if isinstance(one, dict) else None
        if isinstance(one, dict) and isinstance(named, str) and named.split(".")[-1] == kind:
            found.append(one)
        left += one.values() if isinstance(one, dict) else one
    return found


def _whole(value: float) -> float:
    """32.0 as 32: sizes are shown, and mostly whole."""
    return int(value) if value == int(value) else value
