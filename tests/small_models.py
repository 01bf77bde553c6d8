"""Models that are small enough to build by the dozen."""

from __future__ import annotations

from fresh_checkpoint import LIS_CLASSES, fresh_model
from torchvision.models.detection import MaskRCNN

from wnlb.export.model import ModelConfig

NARROW = {"fpn_channels": 32, "box_features": 64, "mask_channels": (16, 16), "mask_hidden": 16}


def small_config(**fields: object) -> ModelConfig:
    """A narrow ResNet-18 with LIS's classes, unless ``fields`` say otherwise."""
    defaults = {"num_classes": 9, "backbone": "resnet18", "class_names": LIS_CLASSES, **NARROW}
    return ModelConfig(**{**defaults, **fields})


def small_model(seed: int = 0, **fields: object) -> MaskRCNN:
    """The untrained but lively model of ``small_config``."""
    return fresh_model(small_config(**fields), seed, size=64)
