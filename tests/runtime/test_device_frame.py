"""Preparation on the device against OpenCV's on the host; on CPU tensors, which compute the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from wnlb.runtime.device_frame import as_tensor, is_on_device, prepare_tensor
from wnlb.runtime.errors import PictureError
from wnlb.runtime.geometry import Geometry
from wnlb.runtime.predictor import Predictor

SIZES = [(64, 96), (32, 48), (97, 101), (480, 640), (1, 1), (7, 500), (63, 96), (200, 96)]


@pytest.mark.parametrize(("resize", "padding"), [("fit", "corner"), ("fit", "centre"), ("stretch", "corner")])
@pytest.mark.parametrize(("interpolation", "levels"), [("bilinear", 1), ("nearest", 0), ("antialiased", 1)])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_the_input_is_that_of_the_host(
    size: tuple[int, int], interpolation: str, levels: int, resize: str, padding: str
) -> None:
    geometry = Geometry(64, 96, resize, interpolation, (124, 116, 104), padding=padding)
    frame = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    expected, placement = geometry.prepare(frame)
    out = torch.full((64, 96, 3), 9, dtype=torch.uint8)
    assert prepare_tensor(torch.from_numpy(frame), geometry, out) == placement
    assert int(np.abs(out.numpy().astype(int) - expected).max()) <= levels


def test_nearest_is_exact_at_every_scale() -> None:
    """One row of distinct pixels to every width."""
    row = np.arange(150, dtype=np.uint8)[None, :, None].repeat(64, 0).repeat(3, 2)
    for width in range(64, 400):
        geometry = Geometry(64, width, "stretch", "nearest")
        out = torch.empty((64, width, 3), dtype=torch.uint8)
        prepare_tensor(torch.from_numpy(row), geometry, out)
        np.testing.assert_array_equal(out.numpy(), geometry.prepare(row)[0])


@pytest.mark.parametrize(
    "frame", [torch.zeros(4, 4), torch.zeros(4, 4, 3), torch.zeros(0, 4, 3, dtype=torch.uint8)], ids=str
)
def test_what_is_no_frame(frame: torch.Tensor) -> None:
    with pytest.raises(PictureError, match=r"expected torch.uint8 \[h, w, 3\]"):
        prepare_tensor(frame, Geometry(64, 96), torch.empty((64, 96, 3), dtype=torch.uint8))


class OnDevice(torch.Tensor):
    """A tensor that says that it is on a GPU."""

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:  # type: ignore[override]
        return {"shape": tuple(self.shape), "typestr": "|u1", "data": (self.data_ptr(), False), "version": 2}


def on_device(frame: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(frame.copy()).as_subclass(OnDevice)


def test_a_predictor_takes_them(planted_model_path: Path) -> None:
    """A backend that does not is given them on the host."""
    frames = [np.full((64, 96, 3), value, np.uint8) for value in (200, 40)]
    tensors = [on_device(frame) for frame in frames]
    assert is_on_device(tensors[0])
    assert not is_on_device(frames[0])
    assert as_tensor(tensors[0]) is tensors[0]
    with Predictor(planted_model_path) as predictor:
        for count in (2, 1):
            expected = predictor.predict_batch(frames[:count])
            for found, other in zip(predictor.predict_batch(tensors[:count]), expected, strict=True):
                np.testing.assert_array_equal(found.scores, other.scores)
                np.testing.assert_array_equal(found.boxes, other.boxes)


def test_a_backend_that_takes_them_gets_them(make_contract: Callable[..., Any]) -> None:
    given: list[Any] = []

    class Taking:
        contract, description, takes_device_arrays, at_once = make_contract(), "", True, 1

        def run(self, inputs: dict[str, Any]) -> dict[str, Any]:
            given.append({"image": inputs["image"].clone(), "content": inputs["content"]})
            shapes = self.contract.output_shapes
            return {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}

        def close(self) -> None:
            pass

    frame = np.random.default_rng(1).integers(0, 256, (64, 80, 3), np.uint8)
    Predictor(Taking())(on_device(frame))
    image = given[0]["image"]
    assert isinstance(image, torch.Tensor)
    np.testing.assert_array_equal(image[0, :, :80].numpy(), frame[..., ::-1])
    assert given[0]["content"].tolist() == [[64, 80]]  # on the host
