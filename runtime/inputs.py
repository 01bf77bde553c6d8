"""From frames to the named inputs of a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wnlb.runtime.contract import CONTENT, Contract
from wnlb.runtime.geometry import Geometry, Placement


def geometry_of(contract: Contract) -> Geometry:
    """The geometry that a contract prescribes."""
    return Geometry(
        contract.height,
        contract.width,
        contract.resize,
        contract.interpolation,
        contract.pad_rgb,
        contract.scale,
        contract.conventions.size_rule,
        contract.padding,
    )


def prepared_inputs(contract: Contract, frames_bgr: Sequence[NDArray[np.uint8]]) -> dict[str, NDArray]:
    """Frames, uint8 BGR ``[h, w, 3]`` of any sizes, 1 to ``contract.batch`` of them, as a model takes them.

    Raises:
        PictureError: one of them is something else.
        WnlbError: these are no frames, or more than the model takes.
    """
    image = np.zeros((contract.batch_for(len(frames_bgr)), *contract.input_shape[1:]), np.uint8)
    geometry = geometry_of(contract)
    return named_inputs(contract, image, [geometry.prepare(frame, image[i])[1] for i, frame in enumerate(frames_bgr)])


def named_inputs(contract: Contract, image: Any, placements: Sequence[Placement]) -> dict[str, Any]:
    """``image [N, H, W, 3]`` by its name and, for a model that wants to know, what of it the pictures fill.

    Args:
        image: a NumPy array, or an array on the GPU.
        placements: of the pictures in it; images beyond them hold none.
    """
    inputs = {contract.input_name: image}
    if CONTENT in contract.input_shapes:
        inputs[CONTENT] = np.zeros((len(image), 2), np.int32)
        inputs[CONTENT][: len(placements)] = [(placement.height, placement.width) for placement in placements]
    return inputs
