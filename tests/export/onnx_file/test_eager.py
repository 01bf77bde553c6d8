"""The eager backend reads a checkpoint as the file was exported that it is compared with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_models import small_model

from wnlb.export.backbone import blocks_by_level
from wnlb.export.onnx_file.eager import EagerBackend
from wnlb.export.onnx_file.export_onnx import deploy_graph, make_contract
from wnlb.export.options import ExportOptions
from wnlb.runtime.contract import Contract
from wnlb.runtime.errors import CheckpointError

SIZES = ((16, 24), (32, 48), (64, 96), (128, 160), (200, 256))


@pytest.fixture
def contract(tmp_path: Path) -> Contract:
    """Of a bare state dict, ``c.pth``, with everything that one does not tell."""
    model = small_model(mode="dot", norm="frozen", norm_eps=1e-3, anchor_sizes=SIZES, aspect_ratios=(0.5, 2.0))
    torch.save(model.state_dict(), tmp_path / "c.pth")
    options = ExportOptions(64, 96)
    made = make_contract(model, deploy_graph(model, options, None), options, tuple("abcdefgh"))
    return Contract.from_json(made.to_json())


def test_what_weights_do_not_tell_is_in_the_contract(contract: Contract, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="4 anchors per position"):  # without it
        EagerBackend(tmp_path / "c.pth", replace(contract, checkpoint_settings={}))
    model = EagerBackend(tmp_path / "c.pth", contract).eager.model
    assert {block.mode for _, _, block in blocks_by_level(model)} == {"dot"}
    assert model.backbone.body.bn1.eps == 1e-3
    assert model.rpn.anchor_generator.sizes == SIZES
    assert model.rpn.anchor_generator.aspect_ratios == ((0.5, 2.0),) * 5


def test_what_the_user_says_goes_before_it(contract: Contract, tmp_path: Path) -> None:
    backend = EagerBackend(tmp_path / "c.pth", contract, overrides={"norm_eps": 0.0, "mode": "embedded"})
    assert backend.eager.model.backbone.body.bn1.eps == 0
    assert {block.mode for _, _, block in blocks_by_level(backend.eager.model)} == {"embedded"}
    with pytest.raises(CheckpointError, match="no weights named 'ema'"):
        EagerBackend(tmp_path / "c.pth", contract, weights="ema")
    (tmp_path / "map.txt").write_text("^rpn\\.head\\.bbox_pred.* =>\n")
    with pytest.raises(CheckpointError, match=r"1 missing|2 missing"):
        EagerBackend(tmp_path / "c.pth", contract, key_map=tmp_path / "map.txt")
