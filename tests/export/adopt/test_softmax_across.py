"""Softmax over an inner axis: the same numbers by other operators, and nothing else touched."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
from onnx import helper

from wnlb.export.adopt.softmax_across import spread_softmax


def graph(*axes: int) -> onnx.ModelProto:
    value = helper.make_tensor_value_info
    nodes = [helper.make_node("Softmax", ["x"], [f"y{axis}"], name=f"softmax{axis}", axis=axis) for axis in axes]
    outputs = [value(f"y{axis}", 1, [2, 5, 3, 7]) for axis in axes]
    made = helper.make_graph(nodes, "softmax", [value("x", 1, [2, 5, 3, 7])], outputs)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def test_an_inner_axis_is_spread() -> None:
    model = graph(1, -2, -1)
    assert spread_softmax(model)
    assert not spread_softmax(model)
    kept = [node.name for node in model.graph.node if node.op_type == "Softmax"]
    assert kept == ["softmax-1"]
    onnx.checker.check_model(model, full_check=True)
    x = 40 * np.random.default_rng(0).standard_normal((2, 5, 3, 7)).astype(np.float32)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    powers = np.exp(x.astype(np.float64))
    for axis, found in zip((1, -2, -1), session.run(None, {"x": x}), strict=True):
        np.testing.assert_allclose(found, powers / powers.sum(axis, keepdims=True), rtol=1e-5, atol=1e-30)


def test_the_last_axis_stays() -> None:
    model = graph(-1, 3)
    before = model.SerializeToString()
    assert not spread_softmax(model)
    assert model.SerializeToString() == before


def test_a_mean_by_a_convolution_goes_with_it() -> None:
    value, bins = helper.make_tensor_value_info, 16
    nodes = [
        helper.make_node("Softmax", ["x"], ["p"], name="dfl/Softmax", axis=1),
        helper.make_node("Conv", ["p", "weight"], ["y"], name="dfl.conv/Conv"),
    ]
    weight = onnx.numpy_helper.from_array(np.arange(bins, dtype=np.float32).reshape(1, bins, 1, 1), "weight")
    made = helper.make_graph(nodes, "mean", [value("x", 1, [2, bins, 4, 9])], [value("y", 1, [2, 1, 4, 9])], [weight])
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    assert spread_softmax(model)
    assert {node.op_type for node in model.graph.node}.isdisjoint(("Softmax", "Conv"))
    onnx.checker.check_model(model, full_check=True)
    x = 4 * np.random.default_rng(0).standard_normal((2, bins, 4, 9)).astype(np.float32)
    powers = np.exp(x.astype(np.float64))
    expected = (powers * np.arange(bins).reshape(1, -1, 1, 1)).sum(1, keepdims=True) / powers.sum(1, keepdims=True)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(session.run(None, {"x": x})[0], expected, rtol=1e-5)
