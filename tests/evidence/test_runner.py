"""Stages that fail, hang or lack something are rows with a reason, and never stop the next."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from evidence.machine import describe
from evidence.markdown import _TABLES as TABLES_OF_STAGES
from evidence.runner import STAGES, Stage, measure

SLEEP = f"600.{os.getpid()}"  # no other process sleeps so long
PLANTED = {
    "good": "def run(context): context.fact('a', 1); context.add(value=float('nan'), left=context.left() > 0)",
    "lacking": "from wnlb.runtime.errors import MissingDependency as Missing\n"
    "def run(context): raise Missing('no gadget')",
    "failing": "def run(context): context.add(value=1); raise ValueError('a shape\\nof two lines')",
    "dying": "import os\ndef run(context): context.add(value=1); os.kill(os.getpid(), 11)",
    "hanging": "import subprocess\n"
    f"def run(context): context.add(value=1); subprocess.run(['sleep', '{SLEEP}'])",  # with a child, as tests have
    "broken": "this is no Python",
}


@pytest.fixture
def record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    def run(*names: str, seconds: float) -> dict[str, Any]:
        for name, code in PLANTED.items():
            (tmp_path / f"planted_{name}.py").write_text(code)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        stages = [Stage(name, f"the {name} one", 1 + 9 * (name == "good"), f"planted_{name}") for name in names]
        head = {"rehearsal": True, "created": "now", "commit": "abc", "machine": describe()}
        (tmp_path / "out").mkdir()
        measure(stages, head, tmp_path / "out", seconds, tmp_path / "carried")
        assert sorted(os.listdir(tmp_path / "out")) == ["evidence.json", "evidence.md"]
        return json.loads((tmp_path / "out" / "evidence.json").read_text())

    return run


@pytest.fixture(autouse=True)
def _any_table(monkeypatch: pytest.MonkeyPatch) -> None:
    from evidence.markdown import _any

    monkeypatch.setattr("evidence.markdown._TABLES", dict.fromkeys(PLANTED, lambda rows, facts: _any(rows)))


def test_whatever_a_stage_does_the_next_one_runs(record: Any) -> None:
    found = record("lacking", "failing", "dying", "broken", "good", seconds=120)
    stages = found["stages"]
    assert [stage["state"] for stage in stages.values()] == ["missing", "failed", "failed", "failed", "done"]
    assert stages["lacking"]["reason"] == "no gadget"
    assert stages["failing"]["reason"] == "ValueError: a shape"
    assert stages["failing"]["rows"] == [{"value": 1}]
    assert stages["failing"]["said"][-1] == "of two lines"
    assert stages["dying"]["reason"].startswith("ended by signal 11")
    assert stages["dying"]["rows"] == [{"value": 1}]
    assert "SyntaxError" in stages["broken"]["reason"]
    assert stages["good"]["rows"] == [{"value": "nan", "left": True}]
    assert stages["good"]["facts"] == {"a": 1}
    assert found["format"] == 1


def test_a_stage_that_hangs_is_cut_off_with_what_it_had_and_its_children(record: Any) -> None:
    found = record("hanging", "good", seconds=88)
    hanging, good = found["stages"]["hanging"], found["stages"]["good"]
    assert (hanging["state"], hanging["reason"], hanging["rows"]) == ("cut off", "its time was over", [{"value": 1}])
    assert hanging["limit_seconds"] == pytest.approx(8, abs=0.1)  # its share of the time
    assert 8 - 0.1 < hanging["seconds"] < 80
    assert good["state"] == "done"
    sleeping = [p for p in Path("/proc").glob("[0-9]*/cmdline") if _read(p) == f"sleep\0{SLEEP}\0".encode()]
    assert not sleeping


def test_a_page_that_cannot_be_written_costs_no_figure(record: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evidence.markdown._TABLES", {})
    assert record("good", seconds=60)["stages"]["good"]["facts"] == {"a": 1}


def test_every_stage_has_a_table() -> None:
    assert {stage.name for stage in STAGES} == set(TABLES_OF_STAGES)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""
