"""scripts/jetson_setup on a made-up Jetson: a root folder and commands that only tell what they were asked."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "jetson_setup"
RELEASE = "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64\n"


@pytest.fixture
def jetson(tmp_path: Path) -> Path:
    for name, text in {
        "proc/device-tree/model": "NVIDIA Jetson Orin Nano\0",
        "etc/nv_tegra_release": RELEASE,
        "bin/python3": '#!/bin/sh\ncase "$2" in *tensorrt*) echo 10.3.0;; *cv2*) exit ${NO_OPENCV:-0};; esac\n',
        "bin/nvpmodel": "#!/bin/sh\necho 'NV Power Mode: MAXN_SUPER'\n",
        "etc/nvpmodel.conf": "< POWER_MODEL ID=0 NAME=15W >\n< POWER_MODEL ID=2 NAME=MAXN_SUPER >\n",
        "sys/class/devfreq/17000000.gpu/min_freq": "1020000000",
        "sys/class/devfreq/17000000.gpu/max_freq": "1020000000",
        "usr/include/aarch64-linux-gnu/NvInferRuntime.h": "",
        "usr/local/cuda-12.6/include/cuda.h": "",
        "bin/sudo": f"#!/bin/sh\ntouch {tmp_path}/changed\n",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
        if name.startswith("bin/"):
            (tmp_path / name).chmod(0o755)
    return tmp_path


def run(*words: str, root: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    path = f"{root / 'bin'}{os.pathsep}{os.environ['PATH']}"
    env = {**os.environ, "JETSON_ROOT": str(root), "PATH": path, **environment}
    return subprocess.run([SCRIPT, *words], env=env, capture_output=True, text=True, timeout=300)


def test_a_jetson_that_has_all(jetson: Path) -> None:
    ran = run("--check", root=jetson)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert "+ Jetson       NVIDIA Jetson Orin Nano, L4T 36.4.3\n" in ran.stdout
    assert "+ TensorRT     10.3.0\n" in ran.stdout
    assert "+ OpenCV       with GStreamer\n" in ran.stdout
    assert "+ power mode   MAXN_SUPER\n" in ran.stdout
    assert "+ GPU clocks   at their highest\n" in ran.stdout
    assert "apt-get" not in ran.stdout


def test_what_is_missing_is_named_and_a_check_changes_nothing(jetson: Path) -> None:
    (jetson / "bin" / "nvpmodel").write_text("#!/bin/sh\necho 'NV Power Mode: 15W'\n")
    (jetson / "sys" / "class" / "devfreq" / "17000000.gpu" / "min_freq").write_text("306000000")
    (jetson / "usr" / "local" / "cuda-12.6" / "include" / "cuda.h").unlink()
    ran = run("--check", root=jetson, NO_OPENCV="1")
    assert ran.returncode == 0
    assert "$ sudo apt-get install --yes python3-opencv cuda-driver-dev-12-6" in ran.stdout
    assert "- power mode   15W; for full speed: sudo nvpmodel -m 2" in ran.stdout
    assert "- GPU clocks   vary with the load" in ran.stdout
    assert not (jetson / "changed").exists()


def test_refusals(jetson: Path, tmp_path: Path) -> None:
    (jetson / "etc" / "nv_tegra_release").write_text(RELEASE.replace("4.3", "3.0"))
    for words, root, message in (
        (["--check"], jetson, "L4T 36.3.0; JetPack 6.1"),
        ([], jetson, "L4T 36.3.0; JetPack 6.1"),
        (["--check"], tmp_path / "none", "this is no Jetson"),
        (["--all"], jetson, "--all is no option"),
    ):
        ran = run(*words, root=root)
        assert (ran.returncode, ran.stdout) == (2, "")
        assert message in ran.stderr
        assert ran.stderr.count("\n") == 1
    assert "--check" in run("--help", root=jetson).stdout
