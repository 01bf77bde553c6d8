import logging
import math
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import helper, shape_inference
from tensorrt_rtx_build import build_in_tensorrt_rtx
from torch import Tensor, nn
from torchvision.ops import roi_align

from wnlb.export.graph.adaptive_roi_align import (
    CellRoIAlign,
    NodeRoIAlign,
    default_buckets,
    level_areas,
    most_cells,
)
from wnlb.export.graph.static_ops import AtlasLayout
from wnlb.export.onnx_file.lint import OPERATORS

SCALES = [1 / 4, 1 / 8, 1 / 16, 1 / 32]
AREAS = level_areas(56, 1e-6)
HEIGHT, WIDTH = 512, 704  # large enough for boxes of P5


@pytest.fixture(autouse=True)
def _float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def pyramid(batch: int = 1, channels: int = 3, height: int = HEIGHT, width: int = WIDTH) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(batch, channels, height // s, width // s, generator=generator) for s in (4, 8, 16, 32)]


def layout_of(levels: list[Tensor]) -> AtlasLayout:
    return AtlasLayout(tuple((f.shape[2], f.shape[3]) for f in levels))


def random_boxes(n: int, seed: int = 0, inside: bool = True) -> Tensor:
    """``[n, 4]`` of all sizes and shapes; beyond the frame as well unless ``inside``."""
    generator = torch.Generator().manual_seed(seed)
    frame = torch.tensor([WIDTH, HEIGHT]) * 1.0
    center = torch.rand(n, 2, generator=generator) * frame
    half = torch.exp(torch.randn(n, 2, generator=generator) + 4.2)
    boxes = torch.cat([center - half, center + half], 1)
    return torch.minimum(boxes.clamp(min=0), frame.repeat(2)) if inside else boxes


def edge_boxes() -> Tensor:
    w, h = WIDTH, HEIGHT
    return torch.tensor(
        [
            [0.0, 0, w, h],  # everything
            [0, 0, w, 3],  # as elongated as can be
            [0, 0, 3, h],
            [0, 0, 0, 0],  # no area
            [w, h, w, h],
            [5, 5, 5, 50],
            [5, 50, 90, 50],
            [w - 0.5, 0, w, h],  # thinner than one feature pixel, at the right border
            [0, h - 0.3, w, h],
            [0, 0, 112, 112],  # exactly between two levels, with a whole number of pixels for each bin
            [0, 0, 111.9, 112],
            [28, 28, 56, 56],  # one sample each a pixel apart
            [-30, -40, 20, 30],  # beyond the frame
            [w - 5, h - 5, w + 200, h + 90],
            [w + 50, h + 50, w + 90, h + 90],  # outside
            [-200, 0, -100, 90],
            [30, 30, 10, 50],  # negative sides
            [30, 30, 10, 10],
        ]
    )


def slow_roi_align(feature: Tensor, box: Tensor, scale: float, side: int) -> Tensor:
    """``feature [C, h, w]`` and ``box [4]`` to ``[C, side, side]``: the definition, one sample after another."""
    height, width = feature.shape[1:]
    x1, y1, x2, y2 = (float(value) * scale - 0.5 for value in box)
    across, down = math.ceil((x2 - x1) / side), math.ceil((y2 - y1) / side)
    pooled = feature.new_zeros(feature.shape[0], side, side)
    for row in range(side):
        for column in range(side):
            for i in range(down):
                for j in range(across):
                    y = y1 + (row + (i + 0.5) / down) * (y2 - y1) / side
                    x = x1 + (column + (j + 0.5) / across) * (x2 - x1) / side
                    if -1 <= y <= height and -1 <= x <= width:
                        pooled[:, row, column] += bilinear(feature, y, x) / (down * across)
    return pooled


def bilinear(feature: Tensor, y: float, x: float) -> Tensor:
    height, width = feature.shape[1:]
    y, x = min(max(y, 0.0), height - 1.0), min(max(x, 0.0), width - 1.0)
    top, left = int(y), int(x)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    upper = feature[:, top, left] * (left + 1 - x) + feature[:, top, right] * (x - left)
    lower = feature[:, bottom, left] * (left + 1 - x) + feature[:, bottom, right] * (x - left)
    return upper * (top + 1 - y) + lower * (y - top)


def slow_pooled(levels: list[Tensor], boxes: Tensor, side: int) -> Tensor:
    """``boxes [N, R, 4]`` to ``[N * R, C, side, side]``, their levels by mmdetection's formula."""
    pooled = []
    for image, own in enumerate(boxes):
        for box in own:
            area = float((box[2] - box[0]) * (box[3] - box[1]))
            level = 0 if area <= 0 else min(max(math.floor(math.log2(math.sqrt(area) / 56 + 1e-6)), 0), 3)
            pooled.append(slow_roi_align(levels[level][image], box, SCALES[level], side))
    return torch.stack(pooled)


def one_bucket(levels: list[Tensor], side: int, rois: int, cells: int = 40) -> CellRoIAlign:
    return CellRoIAlign(layout_of(levels), SCALES, side, AREAS, [(rois, cells)])


@pytest.mark.parametrize("side", [7, 14])
def test_both_forms_equal_the_definition(side: int) -> None:
    levels = pyramid(batch=2)
    boxes = torch.stack([torch.cat([random_boxes(14, seed, seed == 1), edge_boxes()]) for seed in (1, 2)])
    expected = slow_pooled(levels, boxes, side)
    nodes = NodeRoIAlign(SCALES, side, AREAS)(levels, boxes)
    torch.testing.assert_close(nodes, expected, atol=1e-12, rtol=0)
    cells = one_bucket(levels, side, boxes.shape[1])(layout_of(levels).build(levels), boxes)
    torch.testing.assert_close(cells, expected, atol=1e-11, rtol=0)


@pytest.mark.parametrize("side", [7, 14])
def test_in_float32_nodes_equal_torchvision_and_cells_come_near(side: int) -> None:
    levels = [f.float() for f in pyramid()]
    boxes = random_boxes(200).float()[None]
    level = (((boxes[0, :, 2:] - boxes[0, :, :2]).prod(1).unsqueeze(1)) >= torch.tensor(AREAS)).sum(1)
    assert set(level.tolist()) == {0, 1, 2, 3}
    expected = torch.stack(
        [
            roi_align(levels[k], [box[None]], side, SCALES[k], 0, aligned=True)[0]
            for k, box in zip(level.tolist(), boxes[0], strict=True)
        ]
    )
    assert torch.equal(NodeRoIAlign(SCALES, side, AREAS).float()(levels, boxes), expected)
    cells = one_bucket(levels, side, 200).float()(layout_of(levels).build(levels), boxes)
    # Coordinates from -1 to 1 in float32 are exact to 1e-5 px here; features have a slope of about 1 per px.
    torch.testing.assert_close(cells, expected, atol=2e-4, rtol=0)


def test_levels_are_those_of_both_frameworks() -> None:
    sides = torch.cat([torch.rand(5000) * 700, torch.tensor([56.0, 112, 224, 448])])
    sides = torch.cat([sides, sides * (1 - 1e-9), sides * (1 + 1e-9)])
    for areas, formula in (
        (level_areas(56, 1e-6), torch.floor(torch.log2(sides / 56 + 1e-6))),
        (level_areas(56, 4e-8), torch.floor(4 + torch.log2(sides / 224 + 1e-8)) - 2),
    ):
        level = (sides.square().unsqueeze(1) >= torch.tensor(areas)).sum(1)
        assert torch.equal(level, formula.clamp(0, 3).long())


@pytest.mark.parametrize("form", ["nodes", "cells"])
def test_pixels_first_is_a_transposition(form: str) -> None:
    levels, boxes = pyramid(batch=2), torch.stack([random_boxes(20, seed) for seed in (3, 4)])
    pool: NodeRoIAlign | CellRoIAlign = NodeRoIAlign(SCALES, 7, AREAS)
    features: list[Tensor] | Tensor = levels
    if form == "cells":
        pool = CellRoIAlign(layout_of(levels), SCALES, 7, AREAS, [(5, 18), (15, 9)])
        features = layout_of(levels).build(levels)
    assert torch.equal(pool.pixels_first(features, boxes), pool(features, boxes).flatten(2).permute(2, 0, 1))


def test_rois_come_back_from_their_buckets_in_order() -> None:
    levels, boxes = pyramid(batch=2), torch.stack([random_boxes(64, seed) for seed in (5, 6)])
    atlas = layout_of(levels).build(levels)
    pool = CellRoIAlign(layout_of(levels), SCALES, 7, AREAS, default_buckets(64, 7, 18))
    assert len(pool.buckets) == 4
    assert pool.overflow(boxes) == 0
    torch.testing.assert_close(pool(atlas, boxes), one_bucket(levels, 7, 64)(atlas, boxes), atol=1e-12, rtol=0)


def test_overflow_is_counted_and_near() -> None:
    levels = [torch.nn.functional.avg_pool2d(f, 5, 1, 2) for f in pyramid()]
    boxes = random_boxes(64)[None]
    atlas, expected = layout_of(levels).build(levels), NodeRoIAlign(SCALES, 7, AREAS)(levels, boxes)
    needs = one_bucket(levels, 7, 64).cells(boxes)[0]
    for cells in (2, 4, 6):
        pool = one_bucket(levels, 7, 64, cells)
        error = (pool(atlas, boxes) - expected).flatten(1).norm(dim=1)
        assert pool.overflow(boxes) == int((needs > cells).sum()) > 0
        assert error[needs <= cells].max() < 1e-10
        assert error.norm() < (0.6 if cells < 4 else 0.3) * expected.norm()  # white noise of width 5
    assert CellRoIAlign(layout_of(levels), SCALES, 7, AREAS, [(32, 18), (32, 1)]).overflow(boxes) == int(
        (needs.sort(descending=True).values[32:] > 1).sum()
    )


def test_cells_of_a_bin() -> None:
    """P2 has 4 input pixels for a pixel: a bin of a box of 28 n pixels has n samples along that axis."""
    sizes = torch.tensor([(0, 0), (28, 28), (29, 28), (56, 56), (84, 56), (112, 28), (140, 28), (350, 20)])
    pool = one_bucket(pyramid(), 7, len(sizes))
    assert pool.cells(torch.cat([torch.zeros(len(sizes), 2), sizes], 1)).tolist() == [1, 1, 2, 4, 4, 3, 3, 7]


@pytest.mark.parametrize(("height", "width", "most"), [(416, 608, 18), (800, 1344, 25), (64, 64, 4)])
def test_most_cells_bounds_every_box_of_the_frame(height: int, width: int, most: int) -> None:
    layout = AtlasLayout(tuple((height // s, width // s) for s in (4, 8, 16, 32)))
    assert most_cells(layout, SCALES, 7, AREAS) == most
    pool = CellRoIAlign(layout, SCALES, 7, AREAS, [(1, most)])
    sides = torch.cartesian_prod(torch.linspace(0.5, width, 300), torch.linspace(0.5, height, 300))
    assert pool.cells(torch.cat([torch.zeros_like(sides), sides], 1)).max() == most


@pytest.mark.parametrize("rois", [1, 2, 3, 10, 100, 1000])
@pytest.mark.parametrize("side", [7, 14])
def test_default_buckets_hold_every_roi(rois: int, side: int) -> None:
    for most in (2, 4, 6, 8, 18, 40):
        buckets = default_buckets(rois, side, most)
        assert sum(rows for rows, _ in buckets) == rois
        assert buckets[0][1] == most
        assert min(rows for rows, _ in buckets) > 0
        assert [cells for _, cells in buckets] == sorted((cells for _, cells in buckets), reverse=True)


class Pooling(nn.Module):
    """Levels, boxes to pooled maps, whichever form pools."""

    def __init__(self, pool: NodeRoIAlign | CellRoIAlign, layout: AtlasLayout | None) -> None:
        super().__init__()
        self.pool, self.layout = pool, layout

    def forward(self, p2: Tensor, p3: Tensor, p4: Tensor, p5: Tensor, boxes: Tensor) -> Tensor:
        levels = [p2, p3, p4, p5]
        return self.pool(levels if self.layout is None else self.layout.build(levels), boxes)


def exported(form: str, path: Path, dynamo: bool, batch: int = 2) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """The form as a file, and what to feed it."""
    torch.set_default_dtype(torch.float32)
    levels = [f.float() for f in pyramid(batch)]
    boxes = torch.stack([torch.cat([random_boxes(46, seed, False), edge_boxes()]).float() for seed in range(batch)])
    layout = layout_of(levels) if form == "cells" else None
    pool: NodeRoIAlign | CellRoIAlign = NodeRoIAlign(SCALES, 7, AREAS)
    if layout is not None:
        pool = CellRoIAlign(layout, SCALES, 7, AREAS, [(16, 18), (24, 9), (24, 6)])
        assert pool.overflow(boxes) == 0
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    names = ["p2", "p3", "p4", "p5", "boxes"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            Pooling(pool, layout), (*levels, boxes), path, input_names=names, opset_version=18, dynamo=dynamo
        )
    feeds = dict(zip(names, (t.numpy() for t in (*levels, boxes)), strict=True))
    return onnx.load(path), feeds


@pytest.mark.parametrize("dynamo", [True, False])
@pytest.mark.parametrize("form", ["nodes", "cells"])
def test_files_of_both_exporters_compute_the_same(form: str, dynamo: bool, tmp_path: Path) -> None:
    model, feeds = exported(form, tmp_path / "pool.onnx", dynamo)
    session = ort.InferenceSession(tmp_path / "pool.onnx", providers=["CPUExecutionProvider"])
    found = torch.from_numpy(session.run(None, feeds)[0])
    levels = [torch.from_numpy(feeds[f"p{i}"]) for i in range(2, 6)]
    expected = NodeRoIAlign(SCALES, 7, AREAS)(levels, torch.from_numpy(feeds["boxes"]))
    torch.testing.assert_close(found, expected, atol=1e-5 if form == "nodes" else 2e-4, rtol=0)
    nodes = [node for node in model.graph.node if node.op_type == "RoiAlign"]
    assert len(nodes) == (4 if form == "nodes" else 0)
    for node in nodes:
        attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
        assert attributes["coordinate_transformation_mode"] == b"half_pixel"
        assert attributes["sampling_ratio"] == 0
    if dynamo:  # the exporter of this package
        assert {node.op_type for node in model.graph.node} <= OPERATORS | ({"RoiAlign"} if nodes else set())
        values = shape_inference.infer_shapes(model, strict_mode=True, data_prop=True).graph.value_info
        assert all(dim.HasField("dim_value") for value in values for dim in value.type.tensor_type.shape.dim)


def test_cells_build_in_tensorrt_rtx(tmp_path: Path) -> None:
    exported("cells", tmp_path / "pool.onnx", dynamo=True)
    assert build_in_tensorrt_rtx(tmp_path / "pool.onnx") > 1e4
