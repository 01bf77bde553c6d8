"""A PyTorch graph of ours as ONNX."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout

import onnx
import torch
from torch import Tensor, nn

from wnlb.export.graph.node_nms import onnx_suppress
from wnlb.export.onnx_file.onnx_program import onnx_program
from wnlb.export.onnx_file.passes import simplify
from wnlb.runtime.contract import BATCH
from wnlb.runtime.errors import GraphError

OPSET = 18
_TRANSLATIONS: dict[Callable, Callable] = {
    torch.ops.wnlb.suppress.default: onnx_suppress,
}


def traced(
    graph: nn.Module, examples: dict[str, Tensor], outputs: tuple[str, ...], batches: range | None, expected: str
) -> onnx.ModelProto:
    """``graph`` as PyTorch's exporter writes it; what that prints is kept for the error.

    Args:
        examples: inputs by name, in the order of the graph's arguments.
        outputs: names, in their order.
        batches: what the first axis of all inputs may be, named ``batch`` in the file; None: what the examples have.
        expected: of the message, what would have been traced.

    Raises:
        GraphError: the exporter cannot write it.
    """
    axis = {0: torch.export.Dim(BATCH, min=batches[0], max=batches[-1])} if batches else None
    said = io.StringIO()
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(said), redirect_stderr(said):
            warnings.simplefilter("ignore")
            program = onnx_program(
                graph,
                tuple(examples.values()),
                input_names=list(examples),
                output_names=list(outputs),
                opset_version=OPSET,
                verbose=False,
                optimize=False,
                custom_translation_table=_TRANSLATIONS,
                dynamic_shapes=(axis,) * len(examples) if axis else None,
            )
            if program is not None:
                simplify(program.model, axis is not None)
    except Exception as error:
        reason = str(error.__cause__ or error).strip().splitlines()[0]
        raise GraphError(f"PyTorch {torch.__version__} cannot trace this model: {reason}; {expected}") from error
    finally:
        logger.setLevel(level)
    if program is None:
        raise GraphError(f"PyTorch {torch.__version__} returned no graph; torch 2.9 or later is expected")
    return program.model_proto
