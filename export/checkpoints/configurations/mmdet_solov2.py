"""What a configuration of mmdetection 2.x or 3.x says of a SOLOv2; read as data, never run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from wnlb.export.checkpoints.configurations.mmdet_parts import TRAINING, PartReader
from wnlb.export.checkpoints.configurations.mmdet_pipeline import Preparation, preparation
from wnlb.export.checkpoints.configurations.section import Section
from wnlb.export.checkpoints.configurations.solov2_settings import Solov2Settings

GRIDS = (40, 36, 24, 16, 12)  # defaults of dense_heads/solo_head.py
STRIDES = (4, 8, 16, 32, 64)


class Solov2Reader(PartReader):
    """A configuration of a SOLOv2 with FPN."""

    def settings(self) -> Solov2Settings:
        model = self.model
        self.type_of(model, "detector_type", ("SOLOv2",), "SOLOv2 with FPN, of a ResNet or ResNeXt")
        model.ignore(*TRAINING, "use_syncbn")
        model.only("bbox_head", None)
        backbone, style, adaptive_stride, eps = self.backbone(model.section("backbone"))
        self.neck(model.section("neck"))
        head = self.mask_head(model.section("mask_head"))
        selection = self.test_cfg()
        prepared: Preparation = preparation(self.config, model)
        model.finish()
        return Solov2Settings(
            framework="mmdetection-solov2",
            style=style,
            adaptive_stride=adaptive_stride,
            norm_eps=eps,
            backbone=backbone,
            **head,
            **selection,
            **prepared,
            **self.blocks(),
        )

    def mask_head(self, section: Section) -> dict[str, Any]:
        """Classes, grids and group norms (dense_heads/solov2_head.py); widths are told by the weights."""
        self.type_of(section, "mask_head_type", ("SOLOV2Head",))
        section.only("dynamic_conv_size", 1)
        section.only("dcn_cfg", None)
        section.ignore(*TRAINING, "in_channels", "feat_channels", "stacked_convs", "scale_ranges", "pos_scale")
        section.ignore("cls_down_index", "dcn_apply_to_all_conv", "test_cfg")
        groups = self.group_norm(section, {"type": "GN", "num_groups": 32})
        features = section.section("mask_feature_head")
        for name, value in (("start_level", 0), ("end_level", 3)):
            features.expect(name, value)
        features.only("mask_stride", 4)
        features.only("conv_cfg", None)
        features.ignore("in_channels", "feat_channels", "out_channels", "init_cfg")
        found = self.group_norm(features)
        if found != groups:
            features.refuse("norm_cfg.num_groups", found, f"{groups}, as the head has")
        features.finish()
        made = {
            "num_classes": section.count("num_classes") + 1,
            "grids": tuple(section.numbers("num_grids", 5, GRIDS)),
            "cell_strides": tuple(section.numbers("strides", 5, STRIDES)),
            "norm_groups": groups,
        }
        self.finish(section, "mask_head_type")
        return made

    def group_norm(self, section: Section, default: dict[str, Any] | None = None) -> int:
        """Groups of the norms of a part."""
        norm = section.section("norm_cfg", default)
        norm.kind("GN")
        norm.only("eps", 1e-5)
        norm.ignore("requires_grad")
        groups = norm.count("num_groups")
        norm.finish()
        return groups

    def test_cfg(self) -> dict[str, Any]:
        """Counts and thresholds (layers/matrix_nms.py): inside the model, or beside it before 2.8."""
        top = self.config.get("test_cfg")
        inside = self.model.get("test_cfg") or (top if isinstance(top, Mapping) and "nms_pre" in top else None)
        section = Section(inside, "model.test_cfg", self.config.source)
        section.expect("kernel", "gaussian")
        section.expect("mask_thr", 0.5)
        counts = {
            "nms_candidates": section.count("nms_pre"),
            "cell_threshold": section.number("score_thr"),
            "score_threshold": max(section.number("filter_thr"), 0),  # below 0 none is left out
            "nms_sigma": section.number("sigma"),
            "detections": section.count("max_per_img"),
        }
        section.finish()
        return counts
