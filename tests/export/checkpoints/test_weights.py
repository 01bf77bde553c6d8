"""Which weights of a checkpoint are meant, and what training wrapped around their names."""

import json
import pickle
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from small_models import small_model
from torch import Tensor

from wnlb.export.checkpoints.checkpoint import read_checkpoint
from wnlb.export.checkpoints.files.container import checkpoint_sha256, open_container
from wnlb.export.checkpoints.files.tensors import loaded
from wnlb.export.checkpoints.names.dialect import canonical_state
from wnlb.export.checkpoints.weights import chosen, weight_sets
from wnlb.runtime.errors import CheckpointError

State = dict[str, Tensor]


@pytest.fixture(scope="module")
def state() -> State:
    return small_model().state_dict()


@pytest.fixture(scope="module")
def average(state: State) -> State:
    return {name: value * 0.5 if value.is_floating_point() else value for name, value in state.items()}


@dataclass(frozen=True)
class Taken:
    weights: str
    others: tuple[str, ...]
    state: State


def read(path: Path, weights: str | None = None) -> Taken:
    """As ``read_checkpoint`` takes them, without making a model of each."""
    sets = weight_sets(open_container(path).content, str(path))
    taken = chosen(sets, weights, str(path))
    state = canonical_state({name: loaded(value) for name, value in taken.weights.items()}, str(path))
    return Taken(taken.name, tuple(each.name for each in sets if each is not taken), state)


def assert_are(taken: Taken, expected: State) -> None:
    assert taken.state.keys() == expected.keys()
    assert all(torch.equal(taken.state[name], value) for name, value in expected.items())


def prefixed(state: State, prefix: str) -> State:
    return {prefix + name: value for name, value in state.items()}


def flat(state: State) -> State:
    return {"ema_" + name.replace(".", "_"): value for name, value in state.items()}


# The file, the name of its model, and that of its average.
PAIRS: dict[str, tuple[Callable[[State, State], Any], str, str]] = {
    "torchvision reference": (
        lambda s, a: {"model": s, "model_ema": {"n_averaged": torch.tensor(3), **prefixed(a, "module.")}},
        "model",
        "model_ema",
    ),
    "average first": (lambda s, a: {"ema": a, "epoch": 3, "model": s}, "model", "ema"),
    "timm": (lambda s, a: {"state_dict": s, "state_dict_ema": a}, "state_dict", "state_dict_ema"),
    "mmengine": (
        lambda s, a: {"state_dict": s, "ema_state_dict": {"steps": torch.tensor(9), **prefixed(a, "module.")}},
        "state_dict",
        "ema_state_dict",
    ),
    "BasicSR": (lambda s, a: {"params_ema": a, "params": s}, "params", "params_ema"),
    "mmcv 1": (lambda s, a: {"state_dict": {**s, **flat(a)}}, "state_dict", "state_dict.ema"),
    "lightning submodules": (
        lambda s, a: {"state_dict": {**prefixed(a, "ema_model.module."), **prefixed(s, "model.")}},
        "state_dict.model",
        "state_dict.ema_model",
    ),
    "bare, with submodule": (lambda s, a: {**s, **prefixed(a, "ema.")}, ".", "ema"),
    "teacher": (lambda s, a: {**prefixed(a, "teacher."), **prefixed(s, "student.")}, "student", "teacher"),
    "nested": (
        lambda s, a: {"checkpoint": {"model": s}, "callbacks": {"EMA": {"shadow": a}}},
        "checkpoint.model",
        "callbacks.EMA.shadow",
    ),
    "lightning callback": (
        lambda s, a: {"state_dict": s, "callbacks": {"EMA": {"weights": a}}},
        "state_dict",
        "callbacks.EMA.weights",
    ),
    "with optimizer": (
        lambda s, a: {
            "model": s,
            "ema": {"shadow": a},
            "optimizer": {"state": {i: {"exp_avg": v} for i, v in enumerate(s.values())}},
        },
        "model",
        "ema.shadow",
    ),
}


@pytest.mark.parametrize("case", PAIRS)
def test_a_model_and_its_average(tmp_path: Path, state: State, average: State, case: str) -> None:
    make, model, ema = PAIRS[case]
    torch.save(make(state, average), tmp_path / "c.pth")
    found = read(tmp_path / "c.pth")
    assert (found.weights, found.others) == (model, (ema,))
    assert_are(found, state)
    words = [word for word in re.split(r"[._]", ema) if word.lower() in ("ema", "shadow", "teacher")]
    for name in (ema, ema.split(".")[-1], words[-1]):
        assert_are(read(tmp_path / "c.pth", weights=name), average)
    named = read(tmp_path / "c.pth", weights=model)
    assert (named.weights, named.others) == (model, (ema,))
    assert_are(named, state)


def test_the_model_is_made_of_the_chosen_ones(tmp_path: Path, state: State, average: State) -> None:
    torch.save({"model": state, "ema": average}, tmp_path / "c.pth")
    made = read_checkpoint(tmp_path / "c.pth", weights="ema")
    assert (made.weights, made.others) == ("ema", ("model",))
    assert all(torch.equal(value, average[name]) for name, value in made.model.state_dict().items())


def test_names_that_are_not_there_or_not_clear(tmp_path: Path, state: State, average: State) -> None:
    torch.save({"model": state, "a": {"ema": average}, "b": {"ema": dict(average)}}, tmp_path / "c.pth")
    with pytest.raises(CheckpointError, match=r"no weights named 'swa'; expected one of model, a\.ema, b\.ema"):
        read(tmp_path / "c.pth", weights="swa")
    with pytest.raises(CheckpointError, match="several weights named 'ema'"):
        read(tmp_path / "c.pth", weights="ema")
    assert_are(read(tmp_path / "c.pth", weights="b.ema"), average)


def test_one_set_leaves_nothing_to_choose(tmp_path: Path, state: State) -> None:
    torch.save({"model": state, "criterion": {"loss.weight": torch.ones(3)}}, tmp_path / "c.pth")
    found = read(tmp_path / "c.pth")
    assert (found.weights, found.others) == ("model", ())


class Settings(dict):
    """A mapping of a class of the training script."""


class Run:
    """An object that holds weights as an attribute."""

    def __init__(self, weights: State) -> None:
        self.weights = weights


def test_a_bare_set_has_no_name_to_choose(tmp_path: Path, state: State) -> None:
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"no weights named 'ema'; it holds one set without a name: leave out"):
        read(tmp_path / "a.pth", "ema")


def test_weights_in_unknown_objects_are_found(tmp_path: Path, state: State) -> None:
    for content in (Settings(model=Settings(state)), {"run": Run(state)}, [{"model": state}]):
        torch.save(content, tmp_path / "c.pth")
        assert_are(read(tmp_path / "c.pth"), state)


WRAPPINGS: dict[str, list[tuple[str, str]]] = {
    "DDP": [("^", "module.")],
    "compile in DDP": [("^", "module._orig_mod.")],
    "DDP in compile": [("^", "_orig_mod.module.")],
    "FSDP": [("^", "_fsdp_wrapped_module."), (r"(layer\d\.\d+)\.", r"\1._fsdp_wrapped_module.")],
    "FSDP, older": [("^", "_fsdp_wrapped_module._fpw_module.")],
    "checkpointed units": [(r"(layer\d\.\d+)\.", r"\1._checkpoint_wrapped_module.")],
    "compiled stages": [(r"(layer\d)\.", r"\1._orig_mod.")],
    "a wrapped leaf": [(r"\.(weight|bias)$", r"._checkpoint_wrapped_module.\1")],
    "all at once": [
        (r"(layer\d\.\d+)\.", r"\1._fsdp_wrapped_module._checkpoint_wrapped_module."),
        (r"roi_heads\.", "roi_heads.module._orig_mod."),
        ("^", "model._forward_module.module._orig_mod."),
    ],
    "lightning": [("^", "model.")],
    "lightning in the middle": [("^backbone", "model.backbone.model"), ("^(rpn|roi_heads)", r"model.model.\1")],
    "a compiled lightning module": [("^", "_orig_mod.model._orig_mod.")],
}


@pytest.mark.parametrize("case", WRAPPINGS)
def test_wrappers_anywhere_in_a_name(tmp_path: Path, state: State, case: str) -> None:
    wrapped = dict(state)
    for pattern, replacement in WRAPPINGS[case]:
        wrapped = {re.sub(pattern, replacement, name): value for name, value in wrapped.items()}
    assert wrapped.keys() != state.keys()
    torch.save({"state_dict": wrapped}, tmp_path / "c.pth")
    assert_are(read(tmp_path / "c.pth"), state)


def test_what_torch_itself_wraps(tmp_path: Path, state: State) -> None:
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
    from torch.optim.swa_utils import AveragedModel

    model = small_model()
    model.backbone.body.layer2[0] = checkpoint_wrapper(model.backbone.body.layer2[0])
    wrapped = torch.compile(AveragedModel(torch.nn.DataParallel(model)))
    torch.save(wrapped.state_dict(), tmp_path / "c.pth")
    assert_are(read(tmp_path / "c.pth"), state)


def test_a_name_with_and_without_wrapper_is_not_guessed(tmp_path: Path, state: State) -> None:
    torch.save({**state, "module.backbone.body.conv1.weight": torch.zeros(64, 3, 7, 7)}, tmp_path / "c.pth")
    with pytest.raises(CheckpointError, match=r"two weights named backbone\.body\.conv1\.weight"):
        read(tmp_path / "c.pth")


def test_flat_parameters_of_fsdp_are_told(tmp_path: Path, state: State) -> None:
    content = {**state, "_fsdp_wrapped_module._flat_param": torch.ones(9)}
    torch.save(content, tmp_path / "c.pth")
    with pytest.raises(CheckpointError, match="FULL_STATE_DICT"):
        read(tmp_path / "c.pth")


@pytest.fixture
def shards(tmp_path: Path, state: State) -> Path:
    """A folder as Hugging Face's libraries write one."""
    names = list(state)
    folder = tmp_path / "shards"
    folder.mkdir()
    where = {name: f"model-{1 + (2 * i) // len(names):05}-of-00002.safetensors" for i, name in enumerate(names)}
    for shard in set(where.values()):
        safetensors.torch.save_file({n: state[n].contiguous() for n in names if where[n] == shard}, folder / shard)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return folder


def test_shards_by_their_index_or_their_folder(shards: Path, state: State) -> None:
    assert_are(read(shards), state)
    assert_are(read(shards / "model.safetensors.index.json"), state)
    assert checkpoint_sha256(shards) == checkpoint_sha256(shards / "model.safetensors.index.json")
    before = checkpoint_sha256(shards)
    part = shards / "model-00001-of-00002.safetensors"
    part.write_bytes(part.read_bytes()[:-4] + b"\0\0\0\1")
    assert checkpoint_sha256(shards) != before


def test_shards_that_torch_saved(tmp_path: Path, state: State) -> None:
    names = list(state)
    where = {name: f"pytorch_model-{i % 2}.bin" for i, name in enumerate(names)}
    for shard in set(where.values()):
        torch.save({name: state[name] for name in names if where[name] == shard}, tmp_path / shard)
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": where}))
    assert_are(read(tmp_path), state)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda f: (f / "model-00002-of-00002.safetensors").unlink(), "of 2 shards model-00002-of.* missing"),
        (lambda f: (f / "model-00002-of-00002.safetensors").write_bytes(b""), "is empty; expected weights"),
        (lambda f: (f / "model.safetensors.index.json").write_text("{"), "not a readable"),
        (lambda f: (f / "model.safetensors.index.json").write_text("[]"), "not a readable"),
        (lambda f: (f / "model.safetensors.index.json").write_text('{"weight_map": {}}'), "expected files beside it"),
        (lambda f: (f / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../b"}}'), "beside it"),
        (lambda f: (f / "model.safetensors.index.json").write_text('{"weight_map": {"a": 3}}'), "not a readable"),
        (lambda f: (f / "model.safetensors.index.json").unlink(), "there is none"),
        (lambda f: shutil.copy(f / "model.safetensors.index.json", f / "a.index.json"), "2 files"),
        (lambda f: (f / "model.safetensors.index.json").rename(f / ".metadata"), "dcp_to_torch"),
    ],
)
def test_shards_that_are_not_whole_get_one_line(shards: Path, spoil: Callable[[Path], object], said: str) -> None:
    spoil(shards)
    with pytest.raises(CheckpointError, match=said) as refused:
        read(shards)
    assert "\n" not in str(refused.value)


def test_an_array_of_objects_is_one_line(tmp_path: Path, state: State) -> None:
    weights: dict[str, Any] = {name: value.numpy() for name, value in state.items()}
    weights["backbone.body.conv1.weight"] = np.full((64, 3, 7, 7), None, object)
    (tmp_path / "model.pkl").write_bytes(pickle.dumps({"model": weights}))
    with pytest.raises(CheckpointError, match="an array holds objects, which are no numbers") as error:
        read_checkpoint(tmp_path / "model.pkl")
    assert "\n" not in str(error.value)


def test_a_model_of_ultralytics_is_sent_to_adopt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = type("SegmentationModel", (torch.nn.Module,), {"__module__": "ultralytics.nn.tasks"})
    module = ModuleType("ultralytics.nn.tasks")
    monkeypatch.setattr(module, "SegmentationModel", kind, raising=False)
    for name in ("ultralytics", "ultralytics.nn", "ultralytics.nn.tasks"):
        monkeypatch.setitem(sys.modules, name, module)
    model = kind()
    model.layer = torch.nn.Linear(2, 2)
    torch.save({"model": model, "ema": None, "train_args": {"task": "segment"}}, tmp_path / "best.pt")
    with pytest.raises(CheckpointError, match=r"'yolo export model=\.\.\. format=onnx', then 'wnlb adopt'"):
        read_checkpoint(tmp_path / "best.pt")
