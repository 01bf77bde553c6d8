"""Who imports whom: packages, their rooms and single modules, at the top of a file, inside functions and for types."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from wnlb.runtime.cli import COMMANDS

ROOT = Path(__file__).parents[1]
PACKAGES = ("calibration", "export", "plugins", "runtime")
HEAVY = {
    "torch",
    "torchvision",
    "onnx",
    "onnxruntime",
    "tensorrt",
    "pycuda",
    "cuda",
    "pycocotools",
    "tritonclient",
    "grpc",
    "trackers",
    "scipy",
    "pyarrow",
    "ray",
}
# What each room may import of its own package, beside itself. A package's name stands for the modules at its top.
ROOMS = {
    "calibration.labels": set(),
    "calibration.scenes": {"calibration.labels"},
    "calibration.accuracy": {"calibration.labels", "calibration.scenes"},
    "calibration.precision": {"calibration.scenes", "calibration.accuracy"},
    "calibration.comparison": {"calibration.scenes", "calibration.accuracy", "calibration.precision"},
    "export.adopt.families": {
        *("export", "export.checkpoints.configurations", "export.graph", "export.onnx_file", "export.references"),
    },
    "export.adopt": {"export", "export.adopt.families", "export.graph", "export.onnx_file"},
    "export.checkpoints.configurations": {"export"},
    "export.checkpoints.files": set(),
    "export.checkpoints.names": {"export"},
    "export.checkpoints": {
        "export",
        *(f"export.checkpoints.{room}" for room in ("configurations", "files", "names")),
    },
    "export.graph": {"export"},
    "export.onnx_file": {
        *("export", "export.checkpoints", "export.checkpoints.configurations", "export.checkpoints.files"),
        *("export.graph", "export.references"),
    },
    "export.references": set(),  # what verification trusts shares no code with what it verifies
    "runtime.deepstream": {"runtime"},
    "runtime.engine": {"runtime"},
    "runtime.labelling": {"runtime", "runtime.engine"},
    "runtime.tracking": {"runtime"},
    "runtime.live": {"runtime", "runtime.night", "runtime.tracking"},
    "runtime.night": {"runtime", "runtime.report"},
    "runtime.profile": {"runtime", "runtime.engine", "runtime.report"},
    "runtime.report": {"runtime"},
    "runtime.serving": {"runtime", "runtime.engine"},
}
# Who loads the plugin library or looks beside it, and who brings attention into the form that is built; in functions.
BESIDE = {
    "runtime.engine.build": {"export.onnx_file.fuse", "plugins.library"},
    "runtime.engine.network": {"export.onnx_file.fuse"},
    "runtime.engine.opening": {"plugins.library"},
    "runtime.doctor_command": {"plugins.library"},
    "runtime.serving.repository": {"plugins.library"},  # to put it beside the engines that need it
    "runtime.deepstream.command": {"export.onnx_file.fuse", "plugins.library"},
    "runtime.inspect_command": {"export.onnx_file.attention_nodes"},
    "runtime.profile.variants": {"plugins.library"},  # its hash; as the file is imported, which loads no library
}


@dataclass(frozen=True)
class Import:
    name: str  # without "wnlb."
    at_once: bool  # when the file is imported: neither in a function nor for types alone


def _imports(source: str, modules: set[str]) -> set[Import]:
    """The modules among ``modules`` that a source imports. Raises ValueError for a relative import."""
    found: set[Import] = set()

    def visit(node: ast.AST, at_once: bool) -> None:
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            if node.level or node.module is None:
                raise ValueError(f"relative import: {ast.unparse(node)}")
            inside = {f"{node.module}.{alias.name}" for alias in node.names}  # from wnlb.runtime import cli
            named = {name for name in inside if name.removeprefix("wnlb.") in modules}
            names = [*named, *([node.module] if named != inside else [])]
        for name in names:
            if name.startswith("wnlb."):
                found.add(Import(name.removeprefix("wnlb."), at_once))
        later = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        later |= isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for child in ast.iter_child_nodes(node):
            visit(child, at_once and not later)

    visit(ast.parse(source), True)
    return found


def _paths() -> Iterator[tuple[str, Path]]:
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            yield ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"), path


PATHS = dict(_paths())
IMPORTS = {name: _imports(path.read_text(), set(PATHS)) for name, path in PATHS.items()}


def place_of(name: str) -> str:
    """The room of a module, or its package where it lies at the top."""
    return next((room for room in ROOMS if name == room or name.startswith(f"{room}.")), name.split(".")[0])


def wrong(package: str, allowed: Callable[[str, Import], bool]) -> set[tuple[str, str]]:
    """Pairs of a module in ``package`` and one that it imports from elsewhere, where it may not."""
    return {
        (name, other.name)
        for name, imports in IMPORTS.items()
        if name.split(".")[0] == package
        for other in imports
        if other.name.split(".")[0] != package and not allowed(name, other)
    }


def test_imports_are_found() -> None:
    """Else the tests below would test nothing."""
    source = """
import numpy, wnlb.a.top
from wnlb.a import module, function
from wnlb.b import other
if TYPE_CHECKING:
    from wnlb.a.types import Type
class C:
    import wnlb.c
    def method(self):
        from wnlb.a.late import name
"""
    modules = {"a", "a.top", "a.module", "a.types", "a.late", "b", "b.other", "c"}
    found = {(one.name, one.at_once) for one in _imports(source, modules)}
    assert found == {
        *(("a.top", True), ("a", True), ("a.module", True), ("b.other", True), ("c", True)),
        *(("a.types", False), ("a.late", False)),
    }
    with pytest.raises(ValueError, match="relative"):
        _imports("from . import cli", modules)
    assert {"runtime.profile.measure", "calibration.scenes.camera", "export.graph.deploy", "plugins"} <= set(PATHS)
    assert IMPORTS["runtime.geometry"] == {Import("runtime.antialiased", True), Import("runtime.errors", True)}
    assert Import("runtime.onnxruntime_backend", False) in IMPORTS["runtime.backend"]
    for name, imports in IMPORTS.items():
        assert {one.name for one in imports} <= set(PATHS), name


def test_every_room_is_known_and_says_what_it_is_for() -> None:
    packages = {name for name, path in PATHS.items() if path.name == "__init__.py"}
    assert packages == {*PACKAGES, *ROOMS}
    folders = {path.parent for path in PATHS.values()}
    assert folders == {PATHS[name].parent for name in packages}  # none without an __init__
    for name in packages:
        docstring = ast.get_docstring(ast.parse(PATHS[name].read_text()))
        assert docstring, name
        assert "\n" not in docstring, name


def _loaded_by(*names: str) -> set[str]:
    """The packages that are there once these modules are imported."""
    script = f"import {', '.join(names)}, sys; print(*sys.modules)"
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300, check=True)
    return {name.split(".")[0] for name in ran.stdout.split()}


def test_importing_the_runtime_loads_nothing_heavy() -> None:
    """On a Jetson it runs with NumPy, OpenCV and TensorRT alone, and no CUDA starts before a model is opened."""
    loaded = _loaded_by(*(f"wnlb.{name}" for name in PATHS if name.split(".")[0] == "runtime"))
    assert "cv2" in loaded
    assert loaded & HEAVY == set()


def test_no_import_goes_in_a_circle() -> None:
    """Nor in functions, nor for types: what two modules need of one another belongs into a third."""
    try:
        TopologicalSorter({name: {one.name for one in imports} for name, imports in IMPORTS.items()}).prepare()
    except CycleError as error:
        pytest.fail(" is imported by ".join(error.args[1]))


def test_rooms_import_in_one_direction() -> None:
    TopologicalSorter({room: allowed & set(ROOMS) for room, allowed in ROOMS.items()}).prepare()
    found = {
        (name, other.name)
        for name, imports in IMPORTS.items()
        if (room := place_of(name)) in ROOMS
        for other in imports
        if other.name.split(".")[0] == name.split(".")[0] and place_of(other.name) not in ROOMS[room] | {room}
    }
    assert found == set()


def test_references_stand_on_their_own() -> None:
    """They judge the graph: of ours they import only the exceptions, else PyTorch, torchvision and NumPy."""
    for name, path in PATHS.items():
        if place_of(name) == "export.references":
            ours = {one.name for one in IMPORTS[name] if place_of(one.name) != "export.references"}
            assert ours <= {"runtime.errors"}, name
            outside = {each.split(".")[0] for each in re.findall(r"^(?:from|import) (\S+)", path.read_text(), re.M)}
            assert outside <= {*sys.stdlib_module_names, "numpy", "torch", "torchvision", "wnlb"}, name


def test_what_stands_at_the_top_of_the_export_imports_no_room() -> None:
    """But for the command in functions, what it shares with ``adopt`` for types: ``--help`` loads no PyTorch."""
    for name, imports in IMPORTS.items():
        if place_of(name) == "export":
            rooms = {one for one in imports if place_of(one.name).startswith("export.")}
            assert not rooms or name in ("export.command", "export.report"), name
    assert "torch" not in _loaded_by("wnlb.export.command", "wnlb.export.arguments")


def test_the_runtime_imports_only_the_runtime() -> None:
    def allowed(name: str, other: Import) -> bool:
        at_once = name == "runtime.profile.variants"
        return other.name in BESIDE.get(name, set()) and (at_once or not other.at_once)

    assert wrong("runtime", allowed) == set()
    assert not IMPORTS["runtime.errors"] | IMPORTS["runtime.antialiased"]
    beneath = {"runtime.errors", "runtime.conventions", "runtime.antialiased"}
    for name in ("runtime.conventions", "runtime.contract", "runtime.geometry", "runtime.detections"):
        assert {one.name for one in IMPORTS[name]} <= beneath, name


def test_the_export_imports_little_of_the_runtime() -> None:
    names = {
        f"runtime.{name}"
        for name in (
            *("contract", "conventions", "denormals", "geometry", "detections"),
            *("errors", "files", "onnx_file", "table", "text_file"),
        )
    }
    names |= {"plugins.tiles"}  # which head sizes there are kernels for
    assert wrong("export", lambda name, other: other.name in names) == set()


def test_the_plugins_import_little_of_the_runtime() -> None:
    names = {f"runtime.{name}" for name in ("errors", "files", "table")}
    assert wrong("plugins", lambda name, other: other.name in names) == set()


def test_the_calibration_imports_the_runtime_and_no_pytorch() -> None:
    def allowed(name: str, other: Import) -> bool:
        if other.name in ("export.onnx_file.eager", "export.checkpoints.files.fetched"):  # they load PyTorch
            return not other.at_once
        if name == "calibration.comparison.command" and other.name == "export.arguments":  # checkpoints are read alike
            return True
        return other.name.startswith("runtime.") or other.name in ("export.onnx_file.fuse", "export.onnx_file.lint")

    assert wrong("calibration", allowed) == set()
    for name, path in PATHS.items():
        assert name.split(".")[0] != "calibration" or "import torch" not in path.read_text(), name


def test_the_command_line_names_modules_that_exist() -> None:
    """The one place that looks upwards, by name."""
    for module, _ in COMMANDS.values():
        assert module.removeprefix("wnlb.") in PATHS
        assert {"add_arguments", "run"} <= set(vars(importlib.import_module(module)))
