"""SOLOv2 with weighted non-local blocks: backbone and neck as in ``model.py``, and its head.

Wang, Zhang, Kong, Li, Shen: "SOLOv2: Dynamic and Fast Instance Segmentation", NeurIPS 2020; mmdetection's
``SOLOV2Head``. The modules hold weights; what is computed with them is written in ``wnlb.export.graph.solov2``.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from torch import nn

from wnlb.export.backbone import BackboneConfig, backbone_with_fpn
from wnlb.export.options import ExportOptions
from wnlb.runtime.errors import WnlbError


@dataclass(frozen=True)
class Solov2Config(BackboneConfig):
    """Everything that rebuilds the network around a state dict."""

    head_convs: int = 4  # 3 x 3 convolutions of the kernel branch, and of the class branch
    head_channels: int = 512  # of these
    feature_channels: int = 128  # of the convolutions that make the mask features
    kernel_channels: int = 256  # E: of a cell's kernel, and of the mask features
    norm_groups: int = 32
    grids: tuple[int, ...] = (40, 36, 24, 16, 12)  # cells along each side of the frame, for P2, P3, P4, P5, P6
    cell_strides: tuple[float, ...] = (8, 8, 16, 32, 32)  # a mask has more cells than that of its grid

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("grids", "cell_strides"):
            if len(getattr(self, name)) != 5:
                raise WnlbError(f"{name} has {len(getattr(self, name))} numbers; expected 5 (P2, P3, P4, P5, P6)")
        for name in ("head_channels", "feature_channels", "kernel_channels"):
            if getattr(self, name) % self.norm_groups:
                raise WnlbError(
                    f"{name} is {getattr(self, name)}; expected a multiple of the {self.norm_groups} groups"
                )

    @property
    def widths(self) -> tuple[str, ...]:
        own = ("head_convs", "head_channels", "feature_channels", "kernel_channels", "norm_groups", "grids")
        return (*super().widths, *own)

    @property
    def kinds(self) -> dict[str, tuple[type, ...]]:
        own = ("head_convs", "head_channels", "feature_channels", "kernel_channels", "norm_groups")
        return {**super().kinds, **dict.fromkeys(own, (int,))}

    @property
    def item_kinds(self) -> dict[str, tuple[type, ...]]:
        return {**super().item_kinds, "grids": (int,), "cell_strides": (int, float)}


@dataclass(frozen=True)
class Selection:
    """Which of the cells become detections; the defaults are those of mmdetection's configurations."""

    cell_threshold: float = 0.1  # of the scores of (cell, class) pairs, before their masks are made
    nms_candidates: int = 500  # masks that enter Matrix NMS, at most
    nms_sigma: float = 2.0  # of its decay, exp(-sigma IoU^2)
    score_threshold: float = 0.05  # of detections, behind it
    detections: int = 100

    def with_options(self, options: ExportOptions) -> Selection:
        """With the counts and thresholds of ``options`` that SOLOv2 has. Raises WnlbError for one that it has not."""
        for name in ("pre_nms_top_n", "post_nms_top_n", "nms_threshold", "mask_rows"):
            if getattr(options, name) is not None:
                raise WnlbError(
                    f"{name} is {getattr(options, name)}, but SOLOv2 has neither proposals nor NMS of boxes, and its "
                    "masks are made at once; leave it out. "
                    "Of its own there are --set nms_candidates=N, nms_sigma=S and cell_threshold=S"
                )
        if options.masks == "box":
            raise WnlbError("masks is 'box', which this network does not make; expected none, or leave it out")
        asked: dict[str, Any] = {"detections": options.detections, "score_threshold": options.score_threshold}
        return dataclasses.replace(self, **{name: value for name, value in asked.items() if value is not None})


class ConvNorm(nn.Module):
    """A convolution without bias and a group norm; a ReLU follows."""

    def __init__(self, inputs: int, outputs: int, size: int, groups: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, size, padding=size // 2, bias=False)
        self.norm = nn.GroupNorm(groups, outputs)


class Solov2Head(nn.Module):
    """Kernels and scores of the cells, and mask features.

    Where something is two channels wider than what it reads, these are the coordinates x and y, from -1 to 1.
    """

    def __init__(self, config: Solov2Config) -> None:
        super().__init__()
        neck, width, groups = config.fpn_channels, config.head_channels, config.norm_groups

        def branch(inputs: int) -> nn.ModuleList:
            widths = (inputs, *(width,) * config.head_convs)
            return nn.ModuleList(ConvNorm(widths[i], width, 3, groups) for i in range(config.head_convs))

        self.kernel_convs, self.cls_convs = branch(neck + 2), branch(neck)
        self.conv_kernel = nn.Conv2d(width, config.kernel_channels, 3, padding=1)
        self.conv_cls = nn.Conv2d(width, config.num_classes - 1, 3, padding=1)
        inner = config.feature_channels
        self.mask_convs = nn.ModuleList()
        for level in range(4):  # P2 .. P5; behind each convolution but P2's the map is doubled
            widths = (neck + 2 * (level == 3), *(inner,) * max(level, 1))
            self.mask_convs.append(nn.ModuleList(ConvNorm(widths[i], inner, 3, groups) for i in range(len(widths) - 1)))
        self.conv_pred = ConvNorm(inner, config.kernel_channels, 1, groups)


class Solov2(nn.Module):
    """The network, and what of its cells is taken."""

    def __init__(self, config: Solov2Config, selection: Selection) -> None:
        super().__init__()
        self.config, self.selection = config, selection
        self.backbone = backbone_with_fpn(config)
        self.head = Solov2Head(config)
