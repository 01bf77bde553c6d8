"""RoIAlign by a node for each level against torchvision and the atlas, in PyTorch and in ONNX Runtime."""

from __future__ import annotations

import io
from collections import OrderedDict

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor
from torchvision.ops import MultiScaleRoIAlign

from wnlb.export.graph.level_roi_align import LevelRoIAlign, in_order, onnx_roi_align_by_level
from wnlb.export.graph.static_ops import AtlasLayout, AtlasRoIAlign

B, R, C, SIDE, HEIGHT, WIDTH = 2, 40, 3, 7, 128, 192
SIZES = tuple((HEIGHT // s, WIDTH // s) for s in (4, 8, 16, 32))
SCALES = [1 / s for s in (4, 8, 16, 32)]
CANONICAL = (64, 4)  # so that small pictures have boxes of every level


def maps(seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(B, C, *size, generator=generator) for size in SIZES]


def boxes_of(seed: int, largest: float) -> Tensor:
    """``[B, R, 4]``, of all sizes up to ``largest`` of the picture; some empty, some thin at the border, some whole."""
    generator = torch.Generator().manual_seed(seed)
    size = torch.tensor([WIDTH, HEIGHT]) * 1.0
    corner = torch.rand(B, R, 2, generator=generator) * size
    boxes = torch.cat([corner, corner + torch.rand(B, R, 2, generator=generator) ** 2 * size * largest], -1)
    boxes = torch.minimum(boxes, torch.cat([size, size]))
    boxes[:, 3] = 0
    boxes[:, 4] = torch.tensor([WIDTH - 0.3, 10, WIDTH, HEIGHT])
    boxes[0, 5] = torch.tensor([0, 0, WIDTH, HEIGHT])
    return boxes


def pooling() -> tuple[LevelRoIAlign, AtlasRoIAlign]:
    atlas = AtlasRoIAlign(AtlasLayout(SIZES), SCALES, SIDE, 2, *CANONICAL)
    return LevelRoIAlign(SCALES, SIDE, 2, atlas.area_thresholds.tolist()), atlas


@pytest.mark.parametrize("largest", [1.0, 0.05], ids=["all levels", "the finest alone, but for one"])
def test_pools_what_torchvision_pools(largest: float) -> None:
    levels, boxes = maps(1), boxes_of(2, largest)
    by_level, atlas = pooling()
    torchvision = MultiScaleRoIAlign(["0", "1", "2", "3"], SIDE, 2, canonical_scale=CANONICAL[0])
    features = OrderedDict((str(i), level) for i, level in enumerate(levels))
    expected = torchvision(features, list(boxes), [(HEIGHT, WIDTH)] * B)
    pooled, order = by_level(levels, boxes)
    assert sorted(order.tolist()) == list(range(B * R))
    assert torch.equal(in_order(pooled, order), expected)
    assert torch.equal(by_level.pixels_first(levels, boxes), expected.flatten(2).permute(2, 0, 1))
    assert torch.allclose(atlas(atlas.layout.build(levels), boxes), expected, atol=2e-5)


def test_in_the_file() -> None:
    class Pooled(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pool, _ = pooling()

        def forward(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
            return in_order(*self.pool(inputs[:4], inputs[4])), self.pool.pixels_first(inputs[:4], inputs[4])

    module = Pooled().eval()
    program = torch.onnx.export(
        module,
        (*maps(1), boxes_of(2, 1.0)),
        dynamo=True,
        opset_version=18,
        verbose=False,
        custom_translation_table={torch.ops.wnlb.roi_align_by_level.default: onnx_roi_align_by_level},
    )
    assert program is not None
    file = io.BytesIO()
    program.save(file)
    session = onnxruntime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    for seed, largest in ((3, 1.0), (4, 0.05), (5, 0.5)):
        inputs = (*maps(seed), boxes_of(seed, largest))
        found = session.run(None, {name: value.numpy() for name, value in zip(names, inputs, strict=True)})
        for got, expected in zip(found, module(*inputs), strict=True):
            assert np.allclose(got, expected.numpy(), atol=2e-5)
