"""A model file whose answers are known."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from wnlb.runtime.contract import METADATA_KEY, Contract

NODES = [
    helper.make_node("Cast", ["image"], ["pixels"], to=TensorProto.FLOAT),
    helper.make_node("ReduceMean", ["pixels", "axes"], ["mean"], keepdims=0),
    helper.make_node("Div", ["mean", "white"], ["brightness"]),
    helper.make_node("Unsqueeze", ["brightness", "one"], ["first"]),
    helper.make_node("Mul", ["first", "half"], ["second"]),
    helper.make_node("Concat", ["first", "second"], ["scores"], axis=1),
    *(helper.make_node("Identity", [f"{name}_value"], [name]) for name in ("labels", "masks", "count")),
]
CLIP = [
    helper.make_node("Cast", ["content"], ["sizes"], to=TensorProto.FLOAT),
    helper.make_node("Gather", ["sizes", "corners"], ["limits"], axis=1),
    helper.make_node("Unsqueeze", ["limits", "one"], ["limit"]),
    helper.make_node("Min", ["boxes_value", "limit"], ["boxes"]),
]
COUNTED = [
    helper.make_node("Greater", ["scores", "quarter"], ["bright"]),
    helper.make_node("Cast", ["bright"], ["bright_rows"], to=TensorProto.INT32),
    helper.make_node("ReduceSum", ["bright_rows", "one"], ["count"], keepdims=0),
]
PASS = [helper.make_node("Identity", ["boxes_value"], ["boxes"])]  # in files of format 1


def _opened(name: str) -> list[onnx.NodeProto]:
    """In files that take several numbers of frames: a row of constants for each of them."""
    return [
        helper.make_node("Shape", ["pixels"], [f"{name}_frames"], start=0, end=1),
        helper.make_node("Concat", [f"{name}_frames", f"rest_{name}"], [f"{name}_shape"], axis=0),
        helper.make_node("Expand", [f"{name}_value", f"{name}_shape"], [name]),
    ]


OPENED = {name: _opened(name) for name in ("labels", "masks", "count")}


@pytest.fixture(scope="session")
def planted_model(make_contract: Callable[..., Contract]) -> Callable[..., Path]:
    """Writes a model file, for a batch of two, that finds the same two boxes in every frame.

    A lamp, with the input's mean brightness as its score, at 8 16 40 48; and a dark cat with half of that at
    32 0 96 64, both clipped to the content. Every pixel of both masks is set, with the number of its row from 1 up.
    With masks of the frame only what scores above 0.25 counts.
    """

    def write(path: Path, contract: Contract | None = None, **metadata: str) -> Path:
        contract = contract or make_contract(batch=2)
        batch = 1 if contract.min_batch is not None else contract.batch
        shapes = contract.stated(contract.output_shapes)
        values = {
            "axes": np.array([1, 2, 3], np.int64),
            "one": np.array([1], np.int64),
            "corners": np.array([1, 0, 1, 0], np.int64),
            "white": np.array(255, np.float32),
            "half": np.array(0.5, np.float32),
            "boxes_value": np.tile(np.array([[8, 16, 40, 48], [32, 0, 96, 64]], np.float32), (batch, 1, 1)),
            "labels_value": np.tile(np.array([1, 2], np.int32), (batch, 1)),
            "count_value": np.full(batch, 2, np.int32),
        }
        if "masks" in shapes:
            numbers = np.arange(1, 2 * batch + 1).reshape(batch, 2, 1, 1)
            values["masks_value"] = np.broadcast_to(numbers, (batch, *contract.output_shapes["masks"][1:]))
            values["masks_value"] = values["masks_value"].astype(contract.types["masks"])
        kinds = {n: helper.np_dtype_to_tensor_dtype(np.dtype(kind)) for n, kind in contract.types.items()}
        nodes = NODES + (PASS if contract.format == 1 else CLIP)
        if contract.masks == "frame":
            nodes = [node for node in nodes if node.output[0] != "count"] + COUNTED
            values |= {"quarter": np.array(0.25, np.float32)}
            del values["count_value"]
        if contract.min_batch is not None:  # a row of the constants for each frame
            values |= {f"rest_{name}": np.array(shapes[name][1:], np.int64) for name in OPENED if name in shapes}
            nodes = [OPENED.get(node.output[0], node) for node in nodes]
            nodes = [part for node in nodes for part in (node if isinstance(node, list) else [node])]
        graph = helper.make_graph(
            [node for node in nodes if node.output[0] != "masks" or "masks" in shapes],
            "planted",
            [helper.make_tensor_value_info(n, kinds[n], s) for n, s in contract.stated(contract.input_shapes).items()],
            [helper.make_tensor_value_info(n, kinds[n], s) for n, s in shapes.items()],
            [numpy_helper.from_array(value, name) for name, value in values.items()],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
        helper.set_model_props(model, metadata or {METADATA_KEY: contract.to_json()})
        onnx.save(model, path)
        return path

    return write


@pytest.fixture(scope="session")
def planted_batches_path(
    tmp_path_factory: pytest.TempPathFactory,
    planted_model: Callable[..., Path],
    make_contract: Callable[..., Contract],
) -> Path:
    """The same for 1 to 5 frames."""
    path = tmp_path_factory.mktemp("planted") / "batches.onnx"
    return planted_model(path, make_contract(batch=5, min_batch=1))


@pytest.fixture(scope="session")
def planted_model_path(tmp_path_factory: pytest.TempPathFactory, planted_model: Callable[..., Path]) -> Path:
    return planted_model(tmp_path_factory.mktemp("planted") / "planted.onnx")
