from collections.abc import Iterator
from itertools import pairwise

import pytest
import torch
from torch import nn

from wnlb.export.graph.fourier import FourierConvolutions, plain_convolutions, transforms
from wnlb.runtime.errors import GraphError


@pytest.fixture(autouse=True)
def _seed() -> Iterator[None]:
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)


def layers(*widths: int) -> nn.Sequential:
    return nn.Sequential(*(nn.Sequential(nn.Conv2d(a, b, 3, padding=1), nn.ReLU()) for a, b in pairwise(widths)))


@pytest.mark.parametrize("side", [1, 2, 5, 7, 14, 28])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 2e-6)])
def test_equals_the_convolutions(side: int, dtype: torch.dtype, tolerance: float) -> None:
    torch.set_default_dtype(dtype)
    convolutions = layers(6, 9, 5)
    maps = torch.randn(4, 6, side, side)
    with torch.no_grad():
        expected = convolutions(maps)
        fourier = FourierConvolutions(plain_convolutions(convolutions), side)
        found = fourier(maps.flatten(2).permute(2, 0, 1))
    assert found.shape == (side * side, 4, 5)
    torch.testing.assert_close(found.permute(1, 2, 0).reshape(expected.shape), expected, atol=tolerance, rtol=0)


def test_number_of_products() -> None:
    """A 14 x 14 map lies on a circle of 15: 8 of its frequencies along y, 15 along x, three products for each."""
    assert transforms(14).kernel.shape == (8 * 15 * 3, 9)
    assert transforms(7).kernel.shape == (5 * 9 * 3, 9)


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
