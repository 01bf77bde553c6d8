from collections.abc import Iterator
from itertools import pairwise

import pytest
import torch
from torch import nn

from wnlb.export.graph.winograd import WinogradConvolutions, plain_convolutions, transforms
from wnlb.runtime.errors import GraphError


@pytest.fixture(autouse=True)
def _seed() -> Iterator[None]:
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)


def layers(*widths: int) -> nn.Sequential:
    return nn.Sequential(*(nn.Sequential(nn.Conv2d(a, b, 3, padding=1), nn.ReLU()) for a, b in pairwise(widths)))


@pytest.mark.parametrize("side", [1, 2, 5, 7, 14, 28])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 5e-6)])
def test_equals_the_convolutions(side: int, dtype: torch.dtype, tolerance: float) -> None:
    torch.set_default_dtype(dtype)
    convolutions = layers(6, 9, 5)
    maps = torch.randn(4, 6, side, side)
    with torch.no_grad():
        expected = convolutions(maps)
        winograd = WinogradConvolutions(plain_convolutions(convolutions), side)
        found = winograd(maps.flatten(2).permute(2, 0, 1))
    assert found.shape == (side * side, 4, 5)
    torch.testing.assert_close(found.permute(1, 2, 0).reshape(expected.shape), expected, atol=tolerance, rtol=0)


def test_number_of_products() -> None:
    """A 14 x 14 map has 3 x 3 tiles of 7 x 7 points each."""
    assert transforms(14).into.shape == (7 * 3, 14)
    assert transforms(7).into.shape == (7 * 2, 7)


def test_rounding_in_float32() -> None:
    """Of four layers of 256 channels on what ReLU leaves, for any number of rows: 4e-6 of the maps' spread."""
    convolutions = layers(*[256] * 5)
    maps = torch.randn(3, 256, 14, 14).relu()
    with torch.no_grad():
        expected = convolutions.double()(maps.double()).flatten(2).permute(2, 0, 1)
        winograd = WinogradConvolutions(plain_convolutions(convolutions.float()), 14)
        for rows in (1, 3):
            error = winograd(maps[:rows].flatten(2).permute(2, 0, 1)) - expected[:, :rows]
            assert error.square().mean().sqrt() < 8e-6 * expected.std()
            assert error.abs().max() < 1e-4 * expected.std()


@pytest.mark.parametrize(
    "layer",
    [
        nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.ReLU()),
        nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, stride=2), nn.ReLU()),
        nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU()),
        nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()),
        nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.Sigmoid()),
        nn.Conv2d(4, 4, 3, padding=1),
    ],
)
def test_refuses_other_layers(layer: nn.Module) -> None:
    with pytest.raises(GraphError, match="mask head is more than 3 x 3 convolutions"):
        plain_convolutions(nn.Sequential(layers(3, 4), layer))
