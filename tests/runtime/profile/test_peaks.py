"""Peaks of planted machines, and the models that measure them."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import onnx
import pytest

from wnlb.runtime.errors import WnlbError
from wnlb.runtime.profile.peaks import (
    PRECISIONS,
    RUNS,
    SUM,
    WARM_UP,
    Peaks,
    RunOf,
    measure_peaks,
    peak_model,
    run_in_onnxruntime,
)
from wnlb.runtime.profile.work import Work, work_by_stage

FLOPS = {"fp32": 2.0**36, "fp16": 2.0**38, "int8": 2.0**40}  # two cores, a few, a small GPU
BANDWIDTH = 2.0**35


class Machine:
    """Its runs take what their work takes at its peaks, or twice that, and what starts them; none before it is warm."""

    def __init__(self, flops: dict[str, float], start_s: float = 0.0) -> None:
        self.flops, self.start_s = flops, start_s
        self.opened: list[str] = []
        self.closed = 0

    @contextlib.contextmanager
    def run_of(self, path: Path) -> Iterator[Callable[[], float]]:
        work = work_by_stage(onnx.load(path))["unknown"]
        (precision,) = work.flops
        self.opened.append(path.stem)
        if precision not in self.flops:
            raise WnlbError(f"no kernel for {precision}")
        best = work.bytes / BANDWIDTH if path.stem.startswith(SUM) else work.flops[precision] / self.flops[precision]
        slow = itertools.cycle([2 * best + self.start_s] * 4 + [best + self.start_s])
        seconds = itertools.chain([0.0] * WARM_UP, slow)
        yield lambda: next(seconds)
        self.closed += 1


def test_peaks_are_those_of_the_fastest_warm_run() -> None:
    machine = Machine(FLOPS)
    peaks = measure_peaks(machine.run_of, ["fp16", "int8"])
    assert peaks == Peaks(FLOPS, BANDWIDTH)  # FP32 without being asked for
    assert machine.closed == len(machine.opened)


def test_what_starts_a_run_weighs_little_in_a_larger_model() -> None:
    machine = Machine({"fp32": 2.0**42}, start_s=2**-14)  # 61 us; the smaller product takes 119
    peaks = measure_peaks(machine.run_of, ["fp32"])
    assert machine.opened == ["fp32.640", "fp32.2560", "sum.64"]
    assert 0.98 * 2.0**42 < peaks.flops_per_s["fp32"] < 2.0**42
    assert 0.98 * BANDWIDTH < peaks.bytes_per_s < BANDWIDTH


def test_a_slow_machine_runs_small_models_only() -> None:
    machine = Machine({"fp32": 2.0**33})
    assert measure_peaks(machine.run_of, []).flops_per_s == {"fp32": 2.0**33}
    assert machine.opened == ["fp32.640", "sum.64"]


def test_a_precision_that_cannot_run_is_left_out_and_counts_as_fp32() -> None:
    peaks = measure_peaks(Machine({"fp32": 2.0**33, "int8": 2.0**35}).run_of, PRECISIONS)
    assert peaks.flops_per_s == {"fp32": 2.0**33, "int8": 2.0**35}
    assert peaks.floor_ms(Work({"fp16": 2.0**33, "int8": 2.0**33}, 0)) == 1250


def test_without_fp32_there_are_no_peaks() -> None:
    with pytest.raises(WnlbError, match="no kernel for fp32"):
        measure_peaks(Machine({"int8": 2.0**35}).run_of, ["int8"])


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(ValueError, match="fp64"):
        measure_peaks(Machine(FLOPS).run_of, ["fp32", "fp64"])


@pytest.mark.parametrize(
    ("flops", "moved", "ms", "bound"),
    [
        ({"fp32": 1e9}, 10**8, 10.0, "compute"),
        ({"fp32": 1e9, "int8": 4e9}, 10**8, 20.0, "compute"),  # one after the other
        ({"fp32": 1e9}, 10**9, 100.0, "memory"),
        ({}, 10**7, 1.0, "memory"),
        ({"int8": 4e9}, 10**8, 10.0, "compute"),  # both alike
        ({}, 0, 0.0, "compute"),
    ],
)
def test_the_floor_is_the_larger_of_computing_and_moving(
    flops: dict[str, float], moved: int, ms: float, bound: str
) -> None:
    peaks = Peaks({"fp32": 1e11, "int8": 4e11}, 1e10)
    assert peaks.floor_ms(Work(flops, moved)) == pytest.approx(ms)
    assert peaks.bound(Work(flops, moved)) == bound


# The models


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_product_is_valid_and_does_what_it_says(precision: str, tmp_path: Path) -> None:
    model = peak_model(tmp_path, precision, 48)
    loaded = onnx.load(model.path)
    onnx.checker.check_model(loaded, full_check=True)
    assert work_by_stage(loaded)["unknown"].flops == {precision: model.amount} == {precision: 2 * 48**3}


def test_the_sum_is_valid_and_moves_three_arrays(tmp_path: Path) -> None:
    model = peak_model(tmp_path, SUM, 2)
    loaded = onnx.load(model.path)
    onnx.checker.check_model(loaded, full_check=True)
    assert work_by_stage(loaded)["unknown"].bytes == model.amount == 6 * 2**20


# In ONNX Runtime

CPU: RunOf = run_in_onnxruntime("cpu", 1)


# A sum of arrays so large that the C library gives them back at once when freed: a run on borrowed memory crashes.
@pytest.mark.parametrize(("what", "size"), [("fp32", 128), ("fp16", 128), ("int8", 128), (SUM, 40)])
def test_onnx_runtime_runs_the_models(what: str, size: int, tmp_path: Path) -> None:
    model = peak_model(tmp_path, what, size)
    with CPU(model.path) as run:
        started = time.perf_counter()
        seconds = [run() for _ in range(RUNS)]
        elapsed = time.perf_counter() - started
    assert 0 < sum(seconds) <= elapsed
    assert 1e6 < model.amount / min(seconds) < 1e13  # one core


def test_onnx_runtime_multiplies_integers(tmp_path: Path) -> None:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3
    model = peak_model(tmp_path, "int8", 64)
    onnxruntime.InferenceSession(str(model.path), options, providers=["CPUExecutionProvider"])
    kernels = {node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node}
    assert "MatMul" not in kernels
    assert any(kernel.startswith("MatMulInteger") for kernel in kernels)


def test_what_onnx_runtime_cannot_run_is_a_wnlb_error(tmp_path: Path) -> None:
    bf16 = peak_model(tmp_path, "bf16", 16).path  # neither the kernel on a CPU nor the type in NumPy
    with pytest.raises(WnlbError), CPU(bf16):
        pass
    (tmp_path / "broken.onnx").write_bytes(b"\x08")
    with pytest.raises(WnlbError, match="cannot be opened"), CPU(tmp_path / "broken.onnx"):
        pass
