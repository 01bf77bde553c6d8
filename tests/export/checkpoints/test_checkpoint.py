import argparse
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import torchvision
from small_models import NARROW, small_config, small_model
from torch import Tensor
from torchvision.models.detection import maskrcnn_resnet50_fpn

from wnlb.export.backbone import BACKBONES, OTHER_RESNEXTS, PLACEMENTS
from wnlb.export.block import MODES
from wnlb.export.checkpoints.checkpoint import load_checkpoint, save_checkpoint
from wnlb.export.checkpoints.names.dialect import infer_config
from wnlb.export.model import ModelConfig, model_from_config
from wnlb.runtime.errors import CheckpointError

State = dict[str, Tensor]


@pytest.fixture(scope="module")
def state() -> State:
    return small_model().state_dict()


def assert_loads(path: Path, state: State, **options: Any) -> ModelConfig:
    model, config = load_checkpoint(path, **options)
    loaded = model.state_dict()
    assert not model.training
    assert all(torch.equal(loaded[name], value) for name, value in state.items())
    return config


@pytest.mark.parametrize("backbone", ["resnet18", "resnet50"])
@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("mode", [mode for mode in MODES if mode != "dot"])
def test_architecture_is_read_from_a_bare_state_dict(tmp_path: Path, mode: str, placement: str, backbone: str) -> None:
    fields = {"levels": ("c3", "c5"), "inner_channels": (5, 7), "weighted": mode != "gaussian", "rpn_convs": 2}
    config = small_config(mode=mode, placement=placement, backbone=backbone, class_names=(), **fields)
    state = model_from_config(config).state_dict()
    torch.save(state, tmp_path / "c.pth")
    assert assert_loads(tmp_path / "c.pth", state) == config


@pytest.mark.parametrize("backbone", [name for name in BACKBONES if name not in OTHER_RESNEXTS])
def test_backbones_are_read_from_torchvisions_own_names_and_shapes(backbone: str) -> None:
    with torch.device("meta"):
        config = small_config(backbone=backbone, levels=())
        ours = model_from_config(config).state_dict()
        theirs = getattr(torchvision.models, backbone)().state_dict()
    body = {f"backbone.body.{name}": value for name, value in theirs.items() if not name.startswith("fc.")}
    assert {name: ours[name].shape for name in body} == {name: value.shape for name, value in body.items()}
    assert infer_config({**ours, **body}, {}).backbone == backbone


def test_dot_has_the_weights_of_embedded_and_must_be_named(tmp_path: Path) -> None:
    config = small_config(mode="dot")
    model = model_from_config(config)
    torch.save(model.state_dict(), tmp_path / "c.pth")
    assert load_checkpoint(tmp_path / "c.pth")[1].mode == "embedded"
    assert load_checkpoint(tmp_path / "c.pth", overrides={"mode": "dot"})[1].mode == "dot"
    save_checkpoint(model, config, tmp_path / "own.pth")
    assert load_checkpoint(tmp_path / "own.pth")[1] == config


@pytest.mark.parametrize("name", ["c.pth", "c.safetensors"])
@pytest.mark.parametrize("dtype", [None, torch.float16])
def test_own_checkpoints_keep_everything(tmp_path: Path, name: str, dtype: torch.dtype | None) -> None:
    config = small_config(anchor_sizes=(16, 32, 64, 96, 128), aspect_ratios=(1.0,), norm_eps=1e-3)
    model = model_from_config(config)
    save_checkpoint(model, config, tmp_path / name, dtype)
    loaded, read = load_checkpoint(tmp_path / name)
    assert read == config
    for key, value in model.state_dict().items():
        expected = value.to(dtype).float() if dtype and value.is_floating_point() else value
        assert torch.equal(loaded.state_dict()[key], expected), key


CONTAINERS: dict[str, Callable[[State], object]] = {
    "torchvision reference": lambda s: {
        "model": s,
        "optimizer": {"state": {}, "param_groups": [{"lr": 0.02}]},
        "args": argparse.Namespace(lr=0.02, dataset="lis"),
        "epoch": 3,
    },
    "lightning": lambda s: {"state_dict": {f"model.{k}": v for k, v in s.items()}, "epoch": 1},
    "data parallel": lambda s: {"model_state_dict": {f"module.{k}": v for k, v in s.items()}},
    "compiled": lambda s: {f"_orig_mod.{k}": v for k, v in s.items()},
    "compiled data parallel": lambda s: {"net": {f"module._orig_mod.{k}": v for k, v in s.items()}},
    "averaged": lambda s: {"ema": {"n_averaged": torch.tensor(7), **{f"module.{k}": v for k, v in s.items()}}},
    "nested": lambda s: {"ema": {"module": s}},
    "some detector": lambda s: {"state_dict": {f"net.detector.{k}": v for k, v in s.items()}},
}


@pytest.mark.parametrize("container", CONTAINERS)
def test_containers_and_prefixes(tmp_path: Path, state: State, container: str) -> None:
    torch.save(CONTAINERS[container](state), tmp_path / "c.pth")
    assert assert_loads(tmp_path / "c.pth", state).backbone == "resnet18"


def test_the_plain_weights_win_over_averaged_ones(tmp_path: Path, state: State) -> None:
    torch.save({"ema": {k: v * 0 for k, v in state.items()}, "model": state}, tmp_path / "c.pth")
    assert_loads(tmp_path / "c.pth", state)


RENAMINGS = {
    "appended to an nn.Sequential": [(r"(layer\d)\.wnlb\.", r"\1.2.")],
    "another name": [(r"(layer\d)\.wnlb\.", r"\1.denoise.")],
    "torchvision before 0.13": [
        (r"rpn\.head\.conv\.0\.0\.", "rpn.head.conv."),
        (r"(inner_blocks|layer_blocks)\.(\d)\.0\.", r"\1.\2."),
        (r"mask_head\.0\.0\.", "mask_head.mask_fcn1."),
        (r"mask_head\.1\.0\.", "mask_head.mask_fcn2."),
    ],
}


@pytest.mark.parametrize("renaming", RENAMINGS)
def test_other_names(tmp_path: Path, state: State, renaming: str) -> None:
    renamed = dict(state)
    for pattern, replacement in RENAMINGS[renaming]:
        renamed = {re.sub(pattern, replacement, k): v for k, v in renamed.items()}
    assert renamed.keys() != state.keys()
    safetensors.torch.save_file(renamed, tmp_path / "c.safetensors")
    assert assert_loads(tmp_path / "c.safetensors", state).levels == ("c2", "c3", "c4", "c5")


@pytest.mark.parametrize(
    ("placement", "pattern", "replacement"),
    [
        ("lateral", r"fpn\.lateral\.c(\d)", lambda m: f"nlb_blocks.{int(m[1]) - 2}"),
        ("lateral", r"fpn\.lateral\.c(\d)", r"fpn.inner_nlb.c\1"),
        ("fpn", r"fpn\.output\.p(\d)", lambda m: f"fpn.denoise.{int(m[1]) - 2}"),
        ("fpn", r"fpn\.output\.p(\d)", r"fpn.nlb_p\1"),
    ],
)
def test_blocks_at_the_fpn_under_other_names(tmp_path: Path, placement: str, pattern: str, replacement: Any) -> None:
    state = small_model(placement=placement).state_dict()
    torch.save({re.sub(pattern, replacement, k): v for k, v in state.items()}, tmp_path / "c.pth")
    assert assert_loads(tmp_path / "c.pth", state).placement == placement


def test_plain_torchvision(tmp_path: Path) -> None:
    theirs = maskrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=4)
    torch.save(theirs.state_dict(), tmp_path / "c.pth")
    config = assert_loads(tmp_path / "c.pth", theirs.state_dict())
    assert (config.levels, config.backbone, config.num_classes, config.norm) == ((), "resnet50", 4, "batch")


def test_frozen_batch_norm_is_recognised_and_its_epsilon_can_be_set(tmp_path: Path) -> None:
    state = small_model(norm="frozen").state_dict()
    torch.save(state, tmp_path / "c.pth")
    model, config = load_checkpoint(tmp_path / "c.pth", overrides={"norm_eps": 0.0})
    assert config.norm == "frozen"
    assert model.backbone.body.bn1.eps == 0.0


def test_key_map_renames_and_drops(tmp_path: Path, state: State) -> None:
    odd = {k.replace("backbone.body.", "resnet/").replace("roi_heads", "heads"): v for k, v in state.items()}
    torch.save({**odd, "criterion.weight": torch.ones(3)}, tmp_path / "c.pth")
    (tmp_path / "map.txt").write_text("# ours\n^resnet/ => backbone.body.\n^heads => roi_heads\n\n^criterion =>\n")
    assert_loads(tmp_path / "c.pth", state, key_map=tmp_path / "map.txt")


@pytest.mark.parametrize(
    ("rules", "said"), [("(a => b", "line 1"), ("a b", "line 1"), (r"backbone => \3", "invalid group")]
)
def test_bad_key_maps_are_refused(tmp_path: Path, state: State, rules: str, said: str) -> None:
    torch.save(state, tmp_path / "c.pth")
    (tmp_path / "map.txt").write_text(rules)
    with pytest.raises(CheckpointError, match=said):
        load_checkpoint(tmp_path / "c.pth", key_map=tmp_path / "map.txt")


def without(state: State, *names: str) -> State:
    return {k: v for k, v in state.items() if k not in names}


FC6, FC7 = "roi_heads.box_head.fc6.weight", "roi_heads.box_head.fc7.weight"
BROKEN: dict[str, tuple[Callable[[State], object], str]] = {
    "missing": (lambda s: without(s, FC7), rf"1 missing \({FC7}\)"),
    "unexpected": (lambda s: {**s, "head.extra": torch.ones(1)}, r"1 unexpected \(head\.extra\)"),
    "nearest": (
        lambda s: {**without(s, FC7), "roi_heads.box_head.fc_7.weight": s[FC7]},
        rf"missing \({FC7}, near to roi_heads\.box_head\.fc_7\.weight\); 1 unexpected",
    ),
    "misshapen": (lambda s: {**s, FC7: torch.zeros(64, 3)}, rf"1 misshapen \({FC7}: \[64, 3\] instead of \[64, 64\]\)"),
    "not finite": (lambda s: {**s, FC7: s[FC7] * float("nan")}, rf"1 with NaN or infinity \({FC7}\)"),
    "required": (lambda s: without(s, FC6), f"has no weight '{FC6}'"),
    "no backbone": (lambda s: {"encoder.weight": torch.ones(2)}, r"starts? with encoder\.weight"),
    "empty": (lambda s: {}, "holds nothing"),
    "no weights": (lambda s: {"epoch": 3, "lr": 0.1}, "holds epoch, lr, but no weights"),
    "a tensor": (lambda s: torch.ones(3), "holds a Tensor"),
    "another ResNet": (
        lambda s: {k: v for k, v in s.items() if not k.startswith("backbone.body.layer3.1")},
        r"basic residual units \(2, 2, 1, 2\)",
    ),
    "other anchors": (
        lambda s: {**s, "rpn.head.cls_logits.weight": torch.zeros(5, 32, 1, 1)},
        "5 anchors per position",
    ),
    "block inside a unit": (
        lambda s: {k.replace("layer3.wnlb", "layer3.1.conv2.nl"): v for k, v in s.items()},
        r"block at backbone\.body\.layer3\.1\.conv2\.nl",
    ),
    "two blocks on a stage": (
        lambda s: {**s, **{k.replace("wnlb", "second"): v for k, v in s.items() if "layer2.wnlb" in k}},
        "two blocks for one level",
    ),
    "mixed blocks": (
        lambda s: {k: v for k, v in s.items() if "layer2.wnlb.theta" not in k and "layer2.wnlb.phi" not in k},
        "mixes blocks of the modes embedded, gaussian",
    ),
    "wrong settings": (lambda s: {"model": s, "wnlb.config": "{"}, "is not a JSON object"),
    "unknown settings": (
        lambda s: {"model": s, "wnlb.config": '{"depth": 3}'},
        "setting 'depth' is not known; expected num_classes",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_checkpoints_are_refused_with_what_is_wrong(tmp_path: Path, state: State, case: str) -> None:
    make, said = BROKEN[case]
    torch.save(make(state), tmp_path / "c.pth")
    with pytest.raises(CheckpointError, match=said) as refused:
        load_checkpoint(tmp_path / "c.pth")
    assert "\n" not in str(refused.value)


class Dangerous:
    def __reduce__(self) -> tuple[object, ...]:
        return (print, ("this must not run",))


@pytest.mark.parametrize("name", ["c.pth", "c.safetensors"])
@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04" + b"\0" * 200])
def test_files_that_are_no_checkpoints(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=r"not a readable|is empty") as refused:
        load_checkpoint(tmp_path / name)
    assert "\n" not in str(refused.value)


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"model": Dangerous()}, tmp_path / "c.pth")
    with pytest.raises(CheckpointError, match=r"save the weights alone"):
        load_checkpoint(tmp_path / "c.pth")
    torch.save(model_from_config(small_config()), tmp_path / "whole.pth")
    with pytest.raises(CheckpointError, match=r"torchvision\..*MaskRCNN.* which only running its code could load"):
        load_checkpoint(tmp_path / "whole.pth")
    assert "must not run" not in capsys.readouterr().out


def test_truncated_and_absent_files(tmp_path: Path, state: State) -> None:
    torch.save(state, tmp_path / "c.pth")
    data = (tmp_path / "c.pth").read_bytes()
    (tmp_path / "cut.pth").write_bytes(data[: len(data) // 2])
    with pytest.raises(CheckpointError, match="not a readable PyTorch file"):
        load_checkpoint(tmp_path / "cut.pth")
    with pytest.raises(CheckpointError, match="does not exist"):
        load_checkpoint(tmp_path / "nothing.pth")
    with pytest.raises(CheckpointError, match="is a folder"):
        load_checkpoint(tmp_path)


def test_narrow_widths_are_read(tmp_path: Path, state: State) -> None:
    torch.save(state, tmp_path / "c.pth")
    config = load_checkpoint(tmp_path / "c.pth")[1].to_dict()
    assert {name: config[name] for name in NARROW} == NARROW
