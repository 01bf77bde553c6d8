"""``wnlb label --address local``: a real cluster of this machine, whose actors are really killed."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from held_picture import WAIT, opened_by_a_worker

pytest.importorskip("ray", reason="Ray is not installed: pip install 'wnlb-deploy[ray]'")


def actors_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    return [
        each for each in psutil.Process(process.pid).children(recursive=True) if "_Remote" in " ".join(each.cmdline())
    ]


def test_ray_gives_the_same_labels_also_when_an_actor_is_killed(
    planted_model_path: Path, wnlb: Callable[..., object], picture: Callable[..., Path], tmp_path: Path
) -> None:
    names = [f"{letter}.png" for letter in "abcde"]
    for number, name in enumerate(names):
        picture(tmp_path / "in" / name, 60 * number)
    (tmp_path / "list.txt").write_text("\n".join(f"in/{name}" for name in names))
    words = [tmp_path / "list.txt", "--block", "2", "--bits", "8", "--min-score", "0.3"]
    wnlb("label", planted_model_path, *words, "-o", tmp_path / "processes")
    pipe = tmp_path / "in/d.png"
    data = pipe.read_bytes()
    pipe.unlink()
    os.mkfifo(pipe)
    command = [sys.executable, "-m", "wnlb.runtime.cli", "label", planted_model_path, *words, "-o", tmp_path / "ray"]
    command += ["--address", "local", "--workers", "1", "--device", "cpu"]
    home = {**os.environ, "HOME": str(tmp_path / "home")}
    process = subprocess.Popen(list(map(str, command)), env=home, stdout=-1, stderr=-1, text=True)
    try:
        end = opened_by_a_worker(pipe)
        (actor,) = actors_of(process)
        actor.kill()
        os.close(end)
        actor.wait(WAIT)  # a zombie's other threads may still hold the pipe
        end = opened_by_a_worker(pipe)
        os.write(end, data)
        os.close(end)
        out, err = process.communicate(timeout=3 * WAIT)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0, err
    assert re.search(r"^wnlb label: a worker ended with c.png and 1 more \(\w+Error\); it is started again$", err, re.M)
    assert out.startswith("5 pictures; labels: ")
    found, expected = (json.loads((tmp_path / kind / "detections.json").read_text()) for kind in ("ray", "processes"))
    assert found == expected
    assert not (tmp_path / "home/.ray").exists()  # no token


def test_what_a_cluster_cannot_do_is_one_line(
    planted_model_path: Path, wnlb: Callable[..., object], picture: Callable[..., Path], tmp_path: Path
) -> None:
    picture(tmp_path / "in/a.png", 9)
    words = ["label", planted_model_path, tmp_path / "in", "-o", tmp_path / "out", "--address"]
    many = wnlb(*words, "local", "--threads", "1000", "--device", "cpu")
    assert "a worker of 1000 threads needs 1000 cores, the cluster has" in many.refused()
    none = wnlb("label", tmp_path / "in/a.png", tmp_path / "in", "-o", tmp_path / "out", "--address", "local")
    assert "a.png has the suffix '.png'; expected .onnx or .engine" in none.refused()
    assert "--address 127.0.0.1:9: no Ray cluster answers" in wnlb(*words, "127.0.0.1:9").refused()
