"""Damaged ONNX files: whatever a library makes of them, our one line comes out."""

import json
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from mutations.damage import mutated

from wnlb.runtime.contract import METADATA_KEY, Contract
from wnlb.runtime.errors import WnlbError
from wnlb.runtime.inspect_command import _text, inspect_onnx
from wnlb.runtime.onnx_file import read_model, read_onnx
from wnlb.runtime.predictor import Predictor


def outcome(run: Callable[[], object]) -> str:
    """How a step ended. Anything that is raised and not ours fails the test."""
    said = ""
    try:
        run()
    except WnlbError as error:
        said = str(error)
    assert "\n" not in said
    return "refused" if said else "done"


def detect(path: Path) -> None:
    with Predictor(path, device="cpu", threads=1) as predictor:
        predictor(np.zeros((48, 96, 3), np.uint8))


def test_damage_is_told_in_one_line(
    planted_model_path: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    good, rng, path = planted_model_path.read_bytes(), random.Random(16), tmp_path / "m.onnx"
    ends = {"refused": 0, "done": 0}
    for _ in range(150):
        path.write_bytes(mutated(good, rng))
        ends[outcome(lambda: read_model(path))] += 1
        outcome(lambda: json.dumps(inspect_onnx(path)))
        outcome(lambda: _text(inspect_onnx(path)))
        outcome(lambda: detect(path))
    assert min(ends.values()) > 10
    assert "EP Error" not in capfd.readouterr().out


@pytest.mark.parametrize("what", [b"wnlb.contract", b'"batch"', b"ReduceMean", b"brightness", b"image"])
def test_text_that_is_no_text(planted_model_path: Path, tmp_path: Path, what: bytes) -> None:
    """Protobuf decodes a text only when it is read, and then raises or gives bytes."""
    data = planted_model_path.read_bytes()
    (tmp_path / "m.onnx").write_bytes(data.replace(what, b"\xff" + what[1:]))
    with pytest.raises(WnlbError, match=r"not a readable ONNX file: .*(text|utf-8)"):
        read_onnx(tmp_path / "m.onnx")
    outcome(lambda: detect(tmp_path / "m.onnx"))


WRONG = (None, True, -1, 0, 3.5, 1e300, float("nan"), "", "x", [], [1, 2], {}, {"a": 1}, [[1]], 10**30)


def test_every_entry_of_a_contract_with_wrong_values(planted_model_path: Path, tmp_path: Path) -> None:
    model = onnx.load(planted_model_path)
    entry = next(entry for entry in model.metadata_props if entry.key == METADATA_KEY)
    good, path = json.loads(entry.value), tmp_path / "m.onnx"
    for name in good:
        for value in WRONG:
            entry.value = json.dumps({**good, name: value})
            outcome(lambda: Contract.from_json(entry.value))
            onnx.save(model, path)
            outcome(lambda: _text(inspect_onnx(path)))
            outcome(lambda: detect(path))
