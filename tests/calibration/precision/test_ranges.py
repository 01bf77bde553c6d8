from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from wnlb.calibration.precision import ranges
from wnlb.calibration.precision.ranges import BINS, METHODS, Histogram, Tap, collect_histograms, largest_magnitudes
from wnlb.runtime.errors import WnlbError


def histogram(values: np.ndarray, pieces: int = 5) -> Histogram:
    found = Histogram()
    for piece in np.array_split(values.astype(np.float32), pieces):
        found.add(piece)
    return found


def doubling() -> onnx.ModelProto:
    """``image`` uint8 [1, 2, 2, 3] to ``x`` and ``y`` = -2 x, both float32."""
    value = helper.make_tensor_value_info
    nodes = [
        helper.make_node("Cast", ["image"], ["x"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["x", "k"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "doubling",
        [value("image", TensorProto.UINT8, [1, 2, 2, 3])],
        [value("y", TensorProto.FLOAT, [1, 2, 2, 3])],
        [helper.make_tensor("k", TensorProto.FLOAT, [], [-2.0])],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


INPUTS = [{"image": np.full((1, 2, 2, 3), value, np.uint8)} for value in (3, 100, 7)]


def test_counts_are_those_of_numpy() -> None:
    values = np.random.default_rng(0).normal(size=100_000)
    found = histogram(values)
    assert found.limit == 8.0
    expected, _ = np.histogram(np.abs(values.astype(np.float32)), BINS, (0, 8))
    assert np.abs(found.counts - expected).max() <= 2  # values on an edge
    assert found.counts.sum() == 100_000
    assert found.largest == np.abs(values.astype(np.float32)).max()


@pytest.mark.parametrize("first", [0.001, 1.0, 900.0])
def test_growing_keeps_every_value(first: float) -> None:
    """A small array first: its bins are merged when the large one comes."""
    found = Histogram()
    found.add(np.full(10, first, np.float32))
    found.add(np.array([-1000.3], np.float32))
    assert (found.limit, found.largest, int(found.counts.sum())) == (1024.0, float(np.float32(1000.3)), 11)
    assert found.counts[int(first / 1024 * BINS)] == 10
    assert found.counts[int(1000.3 / 1024 * BINS)] == 1


def test_ranges_of_known_values() -> None:
    uniform = histogram(np.linspace(-1, 1, 200_001))
    for method in METHODS:
        assert uniform.range(method) == pytest.approx(1.0, rel=0.01)
    one_far = histogram(np.r_[np.random.default_rng(0).normal(size=300_000), 100.0])
    assert one_far.range("max") == 100.0
    assert one_far.range("percentile") == pytest.approx(3.89, abs=0.1)  # 99.99 % of a normal distribution
    assert one_far.range("mse") < 60
    assert one_far.range("entropy") < 60


def test_mse_minimises_the_error_of_int8() -> None:
    values = np.random.default_rng(1).laplace(size=200_000).astype(np.float32)

    def error(largest: float) -> float:
        step = largest / 127
        return float(np.square(values - np.clip(np.round(values / step), -127, 127) * step).mean())

    found = histogram(values).range("mse")
    best = min(np.linspace(2, 14, 400), key=error)
    assert error(found) <= 1.01 * error(best)
    assert error(found) < error(float(np.abs(values).max()))


def test_a_tensor_of_zeros_and_one_that_is_not_finite() -> None:
    zeros = histogram(np.zeros(10))
    assert [zeros.range(method) for method in METHODS] == [0, 0, 0, 0]
    for broken in (np.nan, np.inf):
        with pytest.raises(WnlbError, match="not a finite number"):
            histogram(np.array([1.0, broken]))


def test_taps_read_inner_tensors() -> None:
    values = Tap(doubling(), ["x", "y"])(INPUTS[0])
    assert (values["x"] == 3).all()
    assert (values["y"] == -6).all()
    assert largest_magnitudes(doubling(), ["x", "y"], INPUTS, lambda: None) == {"x": 100.0, "y": 200.0}


class Counting:
    """Stands in for Tap and counts its runs; fails after a number of them."""

    runs = 0
    fail_after = 10**9

    def __init__(self, model: onnx.ModelProto, tensors: list[str], **kwargs: Any) -> None:
        self.tap = Tap(model, tensors, **kwargs)

    def __call__(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        Counting.runs += 1
        if Counting.runs > Counting.fail_after:
            raise KeyboardInterrupt
        return self.tap(inputs)


def test_histograms_are_used_again_and_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranges, "Tap", Counting)
    monkeypatch.setattr(ranges, "_SAVE_EVERY", 1)
    monkeypatch.setattr(Counting, "runs", 0)
    cache = tmp_path / "ranges.npz"

    def collect(key: str) -> tuple[dict[str, Histogram], int]:
        before = Counting.runs
        return collect_histograms(doubling(), ["x", "y"], INPUTS, key, cache), Counting.runs - before

    monkeypatch.setattr(Counting, "fail_after", 2)
    with pytest.raises(KeyboardInterrupt):
        collect("a")
    monkeypatch.setattr(Counting, "fail_after", 10**9)
    found, runs = collect("a")
    assert runs == 1  # two of three were done
    assert found["y"].largest == 200.0
    whole = [Histogram(), Histogram()]
    for inputs in INPUTS:
        whole[0].add(inputs["image"].astype(np.float32))
        whole[1].add(inputs["image"].astype(np.float32) * -2)
    for one, name in zip(whole, ("x", "y"), strict=True):
        np.testing.assert_array_equal(found[name].counts, one.counts)
        assert found[name].limit == one.limit
    again, runs = collect("a")
    assert runs == 0
    np.testing.assert_array_equal(again["x"].counts, found["x"].counts)
    assert collect("another model or other pictures")[1] == 3
    cache.write_bytes(cache.read_bytes()[:100])
    assert collect("a")[1] == 3  # a damaged file is measured anew
    cache.write_bytes(b"no archive")
    assert collect("a")[1] == 3
