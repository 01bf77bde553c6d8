"""Convolutions in tiles against PyTorch's, in float64; what they round in float32; where they stand in a graph."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from small_models import small_model
from torch import Tensor, nn
from torchvision.models.detection.rpn import RPNHead

from wnlb.export.graph import winograd_maps
from wnlb.export.graph.winograd_maps import TiledMap, TiledRpnHead, can_tile_head, tile_count, tile_outputs

SHAPES = [(16, 24), (8, 12), (4, 6), (2, 3), (1, 2)]


@pytest.fixture(autouse=True)
def _float64() -> Iterator[None]:
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(params=[512, 7], ids=["whole", "in parts"])
def _parts(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(winograd_maps, "_MOST_TILES", request.param)


def levels(batch: int, channels: int) -> list[Tensor]:
    return [torch.randn(batch, channels, *shape) for shape in SHAPES]


@pytest.mark.usefixtures("_parts")
@pytest.mark.parametrize("shape", [(1, 1), (5, 5), (16, 24), (20, 15), (31, 7)])
@pytest.mark.parametrize("batch", [1, 3])
def test_equals_the_convolution(shape: tuple[int, int], batch: int) -> None:
    conv, x = nn.Conv2d(4, 6, 3, padding=1), torch.randn(batch, 4, *shape)
    with torch.no_grad():
        torch.testing.assert_close(TiledMap(conv, shape)(x), conv(x), atol=1e-12, rtol=0)


@pytest.mark.usefixtures("_parts")
@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("batch", [1, 3])
def test_equals_the_rpn_head(depth: int, batch: int) -> None:
    head, maps = RPNHead(8, 3, depth), levels(batch, 8)
    with torch.no_grad():
        for found, expected in zip(TiledRpnHead(head, SHAPES)(maps), head(maps), strict=True):
            assert [own.shape for own in found] == [own.shape for own in expected]
            for got, wanted in zip(found, expected, strict=True):
                torch.testing.assert_close(got, wanted, atol=1e-12, rtol=0)


def test_rounding_in_float32() -> None:
    """Of 256 channels on what ReLU leaves, about the mask head's 1e-6 of the maps' spread for a layer."""
    conv, x = nn.Conv2d(256, 256, 3, padding=1), torch.randn(1, 256, 20, 20).relu()
    with torch.no_grad():
        expected = conv(x)
        torch.set_default_dtype(torch.float32)
        error = TiledMap(conv.float(), (20, 20))(x.float()) - expected
    assert error.square().mean().sqrt() < 8e-6 * expected.std()
    assert error.abs().max() < 1e-4 * expected.std()


def test_where_it_pays() -> None:
    """Of the FPN the maps of 48 tiles and more, of the RPN's head all levels together; of 256 channels."""
    model = small_model(fpn_channels=256)
    shapes = [(40, 40), (20, 20), (10, 10), (5, 5), (3, 3)]
    assert [tile_count([shape]) for shape in shapes] == [64, 16, 4, 1, 1]
    tile_outputs(model.backbone.fpn, shapes)
    tiled = [isinstance(layer[0], TiledMap) for layer in model.backbone.fpn.layer_blocks]
    assert tiled == [True, False, False, False]
    assert can_tile_head(model.rpn.head, shapes)
    assert not can_tile_head(model.rpn.head, shapes[1:])
    narrow = small_model(fpn_channels=128)
    tile_outputs(narrow.backbone.fpn, shapes)
    assert not any(isinstance(layer[0], TiledMap) for layer in narrow.backbone.fpn.layer_blocks)
    assert not can_tile_head(narrow.rpn.head, shapes)
    model.rpn.head.conv[0][0].dilation = (2, 2)
    assert not can_tile_head(model.rpn.head, shapes)
