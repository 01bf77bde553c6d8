"""Damaged files of every kind are read, or refused in one line; ``scripts/mutation_test.py`` has the long form.

Checkpoints and ONNX files, which take longer to open, have tests of their own beside those of their readers.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
from mutation_test import run_all
from mutations import running
from mutations.damage import damaged_json
from mutations.running import Subject, run_subject

from wnlb.runtime.errors import WnlbError


def test_labels_pictures_manifests_and_reports_that_are_damaged() -> None:
    rows, faults = run_all(["labels", "pictures", "manifests", "reports"], count=250, seed=2027, keep=None)
    assert not faults, "\n".join(f"{fault.subject} {fault.number}: {fault.what}" for fault in faults)
    for name, files, read, refused, _ in rows:
        assert (files, min(read, refused) > 0) == (250, True), name


def _leave_a_file(path: Path) -> None:
    path.with_name("left.tmp").write_text("x")


def _hang(path: Path) -> None:
    time.sleep(30)


def _raise(error: BaseException) -> Callable[[Path], None]:
    def read(path: Path) -> None:
        raise error

    return read


@pytest.mark.parametrize(
    ("read", "state", "what"),
    [
        (Path.read_bytes, "read", ""),
        (_raise(WnlbError("one line")), "refused", ""),
        (_raise(WnlbError("two\nlines")), "fault", "an error that is not one line"),
        (_raise(KeyError("id")), "fault", "KeyError: 'id' at test_mutations.py:"),
        (_raise(SystemExit(2)), "fault", "SystemExit"),
        (_leave_a_file, "fault", "left left.tmp behind"),
        (_hang, "fault", "TimeoutError: not answered within 1 s"),
    ],
)
def test_what_counts_as_a_fault(
    read: Callable[[Path], object], state: str, what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "SECONDS", 1 if read is _hang else 60)

    def make(folder: Path) -> list[Path]:
        (folder / "a.json").write_text('{"a": [1, 2, {"b": "c"}]}')
        return [folder / "a.json"]

    def only_damaged(path: Path) -> None:
        if path.parent.name == "damaged":
            read(path)

    subject = Subject("planted", make, damaged_json, only_damaged)
    (found,) = run_subject(subject, 1, seed=0, keep=tmp_path / "kept")
    assert found[0] == state
    assert (found[1].what if found[1] else "").startswith(what)
    assert (tmp_path / "kept").exists() == (state == "fault")


def test_the_same_seed_damages_alike(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"a": [1, 2, {"b": "c"}], "d": {"e": [[1.5]]}}')
    first, again = ([damaged_json(path, Random(f"{i}")) for i in range(50)] for _ in range(2))
    assert first == again
    assert len(set(first)) > 30
