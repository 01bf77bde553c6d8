"""From frames to the named inputs of a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wnlb.runtime.contract import CONTENT, Contract
from wnlb.runtime.errors import WnlbError
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


def check_inputs(inputs: dict[str, Any], contract: Contract) -> int:
    """How many frames these inputs, NumPy arrays, are of. Raises WnlbError where they are not what the model takes."""
    image = inputs.get(contract.input_name)
    rows = image.shape[0] if image is not None and image.ndim else 0
    batch = rows if rows in contract.batches else contract.batch
    for name, shape in contract.input_shapes.items():
        array, kind, shape = inputs.get(name), contract.types[name], (batch, *shape[1:])
        if array is None or array.dtype != kind or array.shape != shape:
            got = "absent" if array is None else f"{array.dtype} {list(array.shape)}"
            raise WnlbError(f"input {name} is {got}; expected {kind} {list(shape)}")
    return batch
