"""Manifests: what they say, and every way in which one can be wrong."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import random
from pathlib import Path

import pytest

from wnlb.runtime.contract import Contract
from wnlb.runtime.engine.manifest import Manifest, manifest_path, read_manifest
from wnlb.runtime.errors import ContractError, WnlbError

ENGINE = b"an engine" * 100


def manifest(**entries: object) -> Manifest:
    values: dict[str, object] = {
        "engine_sha256": hashlib.sha256(ENGINE).hexdigest(),
        "engine_bytes": len(ENGINE),
        "onnx": "model.onnx",
        "onnx_sha256": "0" * 64,
        "library": "tensorrt",
        "version": "10.3.0",
        "gpu": "Orin",
        "compute_capability": "8.7",
        "driver": "540.4.0",
        "cuda": "12.6",
        "attention": "standard",
        "plugin_sha256": "",
        "options": {"workspace": 0, "compute_capabilities": []},
        "inputs": {"image": "uint8 [1, 64, 96, 3]"},
        "outputs": {"boxes": "float32 [1, 2, 4]"},
        "contract": {},
        "tool_version": "0.1.0",
        "build_seconds": 1.5,
        "layers": [{"name": "a", "type": "CONVOLUTION", "precision": "fp16"}],
    }
    return Manifest(**{**values, **entries})  # type: ignore[arg-type]


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    path = tmp_path / "model.engine"
    path.write_bytes(ENGINE)
    manifest_path(path).write_text(manifest().to_json())
    return path


def test_what_is_written_is_read(engine: Path, make_contract) -> None:
    assert read_manifest(engine) == manifest()
    assert manifest().read_contract() is None
    contract: Contract = make_contract()
    assert manifest(contract=json.loads(contract.to_json())).read_contract() == contract


def test_an_edit_is_noticed(engine: Path) -> None:
    path = manifest_path(engine)
    path.write_text(path.read_text().replace('"8.7"', '"9.0"'))
    with pytest.raises(ContractError, match=r"model.engine.json: manifest was changed after the build"):
        read_manifest(engine)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not JSON"),
        ("{", "not JSON"),
        ("[" * 100000, "not JSON"),
        ("[]", "JSON list; expected an object"),
        ("{}", "has not the entries"),
        ('{"format": 2}', "has not the entries"),
    ],
)
def test_what_is_no_manifest(engine: Path, text: str, message: str) -> None:
    manifest_path(engine).write_text(text)
    with pytest.raises(ContractError, match=message):
        read_manifest(engine)


def test_each_entry_has_its_type() -> None:
    for item in dataclasses.fields(Manifest):
        with pytest.raises(ContractError, match=f"manifest: {item.name} is"):
            manifest(**{item.name: None})
        with pytest.raises(ContractError, match=f"manifest: {item.name} is"):
            manifest(**{item.name: True})
    for entries, message in (
        ({"format": 7}, "format is 7"),
        ({"library": "foo"}, "library is 'foo'"),
        ({"layers": [1]}, "a layer is"),
        ({"layers": [{"name": "a"}]}, "a layer is"),
        ({"options": {"compute_capabilities": 5}}, "compute_capabilities is '5'"),
    ):
        with pytest.raises(ContractError, match=message):
            manifest(**entries)


def test_files_that_are_not_there(engine: Path, tmp_path: Path) -> None:
    with pytest.raises(WnlbError, match="does not exist"):
        read_manifest(tmp_path / "no.engine")
    with pytest.raises(WnlbError, match="is a folder"):
        read_manifest(tmp_path)
    manifest_path(engine).unlink()
    with pytest.raises(WnlbError, match=r"no manifest model.engine.json beside it"):
        read_manifest(engine)
    manifest_path(engine).write_bytes(b"\xff\xfe")
    with pytest.raises(ContractError, match="cannot be read"):
        read_manifest(engine)


def test_fuzzed_manifests_and_engines_never_pass_and_never_crash(engine: Path) -> None:
    """Bits flipped, parts cut out, doubled: one WnlbError each, or the very same manifest."""
    rng, good = random.Random(0), manifest().to_json().encode()
    refused = 0
    for _ in range(400):
        data, target = bytearray(good), manifest_path(engine)
        if rng.random() < 0.3:
            data, target = bytearray(ENGINE), engine
        at, length = rng.randrange(len(data)), rng.randrange(1, 30)
        kind = rng.randrange(4)
        if kind == 0:
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del data[at : at + length]
        elif kind == 2:
            data[at:at] = data[at : at + length]
        else:
            data[at : at + length] = rng.randbytes(length)
        target.write_bytes(data)
        try:
            assert read_manifest(engine) == manifest()  # white space was changed
        except WnlbError as error:
            refused += "\n" not in str(error)
        engine.write_bytes(ENGINE)
        manifest_path(engine).write_bytes(good)
    assert refused > 350
