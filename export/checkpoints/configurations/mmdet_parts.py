"""What a configuration of mmdetection 2.x or 3.x says of backbone, neck and non-local blocks; of any network.

The defaults are those of the classes that a configuration names (mmdet 2.28 and 3.3.0, mmcv 1.7 and 2.1.0).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from wnlb.export.checkpoints.configurations.section import Section
from wnlb.export.checkpoints.configurations.setting_checks import shown
from wnlb.export.checkpoints.configurations.settings import NO_STYLE, NetworkSettings, backbone_name
from wnlb.runtime.errors import CheckpointError

RESNETS = ("ResNet", "ResNeXt")
LIS_RESNETS = ("ResNetAdaDSmoothPrior", "ResNetAdaD")  # Linwei-Chen/LIS: adaptive downsampling, smooth convolutions
NORMS = ("BN", "BN2d", "SyncBN", "MMSyncBN", "naiveSyncBN")
TRAINING = ("init_cfg", "pretrained", "train_cfg", "loss_cls", "loss_bbox", "loss_mask")


class PartReader:
    """A configuration and the parts that all networks have.

    Args:
        config: its variables.
        types: classes of mmdetection that classes of the user's own are to be read as: ``{"backbone_type": "ResNet"}``.
    """

    def __init__(self, config: Section, types: Mapping[str, str]) -> None:
        self.config, self.types = config, types
        self.model = config.section("model")

    def settings(self) -> NetworkSettings:
        """All that it says."""
        raise NotImplementedError

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
        section.ignore(*TRAINING, "frozen_stages", "norm_eval", "with_cp", "zero_init_residual", "stage_with_dcn")
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
