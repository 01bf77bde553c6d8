"""Repair of Triton's interpreter (3.9): it stores bfloat16 as uint16, and multiplies those integers in ``tl.dot``."""

from __future__ import annotations

import numpy as np
import pytest
import torch


@pytest.fixture(autouse=True)
def bfloat16_products(monkeypatch: pytest.MonkeyPatch) -> None:
    if torch.cuda.is_available():
        return
    from triton.language import bfloat16, float32
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    original = InterpreterBuilder.create_dot

    def widened(handle: TensorHandle) -> TensorHandle:
        if handle.dtype.scalar != bfloat16:
            return handle
        data = (handle.data.astype(np.uint32) << 16).view(np.float32)
        return TensorHandle(data, float32)

    def create_dot(self, a, b, d, *options):
        return original(self, widened(a), widened(b), d, *options)

    monkeypatch.setattr(InterpreterBuilder, "create_dot", create_dot)
