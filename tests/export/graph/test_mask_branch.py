"""Both forms of the mask branch, and that of a CPU on any number of rows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from small_models import small_model
from torch import Tensor

from wnlb.export.graph.deploy import DeployGraph
from wnlb.export.onnx_file.export_onnx import configure
from wnlb.export.options import ExportOptions
from wnlb.runtime.conventions import MMDETECTION, TORCHVISION, MaskRcnnConventions
from wnlb.runtime.errors import WnlbError

HEIGHT, WIDTH, ROWS, CLASSES = 64, 96, 20, 8
COUNTS = [(0, 0, 0), (1, 0, 0), (0, 17, ROWS), (ROWS, ROWS, ROWS), (3, 1, 2)]


@pytest.fixture(autouse=True)
def _float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def stage(target: str, conventions: MaskRcnnConventions, **fields: int) -> Any:
    """The detection stage for a batch of three."""
    model = small_model().double()
    options = ExportOptions(HEIGHT, WIDTH, batch=3, detections=ROWS, target=target, **fields)
    configure(model, options)
    return DeployGraph(model, options, conventions).detect


def inputs(counts: tuple[int, ...], batch: int = 3) -> tuple[list[Tensor], Tensor, Tensor, Tensor]:
    """Levels, and as the last step of detection gives them boxes, labels and which of them are found."""
    generator = torch.Generator().manual_seed(1)
    levels = [torch.randn(batch, 32, HEIGHT // s, WIDTH // s, generator=generator) for s in (4, 8, 16, 32)]
    corner, size = (torch.rand(2, batch, ROWS, 2, generator=generator) * torch.tensor([WIDTH, HEIGHT]) / 2).unbind()
    labels = torch.randint(1, CLASSES + 1, (batch, ROWS), generator=generator)
    found = torch.arange(ROWS) < torch.tensor(counts).unsqueeze(1)
    return levels, torch.cat([corner, corner + size], 2) * found.unsqueeze(2), labels * found, found


@pytest.mark.parametrize("counts", COUNTS)
def test_for_a_cpu_it_computes_the_same_as_the_convolutions(counts: tuple[int, ...]) -> None:
    levels, *rows = inputs(counts)
    masks = []
    for target in ("gpu", "cpu"):
        detect = stage(target, TORCHVISION)
        masks.append(detect.mask(detect.maps(levels), *rows))
    torch.testing.assert_close(masks[1], masks[0] * rows[-1][:, :, None, None], atol=1e-10, rtol=0)
    assert masks[1].shape == (3, ROWS, 28, 28)
    assert all(mask[:count].all() and not mask[count:].any() for mask, count in zip(masks[1], counts, strict=True))


@pytest.mark.parametrize("conventions", [TORCHVISION, MMDETECTION], ids=lambda each: each.framework)
@pytest.mark.parametrize("target", ["gpu", "cpu"])
def test_a_fixed_number_of_masks(target: str, conventions: MaskRcnnConventions) -> None:
    """The best rows are as in all, the others zero."""
    levels, *rows = inputs((3, 17, ROWS))
    whole, few, every = (stage(target, conventions, **own) for own in ({}, {"mask_rows": 8}, {"mask_rows": ROWS}))
    maps = whole.maps(levels)
    expected = whole._masks(maps, *rows)
    found = few._masks(maps, *rows)
    assert found.shape == expected.shape
    torch.testing.assert_close(found[:, :8], expected[:, :8], atol=1e-12, rtol=0)
    assert not found[:, 8:].any()
    torch.testing.assert_close(every._masks(maps, *rows), expected, atol=1e-12, rtol=0)
    with pytest.raises(WnlbError, match=f"mask_rows is 99, but there are {ROWS} rows of detections; expected at most"):
        stage(target, conventions, mask_rows=99)


@pytest.mark.parametrize("conventions", [TORCHVISION, MMDETECTION], ids=lambda each: each.framework)
@pytest.mark.parametrize("counts", COUNTS)
def test_other_rows_do_not_change_a_mask(counts: tuple[int, ...], conventions: MaskRcnnConventions) -> None:
    levels, boxes, labels, found = inputs(counts)
    detect = stage("cpu", conventions)
    maps = detect.maps(levels)
    expected = detect.mask(maps, boxes, labels, torch.ones_like(found)) * found[:, :, None, None]
    torch.testing.assert_close(detect.mask(maps, boxes, labels, found), expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize(("counts", "pooled"), [((2, 0, 5), 15), ((0, 0, 0), 0)])
def test_only_rows_that_are_found_are_computed(counts: tuple[int, ...], pooled: int) -> None:
    """And pooled so many of each image as the one with the most has."""
    levels, *rows = inputs(counts)
    detect = stage("cpu", TORCHVISION)
    seen: list[tuple[int, ...]] = []
    for module in (detect.mask.pool, detect.mask.head):
        module.register_forward_hook(lambda _, __, made: seen.append(tuple(made.shape[:2])))
    detect.mask(detect.maps(levels), *rows)
    assert seen == [(14 * 14, pooled), (14 * 14, sum(counts))]
