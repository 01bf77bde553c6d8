import pytest
import torch
from torchvision.models.detection._utils import BoxCoder
from torchvision.ops import MultiScaleRoIAlign, batched_nms, nms

from wnlb.export.graph.static_ops import AtlasLayout, AtlasRoIAlign, StaticNMS, decode_boxes, large_enough


def random_boxes(n: int, size: float = 100.0, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(n, 2, generator=generator) * size * 0.7
    return torch.cat([corner, corner + torch.rand(n, 2, generator=generator) * size * 0.3], 1)


def kept(
    boxes: torch.Tensor, threshold: float = 0.5, rounds: int = 32, groups: torch.Tensor | None = None
) -> list[int]:
    keep = StaticNMS(threshold, rounds)(
        boxes[None], torch.ones(1, len(boxes)), None if groups is None else groups[None]
    )
    return keep[0].nonzero().flatten().tolist()


@pytest.mark.parametrize("n", [1, 2, 37, 300])
@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7])
def test_nms_equals_torchvision(n: int, threshold: float) -> None:
    boxes = random_boxes(n, seed=n)
    scores = torch.linspace(1, 0, n)
    assert kept(boxes, threshold) == sorted(nms(boxes, scores, threshold).tolist())


def test_nms_by_group_equals_torchvision() -> None:
    boxes, groups = random_boxes(200), torch.arange(200) % 3
    expected = sorted(batched_nms(boxes, torch.linspace(1, 0, 200), groups, 0.4).tolist())
    assert kept(boxes, 0.4, groups=groups) == expected


def chain(n: int) -> torch.Tensor:
    """Boxes of which each overlaps only its neighbours by more than 0.5: every second one survives."""
    x = torch.arange(n) * 3.0
    return torch.stack([x, torch.zeros(n), x + 10, torch.full((n,), 10.0)], 1)


@pytest.mark.parametrize("n", [2, 3, 9, 20])
def test_chain_needs_as_many_rounds_as_it_is_long(n: int) -> None:
    boxes, valid = chain(n)[None], torch.ones(1, n)
    needed = StaticNMS(0.5, 1).chain_length(boxes, valid)
    assert needed == n - 1
    assert kept(chain(n), rounds=needed) == list(range(0, n, 2))
    if n > 2:
        assert kept(chain(n), rounds=needed - 1) != list(range(0, n, 2))


def test_nms_at_the_threshold_and_with_ties() -> None:
    half = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 5]])  # IoU is exactly 0.5, which does not suppress
    assert kept(half, 0.5) == [0, 1]
    assert kept(half, 0.49) == [0]
    same = torch.tensor([[1.0, 1, 5, 5]] * 4)
    assert kept(same) == [0]
    empty = torch.tensor([[3.0, 3, 3, 3]] * 2)  # IoU is 0/0
    assert kept(empty) == [0, 1]


def test_invalid_boxes_neither_survive_nor_suppress() -> None:
    boxes = torch.tensor([[[0.0, 0, 10, 10]] * 3])
    keep = StaticNMS(0.5, 4)(boxes, torch.tensor([[0.0, 1, 1]]))
    assert keep.tolist() == [[0, 1, 0]]


def test_decoding_equals_torchvision() -> None:
    anchors, deltas = random_boxes(50), torch.randn(50, 4) * 3  # some beyond the limit of dw, dh
    coder = BoxCoder((10.0, 10.0, 5.0, 5.0))
    expected = coder.decode(deltas * 9, [anchors])[:, 0]
    torch.testing.assert_close(decode_boxes(deltas * 9, anchors, coder.weights, coder.bbox_xform_clip), expected)


def test_large_enough_asks_for_both_sides() -> None:
    boxes = torch.tensor([[0, 0, 2, 2], [0, 0, 1, 2], [0, 0, 2, 1], [5, 5, 5, 5.0]])
    assert large_enough(boxes, 2).tolist() == [True, False, False, False]


def pyramid(height: int, width: int, batch: int = 1, channels: int = 5) -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [torch.randn(batch, channels, height // s, width // s) for s in (4, 8, 16, 32)]


@pytest.mark.parametrize(("height", "width"), [(64, 64), (64, 224), (256, 96), (416, 608)])
@pytest.mark.parametrize(("side", "ratio"), [(7, 2), (14, 2), (7, 1)])
def test_roi_align_equals_torchvision(height: int, width: int, side: int, ratio: int) -> None:
    features = pyramid(height, width, batch=2)
    extent = torch.tensor([width, height] * 2)
    random = [random_boxes(40, 1.0, seed) / 0.99 * extent for seed in (1, 2)]
    edges = torch.tensor(
        [
            [0.0, 0, width, height],  # everything
            [width - 0.5, 0, width, height],  # thinner than one feature pixel, at the right border
            [0, height - 0.3, width, height],  # ... at the lower border
            [width - 0.2, height - 0.2, width, height],
            [width, height, width, height],
            [0, 0, 0, 0],
            [0, 0, 112, 112],  # exactly between two levels
            [0, 0, 111.99, 112],
        ]
    )
    boxes = [torch.cat([b, edges]) for b in random]
    names = ["0", "1", "2", "3"]
    pool = MultiScaleRoIAlign(names, side, ratio)
    expected = pool(dict(zip(names, features, strict=True)), boxes, [(height, width)] * 2)
    layout = AtlasLayout(tuple(tuple(f.shape[2:]) for f in features))
    ours = AtlasRoIAlign(layout, [1 / s for s in (4, 8, 16, 32)], side, ratio, 224, 4)
    atlas = layout.build(features)
    assert atlas.shape[2:] == (layout.height, layout.width)
    # Coordinates from -1 to 1 in float32 are exact to 1e-5 px here; features have a slope of about 1 per px.
    torch.testing.assert_close(ours(atlas, torch.stack(boxes)), expected, atol=2e-4, rtol=0)


def test_atlas_keeps_its_corner_empty() -> None:
    features = [torch.ones(1, 1, 64 // s, 64 // s) for s in (4, 8, 16, 32)]
    atlas = AtlasLayout(tuple(tuple(f.shape[2:]) for f in features)).build(features)
    assert atlas[0, 0, -2:, -2:].abs().sum() == 0
    assert atlas.sum() == sum(f.sum() for f in features)
