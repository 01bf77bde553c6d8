"""`scripts/gpu_evidence`, as a user calls it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from evidence.checkout import ROOT
from evidence.pack import pack
from evidence.runner import STAGES

from wnlb.runtime.errors import WnlbError


def gpu_evidence(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, ROOT / "scripts" / "gpu_evidence", *words]
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=1800)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a rehearsal is for machines without a GPU")
def test_the_rehearsal_runs_the_code_of_every_stage(tmp_path: Path) -> None:
    ran = gpu_evidence("--rehearse", "--minutes", 30, "-o", tmp_path / "out", "--carried", tmp_path)
    assert ran.returncode == 0, ran.stderr
    record = json.loads((tmp_path / "out" / "evidence.json").read_text())
    assert record["rehearsal"]
    assert list(record["stages"]) == [stage.name for stage in STAGES]
    for name, stage in record["stages"].items():
        assert (stage["state"], stage["reason"]) == ("done", ""), (name, stage["reason"], stage["said"])
        assert stage["rows"], name
    rows = {name: stage["rows"] for name, stage in record["stages"].items()}
    assert all(row["right"] for row in rows["exact"])
    assert {row["source"] for row in rows["exact"]} == {"machine code", "portable PTX"}
    ours = [name for row in rows["fast"] for name in row["peers"] if name.startswith("ours")]
    assert ours
    assert not [
        peer for row in rows["fast"] for name, peer in row["peers"].items() if name in ours and "ms" not in peer
    ]
    assert not [row for row in rows["network"] if "refused" in row]
    precise = [row for row in rows["network"] if row["variant"] in ("eager FP32", "static FP32")]
    assert {row["detections"] for row in precise} == {8, 5}
    assert all(row["again"] == row["expected"] == row["detections"] for row in precise)
    assert max(row["box_px"] for row in precise) < 0.05
    assert "static FP16, our kernel" in {row["variant"] for row in rows["network"]}
    assert rows["memory"][0]["frames"] == 1000
    assert rows["memory"][0]["right"]
    assert rows["engines"][0]["failure"] == ""
    text = (tmp_path / "out" / "evidence.md").read_text()
    assert "no figure here is a measurement" in text
    assert str(ROOT) not in json.dumps(record)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--only", "exact,speed", "-o", "out"], "stage 'speed' is not known; expected some of exact, fast"),
        (["--minutes", "0", "-o", "out"], "0.0 minutes; expected more than 0"),
        (["--rehearse", "--tables"], "--rehearse and --only are for measuring; expected -o DIR"),
        (["--pack", "out", "--python", "abc"], "--python abc is no version; expected such as 3.12"),
        (["--rehearse", "-o", "out", "--carried", "absent"], "--carried absent does not exist; expected what"),
        (["--rehearse", "-o", "out", "--carried", __file__], "is no folder; expected what"),
        (["--pack", "out", "--arch", "hopper"], "--arch hopper is no list of compute capabilities"),
        (["--pack", "out", "--arch", "70"], "there are no kernels for [70]; expected some of 80"),
    ],
)
def test_bad_input_is_one_line(words: list[str], message: str, tmp_path: Path) -> None:
    words = [str(tmp_path / word) if word == "out" else word for word in words]
    ran = gpu_evidence(*words)
    assert ran.returncode == 2
    assert message in ran.stderr
    assert len(ran.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_without_a_gpu_it_says_what_can_be_done(tmp_path: Path) -> None:
    ran = gpu_evidence("-o", tmp_path / "out")
    assert (ran.returncode, len(ran.stderr.splitlines())) == (2, 1)
    assert "there is no NVIDIA GPU" in ran.stderr
    assert "--rehearse" in ran.stderr


def test_what_is_carried_is_made_and_what_is_not_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def made(what: str, words: list[str]) -> None:
        if what == "kernels":
            Path(words[-1]).mkdir(parents=True)
            (Path(words[-1]) / "kernels.bin").write_bytes(bytes(3 << 20))
        elif what == "no-such-wheel":
            raise WnlbError("no matching distribution")
        elif "headers" in what:
            raise WnlbError("TensorRT's headers are not found")

    monkeypatch.setattr("evidence.pack._run", made)
    pack(tmp_path, [87, 90], "", "3.12", ["no-such-wheel"])
    record = json.loads((tmp_path / "pack.json").read_text())
    assert record["archs"] == [87, 90]
    assert "--tensorrt-root" in record["missing"]["plugin"]
    assert record["missing"]["no-such-wheel"] == "no matching distribution"
    assert {path.parent.name for path in tmp_path.rglob("kernels.bin")} == {"sm_87", "sm_90", "ptx"}
    said = capsys.readouterr().out
    assert "9.0 MiB  in all" in said
    assert "left out  plugin" in said
    shutil.rmtree(tmp_path / "kernels")
    (tmp_path / "large.whl").write_bytes(bytes(60 << 20))
    with pytest.raises(WnlbError, match=r"at most 60\.0 MiB"):
        pack(tmp_path, [90], "", "3.12", [])
