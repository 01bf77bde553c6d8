"""The static graph of SOLOv2 against its reference and against loops, in float64."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import solo_checkpoint
import torch
from numpy.typing import NDArray

from wnlb.export.checkpoints.checkpoint import LoadedCheckpoint, read_checkpoint
from wnlb.export.graph.mask_extent import mask_extents
from wnlb.export.graph.pyramid import limits
from wnlb.export.graph.solov2 import MatrixNms, NormedConv, Resampling, Solov2Graph, coordinates
from wnlb.export.onnx_file.reference import Eager
from wnlb.export.onnx_file.verify import dark_scene
from wnlb.export.options import ExportOptions
from wnlb.export.references import solov2
from wnlb.export.solov2 import ConvNorm, Solov2


@pytest.fixture
def _float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> LoadedCheckpoint:
    path: Path = tmp_path_factory.mktemp("solo") / "epoch_12.pth"
    solo_checkpoint.write_small(path)
    return read_checkpoint(path)


def model_of(checkpoint: LoadedCheckpoint, **selection: Any) -> Solov2:
    """The network with other thresholds or counts."""
    assert isinstance(checkpoint.model, Solov2)
    model = Solov2(checkpoint.model.config, dataclasses.replace(checkpoint.model.selection, **selection))
    model.load_state_dict(checkpoint.model.state_dict())
    return model.eval().double()


def assert_equals_the_reference(
    checkpoint: LoadedCheckpoint, model: Solov2, options: ExportOptions, images: NDArray[np.uint8], content: NDArray
) -> int:
    """Detections of all images."""
    graph = Solov2Graph(model, options)
    with torch.no_grad():
        outputs = graph(torch.from_numpy(images), torch.from_numpy(content))
    boxes, scores, labels, masks, count = (value.numpy() for value in outputs)
    expected, _ = Eager(model, checkpoint.origin).doubled().detections(images, content)
    for i, own in enumerate(expected):
        rows = len(own["scores"])
        assert count[i] == rows
        np.testing.assert_array_equal(labels[i, :rows], own["labels"])
        np.testing.assert_allclose(scores[i, :rows], own["scores"], rtol=0, atol=1e-9)
        np.testing.assert_allclose(boxes[i, :rows], own["boxes"], rtol=0, atol=1e-6)
        np.testing.assert_allclose(masks[i, :rows], own["masks"], rtol=0, atol=1e-5)
        assert not scores[i, rows:].any()
        assert not labels[i, rows:].any()
        assert not boxes[i, rows:].any()
    return int(count.sum())


@pytest.mark.usefixtures("_float64")
@pytest.mark.parametrize("target", ["gpu", "cpu"])
def test_equals_the_reference(checkpoint: LoadedCheckpoint, target: str) -> None:
    """Whole pictures, padded ones, and a frame with none."""
    images = dark_scene((4, 64, 96, 3))
    content = np.array([[64, 96], [50, 96], [37, 61], [0, 0]], np.int32)
    options = ExportOptions(64, 96, batch=4, target=target)
    assert assert_equals_the_reference(checkpoint, model_of(checkpoint), options, images, content) > 40


@pytest.mark.usefixtures("_float64")
@pytest.mark.parametrize("target", ["gpu", "cpu"])
def test_counts_and_thresholds(checkpoint: LoadedCheckpoint, target: str) -> None:
    """Fewer masks in Matrix NMS than pass; fewer of them than rows; and nothing that passes."""
    images, content = dark_scene((1, 64, 96, 3)), np.array([[64, 96]], np.int32)
    options = ExportOptions(64, 96, target=target)
    few = model_of(checkpoint, nms_candidates=9, detections=12, cell_threshold=0.05)
    assert assert_equals_the_reference(checkpoint, few, options, images, content) <= 9
    strict = model_of(checkpoint, score_threshold=0.2, nms_sigma=0.5)
    assert 0 < assert_equals_the_reference(checkpoint, strict, options, images, content) < 12
    none = model_of(checkpoint, cell_threshold=1.0)
    assert assert_equals_the_reference(checkpoint, none, options, images, content) == 0


def test_lacking_candidates_are_noticed(checkpoint: LoadedCheckpoint) -> None:
    """Only where one that is left out could be among the detections."""
    images, content = torch.from_numpy(dark_scene((1, 64, 96, 3))), torch.tensor([[64, 96]])
    assert isinstance(checkpoint.model, Solov2)

    def lacks(candidates: int, **selection: Any) -> bool:
        model = model_of(checkpoint, **selection).float()
        graph = Solov2Graph(model, ExportOptions(64, 96, candidates=candidates))
        with torch.no_grad():
            return graph.lacks_candidates(*graph.pyramid(images, content))

    assert lacks(8)
    assert not lacks(1000)
    assert not lacks(60, detections=2)  # their scores are above all that is left out


@pytest.mark.usefixtures("_float64")
def test_matrix_nms_equals_the_formula() -> None:
    """Among them equal masks, empty ones, and one within another."""
    random = torch.Generator().manual_seed(0)
    inside = (torch.rand(2, 30, 80, generator=random) < torch.rand(2, 30, 1, generator=random)).double()
    inside[:, 7] = inside[:, 3]
    inside[:, 20] = 0
    inside[:, 11] = inside[:, 10] * inside[:, 12]
    label = torch.randint(1, 4, (2, 30), generator=random)
    label[:, 7] = label[:, 3]
    area = inside.sum(2)
    found = MatrixNms(2.0)(inside, area, label)
    for i in range(2):
        real = area[i] > 0
        expected = solov2._decay(inside[i][real], area[i][real], label[i][real], 2.0)
        np.testing.assert_allclose(found[i][real], expected, atol=1e-12)


@pytest.mark.usefixtures("_float64")
def test_boxes_of_masks() -> None:
    """Random blobs and specks, on pictures of all sorts of sizes, and masks with nothing in the picture."""
    random = torch.Generator().manual_seed(1)
    masks = torch.rand(3, 25, 9, 13, generator=random) ** torch.arange(1, 26).reshape(1, -1, 1, 1) ** 1.5
    content = torch.tensor([[36, 52], [21, 30], [6, 3]])
    found = mask_extents(masks, limits(content.double()), 0.5)
    empty = 0
    for own, boxes, size in zip(masks, found, content.tolist(), strict=True):
        expected = [solov2._extent(mask, (size[0], size[1])) for mask in own]
        np.testing.assert_allclose(boxes, expected, atol=1e-9)
        empty += sum(box == (0, 0, 0, 0) for box in expected)
    assert 10 < empty < 65


@pytest.mark.usefixtures("_float64")
def test_folded_coordinates_and_group_norm_equal_torch_s() -> None:
    random = torch.Generator().manual_seed(2)
    module = ConvNorm(5 + 2, 12, 3, groups=3)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, generator=random)
    places = [coordinates(7, 9), coordinates(4, 6)]
    folded = NormedConv(module, places)
    for i, place in enumerate(places):
        x = torch.randn(2, 5, *place.shape[2:], generator=random)
        whole = torch.cat([x, place.expand(2, -1, -1, -1)], 1)
        expected = torch.relu(module.norm(module.conv(whole)))
        np.testing.assert_allclose(folded(x, i).detach(), expected.detach(), atol=1e-12)


@pytest.mark.usefixtures("_float64")
def test_resampling_in_two_steps() -> None:
    x = torch.randn(2, 3, 12, 20, generator=torch.Generator().manual_seed(3))
    expected = solov2._resized(solov2._resized(x, 6, 10), 8, 7)
    np.testing.assert_allclose(Resampling((12, 20), (6, 10), (8, 7))(x), expected, atol=1e-12)
