"""Tables of planted rows."""

from __future__ import annotations

import pytest
from planted_rows import FACTS, planted_row

from wnlb.runtime.profile.measure import Samples
from wnlb.runtime.profile.report import (
    Column,
    Row,
    as_json,
    as_markdown,
    as_text,
    darkness_cells,
    latency_cells,
    notes,
    stage_cells,
)


def test_the_best_of_a_column_bears_a_star() -> None:
    assert Column("p50 ms", [3.0, 2.0, None]).cells() == ["3.0", "2.0*", "-"]
    assert Column("AP", [50.58, 50.6, 50.6], "max", "AP").cells() == ["50.58", "50.60*", "50.60*"]
    assert Column("AP", [50.58, 50.58], "max", "AP").cells() == ["50.58", "50.58"]  # nothing to choose
    assert Column("p50 ms", [3.0]).cells() == ["3.0"]
    assert Column("std", [3.0, 2.0], "").cells() == ["3.0", "2.0"]
    assert Column("size", [2048.0, 1024.0], form="bytes").cells() == ["2.0 KiB", "1.0 KiB*"]


def test_latency_has_only_columns_that_were_measured() -> None:
    rows = [planted_row("a.onnx", 10, 40.0), planted_row("b.onnx", 20)]
    header, cells = latency_cells(rows)
    assert header[:4] == ["model", "precision", "mask AP", "box AP"]
    assert "GPU memory" not in header
    assert "joules/frame" not in header
    a, b = (dict(zip(header, row, strict=True)) for row in cells)
    assert (a["p50 ms"], a["p99"], b["p50 ms"], b["mask AP"]) == ("12.0*", "14.0*", "22.0", "-")
    assert a["frames/s"] == "83.3*"
    assert set(latency_cells(rows, brief=True)[0]) < set(header)


def test_agreement_is_not_called_accuracy() -> None:
    row = planted_row("a.onnx", 10, 99.0)
    assert row.accuracy
    row.accuracy["truth"] = "reference"
    assert "mask AP as FP32" in latency_cells([row])[0]
    assert "mask AP as FP32" in latency_cells([row], brief=True)[0]


def test_stages_with_what_stands_around_the_network() -> None:
    header, cells = stage_cells([planted_row("a.onnx", 8), planted_row("b.onnx", 16, stages={"rpn": 5.0, "c2": 4.0})])
    assert header == ["stage, ms", "a.onnx", "b.onnx"]
    assert [row[0] for row in cells] == ["prepare", "stem", "c2", "c2 block", "rpn", "paste", "all"]
    assert cells[3] == ["c2 block", "4.0 (36 %) >= 1.0", "-"]
    assert cells[-1] == ["all", "11.0", "12.0"]


def test_darkness() -> None:
    header, cells = darkness_cells([planted_row("a.onnx", 8, 40.0), planted_row("b.onnx", 8)])
    assert header == ["AP at luminance", "0-0.015 (8)", "0.015-0.03 (8)"]
    assert cells == [["a.onnx", "40.00", "40.00"]]
    boxes = planted_row("c.onnx", 8, 40.0)
    assert boxes.accuracy
    boxes.accuracy["by_darkness"]["0-0.015"] |= {"mask_ap": None, "box_ap": None}
    assert darkness_cells([boxes])[1] == [["c.onnx", "-", "40.00"]]


def test_the_same_reason_is_told_once() -> None:
    rows = [Row("a.engine", "tensorrt", failure="no GPU"), Row("b.engine", "tensorrt", failure="no GPU")]
    rows.append(planted_row("c.onnx", 8, warnings=["unsteady"]))
    assert notes(rows, FACTS) == ["a.engine, b.engine: not measured: no GPU", "c.onnx: unsteady"]
    many = [Row(f"{i}.engine", "tensorrt", failure="no GPU") for i in range(5)]
    assert notes(many, FACTS) == ["0.engine, 1.engine and 3 more: not measured: no GPU"]
    assert notes([], {**FACTS, "over_current_events": 3}) == [
        "3 times current or voltage left their limits: the machine may have throttled"
    ]


def test_a_row_that_fails_on_the_way_has_no_numbers() -> None:
    row = Row("a.onnx", "onnxruntime")
    row.take(Samples([{"total": 1.0}], [(0.0, 1.0, 1)], "fell out"), 0.0)
    assert (row.failure, row.parts, row.samples_ms, row.frames_per_second) == ("fell out", {}, [], None)


def test_an_engine_that_waits_for_the_host_is_told() -> None:
    row = Row("a.engine", "tensorrt")
    times = [{"total": 9.0, "gpu": 2.0, "enqueue": 3.0} for _ in range(10)]
    row.take(Samples(times, [(0.0, 1.0, 10)]), 0.0)
    assert row.warnings == ["bound by the host: to enqueue takes longer than the GPU computes"]


def test_texts() -> None:
    rows = [planted_row("a.onnx", 10, 40.0, made_by="wnlb export a.pth"), Row("b.engine", "tensorrt", failure="no GPU")]
    text, markdown = as_text(rows, FACTS), as_markdown(rows, FACTS)
    assert "b.engine: not measured: no GPU" in text
    assert "| c2 block " in markdown
    assert "by 'wnlb export a.pth'" in markdown
    assert FACTS["command"] in markdown
    report = as_json(rows, FACTS)
    assert report["rows"][0]["parts"]["total"]["p50"] == 12
    assert report["rows"][0]["samples_at_s"][:5] == [0.062, 0.125, 0.188, 0.25, 1.062]
    assert report["rows"][0]["frames_per_second"] == pytest.approx(1e3 / 12)
