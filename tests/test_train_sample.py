"""The training script as far as a test can afford: its data, its schedule, and a few steps with a stop in between."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import pytest
import torch
import train_sample
from train_sample import NightScenes, learning_rate, train, training_sample

from wnlb.export.checkpoints.checkpoint import load_checkpoint
from wnlb.runtime.errors import WnlbError


def test_targets_fit_the_scene_and_repeat() -> None:
    image, target = training_sample(3)
    assert image.shape == (3, 320, 320)
    assert 0 <= image.min() < image.max() <= 1
    assert len(target["boxes"]) == len(target["labels"]) == len(target["masks"]) > 0
    for box, mask in zip(target["boxes"], target["masks"], strict=True):
        rows, columns = mask.nonzero(as_tuple=True)
        assert box.tolist() == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    again, _ = training_sample(3)
    assert torch.equal(image, again)
    assert not torch.equal(image, next(iter(NightScenes(4, 1)))[0])


def test_learning_rate_rises_stays_and_falls() -> None:
    rates = [learning_rate(step, 2000, 2.0, 0.5) for step in range(2001)]
    assert rates[0] == pytest.approx(0.01)
    assert rates[299:1001] == pytest.approx([2.0] * 702)
    assert rates[1500] == pytest.approx(1.0)
    assert rates[2000] == 0
    assert learning_rate(1999, 2000, 2.0, 0.0) == 2.0  # no decay: to be continued


def arguments(output: Path, **fields: object) -> Namespace:
    common = {
        "backbone": "resnet18",
        "batch": 1,
        "lr": 1e-4,
        "blocks": "weighted",
        "seed": 0,
        "device": "cpu",
        "workers": 0,
        "decay": 0.0,
    }
    common |= {"log_every": 1, "save_every": 1, "output": output, "start": None, "first_scene": 0}
    return Namespace(**{**common, **fields})


def test_training_goes_on_where_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(train_sample, "SIZE", 96)
    train(arguments(tmp_path, steps=1))
    train(arguments(tmp_path, steps=2))
    assert "going on from step 1" in capsys.readouterr().out
    assert (tmp_path / "log.csv").read_text().count("\n") == 3
    assert (tmp_path / "curve.png").stat().st_size > 1000
    model, config = load_checkpoint(tmp_path / "sample.safetensors")
    assert config.levels == ("c2", "c3", "c4", "c5")
    assert (tmp_path / "sample.safetensors").stat().st_size < 32e6
    assert any(block.abs().item() > 0 for name, block in model.named_parameters() if name.endswith(".w"))


def test_the_full_network_is_torchvisions() -> None:
    config = train_sample.sample_config("weighted", "resnet50")
    assert (config.fpn_channels, config.box_features, config.mask_channels) == (256, 1024, (256,) * 4)
    assert train_sample.sample_config("none").fpn_channels == 128


def test_blocks_are_put_into_a_trained_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_sample, "SIZE", 96)
    trunk, finetuned = tmp_path / "trunk", tmp_path / "finetuned"
    train(arguments(trunk, blocks="none", steps=1))
    train(arguments(finetuned, start=trunk / "sample.pth", steps=1, lr=0.0))
    before = load_checkpoint(trunk / "sample.pth")[0].state_dict()
    after = load_checkpoint(finetuned / "sample.pth")[0].state_dict()
    same = [name for name in before if not name.endswith(("running_mean", "running_var", "num_batches_tracked"))]
    assert all(torch.equal(before[name], after[name]) for name in same)
    assert {name.split(".")[3] for name in after.keys() - before.keys()} == {"wnlb"}
    with pytest.raises(WnlbError, match=r"no start for this model; it differs in .*wnlb"):
        train(arguments(tmp_path / "other", blocks="none", start=finetuned / "sample.pth", steps=1))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"batch": 0}, "batch is 0; expected at least 1"),
        ({"steps": -1}, "steps is -1; expected at least 1"),
        ({"decay": 1.5}, r"decay is 1\.5; expected a share"),
        ({"start": Path("nothing.pth")}, "nothing.pth does not exist"),
    ],
)
def test_bad_arguments(tmp_path: Path, fields: dict[str, object], message: str) -> None:
    with pytest.raises(WnlbError, match=message):
        train(arguments(tmp_path, **{"steps": 1, **fields}))


def test_a_damaged_resume_is_named(tmp_path: Path) -> None:
    (tmp_path / "resume.pth").write_bytes(b"damaged")
    with pytest.raises(WnlbError, match=r"resume\.pth does not fit this run"):
        train(arguments(tmp_path, steps=1))
