"""LIS's adaptive downsampling, against its formula position by position, and in an exported file."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import onnx
import onnxruntime as ort
import pytest
import torch
from small_models import small_model
from tensorrt_rtx_build import build_in_tensorrt_rtx
from torch import Tensor, nn

from wnlb.export.adaptive_downsampling import AdaptiveDownsampling
from wnlb.export.graph.deploy import DeployGraph
from wnlb.export.onnx_file.lint import OPERATORS
from wnlb.export.options import ExportOptions


def lively(channels: int, stride: int) -> AdaptiveDownsampling:
    torch.manual_seed(2)
    module = AdaptiveDownsampling(channels, stride)
    for parameter in module.parameters():
        nn.init.normal_(parameter, 0, 0.7)
    module.weight_net[1].running_mean.normal_()
    module.weight_net[1].running_var.uniform_(0.3, 2)
    return module.double().eval()


def position_by_position(module: AdaptiveDownsampling, x: Tensor) -> Tensor:
    """``[C, H, W]`` to ``[C, h, w]``, each number by itself."""
    channels, height, width = x.shape
    state = module.state_dict()
    first, second = (state[f"channel_net.{i}.weight"][:, :, 0, 0] for i in (1, 3))
    gain = second @ (first @ torch.stack([plane.mean() for plane in x])).relu()
    kernels, bn = state["weight_net.0.weight"], {name: state[f"weight_net.1.{name}"] for name in ("weight", "bias")}
    mean, variance = (state[f"weight_net.1.running_{name}"] for name in ("mean", "var"))

    def at(c: int, row: int, column: int, reflected: bool) -> Tensor:
        inside = 0 <= row < height and 0 <= column < width
        if not inside and not reflected:
            return torch.zeros(())
        row, column = (abs(i) if i < n else 2 * (n - 1) - i for i, n in ((row, height), (column, width)))
        return x[c, row, column]

    rows, columns = range(0, height, module.stride), range(0, width, module.stride)
    y = torch.empty(channels, len(rows), len(columns), dtype=x.dtype)
    taps = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
    for c in range(channels):
        for i, row in enumerate(rows):
            for j, column in enumerate(columns):
                zeros, mirror = (
                    torch.stack([at(c, row + dy, column + dx, kind).double() for dy, dx in taps])
                    for kind in (False, True)
                )
                o = slice(9 * c, 9 * c + 9)
                logits = kernels[o, 0].flatten(1) @ zeros
                logits = (logits - mean[o]) / (variance[o] + 1e-5).sqrt() * bn["weight"][o] + bn["bias"][o]
                y[c, i, j] = (gain[c] * logits).softmax(0) @ mirror
    return y


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(6, 8), (5, 7), (2, 2), (3, 2)])
def test_each_number_is_that_of_the_formula(stride: int, size: tuple[int, int]) -> None:
    module = lively(4, stride)
    x = torch.randn(2, 4, *size, dtype=torch.float64)
    expected = torch.stack([position_by_position(module, own) for own in x])
    with torch.no_grad():
        torch.testing.assert_close(module(x), expected, rtol=0, atol=1e-12)


def test_what_is_the_same_everywhere_stays_so() -> None:
    x = torch.full((1, 4, 6, 8), 3.0, dtype=torch.float64)
    torch.testing.assert_close(lively(4, 2)(x), x[:, :, :3, :4])


def test_the_deployed_network_has_no_norms_and_the_same_pyramid() -> None:
    model = small_model(adaptive_stride=2, levels=()).double()
    graph = DeployGraph(model, ExportOptions(64, 96))
    assert not [path for path, part in graph.named_modules() if isinstance(part, nn.BatchNorm2d)]
    x = torch.randn(1, 3, 64, 96, dtype=torch.float64)
    with torch.no_grad():
        for own, theirs in zip(graph.fpn(graph.body(x)).values(), model.backbone(x).values(), strict=True):
            torch.testing.assert_close(own, theirs, rtol=1e-9, atol=1e-9)


def exported(path: Path, stride: int) -> Tensor:
    """The module alone as a file; what it was exported with."""
    x = torch.randn(1, 8, 6, 8)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(lively(8, stride).float(), (x,), path, input_names=["x"], opset_version=18, dynamo=True)
    return x


@pytest.mark.parametrize("stride", [1, 2])
def test_a_file_has_operators_that_run_everywhere(tmp_path: Path, stride: int) -> None:
    x = exported(tmp_path / "m.onnx", stride)
    assert {node.op_type for node in onnx.load(tmp_path / "m.onnx").graph.node} <= OPERATORS
    session = ort.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    found = torch.from_numpy(session.run(None, {"x": x.numpy()})[0])
    with torch.no_grad():
        torch.testing.assert_close(found, lively(8, stride)(x.double()).float(), rtol=0, atol=1e-5)


def test_it_builds_in_tensorrt_rtx(tmp_path: Path) -> None:
    exported(tmp_path / "m.onnx", 2)
    assert build_in_tensorrt_rtx(tmp_path / "m.onnx") > 1e3
