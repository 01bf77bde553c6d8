"""Rows filled by planted workers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from wnlb.runtime.errors import WnlbError
from wnlb.runtime.profile import session
from wnlb.runtime.profile.making import Made, Maker
from wnlb.runtime.profile.measure import Plan, Times
from wnlb.runtime.profile.report import Row
from wnlb.runtime.profile.session import add_memory_and_stages, measure_rows, row_of
from wnlb.runtime.profile.variants import Variant
from wnlb.runtime.sensors import Sensors


class PlantedWorker:
    """Stages that are told; fails where it is told to."""

    def __init__(self, name: str, stages: dict[str, float] | str, runs: int = 10**9) -> None:
        self.name, self._stages, self._left = name, stages, runs

    def run(self, count: int) -> list[Times]:
        self._left -= count
        if self._left < 0:
            raise WnlbError("fell out")
        return [{"total": 1000.0, "infer": 900.0}] * count

    def timed(self, count: int) -> list[Times]:
        return [{}] * count

    def memory(self) -> tuple[int, int]:
        return 1 << 30, 1 << 20

    def stages(self, runs: int) -> dict[str, float]:
        if isinstance(self._stages, str):
            raise WnlbError(self._stages)
        return self._stages


@pytest.mark.parametrize(
    ("stages", "warnings"),
    [
        ({"stem": 95.0, "between layers": 5.0}, []),
        ({"stem": 90.0, "between layers": 10.0}, ["stages account for 90 % of the time only"]),
        ({"unknown": 3.0}, ["stages account for 0 % of the time only"]),
        ({}, []),
        ("no profiler", ["stages are not measured: no profiler"]),
    ],
)
def test_stages_that_leave_time_out_are_doubted(stages: Any, warnings: list[str]) -> None:
    row = Row("a.onnx", "onnxruntime")
    add_memory_and_stages([PlantedWorker("a.onnx", stages)], {"a.onnx": row}, True, lambda name: None)  # type: ignore[list-item]
    assert row.warnings == warnings
    assert (row.peak_bytes, row.device_bytes) == (1 << 30, 1 << 20)
    assert row.stages == (stages if isinstance(stages, dict) else {})


@pytest.mark.parametrize("alone", [False, True])
def test_what_fails_on_the_way_leaves_the_others(alone: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heat = tmp_path / "heat"
    heat.write_text("41500")
    monkeypatch.setattr(session, "find_sensors", lambda: Sensors(zones={"cpu-thermal": heat}))
    rows = {"good": Row("good", "onnxruntime"), "bad": Row("bad", "onnxruntime")}
    workers = [PlantedWorker("good", {}), PlantedWorker("bad", {}, runs=3)]
    found = measure_rows(workers, rows, Plan(0, 0, 20), alone, lambda name: None)  # type: ignore[arg-type]
    assert rows["bad"].failure == "fell out"
    assert (rows["bad"].parts, rows["bad"].conditions) == ({}, None)
    assert rows["good"].parts["total"].count == 20
    assert found["timeline"][0]["celsius"] == {"cpu-thermal": 41.5}
    assert found["timeline"][0]["at_s"] == pytest.approx(0, abs=1)
    assert found["over_current_events"] is None


def test_what_is_known_before(tmp_path: Path) -> None:
    maker = Maker(tmp_path, quiet=True)
    (tmp_path / "a.onnx").write_bytes(b"12")
    maker.made["a.onnx"] = Made("", "", "wnlb export a", 1.5)
    row = row_of(Variant("a.onnx", "onnxruntime", path=tmp_path / "a.onnx"), maker)
    assert (row.bytes, row.made_by, row.build_seconds, len(row.sha256)) == (2, "wnlb export a", 1.5, 64)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "a.onnx").write_bytes(b"123")
    assert row_of(Variant("a.onnx", "onnxruntime", path=tmp_path / "other" / "a.onnx"), maker).made_by == ""
    assert row_of(Variant("b.engine", "tensorrt", failure="no GPU"), maker).failure == "no GPU"
