"""The training script as far as a test can afford: its data, its schedule, and a few steps with a stop in between."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import pytest
import torch
import train_sample
from train_sample import NightScenes, learning_rate, train, training_sample

from wnlb.export.checkpoint import load_checkpoint


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


def test_learning_rate_rises_and_falls() -> None:
    rates = [learning_rate(step, 2000, 1.0) for step in range(2000)]
    assert rates[0] < 0.01
    assert max(rates) == pytest.approx(rates[300], rel=0.1)
    assert rates[-1] == pytest.approx(0.01, abs=1e-3)


def test_training_goes_on_where_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(train_sample, "SIZE", 96)
    common = {"batch": 1, "lr": 1e-4, "blocks": "weighted", "seed": 0, "device": "cpu", "workers": 0}
    common |= {"log_every": 1, "save_every": 1, "output": tmp_path}
    train(Namespace(steps=1, **common))
    train(Namespace(steps=2, **common))
    assert "going on from step 1" in capsys.readouterr().out
    assert (tmp_path / "log.csv").read_text().count("\n") == 3
    assert (tmp_path / "curve.png").stat().st_size > 1000
    model, config = load_checkpoint(tmp_path / "sample.safetensors")
    assert config.levels == ("c2", "c3", "c4", "c5")
    assert (tmp_path / "sample.safetensors").stat().st_size < 32e6
    assert any(block.abs().item() > 0 for name, block in model.named_parameters() if name.endswith(".w"))
