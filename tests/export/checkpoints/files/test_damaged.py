"""Damaged checkpoints: whatever a library makes of them, our one line comes out."""

import gzip
import pickle
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
import safetensors.torch
import torch
from mutations.damage import mutated
from onnx import helper
from small_models import small_model
from torch import Tensor

from wnlb.export.checkpoints.checkpoint import read_checkpoint
from wnlb.runtime.errors import CheckpointError

NAMES = ("backbone.body.conv1.weight", "backbone.fpn.inner_blocks.0.0.weight", "rpn.head.cls_logits.weight")


class Loop:
    def __init__(self) -> None:
        self.history, self.step = np.arange(4.0), np.int64(3)


def content() -> dict[str, Any]:
    """Everything that a pickle can hold, in few bytes: so that damage hits what is parsed."""
    weights = {name: torch.rand(4, 3, 2, 2) for name in NAMES}
    return {
        "model": weights,
        "ema": {name: value.half() for name, value in weights.items()},
        "loop": Loop(),
        "epoch": 3,
    }


WRITERS: dict[str, Callable[[Path], object]] = {
    "zip.pth": lambda path: torch.save(content(), path),
    "new.pth": lambda path: torch.save(content(), path, pickle_protocol=5),
    "old.pth": lambda path: torch.save(content(), path, _use_new_zipfile_serialization=False),
    "arrays.pkl": lambda path: path.write_bytes(
        pickle.dumps({"model": {n: np.ones((2, 3), np.float32) for n in NAMES}, "loop": Loop()}, 2)
    ),
    "c.safetensors": lambda path: safetensors.torch.save_file(content()["model"], path),
    "a.index.json": lambda path: path.write_text('{"weight_map": {"a.b": "c.safetensors", "a.c": "zip.pth"}}'),
}


def refused_or_read(path: Path) -> bool:
    """Whether a file was read. Anything that is raised and not ours fails the test."""
    said = ""
    try:
        read_checkpoint(path)
    except CheckpointError as error:
        said = str(error)
    assert "\n" not in said
    return not said


@pytest.mark.parametrize("name", WRITERS)
def test_damage_is_told_in_one_line(tmp_path: Path, name: str) -> None:
    for shard in ("c.safetensors", "zip.pth", name):
        WRITERS[shard](tmp_path / shard)
    good, rng = (tmp_path / name).read_bytes(), random.Random(16)
    for _ in range(100):
        (tmp_path / name).write_bytes(mutated(good, rng))
        assert not refused_or_read(tmp_path / name)  # these few weights are no detector


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return small_model().state_dict()


@pytest.mark.parametrize("zipped", [True, False])
def test_damage_of_a_real_checkpoint(tmp_path: Path, state: dict[str, Tensor], zipped: bool) -> None:
    torch.save({"model": state}, tmp_path / "c.pth", _use_new_zipfile_serialization=zipped)
    good, rng = (tmp_path / "c.pth").read_bytes(), random.Random(17)
    read = 0
    for _ in range(15):
        (tmp_path / "c.pth").write_bytes(mutated(good, rng, most=40_000))
        read += refused_or_read(tmp_path / "c.pth")
    assert read < 15


def absurd(shape: tuple[int, ...]) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda state: {**state, "backbone.fpn.inner_blocks.0.0.weight": torch.zeros(()).expand(shape)}


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (absurd((2**40, 64, 1, 1)), "reaches beyond"),
        (absurd((200_000, 1, 1, 1)), "misshapen|not a readable"),
        (absurd(()), "not a readable"),
        (lambda s: {**s, "roi_heads.mask_predictor.mask_fcn_logits.weight": torch.zeros(0)}, r"mask_classes|misshapen"),
        (lambda s: {**s, "backbone.body.layer1.0.conv1.weight": torch.zeros(64, 0, 3, 3)}, "not a readable"),
    ],
)
def test_absurd_shapes_take_no_memory(tmp_path: Path, state: dict[str, Tensor], spoil: Any, said: str) -> None:
    torch.save(spoil(state), tmp_path / "c.pth")
    with pytest.raises(CheckpointError, match=said) as refused:
        read_checkpoint(tmp_path / "c.pth")
    assert "\n" not in str(refused.value)


def test_deep_nesting_is_refused_or_read(tmp_path: Path) -> None:
    (tmp_path / "c.pkl").write_bytes(b"(" + b"]" * 100_000 + b"a" * 99_999 + b"t.")
    assert not refused_or_read(tmp_path / "c.pkl")
    (tmp_path / "a.index.json").write_text("[" * 100_000)
    assert not refused_or_read(tmp_path / "a.index.json")


def test_other_kinds_of_files_are_named(tmp_path: Path) -> None:
    torch.jit.script(torch.nn.Linear(2, 2)).save(tmp_path / "script.pt")
    (tmp_path / "lfs.pth").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")
    np.savez(tmp_path / "arrays.npz", a=np.ones(3))
    onnx.save(helper.make_model(helper.make_graph([], "g", [], []), producer_name="pytorch"), tmp_path / "named.onnx")
    onnx.save(helper.make_model(helper.make_graph([], "g", [], [])), tmp_path / "bare.pth")
    cv2.imwrite(str(tmp_path / "night.png"), np.zeros((4, 4, 3), np.uint8))
    (tmp_path / "night.png").rename(tmp_path / "night.pth")
    (tmp_path / "page.pth").write_text("\n<!DOCTYPE html>\n<html></html>")
    (tmp_path / "packed.pth").write_bytes(gzip.compress(b"weights"))
    (tmp_path / "empty.safetensors").touch()
    for name, said in (
        *(("script.pt", "TorchScript"), ("lfs.pth", "git lfs pull"), ("arrays.npz", r"without data\.pkl")),
        *(("named.onnx", "an ONNX file"), ("bare.pth", "an ONNX file"), ("night.pth", "a picture")),
        *(("page.pth", "a web page"), ("packed.pth", "gunzip"), ("empty.safetensors", "empty; expected weights")),
    ):
        with pytest.raises(CheckpointError, match=said):
            read_checkpoint(tmp_path / name)
