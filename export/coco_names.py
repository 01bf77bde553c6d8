"""COCO's names of classes."""

from __future__ import annotations


def coco_names() -> tuple[str, ...]:
    """Of its 80 classes."""
    return tuple(name for name in numbered_coco_names() if name != "N/A")


def numbered_coco_names() -> tuple[str, ...]:
    """Of the 90 numbers that torchvision's models count, "N/A" where COCO has no class."""
    from torchvision.models.detection import MaskRCNN_ResNet50_FPN_Weights

    return tuple(MaskRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"][1:])
