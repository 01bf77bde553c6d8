"""The wheel: what it holds, and that it runs without the source tree."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source, target = (tmp_path_factory.mktemp(name) for name in ("source", "wheel"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("calibration", "export", "plugins", "runtime"):
        shutil.copytree(ROOT / name, source / name)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-q"]
    subprocess.run([*command, "-w", str(target), str(source)], check=True, capture_output=True)
    return next(target.glob("*.whl"))


def test_only_wnlb_appears_at_the_top_of_site_packages(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} == {
        "wnlb",
        f"wnlb_deploy-{metadata.version('wnlb-deploy')}.dist-info",
    }
    assert {
        "wnlb/calibration/scenes/scene.py",
        "wnlb/export/graph/deploy.py",
        "wnlb/export/sample.safetensors",
        "wnlb/runtime/cli.py",
        "wnlb/plugins/CMakeLists.txt",
        "wnlb/plugins/src/embed.S.in",
        "wnlb/plugins/src/plugin.cpp",
        "wnlb/plugins/conformance/conformance.cpp",
        "wnlb/runtime/py.typed",
    } <= set(names)
    assert not [name for name in names if name.startswith(("wnlb/tests", "wnlb/scripts"))]
    for package in ("calibration", "export", "plugins", "runtime"):  # a room that pyproject.toml does not name
        assert {f"wnlb/{path.relative_to(ROOT)}" for path in (ROOT / package).rglob("*.py")} <= set(names)


def test_installed_wheel_runs_outside_the_tree(wheel: Path, tmp_path: Path, small_model_path: Path) -> None:
    """In an environment of its own that sees our dependencies, but not the editable install."""
    environment = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True)
    python = environment / "bin" / "python"
    site = subprocess.run(
        [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], capture_output=True, text=True
    ).stdout.strip()
    (Path(site) / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "-q", "--no-deps", "--no-index"]
    subprocess.run([*pip, str(wheel)], check=True, capture_output=True)
    where = "import wnlb.export.graph.deploy, wnlb.runtime as r; print(r.__file__)"
    found = subprocess.run([str(python), "-c", where], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert found.stdout.startswith(site)
    run = subprocess.run(
        [str(environment / "bin" / "wnlb"), "inspect", str(small_model_path)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert run.returncode == 0, run.stderr
    assert "contract:" in run.stdout


def test_a_jetson_keeps_its_own_packages() -> None:
    """No extra that a Jetson uses, and nothing that is always installed, shadows what JetPack brings."""
    always, jetson = [], []
    for requirement in metadata.requires("wnlb-deploy") or []:
        name = re.match(r"[\w.-]+", requirement)[0].lower()
        if "extra ==" not in requirement:
            always.append(name)
        elif re.search(r"""extra == ["']jetson["']""", requirement):
            jetson.append(name)
    assert jetson
    for name in (*always, *jetson):
        assert not name.startswith(("opencv", "onnxruntime", "torch", "tensorrt")), name
