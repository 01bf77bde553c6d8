"""PyTorch's ONNX exporter without its second trace.

Between trace and translation the exporter has the traced program decompose what ONNX lacks, and that traces the whole
graph again, operation by operation: a third of an export. What graphs here need of it is other names for a handful of
operations.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.fx.config as fx_config
from torch import Tensor, nn
from torch.fx import Node

aten = torch.ops.aten

_RENAMED: dict[Any, Any] = {  # with the same arguments
    aten.__and__.Tensor: aten.bitwise_and.Tensor,
    aten.item.default: aten._local_scalar_dense.default,
}
_IN_PLACE: dict[Any, Any] = {aten.add_.Tensor: aten.add.Tensor, aten.relu_.default: aten.relu.default}
_NO_VIEWS = (aten.conv2d.default, aten.add.Tensor)  # operations whose result has memory of its own


def onnx_program(graph: nn.Module, examples: tuple[Tensor, ...], *, dynamic_shapes: Any = None, **options: Any) -> Any:
    """``torch.onnx.export(graph, examples, dynamo=True, ...)``, faster where ``graph`` needs nothing unusual."""
    with _without_stack_traces():
        program = torch.export.export(graph, examples, dynamic_shapes=dynamic_shapes, strict=False)
    for node in program.graph.nodes:
        _decompose(node)
    program.run_decompositions = lambda *_, **__: program
    try:
        return torch.onnx.export(program, dynamo=True, dynamic_shapes=dynamic_shapes, **options)
    except torch.onnx.OnnxExporterError:  # an operation is left that ONNX lacks
        return torch.onnx.export(graph, examples, dynamo=True, dynamic_shapes=dynamic_shapes, **options)


@contextmanager
def _without_stack_traces() -> Iterator[None]:
    """Operations do not note which lines of Python they come from, which takes a tenth of the trace and is not kept.

    PyTorch 2.14 and later ask for it.
    """
    name = "do_not_emit_stack_traces"
    before = getattr(fx_config, name, False)
    setattr(fx_config, name, True)
    try:
        yield
    finally:
        setattr(fx_config, name, before)


def _decompose(node: Node) -> None:
    """Make one operation that ONNX lacks another, of the same result; leave all others."""
    if node.target in _RENAMED:
        node.target = _RENAMED[node.target]
    elif node.target in _IN_PLACE and _has_own_memory(node.args[0]):
        node.target = _IN_PLACE[node.target]
    elif node.target == aten.rsub.Scalar and len(node.args) == 2:
        node.target, node.args = aten.sub.Tensor, node.args[::-1]
    elif node.target == aten.to.dtype and len(node.args) == 2:
        x, dtype = node.args
        node.target, node.args, node.kwargs = aten._to_copy.default, (x,), {"dtype": dtype}
    elif node.target == aten.flatten.using_ints:
        # ONNX's Flatten would always make a matrix. At most one size is not known before the run.
        sizes = [size if isinstance(size, int) else -1 for size in node.meta["val"].shape]
        if sizes.count(-1) == 0:  # what becomes one follows from all others, and may be a number of rows
            start = node.args[1] if len(node.args) > 1 else 0
            sizes[start if isinstance(start, int) else 0] = -1
        if sizes.count(-1) <= 1:
            node.target, node.args = aten.reshape.default, (node.args[0], sizes)


def _has_own_memory(written: Any) -> bool:
    """Whether nobody but its one user sees it when ``written`` is overwritten."""
    return written.target in _NO_VIEWS and len(written.users) == 1
