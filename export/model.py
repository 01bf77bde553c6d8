"""Mask R-CNN with weighted non-local blocks, as an ordinary torchvision ``MaskRCNN``."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from torch import nn
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops import MultiScaleRoIAlign

from wnlb.export.backbone import BackboneConfig, backbone_with_fpn
from wnlb.runtime.errors import WnlbError

PerLevel = tuple[float, ...] | tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class ModelConfig(BackboneConfig):
    """Everything that rebuilds the network around a state dict; also stored inside our checkpoints."""

    rpn_convs: int = 1
    box_convs: tuple[int, ...] = ()  # channels of the box head's 3 x 3 convolutions, before its linear layers
    box_fcs: int = 2  # its linear layers, each to box_features
    box_features: int = 1024
    mask_channels: tuple[int, ...] = (256, 256, 256, 256)
    mask_hidden: int = 256
    mask_classes: int | None = None  # of the mask predictor, with background; None: num_classes
    # px at P2, P3, P4, P5, P6: one size each, or several, as many at each: ((32, 40), (64, 80), ...)
    anchor_sizes: PerLevel = (32, 64, 128, 256, 512)
    aspect_ratios: PerLevel = (0.5, 1.0, 2.0)  # height / width, the same at each level or five tuples

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_anchors()

    @property
    def widths(self) -> tuple[str, ...]:
        own = ("rpn_convs", "box_fcs", "box_features", "mask_hidden", "box_convs", "mask_channels")
        return (*super().widths, *own)

    @property
    def kinds(self) -> dict[str, tuple[type, ...]]:
        return {**super().kinds, **dict.fromkeys(("rpn_convs", "box_fcs", "box_features", "mask_hidden"), (int,))}

    @property
    def item_kinds(self) -> dict[str, tuple[type, ...]]:
        own: dict[str, tuple[type, ...]] = dict.fromkeys(("box_convs", "mask_channels"), (int,))
        return {**super().item_kinds, **own, **dict.fromkeys(("anchor_sizes", "aspect_ratios"), (int, float, tuple))}

    @property
    def anchors(self) -> tuple[tuple[tuple[float, ...], ...], tuple[tuple[float, ...], ...]]:
        """Sizes (px) and aspect ratios at P2, P3, P4, P5 and P6, as torchvision's ``AnchorGenerator`` takes them."""
        sizes, ratios = self.anchor_sizes, self.aspect_ratios
        by_level = tuple(size if isinstance(size, tuple) else (size,) for size in sizes)
        nested = tuple(level for level in ratios if isinstance(level, tuple))
        return by_level, nested or (tuple(float(ratio) for ratio in ratios if not isinstance(ratio, tuple)),) * 5

    @property
    def head_layers(self) -> tuple[int, ...]:
        """Convolutions of RPN and box head, and linear layers of the latter."""
        return self.rpn_convs, len(self.box_convs), self.box_fcs

    @property
    def anchors_per_position(self) -> int:
        sizes, ratios = self.anchors
        return len(sizes[0]) * len(ratios[0])

    def _check_anchors(self) -> None:
        for name, value in (("anchor_sizes", self.anchor_sizes), ("aspect_ratios", self.aspect_ratios)):
            numbers = [isinstance(item, (int, float)) and not isinstance(item, bool) for item in value]
            lists = [isinstance(item, tuple) and all(map(_is_positive, item)) and bool(item) for item in value]
            if not (all(lists) or (all(numbers) and all(map(_is_positive, value)))) or not value:
                raise WnlbError(f"{name} is {_shown(value)}; expected numbers above 0, or such a list at each level")
        sizes, ratios = self.anchors
        if len(sizes) != 5 or len(ratios) != 5:
            raise WnlbError(
                f"{len(sizes)} anchor sizes and {len(ratios)} aspect ratios; expected 5 of each (P2, P3, P4, P5, P6)"
            )
        counts = [len(own) * len(shapes) for own, shapes in zip(sizes, ratios, strict=True)]
        if len(set(counts)) > 1:
            raise WnlbError(
                f"anchors per position are {_shown(counts)}; expected as many at each level: they share weights"
            )

    def _check_types(self) -> None:
        super()._check_types()
        if not self.mask_channels:
            raise WnlbError("mask_channels is (); expected the channels of one convolution or more")
        if self.mask_classes is not None and (type(self.mask_classes) is not int or self.mask_classes < 1):
            raise WnlbError(f"mask_classes is {self.mask_classes!r}; expected a whole number from 1 up")


def wnlb_maskrcnn(
    backbone: str = "resnet50",
    num_classes: int = 9,
    levels: tuple[str, ...] = ("c2", "c3", "c4", "c5"),
    placement: str = "inline",
    mode: str = "embedded",
    *,
    weights_backbone: Any = None,
    detector_options: dict[str, Any] | None = None,
    **config: Any,
) -> MaskRCNN:
    """A torchvision Mask R-CNN with FPN and weighted non-local blocks, ready to train.

    Args:
        backbone: one of ``BACKBONES``.
        num_classes: classes with background.
        levels: the ResNet stages that get a block (``()`` for none).
        placement: ``inline`` (after a stage, feeding the next one and the FPN), ``lateral`` (only on
            the way into the FPN) or ``fpn`` (on the FPN's outputs P2..P5).
        mode: pairwise function of the blocks, see ``wnlb.export.block``.
        weights_backbone: torchvision weights for the ResNet (``"IMAGENET1K_V2"``, say) or None.
        detector_options: passed to torchvision's ``MaskRCNN`` (``min_size``, ``box_score_thresh`` ...).
        config: the remaining fields of ``ModelConfig``.

    ``model(images, targets)`` gives torchvision's losses in training mode, ``model(images)`` its detections in
    evaluation mode.
    """
    made = ModelConfig(
        num_classes=num_classes, backbone=backbone, levels=levels, placement=placement, mode=mode, **config
    )
    return model_from_config(made, weights_backbone, **(detector_options or {}))


def model_from_config(config: ModelConfig, weights_backbone: Any = None, **detector_options: Any) -> MaskRCNN:
    """Build the network that ``config`` describes; see ``wnlb_maskrcnn``."""
    anchors = AnchorGenerator(*config.anchors)
    box_pool, mask_pool = (
        MultiScaleRoIAlign(["0", "1", "2", "3"], output_size=size, sampling_ratio=2) for size in (7, 14)
    )
    channels = config.fpn_channels
    return MaskRCNN(
        backbone_with_fpn(config, weights_backbone),
        rpn_anchor_generator=anchors,
        rpn_head=RPNHead(channels, config.anchors_per_position, conv_depth=config.rpn_convs),
        box_roi_pool=box_pool,
        box_head=_box_head(config),
        box_predictor=FastRCNNPredictor(config.box_features, config.num_classes),
        mask_roi_pool=mask_pool,
        mask_head=MaskRCNNHeads(channels, list(config.mask_channels), 1),
        mask_predictor=MaskRCNNPredictor(
            config.mask_channels[-1], config.mask_hidden, config.mask_classes or config.num_classes
        ),
        **{"image_mean": list(config.image_mean), "image_std": list(config.image_std), **detector_options},
    )


def _box_head(config: ModelConfig) -> nn.Module:
    """``[R, C, 7, 7]`` to ``[R, box_features]``: torchvision's usual head where it is one of two linear layers."""
    channels, width = config.fpn_channels, config.box_features
    if config.box_fcs == 2 and not config.box_convs:
        return TwoMLPHead(channels * 7 * 7, width)
    return FastRCNNConvFCHead((channels, 7, 7), list(config.box_convs), [width] * config.box_fcs)


def _is_positive(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < float("inf")


def _shown(values: Any) -> str:
    return json.dumps(values)
