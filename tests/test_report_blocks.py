"""The report on blocks: a block that is switched off is the identity, and the page tells the planted figures."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import pytest
import report_blocks
import torch
from report_blocks import measure, report, switch_off

from wnlb.export.backbone import blocks_by_level
from wnlb.export.block import WeightedNonLocalBlock


@pytest.mark.parametrize("weighted", [True, False])
def test_a_block_that_is_off_is_the_identity(weighted: bool) -> None:
    block = WeightedNonLocalBlock(8, weighted=weighted).eval()
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter)
    x = torch.randn(1, 8, 4, 4)
    assert not torch.allclose(block(x), x, atol=0.1)
    switch_off(block)
    assert torch.equal(block(x), x)


def row(name: str, off: str | None, mask: float, box: float, dark: float = 1.0) -> dict:
    accuracy = {"mask_ap": mask, "box_ap": box}
    bins = {"0-0.015": {"mask_ap": dark, "box_ap": dark}, "0.12-1": accuracy}
    return {"of": name, "off": off, "overall": accuracy, "by_darkness": bins, "w": {"c2": 0.25}}


def test_report_tells_figures_and_differences() -> None:
    page = report({"a": row("a", None, 40.0, 50.0, 12.5), "a without c2": row("a", "c2", 38.75, 50.5)})
    assert "| mask AP | all  | luminance 0-0.015 | luminance 0.12-1 |" in page
    assert "| a       | 40.0 | 12.5              | 40.0             |" in page
    assert "| a     | c2        | +0.250    | -1.25   | +0.50  |" in page


def test_each_block_is_measured_once_and_not_again(
    tmp_path: Path, small_checkpoint_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = []

    def score(model, name, arguments):
        live.append([level for level, _, block in blocks_by_level(model) if block.W_z[1].weight.any()])
        return {"overall": {"mask_ap": 1.0, "box_ap": 2.0}}

    monkeypatch.setattr(report_blocks, "score", score)
    arguments = Namespace(output=tmp_path, no_ablation=False)
    rows: dict = {}
    measure(small_checkpoint_path, arguments, rows)
    levels = ["c2", "c3", "c4", "c5"]
    assert live == [levels, *([other for other in levels if other != level] for level in levels)]
    assert len(rows) == 5
    assert (tmp_path / "report.json").stat().st_size > 0
    measure(small_checkpoint_path, arguments, rows)
    assert len(live) == 5
