"""Exports without PyTorch's decomposition, and with it where they need it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnxruntime as ort
import pytest
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from wnlb.export.onnx_file.onnx_program import onnx_program


class Graph(nn.Module):
    """``compute`` of a convolution's result and the input."""

    def __init__(self, compute: Callable[[Tensor, Tensor], tuple[Tensor, ...]]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 1)
        self.compute = compute

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.compute(self.conv(x), x)


def usual(y: Tensor, x: Tensor) -> tuple[Tensor, ...]:
    """What graphs of this package are made of."""
    y = y.add_(x).relu_()
    both = ((y > 0.5) & (x > 0)).to(torch.float32)
    rows = (x.flatten() > 0).sum().item()
    torch._check(rows <= x.numel())
    found = x.reshape(-1, 1).narrow(0, 0, rows).expand(-1, 2).flatten()
    return y, both, 1 - y, y.flatten(1, 2).transpose(1, 2).flatten(), found


UNUSUAL = {
    "another operation": lambda y, x: (y.mul_(2) + x,),
    "a view is overwritten": lambda y, x: (y + y[:, 0].add_(1).sum(),),
    "what is overwritten was seen through a view": lambda y, x: (y.flatten(), y.relu_()),
}


@pytest.mark.parametrize("name", ["usual", *UNUSUAL])
def test_the_file_computes_what_the_graph_computes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = ExportedProgram.run_decompositions
    calls = []

    def run_decompositions(self: ExportedProgram, *arguments: object) -> ExportedProgram:
        calls.append(name)
        return whole(self, *arguments)

    monkeypatch.setattr(ExportedProgram, "run_decompositions", run_decompositions)
    torch.manual_seed(0)
    graph = Graph(UNUSUAL.get(name, usual)).eval().requires_grad_(False)
    x = torch.randn(1, 2, 3, 4)
    program = onnx_program(graph, (torch.zeros_like(x),), input_names=["x"], optimize=False, verbose=False)
    assert calls == ([name] if name in UNUSUAL else [])
    session = ort.InferenceSession(program.model_proto.SerializeToString(), providers=["CPUExecutionProvider"])
    expected = graph(x.clone())
    for found, value in zip(session.run(None, {"x": x.numpy()}), expected, strict=True):
        np.testing.assert_allclose(found, value.numpy(), atol=1e-6)
