"""Numbers below the smallest normal one are zero where a model runs, and nowhere else."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from wnlb.runtime.denormals import without_denormals
from wnlb.runtime.onnxruntime_backend import open_session


def denormal() -> float:
    return float(np.multiply(np.float32(1e-38), np.float32(0.01)))


def in_another_thread(action):
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(action).result()


def test_for_a_while_and_in_this_thread_only() -> None:
    assert denormal() > 0
    with without_denormals():
        assert denormal() == 0
        assert in_another_thread(denormal) in (0, denormal())  # a new thread begins as the one that made it
        with without_denormals():
            pass
        assert denormal() == 0
        assert np.float32(1.5) / np.float32(2) == 0.75
    assert denormal() > 0
    with pytest.raises(ZeroDivisionError), without_denormals():
        raise ZeroDivisionError
    assert denormal() > 0
    assert in_another_thread(denormal) > 0


@pytest.fixture(scope="module")
def small_numbers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that multiplies a million numbers by 0.01, on all of its threads."""
    factor = helper.make_tensor("factor", TensorProto.FLOAT, [1], [0.01])
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1 << 20]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Mul", ["x", "factor"], ["y"])], "g", values[:1], values[1:], [factor])
    path = tmp_path_factory.mktemp("model") / "small.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return path


def test_in_all_threads_of_a_session_from_any_thread(small_numbers: Path) -> None:
    inputs = {"x": np.full(1 << 20, 1e-38, np.float32)}
    session = open_session(small_numbers, device="cpu", threads=2)

    def run() -> np.ndarray:
        with without_denormals():
            return session.run(None, inputs)[0]

    assert not run().any()
    assert not in_another_thread(run).any()
    assert denormal() > 0
    bare = onnxruntime.InferenceSession(small_numbers, providers=["CPUExecutionProvider"])
    assert (bare.run(None, inputs)[0] > 0).all()
