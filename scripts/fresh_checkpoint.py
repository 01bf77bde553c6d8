"""Write an untrained but lively checkpoint: seeded weights whose heads answer, for trying the toolkit without training.

    python scripts/fresh_checkpoint.py out/fresh.safetensors --backbone resnet18

It detects nonsense, but hundreds of different, overlapping boxes of every class: more than a trained network
would give the post-processing to do.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.image_list import ImageList
from torchvision.models.resnet import BasicBlock, Bottleneck

from wnlb.export.backbone import BACKBONES, PLACEMENTS, blocks_by_level
from wnlb.export.checkpoints.checkpoint import save_checkpoint
from wnlb.export.model import ModelConfig, model_from_config

LIS_CLASSES = ("bicycle", "chair", "dining table", "bottle", "motorcycle", "car", "tv", "bus")


def fresh_model(config: ModelConfig, seed: int = 0, size: int = 128) -> MaskRCNN:
    """A model in evaluation mode whose batch norms fit its weights and whose predictors spread their answers.

    Args:
        seed: of weights and of the noise that the statistics are measured on.
        size: side in pixels of that noise.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        return enlivened(model_from_config(config), size)


def enlivened(model: MaskRCNN, size: int = 128) -> MaskRCNN:
    """Give any untrained Mask R-CNN on a ResNet such batch norms and predictors; it is changed and returned."""
    with torch.no_grad():
        for _, _, block in blocks_by_level(model):
            nn.init.uniform_(block.W_z[1].weight, -0.5, 0.5)
            if block.w is not None:
                block.w.fill_(0.3)
            if hasattr(block, "theta"):  # logits of the order of 1: hard attention would amplify rounding
                block.theta.weight.mul_(block.inner_channels**-0.5)
        for unit in model.backbone.body.modules():  # as after training: residual branches that add a little each
            if isinstance(unit, (BasicBlock, Bottleneck)):
                last = unit.bn3 if isinstance(unit, Bottleneck) else unit.bn2
                last.weight.fill_(0.2)
        images = _scenes(size)
        _settle_batch_norms(model.backbone, images)
        model.eval()
        _settle_heads(model, images)
    return model


def _scenes(size: int) -> Tensor:
    """Normalised images ``[4, 3, size, size]``: rectangles in light and in the dark, noise, and next to nothing."""
    images = torch.randn(4, 3, size, size) * 0.1
    for _ in range(40):
        x, y, w, h = (torch.rand(4) * size).int().tolist()
        images[:2, :, y : y + h // 2, x : x + w // 2] += torch.randn(1, 3, 1, 1)
    images[1] = images[1] * 0.2 - 1.8
    images[2] = torch.rand(3, size, size) * 4.5 - 2
    images[3] -= 2
    return images


def _settle_heads(model: MaskRCNN, images: Tensor) -> None:
    """Give the predictors answers that differ from box to box."""
    heads, rpn = model.roi_heads, model.rpn.head
    sizes = [tuple(images.shape[2:])] * len(images)
    features = model.backbone(images)
    for layer, spread, shift in ((rpn.cls_logits, 1.0, -1.0), (rpn.bbox_pred, 0.3, 0.0)):
        _spread(layer, lambda: rpn(list(features.values())), spread, shift)
    proposals, _ = model.rpn(ImageList(images, sizes), features)
    pooled = heads.box_roi_pool(features, proposals, sizes)
    predictor = heads.box_predictor
    for layer, spread in ((predictor.cls_score, 1.5), (predictor.bbox_pred, 0.5)):
        _spread(layer, lambda: predictor(heads.box_head(pooled)), spread, 0.0)
    predictor.cls_score.bias[0] += 2  # background wins most of the time
    pooled = heads.mask_roi_pool(features, [boxes[:20] for boxes in proposals], sizes)
    masks = heads.mask_predictor
    _spread(masks.mask_fcn_logits, lambda: masks(heads.mask_head(pooled)), 1.0, 0.0)


def _settle_batch_norms(backbone: nn.Module, images: Tensor) -> None:
    norms = [module for module in backbone.modules() if isinstance(module, nn.BatchNorm2d)]
    backbone.train()
    for norm in norms:
        norm.momentum = 1.0
    backbone(images)
    for norm in norms:
        norm.momentum = 0.1


def _spread(head: nn.Module, run: Callable[[], object], spread: float, shift: float) -> None:
    """Scale and shift a layer so that each of its output channels has this deviation and mean."""
    seen: list[Tensor] = []
    hook = head.register_forward_hook(lambda _, __, output: seen.append(output.transpose(0, 1).flatten(1)))
    run()
    hook.remove()
    values = torch.cat(seen, 1)  # [channels, samples]
    scale = spread / values.std(1).clamp(min=1e-6)
    outputs = 1 if isinstance(head, nn.ConvTranspose2d) else 0  # axis of its output channels
    head.weight.mul_(scale.reshape([-1 if axis == outputs else 1 for axis in range(head.weight.dim())]))
    head.bias.copy_((head.bias - values.mean(1)) * scale + shift)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help=".safetensors or .pth")
    parser.add_argument("--backbone", choices=BACKBONES, default="resnet50")
    parser.add_argument("--placement", choices=PLACEMENTS, default="inline")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    config = ModelConfig(
        num_classes=len(LIS_CLASSES) + 1,
        backbone=arguments.backbone,
        placement=arguments.placement,
        class_names=LIS_CLASSES,
    )
    save_checkpoint(fresh_model(config, arguments.seed), config, arguments.output)
    print(f"wrote {arguments.output}")


if __name__ == "__main__":
    main()
