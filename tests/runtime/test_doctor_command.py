"""What doctor says of this machine, and of machines made up of files."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from wnlb.runtime import doctor_command, machine
from wnlb.runtime.cli import main
from wnlb.runtime.engine.driver import Gpu


def test_this_machine(wnlb: Callable[..., Any]) -> None:
    ran = wnlb("doctor")
    assert (ran.code, ran.err) == (0, "")
    assert "ONNX Runtime" in ran.out
    assert re.search(r"^[+!] OpenCV        \d", ran.out, re.MULTILINE)
    assert "- display       none" in ran.out
    assert "wnlb run --serve" in ran.out


def test_without_opencv(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    assert main(["doctor"]) == 0
    assert "- OpenCV        not installed\n" in capsys.readouterr().out


def test_what_is_broken_ends_nothing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def broken() -> Any:
        raise RuntimeError("libX.so: undefined\nsymbol")

    monkeypatch.setattr(doctor_command, "_onnxruntime", broken)
    assert main(["doctor", "--json"]) == 0
    found = {entry["what"]: entry for entry in json.loads(capsys.readouterr().out)}
    assert found["ONNX Runtime"] == {
        "what": "ONNX Runtime",
        "state": "no",
        "found": "broken: libX.so: undefined symbol",
        "advice": "",
    }
    assert "OpenCV" in found


FILES = {
    "/proc/device-tree/model": "NVIDIA Jetson Orin Nano Developer Kit\0",
    "/etc/nv_tegra_release": "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64",
    "/var/lib/nvpmodel/status": "pmode:0002\n",
    "/etc/nvpmodel.conf": "< POWER_MODEL ID=0 NAME=15W >\n< POWER_MODEL ID=2 NAME=MAXN_SUPER >\n",
}


def test_a_jetson(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    files = dict(FILES)
    monkeypatch.setattr(machine, "_text", lambda path: files.get(path, ""))
    assert machine.jetson_model() == "NVIDIA Jetson Orin Nano Developer Kit"
    assert (machine.jetpack_release(), machine.power_mode()) == ("36.4.3", "MAXN_SUPER")
    assert main(["doctor"]) == 0
    printed = capsys.readouterr().out
    assert "+ Jetson        NVIDIA Jetson Orin Nano Developer Kit, L4T 36.4.3" in printed
    assert "+ power mode    MAXN_SUPER" in printed
    assert "csi:// and hardware decoding need JetPack's OpenCV" in printed
    files["/var/lib/nvpmodel/status"] = "pmode:0000"
    assert main(["doctor"]) == 0
    printed = capsys.readouterr().out
    assert "! power mode    15W\n" in printed
    assert "-> sudo nvpmodel -m 2\n" in printed
    files["/var/lib/nvpmodel/status"] = "pmode:0009"
    assert machine.power_mode() == "mode 9"


def test_the_drivers_version(monkeypatch: pytest.MonkeyPatch) -> None:
    for text, version in (
        ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.129.03  Thu Oct 19 18:56:32 UTC 2023\nGCC", "535.129.03"),
        ("NVRM version: NVIDIA UNIX Open Kernel Module for aarch64  540.4.0  Release Build", "540.4.0"),
        ("", ""),
    ):
        monkeypatch.setattr(machine, "_text", lambda path, text=text: text)
        assert machine.nvidia_driver() == version


def test_no_jetson(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(machine, "_text", lambda path: "")
    assert (machine.jetson_model(), machine.jetpack_release(), machine.power_mode()) == ("", "", "")
    assert machine.processor().endswith("cores")


def test_who_has_a_gpu_is_told_how_to_show_what_it_does(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor"]) == 0
    assert "gpu_evidence" not in capsys.readouterr().out
    monkeypatch.setattr(doctor_command, "find_gpu", lambda: Gpu("Orin", "8.7", "12.6", 8 << 30, True))
    assert main(["doctor"]) == 0
    printed = capsys.readouterr().out
    assert "! evidence      eight minutes show what the Orin can do\n" in printed
    assert "scripts/gpu_evidence -o out/evidence, then send us out/evidence/evidence.json" in printed
