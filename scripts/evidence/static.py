"""The static graph in PyTorch, as CUDA graphs: what an engine computes, in several forms."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from evidence.attention import draw
from evidence.kernels import Launch, fits, launcher, name_of
from evidence.stage import Context
from evidence.timing import median_ms, memory_of
from wnlb.export.graph.attention import DeployedBlock
from wnlb.export.graph.deploy import DeployGraph
from wnlb.export.options import ExportOptions
from wnlb.plugins.build import Built
from wnlb.runtime.engine.mask_cut import mask_rows
from wnlb.runtime.errors import MissingDependency

Found = tuple[Tensor, Tensor, Tensor, Tensor]  # boxes [D, 4], scores [D], labels [D], masks [D, 28, 28]


@dataclass(frozen=True)
class Case:
    name: str
    height: int
    width: int
    model: Any

    @property
    def size(self) -> str:
        return f"{self.height}x{self.width}"


@dataclass(frozen=True)
class Variant:
    run: Callable[[Tensor], Found]
    set_threshold: Callable[[float], None]
    bytes: int | None = None  # of one run, where it cannot be seen from outside


def static_graph(model: Any, case: Case, precision: str, kernels: list[Built], context: Context) -> Any:
    graph: Any = DeployGraph(copy.deepcopy(model).to("cpu"), ExportOptions(case.height, case.width)).eval()
    graph = graph.to(context.device)
    if precision != "fp32":  # tensor cores like it
        graph = channels_last(graph)
    if precision == "fp16":
        graph = halved(graph)
    if kernels:
        for path, block in [(p, m) for p, m in graph.named_modules() if isinstance(m, DeployedBlock)]:
            if block.mode == "embedded":
                graph.set_submodule(path, KernelBlock(block, kernels, context))
    return graph


def _whole_frame(case: Case, device: str) -> Tensor:
    return torch.tensor([[case.height, case.width]], dtype=torch.int32, device=device)


def at_once(graph: Any, case: Case, precision: str, device: str) -> Variant:
    """The whole network as one graph: masks for all rows."""
    content, taken = _whole_frame(case, device), None
    run = in_precision(lambda frame: graph(frame, content), precision, device)
    if device == "cuda":
        run, taken = _captured(run, torch.zeros(1, case.height, case.width, 3, dtype=torch.uint8, device="cuda"))

    def found(frame: Tensor) -> Found:
        boxes, scores, labels, masks, count = run(frame)
        n = int(count[0])
        return boxes[0, :n], scores[0, :n], labels[0, :n], masks[0, :n]

    return Variant(found, lambda value: graph.detect.score_threshold.fill_(value), taken)


def masks_by_count(graph: Any, case: Case, precision: str, device: str) -> Variant:
    """A graph up to the boxes, and one of the mask branch for each of ``mask_rows``: the host reads the count between.

    The pyramid stays on the GPU; where nothing was found the second graph is not run.
    """
    content, taken = _whole_frame(case, device), None
    kept: list[Tensor] = []  # what the second graph reads of the first

    def boxes_of(frame: Tensor) -> tuple[Tensor, ...]:
        levels, limit = graph.pyramid(frame, content)
        maps = graph.detect.maps(levels[:4])
        boxes, scores, labels, found = graph.detect.boxes(maps, *graph.rpn(levels, limit), limit)
        kept[:] = maps, boxes, labels, found
        return boxes, scores, labels, found.sum(1)

    def masks_of(rows: int) -> Callable[[Tensor], tuple[Tensor, ...]]:
        def run(_: Tensor) -> tuple[Tensor, ...]:
            maps, boxes, labels, found = kept
            return (graph.detect.mask(maps, boxes[:, :rows], labels[:, :rows], found[:, :rows]),)

        return in_precision(run, precision, device)

    first = in_precision(boxes_of, precision, device)
    frame = torch.zeros(1, case.height, case.width, 3, dtype=torch.uint8, device=device)
    rows_at_once = mask_rows(graph.detect.detections)
    if device == "cuda":
        first, taken = _captured(first, frame)
        second = {rows: _captured(masks_of(rows), frame[:, :1, :1])[0] for rows in rows_at_once}
    else:
        first(frame)
        second = {rows: masks_of(rows) for rows in rows_at_once}

    def found(frame: Tensor) -> Found:
        boxes, scores, labels, count = first(frame)
        n = int(count[0])
        rows = next(rows for rows in rows_at_once if rows >= n)
        masks = second[rows](frame[:, :1, :1])[0] if n else torch.zeros(1, 0, 28, 28, device=device)
        return boxes[0, :n], scores[0, :n], labels[0, :n], masks[0, :n]

    return Variant(found, lambda value: graph.detect.score_threshold.fill_(value), taken)


class KernelBlock(nn.Module):
    """A deployed block whose attention is our kernel: the fastest of those that fit."""

    def __init__(self, block: Any, kernels: list[Built], context: Context) -> None:
        super().__init__()
        self.block, self.chosen = block, ""
        d, n = block.plan.inner_channels, block.plan.positions
        self.launch = self._fastest(d, n, kernels, context)

    def _fastest(self, d: int, n: int, kernels: list[Built], context: Context) -> Launch:
        inputs = draw(1, d, d, n, torch.float16, context.device, seed=d)
        output, found = torch.empty_like(inputs[2]), []
        for kernel in kernels:
            if fits(kernel, d, d, n, "float16"):
                launch = launcher(kernel, context.rehearse)
                ms = median_ms(lambda launch=launch: launch(*inputs, output), context.device)
                found.append((ms, name_of(kernel), launch))
        if not found:
            raise MissingDependency(f"no kernel for {d} channels at {n} positions")
        _, self.chosen, launch = min(found, key=lambda item: item[0])
        return launch

    def forward(self, x: Tensor) -> Tensor:
        block = self.block
        query, key, value = (
            conv(x).flatten(2).to(torch.float16).contiguous() for conv in (block.theta, block.phi, block.g)
        )
        y = torch.empty_like(value)
        self.launch(query, key, value, y)
        return block.residual * x + block.W_z(y.reshape(x.shape[0], -1, *x.shape[2:]))


def _captured(
    run: Callable[[Tensor], tuple[Tensor, ...]], frame: Tensor
) -> tuple[Callable[[Tensor], tuple[Tensor, ...]], int]:
    """The same as one CUDA graph, and the bytes that a run takes: of a replay they cannot be seen."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            run(frame)
    torch.cuda.current_stream().wait_stream(stream)
    _, taken = memory_of(lambda: run(frame), "cuda")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = run(frame)

    def replay(now: Tensor, _alive: object = run) -> tuple[Tensor, ...]:
        """``run`` holds tensors that the graph reads: freed, their memory would be another's."""
        frame.copy_(now)
        graph.replay()
        return outputs

    return replay, taken


def in_precision(run: Callable[[Tensor], Any], precision: str, device: str) -> Callable[[Tensor], Any]:
    def now(frame: Tensor) -> Any:
        half = torch.autocast(device, torch.float16, enabled=precision == "fp16", cache_enabled=False)
        with torch.inference_mode(), half, _matrix_products("high" if precision == "tf32" else "highest"):
            return run(frame)

    return now


@contextlib.contextmanager
def _matrix_products(precision: str) -> Iterator[None]:
    """``high``: float32 products and convolutions as TF32; ``highest``: as they are."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "high"
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def channels_last(model: Any) -> Any:
    return model.to(memory_format=torch.channels_last)


def halved(model: Any) -> Any:
    """Weights of products in FP16, as autocast would make them anew with each run."""
    for part in model.modules():
        if isinstance(part, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
            part.half()
    return model
