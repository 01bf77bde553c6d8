"""RoIAlign over planes against torchvision, in PyTorch and in ONNX Runtime."""

from __future__ import annotations

import io
from collections import OrderedDict

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor
from torchvision.ops import MultiScaleRoIAlign

from wnlb.export.graph.plane_roi_align import PlaneRoIAlign
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


def pooling() -> PlaneRoIAlign:
    layout = AtlasLayout(SIZES)
    areas = AtlasRoIAlign(layout, SCALES, SIDE, 2, *CANONICAL).area_thresholds.tolist()
    return PlaneRoIAlign(layout, SCALES, SIDE, 2, areas)


def by_torchvision(levels: list[Tensor], boxes: Tensor) -> Tensor:
    features = OrderedDict((str(i), level) for i, level in enumerate(levels))
    pool = MultiScaleRoIAlign(["0", "1", "2", "3"], SIDE, 2, canonical_scale=CANONICAL[0])
    return pool(features, list(boxes), [(HEIGHT, WIDTH)] * B)


@pytest.mark.parametrize("largest", [1.0, 0.05], ids=["all levels", "the finest alone, but for one"])
def test_pools_what_torchvision_pools(largest: float) -> None:
    levels, boxes = maps(1), boxes_of(2, largest)
    pool = pooling()
    expected, found = by_torchvision(levels, boxes), pool(pool.planes(levels), boxes)
    assert torch.allclose(found, expected, atol=2e-5)
    area = (boxes[..., 2:] - boxes[..., :2]).prod(-1).flatten()
    finest = area < pool.area_thresholds[0]
    assert torch.equal(found[finest], expected[finest])  # P2 is as it was, to the bit
    assert torch.equal(pool.pixels_first(pool.planes(levels), boxes), found.flatten(2).permute(2, 0, 1))


@pytest.mark.parametrize("level", range(4))
def test_at_the_ends_of_each_level(level: int) -> None:
    """Boxes of its size in every corner, of maps that differ by a thousand between levels."""
    levels = [own + 1000.0 * i for i, own in enumerate(maps(1))]
    side = min(16 * 2**level + 1, HEIGHT)
    corners = [(x, y) for x in (0, WIDTH - side) for y in (0, HEIGHT - side)]
    boxes = torch.tensor([[(x, y, x + side, y + side) for x, y in corners]] * B) * 1.0
    if level == 3:
        boxes[..., 0], boxes[..., 2] = 0, WIDTH
    pool = pooling()
    found = pool(pool.planes(levels), boxes)
    assert torch.allclose(found, by_torchvision(levels, boxes), atol=1e-3, rtol=0)
    assert (found.mean(dim=(1, 2, 3)) / 1000).round().tolist() == [level] * len(found)


@pytest.mark.parametrize("size", [(64, 64), (64, 2048), (800, 1344)])
def test_planes_have_room_for_all_levels(size: tuple[int, int]) -> None:
    sizes = tuple((size[0] // s, size[1] // s) for s in (4, 8, 16, 32))
    levels = [torch.full((1, 1, *own), i + 1.0) for i, own in enumerate(sizes)]
    planes = PlaneRoIAlign(AtlasLayout(sizes), SCALES, SIDE, 2, [1, 2, 3]).planes(levels)
    assert planes.shape == (2, 1, *sizes[0])
    for i, (height, width) in enumerate(sizes[1:], 2):
        assert (planes[1] == i).sum() == (height + 1) * (width + 1)


def test_in_the_file() -> None:
    class Pooled(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pool = pooling()

        def forward(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
            planes = self.pool.planes(inputs[:4])
            return self.pool(planes, inputs[4]), self.pool.pixels_first(planes, inputs[4])

    module = Pooled().eval()
    example = (*maps(1), boxes_of(2, 1.0))
    program = torch.onnx.export(module, example, dynamo=True, opset_version=18, verbose=False)
    assert program is not None
    assert [node.op_type for node in program.model_proto.graph.node].count("RoiAlign") == 1  # both methods share it
    file = io.BytesIO()
    program.save(file)
    session = onnxruntime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    for seed, largest in ((3, 1.0), (4, 0.05), (5, 0.5)):
        inputs = (*maps(seed), boxes_of(seed, largest))
        found = session.run(None, {name: value.numpy() for name, value in zip(names, inputs, strict=True)})
        for got, expected in zip(found, module(*inputs), strict=True):
            assert np.allclose(got, expected.numpy(), atol=2e-5)
