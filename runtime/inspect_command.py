"""``wnlb inspect``: what a model file holds."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections import Counter
from pathlib import Path
from typing import Any

from wnlb.runtime.conventions import FRAMEWORKS, TORCHVISION, Conventions, MaskRcnnConventions
from wnlb.runtime.engine.command import summary
from wnlb.runtime.engine.manifest import Manifest, read_manifest
from wnlb.runtime.files import sha256_of
from wnlb.runtime.onnx_file import contract_of, described, read_onnx
from wnlb.runtime.served_model import file_of
from wnlb.runtime.table import human_bytes

_DESCRIPTION = """\
Show what a file holds: contract, operators, inputs and outputs, attention of each level, hash; of an engine its
manifest. Files of other tools too.

  wnlb inspect model.onnx
  wnlb inspect model.engine --json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = _DESCRIPTION
    parser.add_argument("file", type=file_of, help="an ONNX file, or an engine with its manifest")
    parser.add_argument("--json", action="store_true", help="print JSON for programs")


def run(arguments: argparse.Namespace) -> int:
    if arguments.file.suffix == ".engine":
        manifest = read_manifest(arguments.file)
        print(manifest.to_json().strip() if arguments.json else _engine_text(arguments.file, manifest))
        return 0
    facts = inspect_onnx(arguments.file)
    print(json.dumps(facts, indent=2) if arguments.json else _text(facts))
    return 0


def inspect_onnx(path: Path) -> dict[str, Any]:
    """Contract, operators, inputs, outputs, size and SHA-256 of an ONNX file, ours or not; its attention, if it is not.

    Raises:
        WnlbError: the file is not there or no ONNX file.
    """
    model = read_onnx(path)
    contract = contract_of(model)
    operators = Counter(f"{node.domain}.{node.op_type}".removeprefix(".") for node in model.graph.node)
    return {
        "file": str(path),
        "bytes": path.stat().st_size,
        "sha256": sha256_of(path),
        "opsets": {entry.domain or "ai.onnx": entry.version for entry in model.opset_import},
        "inputs": {value.name: described(value) for value in model.graph.input},
        "outputs": {value.name: described(value) for value in model.graph.output},
        "nodes": len(model.graph.node),
        "operators": dict(operators.most_common()),
        "attention": [] if contract else _attention(model),
        "contract": json.loads(contract.to_json()) if contract else None,
        "conventions": dataclasses.asdict(contract.conventions) if contract else None,
    }


def _text(facts: dict[str, Any]) -> str:
    contract = facts["contract"]
    lines = [
        f"{facts['file']}: {human_bytes(facts['bytes'])}, {facts['nodes']} nodes, "
        + ", ".join(f"opset {version} of {domain}" for domain, version in facts["opsets"].items()),
        f"sha256 {facts['sha256']}",
        "",
        *(f"input   {name:8}{shape}" for name, shape in facts["inputs"].items()),
        *(f"output  {name:8}{shape}" for name, shape in facts["outputs"].items()),
        "",
        "operators: " + ", ".join(f"{name} {count}" for name, count in facts["operators"].items()),
        "",
    ]
    if contract is None:
        lines += [
            "attention: " + (", ".join(map(_block_text, facts["attention"])) or "none that our kernel computes"),
            "contract: none; this file was not written by 'wnlb export' or 'wnlb adopt'. build takes it as it is; all "
            "else wants to know how frames go in and detections come out",
        ]
        return "\n".join(lines)
    return "\n".join([*lines, *_contract_lines(contract)])


def _attention(model: Any) -> list[dict[str, Any]]:
    """Non-local attentions of a file of another tool: positions, channels of query and value, and a node's name."""
    from wnlb.export.onnx_file.attention_nodes import Wiring, attentions

    graph = Wiring(model)
    found = []
    for block in attentions(model, graph):
        query, value = (graph.shapes.get(name) or [None] * 3 for name in (block.inputs[0], block.inputs[2]))
        softmax = next(node.name for node in block.nodes if node.op_type == "Softmax")
        found.append({"softmax": softmax, "positions": query[2], "key_channels": query[1], "channels": value[1]})
    return found


def _block_text(block: dict[str, Any]) -> str:
    shape = f"{block['positions'] or '?'} positions x {block['channels'] or '?'} channels"
    return f"{block['softmax'] or 'unnamed'} ({shape})"


def _engine_text(path: Path, manifest: Manifest) -> str:
    lines = [summary(path, manifest), f"sha256 {manifest.engine_sha256}", ""]
    lines += [f"input   {name:8}{shape}" for name, shape in manifest.inputs.items()]
    lines += [f"output  {name:8}{shape}" for name, shape in manifest.outputs.items()]
    return "\n".join([*lines, "", *(_contract_lines(manifest.contract) if manifest.contract else ())]).rstrip()


def _contract_lines(contract: dict[str, Any]) -> list[str]:
    attention = contract.get("attention") or {}
    entries = {key: value for key, value in contract.items() if key != "attention"}
    width = max(map(len, entries))
    style = (contract.get("checkpoint_settings") or {}).get("style")
    framework = contract.get("framework", TORCHVISION.framework)
    return [
        f"trained in: {framework}" + (f", style {style}" if style else ""),
        f"conventions: {_conventions_text(FRAMEWORKS[framework])}",
        "attention: " + (", ".join(f"{level} {form}" for level, form in attention.items()) or "none"),
        "contract:",
        *(f"  {key:{width}}  {_value(value)}" for key, value in entries.items()),
    ]


def _conventions_text(conventions: Conventions) -> str:
    around = f"masks {conventions.mask_paste}, sizes rounded {conventions.size_rule}"
    if not isinstance(conventions, MaskRcnnConventions):
        return around
    aligned = "RoIAlign aligned, a sample for each pixel" if conventions.aligned else "RoIAlign with 2 x 2 samples"
    return f"anchors {'' if conventions.rounded_anchors else 'not '}rounded, {aligned}, {around}"


def _value(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
