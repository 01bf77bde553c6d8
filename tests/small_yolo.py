"""A small network of our own with the interface of a YOLO-seg file of ultralytics: names, shapes, metadata.

Backbone to stride 32, two upsamplings, a way down again, heads on three maps: boxes as distributions over eight bins,
classes, mask coefficients; prototypes. Optionally the authors' block behind a stage of the backbone. Random weights,
the last layers scaled so that noise has some detections of each class.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import onnx
import torch
import torch.nn.functional as F
from torch import Tensor, nn

CLASSES, MASKS, BINS = ("lamp", "dark cat", "bus"), 8, 8
STRIDES = (8, 16, 32)


def conv(before: int, after: int, kernel: int = 1, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(before, after, kernel, stride, kernel // 2), nn.SiLU())


class Block(nn.Module):
    """The weighted non-local block, written as a user of another framework would."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.theta, self.phi, self.g = (nn.Conv2d(channels, channels // 2, 1) for _ in range(3))
        self.project, self.w = nn.Conv2d(channels // 2, channels, 1), nn.Parameter(torch.tensor(0.3))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).view(x.shape[0], x.shape[1] // 2, -1) for layer in (self.theta, self.phi, self.g))
        attention = torch.softmax(q.permute(0, 2, 1) @ k, -1)
        y = (attention @ v.permute(0, 2, 1)).permute(0, 2, 1).contiguous()
        y = y.view(x.shape[0], x.shape[1] // 2, *x.shape[2:])
        return (1 - self.w) * x + self.w * self.project(y)


class SmallYolo(nn.Module):
    def __init__(self, blocks: bool, channels: int = 16) -> None:
        super().__init__()
        c = channels
        self.stem = conv(3, c, 3, 2)
        self.stages = nn.ModuleList(
            nn.Sequential(conv(c, c, 3, 2), conv(c, c), *([Block(c)] if blocks and i < 2 else [])) for i in range(4)
        )
        self.up = nn.ModuleList(conv(2 * c, c) for _ in range(2))
        self.down = nn.ModuleList(conv(c, c, 3, 2) for _ in range(2))
        self.merge = nn.ModuleList(conv(2 * c, c) for _ in range(2))
        numbers = (4 * BINS, len(CLASSES), MASKS)
        self.heads = nn.ModuleList(
            nn.ModuleList(nn.Sequential(conv(c, c, 3), nn.Conv2d(c, number, 1)) for number in numbers) for _ in STRIDES
        )
        self.proto = nn.Sequential(conv(c, c, 3), nn.ConvTranspose2d(c, c, 2, 2), conv(c, c, 3), conv(c, MASKS))

    def maps(self, x: Tensor) -> list[Tensor]:
        levels = []
        x = self.stem(x)
        for stage in self.stages:
            x = stage(x)
            levels.append(x)
        p5 = levels[3]
        p4 = self.up[0](torch.cat([F.interpolate(p5, scale_factor=2.0), levels[2]], 1))
        p3 = self.up[1](torch.cat([F.interpolate(p4, scale_factor=2.0), levels[1]], 1))
        p4 = self.merge[0](torch.cat([self.down[0](p3), p4], 1))
        return [p3, p4, self.merge[1](torch.cat([self.down[1](p4), p5], 1))]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        maps, batch = self.maps(x), x.shape[0]
        rows: list[Any] = [[], [], []]
        centers, strides = [], []
        for level, stride, heads in zip(maps, STRIDES, self.heads, strict=True):
            for own, head in zip(rows, heads, strict=True):
                own.append(head(level).view(batch, head[-1].out_channels, -1))
            y, xs = torch.meshgrid(*(torch.arange(side * 1.0) + 0.5 for side in level.shape[2:]), indexing="ij")
            centers.append(torch.stack([xs, y]).flatten(1))
            strides.append(torch.full((1, xs.numel()), float(stride)))
        boxes, classes, coefficients = (torch.cat(own, 2) for own in rows)
        weights = boxes.view(batch, 4, BINS, -1).softmax(2)
        sides = (weights * torch.arange(BINS * 1.0).view(1, 1, -1, 1)).sum(2)  # left, top, right, bottom
        center, stride = torch.cat(centers, 1)[None], torch.cat(strides, 1)[None]
        low, high = center - sides[:, :2], center + sides[:, 2:]
        decoded = torch.cat([(low + high) / 2, high - low], 1) * stride
        return torch.cat([decoded, classes.sigmoid(), coefficients], 1), self.proto(maps[0])


def small_yolo(blocks: bool) -> SmallYolo:
    """In evaluation mode, the same each time."""
    torch.manual_seed(0)
    model = SmallYolo(blocks).eval().requires_grad_(False)
    x = torch.rand(4, 3, 64, 96) * torch.rand(4, 1, 1, 1)

    def normalise(layer: Any, given: Any, made: Tensor) -> Tensor:
        layer.weight /= made.std()
        layer.bias.copy_((layer.bias - made.mean()) / made.std())
        return (made - made.mean()) / made.std()

    layers = [module for module in model.modules() if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d))]
    hooks = [layer.register_forward_hook(normalise) for layer in layers]
    model(x)
    for hook in hooks:
        hook.remove()
    for heads in model.heads:
        heads[0][-1].weight *= 2
        heads[1][-1].weight *= 1.5
        heads[1][-1].bias -= 2.5
    return model


def write_small_yolo(path: Path, blocks: bool = True, size: tuple[int, int] = (64, 96), **metadata: str) -> Path:
    """By PyTorch's older exporter, opset 17, which is what ultralytics calls."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            small_yolo(blocks),
            (torch.zeros(1, 3, *size),),
            path,
            dynamo=False,
            opset_version=17,
            input_names=["images"],
            output_names=["output0", "output1"],
        )
    model = onnx.load(path)
    told = {
        "description": "Small YOLO-seg model",
        "license": "a licence of its own",
        "stride": "32",
        "task": "segment",
        "imgsz": str(list(size)),
        "names": str(dict(enumerate(CLASSES))),
        "end2end": "False",
        **metadata,
    }
    onnx.helper.set_model_props(model, told)
    onnx.save(model, path)
    return path
