"""The kernel against PyTorch's attention backends, FlexAttention and plain products, at the shapes of a ResNet-50."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from evidence.attention import LEVELS, SIZES, Shape, draw, errors, exact, flex, peers, shapes, some_rows
from evidence.kernels import fits, kernels_of, launcher, name_of, rehearsed
from evidence.machine import readings
from evidence.stage import NO_TIME, Context, first_line, needs_gpu
from evidence.timing import copy_bandwidth, matrix_peak, median_ms, memory_of
from wnlb.plugins.build import Built
from wnlb.plugins.tiles import PORTABLE
from wnlb.runtime.errors import MissingDependency

_FLEX_HEAD = 256  # channels: beyond, its blocks of keys and values do not fit into shared memory
TINY = {"c2": (4, 32), "c3": (8, 64)}  # of a rehearsal


def run(context: Context) -> None:
    arch = needs_gpu(context)
    context.fact("copy_gb_per_s", copy_bandwidth(context.device))
    peak = {name: matrix_peak(getattr(torch, name), context.device) for name in ("float16", "float32")}
    context.fact("peak_tflops", peak)
    context.fact("under load", readings())
    kernels = _kernels(context, arch)
    for dtype, batch in (("float16", 1), ("float16", 4), ("float32", 1)):
        for shape in _shapes(context, batch):
            measure(context, shape, dtype, kernels, peers)
    for shape in sorted(_shapes(context, 1), key=lambda shape: shape.d):  # compiled for minutes: when the rest is there
        if shape.d <= _FLEX_HEAD:
            measure(context, shape, "float16", [], _flex(context))
        else:
            refused = f"no configuration of its compiler holds a head of more than {_FLEX_HEAD}"
            context.add(dtype="float16", **vars(shape), peers={"flex": {"refused": refused}})


def measure(
    context: Context,
    shape: Shape,
    dtype: str,
    kernels: list[Built],
    others: Callable[[list[Tensor]], dict[str, Callable[[], Tensor]]],
) -> None:
    """One row: every kernel that fits the shape, and the others on the same inputs."""
    what = {"dtype": dtype, **vars(shape)}
    if context.left() <= 0:
        context.add(**what, refused=NO_TIME)
        return
    inputs = draw(shape.batch, shape.d, shape.d, shape.n, getattr(torch, dtype), context.device, seed=shape.n)
    rows = some_rows(shape.n, context.device)
    expected = exact(inputs, rows)
    actions = others(inputs)
    fitting = [kernel for kernel in kernels if fits(kernel, shape.d, shape.d, shape.n, dtype)]
    actions |= {f"ours {name_of(kernel)}": _ours(kernel, inputs, context) for kernel in fitting}
    found: dict[str, dict[str, Any]] = {}
    context.add(**what, peers=found)
    for name, action in actions.items():
        late = context.left() <= 0
        found[name] = {"refused": NO_TIME} if late else _timed(action, shape, rows, expected, context.device)
        context.write()


def _shapes(context: Context, batch: int) -> list[Shape]:
    return shapes(("32x48",), batch, TINY) if context.rehearse else shapes(SIZES, batch, LEVELS)


def _kernels(context: Context, arch: int) -> list[Built]:
    """Of this GPU; the portable ones where it has none of its own."""
    if context.rehearse:
        return rehearsed(arch, ("float16", "float32"), (32, 64))
    try:
        return kernels_of(context, arch)
    except MissingDependency:
        return kernels_of(context, PORTABLE)


def _ours(kernel: Built, inputs: list[Tensor], context: Context) -> Callable[[], Tensor]:
    """Each run writes to the same output, poisoned before the first; made then, for peers make theirs in a run, too."""
    made: list[Any] = []

    def action() -> Tensor:
        if not made:
            made.extend((launcher(kernel, context.rehearse), torch.full_like(inputs[2], float("nan"))))
        made[0](*inputs, made[1])
        return made[1]

    return action


def _flex(context: Context) -> Callable[[list[Tensor]], dict[str, Callable[[], Tensor]]]:
    def eager(inputs: list[Tensor]) -> Callable[[], Tensor]:  # compiling it for a CPU takes a minute
        return peers(inputs)["matmul/softmax"]

    return lambda inputs: {"flex": eager(inputs) if context.rehearse else flex(inputs)}


def _timed(action: Callable[[], Tensor], shape: Shape, rows: Tensor, expected: Tensor, device: str) -> dict[str, Any]:
    try:
        got, taken = memory_of(action, device)
        if not got.isfinite().all():
            return {"refused": "not everything was written, or not finite"}
        largest, error = errors(got, expected, rows)
        del got
        ms = median_ms(action, device)
    except Exception as reason:  # of compilers, backends and memory, each with its own exceptions
        return {"refused": first_line(reason)}
    return {"ms": ms, "tflops": shape.flops / ms / 1e9, "max_error": largest, "error": error, "bytes": taken}
