"""``wnlb inspect``: what a model file holds."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import Any

from wnlb.runtime.contract import METADATA_KEY, Contract
from wnlb.runtime.errors import WnlbError
from wnlb.runtime.files import sha256_of
from wnlb.runtime.table import human_bytes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, help="an ONNX file")
    parser.add_argument("--json", action="store_true", help="print JSON for programs")


def run(arguments: argparse.Namespace) -> int:
    facts = inspect_onnx(arguments.file)
    print(json.dumps(facts, indent=2) if arguments.json else _text(facts))
    return 0


def inspect_onnx(path: Path) -> dict[str, Any]:
    """Contract, operators, inputs, outputs, size and SHA-256 of an ONNX file, ours or not.

    Raises:
        WnlbError: the file is not there or no ONNX file.
    """
    import onnx
    from google.protobuf.message import DecodeError

    if not path.is_file():
        raise WnlbError(f"{path} {'is a folder' if path.is_dir() else 'does not exist'}; expected an ONNX file")
    try:
        model = onnx.load(path, format="protobuf", load_external_data=False)
    except (DecodeError, OSError, ValueError) as error:
        raise WnlbError(f"{path} is not a readable ONNX file: {error}") from error
    if not model.graph.node:
        raise WnlbError(f"{path} is not a readable ONNX file: its graph is empty")
    text = next((entry.value for entry in model.metadata_props if entry.key == METADATA_KEY), None)
    contract = Contract.from_json(text) if text is not None else None
    operators = Counter(f"{node.domain}.{node.op_type}".removeprefix(".") for node in model.graph.node)
    return {
        "file": str(path),
        "bytes": path.stat().st_size,
        "sha256": sha256_of(path),
        "opsets": {entry.domain or "ai.onnx": entry.version for entry in model.opset_import},
        "inputs": {value.name: _described(value) for value in model.graph.input},
        "outputs": {value.name: _described(value) for value in model.graph.output},
        "nodes": len(model.graph.node),
        "operators": dict(operators.most_common()),
        "contract": json.loads(contract.to_json()) if contract else None,
    }


def _described(value: Any) -> str:
    from onnx import helper

    tensor = value.type.tensor_type
    if not tensor.elem_type:  # a sequence, an optional, or not stated
        return value.type.WhichOneof("value") or "unknown"
    dims = [d.dim_value if d.HasField("dim_value") else d.dim_param or "?" for d in tensor.shape.dim]
    name = helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
    return f"{name} [{', '.join(map(str, dims))}]"


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
        return "\n".join([*lines, "contract: none; this file was not written by 'wnlb export'"])
    attention = contract.pop("attention")
    lines.append("attention: " + (", ".join(f"{k} {v}" for k, v in attention.items()) or "none"))
    lines.append("contract:")
    width = max(map(len, contract))
    lines += [f"  {key:{width}}  {_value(value)}" for key, value in contract.items()]
    return "\n".join(lines)


def _value(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
