"""ResNet and FPN with weighted non-local blocks, as torchvision builds them: what all networks here share."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torchvision
from torch import Tensor, nn
from torchvision.models import ResNet
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.resnet import BasicBlock, Bottleneck
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool
from torchvision.ops.misc import FrozenBatchNorm2d

from wnlb.export.adaptive_downsampling import AdaptiveDownsampling
from wnlb.export.block import MODES, WeightedNonLocalBlock
from wnlb.runtime.errors import WnlbError

# ResNeXts of mmdetection and detectron2 that torchvision has no function for: units, groups, channels of a group.
OTHER_RESNEXTS = {"resnext101_32x4d": ((3, 4, 23, 3), 32, 4), "resnext152_32x8d": ((3, 8, 36, 3), 32, 8)}
BACKBONES = (
    *("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"),
    *("resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d", "wide_resnet50_2", "wide_resnet101_2"),
    *OTHER_RESNEXTS,
)
PLACEMENTS = ("inline", "lateral", "fpn")
STAGES = (2, 3, 4, 5)  # a stage's number k: its stride is 2**k
_Config = TypeVar("_Config", bound="BackboneConfig")


@dataclass(frozen=True)
class BackboneConfig:
    """What rebuilds backbone and neck around a state dict, and what the input and the classes are."""

    num_classes: int  # with background, as torchvision counts
    backbone: str = "resnet50"
    levels: tuple[str, ...] = ("c2", "c3", "c4", "c5")  # "c2" and "p2" mean the same stage
    placement: str = "inline"
    mode: str = "embedded"
    weighted: bool = True
    inner_channels: tuple[int, ...] | None = None  # d, one number per level; None: C/2
    # Where a bottleneck has its stride: "pytorch": in its 3 x 3 convolution (torchvision), "caffe": in its first 1 x 1
    # (detectron2's STRIDE_IN_1X1). Nothing else differs; the basic units of ResNet-18 and 34 have no style.
    style: str = "pytorch"
    # Of LIS's adaptive downsampling before the stages 3, 4 and 5; 0: there is none. 2: instead of the residual units,
    # whose stride is 1 then; 1: beside them (LIS's ResNetAdaDSmoothPrior in the style "pytorch").
    adaptive_stride: int = 0
    fpn_channels: int = 256
    image_mean: tuple[float, ...] = (0.485, 0.456, 0.406)  # of RGB in 0..1; torchvision's
    image_std: tuple[float, ...] = (0.229, 0.224, 0.225)
    norm: str = "batch"  # "batch" (trains) or "frozen" (torchvision's for pretrained backbones)
    norm_eps: float = 1e-5  # 0 for torchvision's COCO weights and what was fine-tuned from them
    class_names: tuple[str, ...] = ()  # without background; empty: not known

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, as_tuple(getattr(self, field.name)))  # as JSON gives it
        self._check_types()
        _expect("backbone", self.backbone, BACKBONES)
        _expect("placement", self.placement, PLACEMENTS)
        _expect("mode", self.mode, MODES)
        _expect("norm", self.norm, ("batch", "frozen"))
        _expect("style", self.style, ("pytorch", "caffe"))
        if self.adaptive_stride not in (0, 1, 2):
            raise WnlbError(f"adaptive_stride is {self.adaptive_stride}; expected 1 or 2, or 0 for none")
        for level in self.levels:
            if not re.fullmatch(r"[cp][2-5]", level):
                raise WnlbError(f"level is {level!r}; expected c2, c3, c4, c5 (or p2 ... p5)")
        stages = tuple(sorted({int(level[1]) for level in self.levels}))
        letter = "p" if self.placement == "fpn" else "c"
        object.__setattr__(self, "levels", tuple(f"{letter}{stage}" for stage in stages))
        if self.num_classes < 2:
            raise WnlbError(f"num_classes is {self.num_classes}; expected at least 2 (background and one more)")
        if self.inner_channels is not None and len(self.inner_channels) != len(self.levels):
            raise WnlbError(
                f"inner_channels has {len(self.inner_channels)} numbers for {len(self.levels)} levels; "
                "expected one for each"
            )
        if self.class_names and len(self.class_names) != self.num_classes - 1:
            raise WnlbError(
                f"{len(self.class_names)} class names for {self.num_classes - 1} classes; "
                "expected one for each class but the background"
            )
        if not all(0 <= value <= 1 for value in self.image_mean):
            raise WnlbError(f"image_mean is {self.image_mean}; expected numbers from 0 to 1: those of 0..255, over 255")
        if not all(0 < value <= 10 for value in self.image_std):
            raise WnlbError(f"image_std is {self.image_std}; expected numbers that fit 0..1: those of 0..255, over 255")

    @property
    def widths(self) -> tuple[str, ...]:
        """Fields of one number or several that have to be positive."""
        return ("fpn_channels", "inner_channels")

    @property
    def kinds(self) -> dict[str, tuple[type, ...]]:
        """Field to the types that its value may have."""
        return {
            **dict.fromkeys(("backbone", "placement", "mode", "norm", "style"), (str,)),
            **dict.fromkeys(("num_classes", "adaptive_stride", "fpn_channels"), (int,)),
            "weighted": (bool,),
            "norm_eps": (int, float),
        }

    @property
    def item_kinds(self) -> dict[str, tuple[type, ...]]:
        """Field that is a list to the types that its items may have."""
        return {
            **dict.fromkeys(("levels", "class_names"), (str,)),
            "inner_channels": (int,),
            **dict.fromkeys(("image_mean", "image_std"), (int, float)),
        }

    def _check_types(self) -> None:
        """Values come from JSON, inside checkpoints or from the command line."""
        for name, kind in self.kinds.items():
            value = getattr(self, name)
            if not isinstance(value, kind) or (isinstance(value, bool) and kind != (bool,)):
                raise WnlbError(f"{name} is {value!r}; expected {' or '.join(k.__name__ for k in kind)}")
        for name, kind in self.item_kinds.items():
            value = getattr(self, name)
            fits = isinstance(value, tuple) and all(isinstance(item, kind) for item in value)
            fits &= not name.startswith("image_") or (isinstance(value, tuple) and len(value) == 3)
            if not fits and not (name == "inner_channels" and value is None):
                count = "three " if name.startswith("image_") else "a list of "
                raise WnlbError(f"{name} is {value!r}; expected {count}{' or '.join(k.__name__ for k in kind)}")
        for name in self.widths:
            value = getattr(self, name)
            if value is not None and min(value if isinstance(value, tuple) else (value,), default=1) <= 0:
                raise WnlbError(f"{name} is {value}; expected more than 0")
        if not 0 <= self.norm_eps < 1:
            raise WnlbError(f"norm_eps is {self.norm_eps}; expected a number from 0 to 1, such as 1e-5")

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls: type[_Config], values: dict[str, Any]) -> _Config:
        """Raises WnlbError for a name that is not a field or a value that does not fit."""
        names = [field.name for field in dataclasses.fields(cls)]
        unknown = sorted(set(values) - set(names))
        if unknown:
            near = difflib.get_close_matches(unknown[0], names, 1)
            raise WnlbError(f"setting {unknown[0]!r} is not known; expected {' or '.join(near) or ', '.join(names)}")
        try:
            return cls(**values)
        except TypeError as error:
            raise WnlbError(f"model configuration does not fit: {error}") from error


class DenoisingFPN(FeaturePyramidNetwork):
    """FPN with blocks on its inputs (``lateral.c2`` ...) or on its outputs (``output.p2`` ...).

    P6 is pooled from P5 after its block.
    """

    def __init__(self, in_channels_list: list[int], out_channels: int, norm_layer: Any = None) -> None:
        super().__init__(in_channels_list, out_channels, extra_blocks=None, norm_layer=norm_layer)
        self.lateral = nn.ModuleDict()
        self.output = nn.ModuleDict()
        self.pool = LastLevelMaxPool()

    def forward(self, x: dict[str, Tensor]) -> dict[str, Tensor]:
        names = list(x)
        inputs = OrderedDict(
            (name, _apply_if_present(self.lateral, f"c{stage}", x[name]))
            for stage, name in zip(STAGES, names, strict=True)
        )
        outputs = super().forward(inputs)
        levels = [
            _apply_if_present(self.output, f"p{stage}", outputs[name])
            for stage, name in zip(STAGES, names, strict=True)
        ]
        levels, names = self.pool(levels, list(x.values()), names)
        return OrderedDict(zip(names, levels, strict=True))


def blocks_by_level(model: nn.Module) -> Iterator[tuple[str, str, WeightedNonLocalBlock]]:
    """Yield ``(level, module path, block)`` in the order of the network: ``"c2", "backbone.body.layer1.wnlb", ...``."""
    for path, module in model.named_modules():
        if isinstance(module, WeightedNonLocalBlock):
            stage = re.search(r"layer(\d)\.[^.]+$", path)
            yield (f"c{int(stage[1]) + 1}" if stage else path.rpartition(".")[2]), path, module


def backbone_with_fpn(config: BackboneConfig, weights: Any = None) -> BackboneWithFPN:
    """The network from pictures ``[N, 3, H, W]`` to P2 .. P6.

    Args:
        weights: torchvision's of the ResNet, or None.
    """
    resnet = _resnet(config, weights)
    stages = [resnet.layer1, resnet.layer2, resnet.layer3, resnet.layer4]
    widths = {stage: resnet.inplanes // 2 ** (5 - stage) for stage in STAGES}
    backbone = BackboneWithFPN(
        resnet, {f"layer{i + 1}": str(i) for i in range(4)}, list(widths.values()), config.fpn_channels
    )
    if config.placement != "inline":
        backbone.fpn = DenoisingFPN(list(widths.values()), config.fpn_channels)
    inner = config.inner_channels or (None,) * len(config.levels)
    for level, width in zip(config.levels, inner, strict=True):
        stage = int(level[1])
        channels = config.fpn_channels if config.placement == "fpn" else widths[stage]
        block = WeightedNonLocalBlock(channels, config.mode, width, config.weighted)
        if config.placement == "inline":  # the stage is an nn.Sequential: an appended child runs last
            stages[stage - 2].add_module("wnlb", block)
        else:
            sides = backbone.fpn.lateral if config.placement == "lateral" else backbone.fpn.output
            sides.add_module(level, block)
    return backbone


def _resnet(config: BackboneConfig, weights: Any) -> ResNet:
    eps = config.norm_eps

    def norm_layer(channels: int) -> nn.Module:
        return FrozenBatchNorm2d(channels, eps) if config.norm == "frozen" else nn.BatchNorm2d(channels, eps)

    if config.backbone in OTHER_RESNEXTS:
        if weights is not None:
            raise WnlbError(f"torchvision has no weights of a {config.backbone}; expected weights_backbone=None")
        units, groups, width = OTHER_RESNEXTS[config.backbone]
        resnet = ResNet(Bottleneck, list(units), groups=groups, width_per_group=width, norm_layer=norm_layer)
    else:
        resnet = getattr(torchvision.models, config.backbone)(weights=weights, norm_layer=norm_layer)
    stride = 1 if config.adaptive_stride == 2 else 2
    for i in (2, 3, 4):
        stage = getattr(resnet, f"layer{i}")
        _set_stride(stage[0], config.style, stride)
        if config.adaptive_stride:
            channels = stage[0].conv1.in_channels
            adad = AdaptiveDownsampling(channels, config.adaptive_stride)
            setattr(resnet, f"layer{i}", nn.Sequential(OrderedDict([("adad", adad), *stage.named_children()])))
    return resnet


def _set_stride(unit: BasicBlock | Bottleneck, style: str, stride: int) -> None:
    """Of the first unit of a stage, all of which have a shortcut with a convolution."""
    if isinstance(unit, Bottleneck):
        first, second = (stride, 1) if style == "caffe" else (1, stride)
        unit.conv2.stride = (second, second)
    else:
        first = stride
    unit.conv1.stride = (first, first)
    unit.downsample[0].stride = (stride, stride)


def _apply_if_present(modules: nn.ModuleDict, name: str, x: Tensor) -> Tensor:
    return modules[name](x) if name in modules else x


def as_tuple(value: Any) -> Any:
    """Lists in lists as tuples in tuples."""
    return tuple(map(as_tuple, value)) if isinstance(value, (list, tuple)) else value


def _expect(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise WnlbError(f"{name} is {value!r}; expected one of {', '.join(allowed)}")
