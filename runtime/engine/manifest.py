"""What stands in ``model.engine.json`` beside an engine: what it is, what it was made of, where it fits."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wnlb.runtime.contract import Contract
from wnlb.runtime.errors import ContractError, WnlbError
from wnlb.runtime.files import sha256_of

FORMAT = 1
LIBRARIES = {"tensorrt": "TensorRT", "tensorrt-rtx": "TensorRT-RTX"}
_TYPES = {
    "str": (str,),
    "int": (int,),
    "float": (int, float),
    "dict": (dict,),
    "list": (list,),
    "tuple": (list, tuple),
}


@dataclass(frozen=True)
class Manifest:
    """Facts of one built engine. Raises ContractError for entries of wrong types."""

    engine_sha256: str
    engine_bytes: int
    onnx: str  # name of the file that it was built from
    onnx_sha256: str
    library: str  # "tensorrt" or "tensorrt-rtx"
    version: str  # of the library; an engine fits no other
    gpu: str  # "" where none was at hand
    compute_capability: str  # of that GPU, "8.7"; "" for an engine that several GPUs can run
    driver: str  # version of NVIDIA's driver, "560.35.03"; "" where it does not tell
    cuda: str  # newest CUDA version that it takes
    attention: str  # standard or plugin
    plugin_sha256: str  # of the plugin library, where there is one
    options: dict[str, Any]  # of the build
    inputs: dict[str, str]  # name to type and shape, "uint8 [1, 416, 608, 3]"
    outputs: dict[str, str]
    contract: dict[str, Any]  # empty for a model that is not ours
    tool_version: str
    build_seconds: float
    layers_of: str = "engine"  # or network: as parsed, where no GPU was there to open the engine
    layers: list[dict[str, str]] = field(default_factory=list)  # name, type, precision
    format: int = FORMAT

    def __post_init__(self) -> None:
        for item in dataclasses.fields(self):
            value = getattr(self, item.name)
            expected = str(item.type).partition("[")[0]
            if not isinstance(value, _TYPES[expected]) or isinstance(value, bool):
                raise ContractError(f"manifest: {item.name} is {str(value)[:40]!r}; expected a {expected}")
        words = ("name", "type", "precision")
        for layer in self.layers:
            if not isinstance(layer, dict) or not all(isinstance(layer.get(word), str) for word in words):
                raise ContractError(f"manifest: a layer is {str(layer)[:40]!r}; expected name, type and precision")
        wanted = self.options.get("compute_capabilities", [])
        if not isinstance(wanted, list) or not all(isinstance(capability, str) for capability in wanted):
            raise ContractError(f"manifest: compute_capabilities is {str(wanted)[:40]!r}; expected a list of names")
        if "masks" in self.options and not _is_mask_part(self.options["masks"]):
            raise ContractError(f"manifest: masks is {str(self.options['masks'])[:40]!r}; expected at and rows")
        if self.library not in LIBRARIES:
            raise ContractError(f"manifest: library is {self.library[:40]!r}; expected {' or '.join(LIBRARIES)}")
        if self.format != FORMAT:
            raise ContractError(f"manifest: format is {self.format}; expected {FORMAT}: use the wnlb that wrote it")

    @property
    def masks_at(self) -> int:
        """Byte of the file at which the engine of the masks begins; 0 where there is one engine for all."""
        return int(self.options["masks"]["at"]) if "masks" in self.options else 0

    @property
    def mask_rows(self) -> tuple[int, ...]:
        """Numbers of rows that the engine of the masks takes, each by a profile of its own; () where there is none."""
        return tuple(self.options["masks"]["rows"]) if "masks" in self.options else ()

    def read_contract(self) -> Contract | None:
        """The contract of the model; None where it is not ours. Raises ContractError."""
        return Contract.from_json(json.dumps(self.contract)) if self.contract else None

    def to_json(self) -> str:
        """With a hash of its own, so that an edit is noticed."""
        values = dataclasses.asdict(self)
        return json.dumps({**values, "manifest_sha256": _digest(values)}, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """Raises ContractError for text that is not a manifest as it was written."""
        try:
            values: Any = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ContractError(f"manifest is not JSON: {error}") from error
        if not isinstance(values, dict):
            raise ContractError(f"manifest is a JSON {type(values).__name__}; expected an object")
        digest = values.pop("manifest_sha256", None)
        names = {item.name for item in dataclasses.fields(cls)}
        if set(values) != names:
            wrong = ", ".join(sorted(set(values) ^ names)[:3])
            raise ContractError(f"manifest has not the entries of this version ({wrong}); build the engine again")
        manifest = cls(**values)
        if digest != _digest(values):
            raise ContractError("manifest was changed after the build; build the engine again")
        return manifest


def manifest_path(engine: Path) -> Path:
    """``model.engine`` to ``model.engine.json``."""
    return engine.with_name(engine.name + ".json")


def read_manifest(engine: Path) -> Manifest:
    """The manifest of an engine file, checked against the engine's bytes.

    Raises:
        WnlbError: one of the two is not there or cannot be read.
        ContractError: the manifest is damaged, or belongs to another engine.
    """
    path = manifest_path(engine)
    if not engine.is_file():
        raise WnlbError(f"engine {engine} {'is a folder' if engine.is_dir() else 'does not exist'}")
    try:
        text = path.read_text()
    except FileNotFoundError as error:
        raise WnlbError(
            f"engine {engine} has no manifest {path.name} beside it; build it with 'wnlb build', or, if you trust it, "
            "name the ONNX file that it was built from with --trust"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise ContractError(f"manifest {path} cannot be read: {error}") from error
    try:
        manifest = Manifest.from_json(text)
    except ContractError as error:
        raise ContractError(f"{path}: {error}") from error
    size = os.path.getsize(engine)
    if size != manifest.engine_bytes:
        raise ContractError(
            f"engine {engine} has {size} bytes, its manifest says {manifest.engine_bytes}: it is truncated, or the two "
            "do not belong together; build it again"
        )
    if sha256_of(engine) != manifest.engine_sha256:
        raise ContractError(
            f"engine {engine} has not the SHA-256 that its manifest says: it is damaged, or the two do not belong "
            "together; build it again"
        )
    return manifest


def _is_mask_part(entry: object) -> bool:
    if not isinstance(entry, dict) or set(entry) != {"at", "rows"} or not isinstance(entry["rows"], list):
        return False
    numbers = [entry["at"], *entry["rows"]]
    ascending = entry["rows"] == sorted(set(entry["rows"])) if all(type(n) is int for n in numbers) else False
    return ascending and len(numbers) > 1 and min(numbers) > 0


def _digest(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
