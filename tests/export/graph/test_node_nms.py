"""Suppression by NonMaxSuppression against torchvision and the static form, in PyTorch and in ONNX Runtime."""

from __future__ import annotations

import io

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor
from torchvision.ops import batched_nms

from wnlb.export.graph.node_nms import NodeNMS, onnx_suppress
from wnlb.export.graph.static_ops import StaticNMS

B, K, CLASSES, THRESHOLD = 3, 60, 4, 0.5


def crowd(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes of which many overlap, some are equal and some empty; validity; classes."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(B, K, 2, generator=generator) * 40
    boxes = torch.cat([corner, corner + torch.rand(B, K, 2, generator=generator) * 40], -1)
    boxes[:, 10:15] = boxes[:, 5:10]
    boxes[:, 20:22, 2:] = boxes[:, 20:22, :2]
    valid = (torch.rand(B, K, generator=generator) > 0.2).float()
    valid[-1] = 0  # a picture without any
    return boxes, valid, torch.randint(1, CLASSES + 1, (B, K), generator=generator)


def expected(boxes: Tensor, valid: Tensor, groups: Tensor | None) -> Tensor:
    keep = torch.zeros(boxes.shape[:2])
    for image in range(len(boxes)):
        rows = valid[image].nonzero()[:, 0]
        own = torch.zeros(len(rows)) if groups is None else groups[image, rows]
        keep[image, rows[batched_nms(boxes[image, rows], -rows.float(), own, THRESHOLD)]] = 1
    return keep


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_keeps_what_torchvision_keeps(seed: int, grouped: bool) -> None:
    boxes, valid, groups = crowd(seed)
    arguments = (boxes, valid, groups if grouped else None)
    kept = NodeNMS(THRESHOLD, CLASSES if grouped else 1)(*arguments)
    assert torch.equal(kept, expected(*arguments))
    assert torch.equal(kept, StaticNMS(THRESHOLD, K)(*arguments))
    assert 0 < kept.sum() < valid.sum()


def test_in_the_file() -> None:
    boxes, valid, groups = crowd(9)
    nms = NodeNMS(THRESHOLD, CLASSES).eval()
    program = torch.onnx.export(
        nms,
        (boxes, valid, groups),
        dynamo=True,
        opset_version=18,
        verbose=False,
        custom_translation_table={torch.ops.wnlb.suppress.default: onnx_suppress},
    )
    assert program is not None
    file = io.BytesIO()
    program.save(file)
    session = onnxruntime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    for seed in range(4):
        inputs = crowd(seed)
        (kept,) = session.run(None, {name: value.numpy() for name, value in zip(names, inputs, strict=True)})
        assert np.array_equal(kept, expected(*inputs))
