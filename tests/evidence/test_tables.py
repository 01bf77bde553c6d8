"""Tables are written from evidence; no figure of a GPU is typed by hand."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from evidence.checkout import ROOT
from evidence.plugin import _read
from evidence.summary import attention_rows, exact_rows, network_rows
from evidence.tables import EVIDENCE, PAGES, TABLES, read_evidence, written

from wnlb.runtime.errors import WnlbError

SHAPE = {"dtype": "float16", "size": "416x608", "level": "c2", "batch": 1, "d": 128, "n": 15808}


def timed(ms: float, **more: Any) -> dict[str, Any]:
    return {"ms": ms, "tflops": 128.0, "error": 1e-4, "max_error": 1e-3, "bytes": 1 << 20, **more}


def planted() -> dict[str, Any]:
    ours = {"ours a": timed(0.5), "ours b": timed(0.25), "sdpa flash": timed(0.3), "sdpa cudnn": {"refused": "no"}}
    network = {"model": "R50", "size": "416x608", "compiled": False, "detections": 5, "p99_ms": 9.0, "bytes": 1 << 30}
    agreement = {"again": 5, "expected": 5}
    exact = {"source": "machine code", "dtype": "float16", "pytorch_rms_error": 2e-4}
    rows = {
        "exact": [
            {**exact, "spread": 1.5, "rms_error": 1e-4, "right": True},
            {**exact, "spread": 1e4, "rms_error": 0.5, "right": False},
            {**exact, "refused": "no"},
        ],
        "fast": [{**SHAPE, "peers": ours}, {**SHAPE, "peers": {"flex": timed(0.28)}}, {**SHAPE, "refused": "no time"}],
        "plugin": [
            {"library": "all", "tool": "", "checks": 7, "failed": 0},
            {"library": "all", "tool": "m", "refused": "x"},
        ],
        "network": [
            {**network, **agreement, "variant": "eager FP32", "p50_ms": 8.0},
            {**network, **agreement, "variant": "eager FP16", "p50_ms": 6.0},
            {**network, **agreement, "variant": "static FP16", "p50_ms": 2.0},
            {**network, "variant": "compiled FP16", "refused": "no"},
        ],
        "engines": [
            {"name": "a.engine", "backend": "tensorrt", "parts": {"total": {"p50": 1.5, "p99": 2.5}}, "failure": ""}
        ],
    }
    stages = {name: {"title": name, "state": "done", "facts": {}, "rows": found} for name, found in rows.items()}
    stages["fast"]["facts"] = {"peak_tflops": {"float16": 640.0}}
    gpu = {"name": "NVIDIA Planted", "compute_capability": "9.0"}
    machine = {"gpu": gpu, "versions": {"torch": "2.11.0"}}
    head = {"format": 1, "created": "2026-01-02T03:04:05", "commit": "0123456789abcdef", "rehearsal": False}
    return {**head, "machine": machine, "stages": stages}


def page(name: str) -> str:
    return f"before\n<!-- evidence: {name} -->\nold\n<!-- end of evidence -->\nafter\n"


def test_the_pages_say_what_the_evidence_says() -> None:
    """Where this fails: scripts/gpu_evidence --tables."""
    evidence, named = read_evidence(), []
    for name in PAGES:
        text = (ROOT / name).read_text()
        named += re.findall(r"<!-- evidence: (\w+) -->", text)
        assert written(name, text, evidence) == text, name
    assert set(named) == set(TABLES)
    assert EVIDENCE.is_dir()


def test_ratios_are_the_best_of_ours_against_the_best_of_the_others() -> None:
    (row,) = attention_rows(planted()["stages"]["fast"]["rows"])
    wrong = {"ours c": timed(0.1, error="nan"), "sdpa math": timed(0.1, error=0.5)}
    (same,) = attention_rows([*planted()["stages"]["fast"]["rows"], {**SHAPE, "peers": wrong}])
    assert same == row
    assert (row["tile"], row["peer"], row["ours_ms"], row["peer_ms"]) == ("ours b", "flex", 0.25, 0.28)
    assert row["ratio"] == pytest.approx(0.28 / 0.25)
    ratios = {row["variant"]: row["ratio"] for row in network_rows(planted()["stages"]["network"]["rows"])}
    assert ratios == {"eager FP32": 0, "eager FP16": 0, "static FP16": 3.0}
    assert exact_rows(planted()["stages"]["exact"]["rows"]) == [("machine code", "float16", 1, 2, "1.0e-04", "2.0e-04")]


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("attention", ("| 0.250 |", "| 20% ", "flex, 0.280", "**1.12**")),
        ("exactness", ("machine code", "| 1 ", "| 2 ")),
        ("conformance", ("7 checks, 0 failed", "| x ")),
        ("network", ("static FP16", "**3.00**", "5 of 5")),
        ("engines", ("a.engine", "1.50", "2.50")),
    ],
)
def test_a_table_shows_its_figures_and_where_they_are_from(name: str, shown: tuple[str, ...]) -> None:
    text = written("README.md", page(name), {"h100": planted()})
    for words in ("before\n", "after\n", "NVIDIA Planted, PyTorch 2.11.0, 2026-01-02, commit 0123456789", *shown):
        assert words in text
    assert "old" not in text
    assert written("README.md", text, {"h100": planted()}) == text


def test_without_evidence_it_says_so() -> None:
    assert "Not measured yet" in written("README.md", page("attention"), {})
    one = planted()
    one["stages"] = {}
    assert "Not measured yet" in written("README.md", page("attention"), {"h100": one})
    with pytest.raises(WnlbError, match="wants the table 'speed'"):
        written("README.md", page("speed"), {})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rehearsal": True}, "is a rehearsal"),
        ({"format": 2}, "of another format"),
        ({"machine": {"gpu": None}}, "of no GPU"),
        ({"machine": None}, "is no evidence"),
    ],
)
def test_evidence_of_nothing_is_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    (tmp_path / "gpu.json").write_text(json.dumps({**planted(), **change}))
    with pytest.raises(WnlbError, match=message):
        read_evidence(tmp_path)
    (tmp_path / "gpu.json").write_text("{")
    with pytest.raises(WnlbError, match="is no evidence"):
        read_evidence(tmp_path)


def test_what_the_conformance_program_says_is_read() -> None:
    said = """  d=32 e=32 N=96 type=1 tactic 1: error 1.0e-04
  d=32 e=32 N=101 type=1 tactic 2: error 3.0e-04
  d=32 e=32 N=96 type=0 tactic 1: error 2.0e-07
FAILED: error < allowed
402 checks, 1 failed; 134 kernels
========= ERROR SUMMARY: 0 errors
"""
    found = _read(said)
    assert (found["checks"], found["failed"], found["kernels"], found["runs"]) == (402, 1, 134, 3)
    assert found["largest_error"] == {"float16": 3e-4, "float32": 2e-7}
    assert found["complaints"] == ["FAILED: error < allowed"]
    assert found["last_line"] == "========= ERROR SUMMARY: 0 errors"
    nothing = _read("45 checks, 0 failed; 134 kernels; no GPU: nothing was launched (no CUDA driver)")
    assert nothing["refused"] == "nothing was launched (no CUDA driver)"
    assert _read("")["failed"] is None
