"""GPU memory and streams, through PyCUDA or, where that is not installed, cuda-python."""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import DTypeLike, NDArray

from wnlb.runtime.engine.driver import find_gpu, pop_context
from wnlb.runtime.errors import MissingDependency, WnlbError

_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING: does not wait for the default stream


@dataclass(eq=False)
class Buffer:
    """The same array on the host, in pinned memory, and on the GPU.

    On a GPU that shares the host's memory both are one, and copies between them do nothing.
    """

    host: NDArray[Any]
    address: int  # on the GPU
    mapped: bool
    free: Callable[[], None]

    def first(self, rows: int) -> Buffer:
        """Its first rows, where they lie: to be used as long as the whole is, which frees them."""
        return Buffer(self.host[:rows], self.address, self.mapped, lambda: None)

    def rows_of(self, index: int, rows: int) -> Buffer:
        """The first rows of one of its parts ``[index]``, as ``first``."""
        part = self.host[index]
        return Buffer(part[:rows], self.address + index * part.nbytes, self.mapped, lambda: None)


class Cuda(Protocol):
    """One GPU's primary context and one stream in it, never the default one.

    Every method but ``activate`` wants the context to be current in its thread, and raises WnlbError where CUDA
    reports an error.
    """

    description: str  # "PyCUDA 2026.1"
    stream: int  # CUstream

    def activate(self) -> None:
        """Make the context current in this thread; as often called as ``deactivate``."""

    def deactivate(self) -> None: ...

    def buffer(self, shape: tuple[int, ...], dtype: DTypeLike, mapped: bool) -> Buffer:
        """Zeroed on the host. ``mapped``: one memory for both sides."""
        ...

    def upload(self, buffer: Buffer) -> None:
        """Put a copy to the GPU on the stream."""

    def download(self, buffer: Buffer) -> None:
        """Put a copy to the host on the stream."""

    def copy(self, buffer: Buffer, address: int) -> None:
        """Put a copy from an address on the GPU to the buffer's GPU side on the stream."""

    def synchronize(self) -> None:
        """Wait until the stream is done."""

    def close(self) -> None:
        """Free stream and context; buffers are freed by their owner, before. The context must not be current."""


def open_cuda(index: int = 0) -> Cuda:
    """PyCUDA's memory and streams, else cuda-python's.

    Raises:
        MissingDependency: neither is installed, or there is no GPU.
    """
    find_gpu(index)  # says what is missing better than the two
    for module, made in (("pycuda.driver", PyCuda), ("cuda.bindings.driver", CudaPython)):
        try:
            driver = importlib.import_module(module)
        except ImportError:
            continue
        return made(driver, index)
    raise MissingDependency(
        "neither PyCUDA nor cuda-python is installed: pip install 'wnlb-deploy[jetson]' (or pip install pycuda)"
    )


class PyCuda:
    """``Cuda`` by PyCUDA."""

    def __init__(self, driver: Any, index: int) -> None:
        self._driver = driver
        self.description = f"PyCUDA {importlib.import_module('pycuda').VERSION_TEXT}"
        self._call(driver.init)
        self._context = self._call(self._call(driver.Device, index).retain_primary_context)
        self.activate()
        try:
            self._stream = self._call(driver.Stream, _NON_BLOCKING)
        except WnlbError:
            self._release()
            raise
        self.deactivate()
        self.stream = int(self._stream.handle)

    def activate(self) -> None:
        self._call(self._context.push)

    def deactivate(self) -> None:
        self._call(self._context.pop)

    def buffer(self, shape: tuple[int, ...], dtype: DTypeLike, mapped: bool) -> Buffer:
        flags = self._driver.host_alloc_flags.DEVICEMAP if mapped else 0
        host = self._call(self._driver.pagelocked_zeros, shape, dtype, mem_flags=flags)
        pinned = host.base
        try:
            if mapped:
                device = self._call(pinned.get_device_pointer)
            else:
                device = self._call(self._driver.mem_alloc, max(host.nbytes, 1))
        except WnlbError:
            pinned.free()
            raise

        def free() -> None:
            if not mapped:
                device.free()
            pinned.free()

        return Buffer(host, int(device), mapped, free)

    def upload(self, buffer: Buffer) -> None:
        if not buffer.mapped:
            self._call(self._driver.memcpy_htod_async, buffer.address, buffer.host, self._stream)

    def download(self, buffer: Buffer) -> None:
        if not buffer.mapped:
            self._call(self._driver.memcpy_dtoh_async, buffer.host, buffer.address, self._stream)

    def copy(self, buffer: Buffer, address: int) -> None:
        self._call(self._driver.memcpy_dtod_async, buffer.address, address, buffer.host.nbytes, self._stream)

    def synchronize(self) -> None:
        self._call(self._stream.synchronize)

    def close(self) -> None:
        self.activate()
        del self._stream  # its destructor wants the context
        self._release()

    def _release(self) -> None:
        """Give up the context, which is current. PyCUDA releases no other from any thread, and does not pop it."""
        pop_context()
        self._context.detach()

    def _call(self, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        try:
            return function(*arguments, **options)
        except self._driver.Error as error:
            raise WnlbError(f"CUDA: {error}{_advice(str(error))}") from error
        finally:
            del function, arguments  # the stream is among them, and a traceback would keep it beyond ``close``


class CudaPython:
    """``Cuda`` by cuda-python."""

    def __init__(self, driver: Any, index: int) -> None:
        self._driver = driver
        self.description = f"cuda-python {importlib.import_module('cuda.bindings').__version__}"
        self._call(driver.cuInit, 0)
        self._device = self._call(driver.cuDeviceGet, index)
        self._context = self._call(driver.cuDevicePrimaryCtxRetain, self._device)
        try:
            self.activate()
            try:
                self._stream = self._call(driver.cuStreamCreate, _NON_BLOCKING)
            finally:
                self.deactivate()
        except WnlbError:
            self._call(driver.cuDevicePrimaryCtxRelease, self._device)
            raise
        self.stream = int(self._stream)

    def activate(self) -> None:
        self._call(self._driver.cuCtxPushCurrent, self._context)

    def deactivate(self) -> None:
        self._call(self._driver.cuCtxPopCurrent)

    def buffer(self, shape: tuple[int, ...], dtype: DTypeLike, mapped: bool) -> Buffer:
        bytes_ = max(int(np.prod(shape)) * np.dtype(dtype).itemsize, 1)
        flags = self._driver.CU_MEMHOSTALLOC_DEVICEMAP if mapped else 0
        pinned = self._call(self._driver.cuMemHostAlloc, bytes_, flags)
        memory = (ctypes.c_uint8 * bytes_).from_address(int(pinned))
        host: NDArray[Any] = np.ndarray(shape, dtype, memoryview(memory))
        host[...] = 0
        try:
            if mapped:
                device = self._call(self._driver.cuMemHostGetDevicePointer, pinned, 0)
            else:
                device = self._call(self._driver.cuMemAlloc, bytes_)
        except WnlbError:
            self._call(self._driver.cuMemFreeHost, pinned)
            raise

        def free() -> None:
            if not mapped:
                self._call(self._driver.cuMemFree, device)
            self._call(self._driver.cuMemFreeHost, pinned)

        return Buffer(host, int(device), mapped, free)

    def upload(self, buffer: Buffer) -> None:
        if not buffer.mapped:
            copy = self._driver.cuMemcpyHtoDAsync
            self._call(copy, buffer.address, buffer.host.ctypes.data, buffer.host.nbytes, self._stream)

    def download(self, buffer: Buffer) -> None:
        if not buffer.mapped:
            copy = self._driver.cuMemcpyDtoHAsync
            self._call(copy, buffer.host.ctypes.data, buffer.address, buffer.host.nbytes, self._stream)

    def copy(self, buffer: Buffer, address: int) -> None:
        self._call(self._driver.cuMemcpyDtoDAsync, buffer.address, address, buffer.host.nbytes, self._stream)

    def synchronize(self) -> None:
        self._call(self._driver.cuStreamSynchronize, self._stream)

    def close(self) -> None:
        self.activate()
        try:
            self._call(self._driver.cuStreamDestroy, self._stream)
        finally:
            self.deactivate()
            self._call(self._driver.cuDevicePrimaryCtxRelease, self._device)

    def _call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        result, *values = function(*arguments)
        if int(result):
            text = self._driver.cuGetErrorString(result)[1]
            name = function.__name__
            reason = text.decode() if isinstance(text, bytes) else "unknown error"
            raise WnlbError(f"CUDA: {name} failed: {reason} ({int(result)}){_advice(reason)}")
        return values[0] if values else None


def _advice(reason: str) -> str:
    return "; free GPU memory, or build for a smaller size or batch" if "out of memory" in reason else ""
