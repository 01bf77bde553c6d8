"""From frames to the pyramid P2 .. P6: what the graphs of all networks begin with."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from wnlb.export.backbone import blocks_by_level
from wnlb.export.graph.attention import AttentionPlan, DeployedBlock, fold_batch_norm, plan_attention
from wnlb.export.graph.winograd_maps import tile_outputs
from wnlb.export.options import ExportOptions
from wnlb.runtime.errors import WnlbError


class NormalisedFrames(nn.Module):
    """``image`` uint8 ``[N, H, W, 3]`` and ``content`` int32 ``[N, 2]`` to what networks see: zero beside the picture.

    Args:
        height, width: H and W.
        mean, std: of RGB in 0..1.
    """

    scale: Tensor
    shift: Tensor
    rows: Tensor  # [H, 1] 0, 1, ...
    columns: Tensor  # [W]

    def __init__(self, height: int, width: int, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        deviation = torch.tensor(list(std))
        self.register_buffer("scale", (1 / (255 * deviation)).reshape(1, 3, 1, 1), persistent=False)
        self.register_buffer("shift", (-torch.tensor(list(mean)) / deviation).reshape(1, 3, 1, 1), persistent=False)
        self.register_buffer("rows", torch.arange(height).unsqueeze(1) * 1.0, persistent=False)
        self.register_buffer("columns", torch.arange(width) * 1.0, persistent=False)

    def normalised(self, image: Tensor, content: Tensor) -> tuple[Tensor, Tensor]:
        """``[N, 3, H, W]``, and what ``limits`` gives."""
        limit = limits(content.to(self.scale.dtype))
        width, height = limit[..., 2:3], limit[..., 3:]  # [N, 1, 1]
        inside = ((self.rows < height) & (self.columns < width)).unsqueeze(1)  # [N, 1, H, W]
        x = image.to(self.scale.dtype).permute(0, 3, 1, 2) * self.scale + self.shift
        return x * inside.to(x.dtype), limit


class PyramidGraph(NormalisedFrames):
    """``image`` uint8 ``[N, H, W, 3]`` and ``content`` int32 ``[N, 2]`` to P2 .. P6.

    ``plans`` says what became of each block, ``shapes`` height and width of each level.

    Args:
        model: a network with torchvision's ``BackboneWithFPN``, in evaluation mode; its backbone is taken and changed.
        mean, std: of RGB in 0..1.
    """

    def __init__(self, model: nn.Module, options: ExportOptions, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__(options.height, options.width, mean, std)
        self.plans = plan_blocks(model, options)
        for plan, (_, path, block) in zip(self.plans, list(blocks_by_level(model)), strict=True):
            deployed = nn.Identity() if plan.form == "removed" else DeployedBlock(block, plan)
            model.set_submodule(path, deployed)
        backbone: Any = model.backbone
        _fold_batch_norms(backbone)
        self.shapes = pyramid_shapes(options.height, options.width)
        self.body, self.fpn = backbone.body, backbone.fpn
        if options.target == "cpu":
            tile_outputs(self.fpn, self.shapes)

    def pyramid(self, image: Tensor, content: Tensor) -> tuple[list[Tensor], Tensor]:
        """P2 .. P6 of the frames, and what ``limits`` gives for them."""
        x, limit = self.normalised(image, content)
        return list(self.fpn(self.body(x)).values()), limit


def plan_blocks(model: nn.Module, options: ExportOptions) -> list[AttentionPlan]:
    """What each block will cost at the size of ``options``, in the order of the network."""
    plans = []
    for level, _, block in blocks_by_level(model):
        stride = 2 ** int(level[1])
        height, width = options.height // stride, options.width // stride
        form = options.attention_form(level)
        plans.append(
            plan_attention(
                level, block, height, width, options.batch, options.attention_bytes, form, options.target == "cpu"
            )
        )
    unknown = options.attention_levels - {plan.level for plan in plans}
    if unknown:
        levels = ", ".join(plan.level for plan in plans) or "none"
        raise WnlbError(f"attention of {', '.join(sorted(unknown))} was asked for; the model has blocks at {levels}")
    return plans


def limits(content: Tensor) -> Tensor:
    """``[N, 2]`` heights and widths to ``[N, 1, 4]``, the largest coordinates of boxes."""
    height, width = content[:, :1], content[:, 1:]
    return torch.cat((width, height, width, height), 1).unsqueeze(1)


def pyramid_shapes(height: int, width: int) -> list[tuple[int, int]]:
    """Heights and widths of P2 .. P6."""
    shapes = [(height // stride, width // stride) for stride in (4, 8, 16, 32)]
    return [*shapes, ((shapes[3][0] + 1) // 2, (shapes[3][1] + 1) // 2)]


def _fold_batch_norms(module: nn.Module) -> None:
    """Fold each batch norm that directly follows a convolution among its parent's children, in place."""
    children = list(module.named_children())
    for (name, child), (next_name, following) in pairwise(children):
        if isinstance(child, nn.Conv2d) and isinstance(following, (nn.BatchNorm2d, FrozenBatchNorm2d)):
            setattr(module, name, fold_batch_norm(child, following))
            setattr(module, next_name, nn.Identity())
    for _, child in children:
        _fold_batch_norms(child)
