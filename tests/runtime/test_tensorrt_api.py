"""Every name of TensorRT that our code touches is in 10.3 and in 11.4 (tests/data, scripts/record_tensorrt_api.py)."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from wnlb.runtime.engine.engine import _TYPES

ROOT = Path(__file__).parents[2]
RECORDED = json.loads((ROOT / "tests" / "data" / "tensorrt_api.json").read_text())
VERSIONS = sorted(RECORDED)
PARTS = (
    "engine",
    "execution",
    "layers",
    "mask_part",
    "network",
    "opening",
    "progress",
    "tensorrt",
    "timing",
    "timing_cache",
)
FILES = [ROOT / "runtime" / "engine" / f"{name}.py" for name in PARTS]
FILES.append(ROOT / "plugins" / "library.py")
# How variables that hold TensorRT's objects are called in our code.
OBJECTS = {
    "builder": "Builder",
    "network": "INetworkDefinition",
    "parser": "OnnxParser",
    "config": "IBuilderConfig",
    "profile": "IOptimizationProfile",
    "engine": "ICudaEngine",
    "_engine": "ICudaEngine",
    "_context": "IExecutionContext",
    "runtime": "Runtime",
    "layer": "ILayer",
    "inspector": "EngineInspector",
    "cache": "ITimingCache",
    "problem": "ParserError",
    "registry": "IPluginRegistry",
}
# Looked for with hasattr, or for TensorRT-RTX alone.
ELSEWHERE = {
    "OnnxParserFlag.ENABLE_PLUGIN_OVERRIDE",
    "ComputeCapability",
    "IBuilderConfig.num_compute_capabilities",
    "IBuilderConfig.set_compute_capability",
}


def touched(path: Path) -> Iterator[str]:
    """``Class.member`` and names of the module, as a file uses them."""
    parents = {child: node for node in ast.walk(ast.parse(path.read_text())) for child in ast.iter_child_nodes(node)}
    for node, parent in parents.items():
        if not isinstance(node, ast.Attribute):
            continue
        if is_module(node.value) and node.attr != "__version__":
            member = f".{parent.attr}" if isinstance(parent, ast.Attribute) else ""
            yield node.attr + member
        elif isinstance(node.value, (ast.Name, ast.Attribute)):
            name = node.value.id if isinstance(node.value, ast.Name) else node.value.attr
            if name in OBJECTS:
                yield f"{OBJECTS[name]}.{node.attr}"


def is_module(node: ast.AST) -> bool:
    """``trt`` or ``library.trt``."""
    return (isinstance(node, ast.Name) and node.id in ("trt", "tensorrt")) or (
        isinstance(node, ast.Attribute) and node.attr == "trt"
    )


def names() -> set[str]:
    return {name for path in FILES for name in touched(path)}


def has(version: str, name: str) -> bool:
    recorded = RECORDED[version]
    owner, _, member = name.partition(".")
    if owner not in recorded["classes"]:
        return owner in recorded["module"] and not member
    return not member or member in recorded["classes"][owner]


def test_both_ends_of_the_range_are_recorded() -> None:
    assert VERSIONS == ["10.3.0", "11.4.0.106"]


def test_the_names_are_found() -> None:
    """Else the test below would test nothing."""
    assert {
        "OnnxParser.parse",
        "LayerType.PLUGIN_V3",
        "IExecutionContext.execute_async_v3",
        "IBuilderConfig.progress_monitor",
        "TensorIOMode.INPUT",
        "ILogger.INTERNAL_ERROR",
        "ICudaEngine.create_engine_inspector",
        "EngineInspector.get_engine_information",
        "ITimingCache.serialize",
        "ParserError.node_operator",
        "IPluginRegistry.load_library",
        "IExecutionContext.profiler",
        "IProfiler",
        "ExecutionContextAllocationStrategy.USER_MANAGED",
        "IExecutionContext.set_input_shape",
        "IExecutionContext.set_optimization_profile_async",
        "ICudaEngine.get_tensor_profile_shape",
        "IOptimizationProfile.set_shape",
    } <= names()
    assert not has("10.3.0", "IBuilderConfig.set_nothing")
    assert not has("11.4.0.106", "IBuilderConfig.int8_calibrator")  # gone in 11


@pytest.mark.parametrize("version", VERSIONS)
def test_every_name_is_there(version: str) -> None:
    wanted = {name for name in names() if name not in ELSEWHERE and name.partition(".")[0] not in ELSEWHERE}
    assert {name for name in wanted if not has(version, name)} == set()


@pytest.mark.parametrize("version", VERSIONS)
def test_types_that_are_looked_up_by_name(version: str) -> None:
    assert {name for name in _TYPES if not has(version, f"DataType.{name}")} == set()


def test_the_plugin_override_is_where_the_rules_want_it() -> None:
    assert has("11.4.0.106", "OnnxParserFlag.ENABLE_PLUGIN_OVERRIDE")


def test_the_exceptions_are_still_used() -> None:
    assert {name for name in ELSEWHERE if name not in names() and "." in name} == set()


@pytest.mark.parametrize("version", VERSIONS)
def test_the_emulated_tensorrt_offers_nothing_else(version: str) -> None:
    """tests/emulation/tensorrt.py must not have what the real one lacks."""
    tree = ast.parse((ROOT / "tests" / "emulation" / "tensorrt.py").read_text())
    offered = set()
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            members = [item.name for item in node.body if isinstance(item, ast.FunctionDef)]
            members += [
                name.id
                for item in node.body
                if isinstance(item, ast.Assign)
                for target in item.targets
                for name in (target.elts if isinstance(target, ast.Tuple) else [target])
                if isinstance(name, ast.Name)
            ]
            offered |= {f"{node.name}.{member}" for member in members if not member.startswith("_")}
    own = {"IPluginRegistry.libraries", "OnnxParserFlag.ENABLE_PLUGIN_OVERRIDE"}
    assert len(offered) > 50
    # EXPLICIT_BATCH is a place holder: 11 has it no more, and its place counts.
    own.add("NetworkDefinitionCreationFlag.EXPLICIT_BATCH")
    assert {name for name in offered - own if not has(version, name)} == set()
