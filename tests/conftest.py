"""A small real model, exported once per test process; contracts."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

if not torch.cuda.is_available():  # before anything imports Triton, which reads it then
    os.environ["TRITON_INTERPRET"] = "1"

from small_models import small_config, small_model

from wnlb.export.checkpoint import load_checkpoint, save_checkpoint
from wnlb.export.export_onnx import export_onnx
from wnlb.export.options import ExportOptions
from wnlb.runtime.contract import Contract


@pytest.fixture(scope="session")
def small_checkpoint_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "small.safetensors"
    save_checkpoint(small_model(), small_config(), path)
    return path


@pytest.fixture(scope="session")
def small_model_path(small_checkpoint_path: Path) -> Path:
    """64 x 96 input, LIS's classes, many nonsense detections."""
    path = small_checkpoint_path.with_name("small.onnx")
    model, config = load_checkpoint(small_checkpoint_path)
    export_onnx(model, path, ExportOptions(64, 96), class_names=config.class_names)
    return path


@pytest.fixture(scope="session")
def make_contract() -> Callable[..., Contract]:
    """A contract of a 64 x 96 model with two rows, but for the entries given."""

    def make(**entries: object) -> Contract:
        counts = dict.fromkeys(("pre_nms_top_n", "post_nms_top_n", "candidates", "nms_rounds", "batch"), 1)
        thresholds = {"score_threshold": 0.0, "nms_threshold": 0.5, "rpn_nms_threshold": 0.7}
        shape = {"height": 64, "width": 96, "class_names": ("lamp", "dark cat"), "detections": 2}
        return Contract(**{**counts, **thresholds, **shape, **entries})

    return make
