"""The compiled kernels of the plugin, launched by the CUDA driver on PyTorch's tensors and stream.

What is measured is what the plugin embeds: its machine code or PTX, launched as ``plugins/src/kernels.cpp`` does.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures import TimeoutError as TooLate
from typing import Any

import torch
from torch import Tensor

from evidence.stage import NO_TIME, Context, first_line
from wnlb.plugins.build import KERNELS, Built, Job, compile_kernel, jobs, positions_of, read
from wnlb.plugins.tiles import HEADS, ITEM_BYTES, PORTABLE, SHARED_MEMORY
from wnlb.runtime.engine.driver import LIBRARY, check
from wnlb.runtime.errors import MissingDependency, WnlbError

SYMBOL = b"non_local_attention_kernel"
_MAX_DYNAMIC_SHARED = 8  # CUfunction_attribute
Launch = Callable[[Tensor, Tensor, Tensor, Tensor], None]  # query, key, value, output


def folder_of(arch: int) -> str:
    """Where, inside of what is carried, the kernels of one architecture lie."""
    return f"kernels/{'ptx' if arch == PORTABLE else f'sm_{arch}'}"


def kernels_of(context: Context, arch: int) -> list[Built]:
    """Those that are carried or lie in the package, else made here by Triton.

    Raises MissingDependency where there are none and none can be made.
    """
    for folder in (context.carried / folder_of(arch), KERNELS):
        if (folder / "kernels.bin").exists():
            found = [kernel for kernel in read(folder) if kernel.job.arch == arch]
            if found:
                return found
    if arch not in SHARED_MEMORY:
        raise MissingDependency(f"there are no kernels for SM {arch / 10:.1f} of its own; it runs the portable ones")
    built, refused = compile_what_compiles(jobs([arch], list(ITEM_BYTES), list(HEADS)), context.left() / 2)
    if refused:
        raise MissingDependency(f"{len(refused)} of the kernels cannot be made here: {next(iter(refused.values()))}")
    return built


def compile_what_compiles(todo: list[Job], seconds: float) -> tuple[list[Built], dict[Job, str]]:
    """Compile kernels on all cores; those that were not, in that time or at all, with the reason.

    Raises MissingDependency without Triton.
    """
    try:
        import triton  # noqa: F401
    except ImportError as error:
        raise MissingDependency("kernels are neither carried (--pack) nor can Triton make them here") from error
    built, refused = [], {}
    pool = ProcessPoolExecutor(min(os.cpu_count() or 1, 16), multiprocessing.get_context("spawn"))
    begun = {job: pool.submit(compile_kernel, job) for job in todo}
    deadline = time.monotonic() + seconds
    for job, future in begun.items():
        try:
            built.append(future.result(timeout=max(deadline - time.monotonic(), 0)))
        except TooLate:  # before Python 3.11 another one than the built-in
            refused[job] = NO_TIME
        except (WnlbError, OSError, RuntimeError) as error:
            refused[job] = first_line(error)
    pool.shutdown(wait=False, cancel_futures=True)
    return built, refused


def fits(kernel: Built, d: int, e: int, n: int, dtype: str) -> bool:
    job = kernel.job
    return (job.d, job.dtype) == (d, dtype) and e % job.tile.value == 0 and n % job.multiple == 0


def launcher(kernel: Built, interpret: bool) -> Launch:
    """A function that puts one run of the kernel on the current stream.

    ``interpret``: by Triton's interpreter on CPU tensors instead, with the kernel's tile.
    """
    return _interpreted(kernel) if interpret else _Loaded(kernel)


class _Loaded:
    """A kernel on the GPU whose context is current."""

    def __init__(self, kernel: Built) -> None:
        self._kernel, self._cuda = kernel, ctypes.CDLL(LIBRARY)
        self._module, self._function = ctypes.c_void_p(), ctypes.c_void_p()
        check(self._cuda.cuModuleLoadData(ctypes.byref(self._module), kernel.code), "cuModuleLoadData")
        found = self._cuda.cuModuleGetFunction(ctypes.byref(self._function), self._module, SYMBOL)
        check(found, "cuModuleGetFunction")
        given = self._cuda.cuFuncSetAttribute(self._function, _MAX_DYNAMIC_SHARED, kernel.shared)
        check(given, "cuFuncSetAttribute")

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, output: Tensor) -> None:
        batch, _, n = query.shape
        tile = self._kernel.job.tile
        values: list[Any] = [ctypes.c_void_p(t.data_ptr()) for t in (query, key, value, output)]
        values += [ctypes.c_int32(n), *(ctypes.c_void_p() for _ in range(self._kernel.scratch))]
        parameters = (ctypes.c_void_p * len(values))(*(ctypes.addressof(item) for item in values))
        stream = torch.cuda.current_stream().cuda_stream if query.is_cuda else 0
        launched = self._cuda.cuLaunchKernel(
            self._function,
            -(-n // tile.block_m),
            value.shape[1] // tile.value,
            batch,
            32 * tile.warps,
            1,
            1,
            self._kernel.shared,
            ctypes.c_void_p(stream),
            parameters,
            None,
        )
        check(launched, "cuLaunchKernel")


def _interpreted(kernel: Built) -> Launch:
    from wnlb.plugins.attention import non_local_attention

    def launch(query: Tensor, key: Tensor, value: Tensor, output: Tensor) -> None:
        output.copy_(non_local_attention(query, key, value, kernel.job.tile))

    return launch


def rehearsed(arch: int, dtypes: Iterable[str], heads: Iterable[int]) -> list[Built]:
    """Kernels without code, for the interpreter."""
    return [Built(job, b"", 0, 0, 0, 0) for job in jobs([arch], list(dtypes), list(heads))]


def name_of(kernel: Built) -> str:
    """Of its tile and the N that it takes."""
    return f"{kernel.job.tile.name} N={positions_of(kernel.job)}"
