"""The mask branch cut off a real file: any number of rows, computed as in the whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from model_inputs import whole
from numpy.typing import NDArray

from wnlb.calibration.precision.convert import Converter, Int8Choice
from wnlb.export.onnx_file.fuse import fuse_attention
from wnlb.export.onnx_file.verify import dark_scene
from wnlb.runtime.contract import Contract
from wnlb.runtime.engine.mask_cut import mask_rows, split_masks
from wnlb.runtime.onnx_file import read_model


def outputs_of(model: onnx.ModelProto, inputs: dict[str, NDArray]) -> dict[str, NDArray]:
    usual = {"providers": ["CPUExecutionProvider"], "disabled_optimizers": ["WeightBiasQuantization"]}
    session = ort.InferenceSession(model.SerializeToString(), **usual)
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(names, inputs), strict=True))


def check_parts(model: onnx.ModelProto, contract: Contract) -> None:
    before = model.SerializeToString(deterministic=True)
    parts = split_masks(model, contract)
    assert parts
    assert model.SerializeToString(deterministic=True) == before
    first, second = parts
    for part in parts:
        onnx.checker.check_model(part)
    assert len(first.graph.node) + len(second.graph.node) == len(model.graph.node)
    inputs = whole(dark_scene((1, contract.height, contract.width, 3)))
    expected, found = outputs_of(model, inputs), outputs_of(first, inputs)
    masks = expected.pop("masks")
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value)
    opened = {v.name for v in second.graph.input if any(d.dim_param for d in v.type.tensor_type.shape.dim)}
    assert len(opened) == len(second.graph.input) - 1  # all but the maps
    for rows in (1, 7, contract.detections):
        taken = {v.name: found[v.name][:, :rows] if v.name in opened else found[v.name] for v in second.graph.input}
        (own,) = outputs_of(second, taken).values()
        np.testing.assert_allclose(own, masks[:, :rows], atol=1e-5, rtol=0)


def test_rows_of_the_whole(brief_model_path: Path, mmdet_model_path: Path) -> None:
    check_parts(*read_model(brief_model_path))
    check_parts(*read_model(mmdet_model_path))  # with adaptive RoIAlign


def test_with_plugin_nodes_and_in_half_precision(brief_model_path: Path) -> None:
    """What an engine is built from after ``wnlb convert``; functions stay with the part that has their nodes."""
    model, _ = Converter(brief_model_path).half("fp16")
    assert fuse_attention(model)
    contract = read_model(brief_model_path)[1]
    check_parts(model, contract)
    parts = split_masks(model, contract)
    assert parts
    assert [len(part.functions) > 0 for part in parts] == [True, False]


@pytest.mark.parametrize("rest", ["fp16", "fp32"])
def test_of_int8_files_both_parts_have_their_pairs(brief_model_path: Path, mmdet_model_path: Path, rest: str) -> None:
    for path in (brief_model_path, mmdet_model_path):
        model, contract = int8_of(path, rest)
        check_parts(model, contract)
        parts = split_masks(model, contract)
        assert parts
        for part in parts:
            assert {"QuantizeLinear", "DequantizeLinear"} <= {node.op_type for node in part.graph.node}
        kinds = {value.type.tensor_type.elem_type for value in parts[1].graph.input}
        assert not kinds & {onnx.TensorProto.INT8, onnx.TensorProto.UINT8}  # what crosses is not quantised


def int8_of(path: Path, rest: str) -> tuple[onnx.ModelProto, Contract]:
    """All that can be in INT8, for activations of 4 at most."""
    converter = Converter(path)
    choice = Int8Choice(frozenset(converter.groups), "max", rest)
    return converter.int8(choice, dict.fromkeys(converter.activations, 4.0)), read_model(path)[1]


def test_files_that_stay_whole(batches_model_path: Path, small_cpu_model_path: Path, brief_model_path: Path) -> None:
    for path in (batches_model_path, small_cpu_model_path):
        assert split_masks(*read_model(path)) is None
    model, contract = read_model(brief_model_path)
    for node in model.graph.node:  # as RoIAlign in buckets holds the number of rows
        if node.op_type == "Reshape" and node.name.startswith("detect.mask/"):
            held = next(t for t in model.graph.initializer if t.name == node.input[1])
            sizes = onnx.numpy_helper.to_array(held).copy()
            if sizes[0] == -1:
                sizes[0] = contract.detections
                model.graph.initializer.append(onnx.numpy_helper.from_array(sizes, f"{node.name}/held"))
                node.input[1] = f"{node.name}/held"
    assert split_masks(model, contract) is None


@pytest.mark.parametrize(
    ("detections", "rows"), [(100, (8, 16, 32, 64, 100)), (64, (8, 16, 32, 64)), (9, (8, 9)), (8, (8,)), (2, (2,))]
)
def test_numbers_of_rows(detections: int, rows: tuple[int, ...]) -> None:
    assert mask_rows(detections) == rows
