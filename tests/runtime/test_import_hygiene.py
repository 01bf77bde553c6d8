import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAVY = {"torch", "torchvision", "onnx", "onnxruntime", "tensorrt", "pycuda", "cuda", "pycocotools"}
# Who loads the plugin library, and who brings attention into the form that is built; only in functions.
BESIDE = {
    "engine.build": {"wnlb.export.onnx_file.fuse", "wnlb.plugins.library"},
    "engine.engine": {"wnlb.plugins.library"},
    "doctor_command": {"wnlb.plugins.library"},
    "profile.variants": {"wnlb.plugins.library"},  # its hash
}
_FILES = [path for path in (ROOT / "runtime").rglob("*.py") if path.stem != "__init__"]
RUNTIME = sorted(".".join(path.relative_to(ROOT / "runtime").with_suffix("").parts) for path in _FILES)


def imports_of_ours(path: Path) -> set[str]:
    """Modules of ours that a file imports, at its top or inside a function."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            found |= {node.module or ""}
            if node.module in (
                "wnlb",
                "wnlb.runtime",
                "wnlb.export",
                "wnlb.calibration",
            ):  # from wnlb.runtime import cli
                found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in found if name.split(".")[0] == "wnlb"}


def test_the_parts_of_the_runtime_are_found():
    """Else the tests below would test nothing."""
    assert {"contract", "predictor", "cli", "profile.measure"} <= set(RUNTIME)
    assert imports_of_ours(ROOT / "runtime" / "geometry.py") == {"wnlb.runtime.errors"}
    assert imports_of_ours(ROOT / "runtime" / "backend.py") >= {"wnlb.runtime.onnxruntime_backend"}  # in a function


def test_importing_the_runtime_loads_nothing_heavy():
    """On a Jetson it runs with NumPy, OpenCV and TensorRT alone, and no CUDA starts before a model is opened."""
    names = ["wnlb.runtime", *(f"wnlb.runtime.{name}" for name in RUNTIME)]
    script = f"import {', '.join(names)}, sys; print(*sys.modules)"
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    loaded = {name.split(".")[0] for name in ran.stdout.split()}
    assert "cv2" in loaded
    assert loaded & HEAVY == set()


@pytest.mark.parametrize("name", RUNTIME)
def test_the_runtime_imports_only_the_runtime(name):
    imports = imports_of_ours(ROOT / "runtime" / f"{name.replace('.', '/')}.py")
    assert {other for other in imports if not other.startswith("wnlb.runtime.")} <= BESIDE.get(name, set())
    if name in ("contract", "geometry", "detections"):
        assert imports <= {"wnlb.runtime.errors"}
    if name == "errors":
        assert imports == set()


@pytest.mark.parametrize("path", sorted((ROOT / "export").glob("*.py")), ids=lambda path: path.stem)
def test_the_export_imports_little_of_the_runtime(path):
    allowed = {f"wnlb.runtime.{name}" for name in ("contract", "geometry", "detections", "errors", "files", "table")}
    allowed |= {"wnlb.plugins.tiles"}  # which head sizes there are kernels for
    assert {name for name in imports_of_ours(path) if not name.startswith("wnlb.export")} <= allowed


@pytest.mark.parametrize("path", sorted((ROOT / "plugins").glob("*.py")), ids=lambda path: path.stem)
def test_the_plugins_import_little_of_the_runtime(path):
    allowed = {f"wnlb.runtime.{name}" for name in ("errors", "files", "table")}
    assert {name for name in imports_of_ours(path) if not name.startswith("wnlb.plugins")} <= allowed


@pytest.mark.parametrize("path", sorted((ROOT / "calibration").glob("*.py")), ids=lambda path: path.stem)
def test_the_calibration_imports_the_runtime_and_no_pytorch(path):
    allowed = {f"wnlb.export.onnx_file.{name}" for name in ("fuse", "lint", "eager")}  # eager: only in a function
    other = {name for name in imports_of_ours(path) if not name.startswith(("wnlb.calibration", "wnlb.runtime"))}
    assert other <= allowed
    assert "import torch" not in path.read_text()
