"""The CUDA driver by ctypes: which GPU there is, graphs, for PyCUDA cannot capture any, and memory and events beside
them."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from wnlb.runtime.errors import MissingDependency, WnlbError

LIBRARY = "libcuda.so.1"
_INTEGRATED, _MAJOR, _MINOR = 18, 75, 76  # CUdevice_attribute
_THREAD_LOCAL = 1  # CUstreamCaptureMode
_BLOCKING_SYNC = 1  # CUevent_flags: who waits for it sleeps
_NOT_READY = 600  # CUresult


@dataclass(frozen=True)
class Gpu:
    """One NVIDIA GPU."""

    name: str
    compute_capability: str  # "8.7"
    cuda: str  # newest CUDA version that the driver takes, "12.6"
    memory: int  # bytes
    integrated: bool  # shares the memory of the CPU, as on a Jetson

    @property
    def arch(self) -> int:
        """Compute capability times ten, 87."""
        return int(self.compute_capability.replace(".", ""))


def find_gpu(index: int = 0) -> Gpu:
    """The GPU with that index. Raises MissingDependency where there is no driver or no such GPU."""
    cuda = _load()
    device, count, version = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    try:
        check(cuda.cuInit(0), "cuInit")
        check(cuda.cuDeviceGetCount(ctypes.byref(count)), "cuDeviceGetCount")
    except WnlbError as error:  # a container without its GPU, a driver that does not fit
        raise MissingDependency(f"no NVIDIA GPU can be used: {error}") from error
    if count.value <= index:
        raise MissingDependency(f"the CUDA driver sees {count.value} GPUs; GPU {index} is not there")
    check(cuda.cuDeviceGet(ctypes.byref(device), index), "cuDeviceGet")
    check(cuda.cuDriverGetVersion(ctypes.byref(version)), "cuDriverGetVersion")
    name, memory = ctypes.create_string_buffer(256), ctypes.c_size_t()
    check(cuda.cuDeviceGetName(name, len(name), device), "cuDeviceGetName")
    check(cuda.cuDeviceTotalMem_v2(ctypes.byref(memory), device), "cuDeviceTotalMem")

    def attribute(which: int) -> int:
        value = ctypes.c_int()
        check(cuda.cuDeviceGetAttribute(ctypes.byref(value), which, device), "cuDeviceGetAttribute")
        return value.value

    return Gpu(
        name.value.decode(errors="replace"),
        f"{attribute(_MAJOR)}.{attribute(_MINOR)}",
        f"{version.value // 1000}.{version.value % 1000 // 10}",
        memory.value,
        bool(attribute(_INTEGRATED)),
    )


def pop_context() -> None:
    """Take the current context from this thread. Raises WnlbError where there is none."""
    check(_load().cuCtxPopCurrent_v2(ctypes.byref(ctypes.c_void_p())), "cuCtxPopCurrent")


def free_memory() -> int:
    """Bytes of the current context's GPU that nobody has taken; a Jetson's are those of the whole machine.

    Raises WnlbError where no context is current.
    """
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    check(_load().cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total)), "cuMemGetInfo")
    return free.value


class Memory:
    """Bytes of the GPU. The context must be current, for every method. Raises WnlbError where there are not so many."""

    def __init__(self, size: int) -> None:
        self._cuda, address, self.size = _load(), ctypes.c_void_p(), max(size, 1)
        check(self._cuda.cuMemAlloc_v2(ctypes.byref(address), ctypes.c_size_t(self.size)), "cuMemAlloc")
        self.address = address.value or 0

    def close(self) -> None:
        """May be called more than once."""
        if self.address:
            self._cuda.cuMemFree_v2(ctypes.c_void_p(self.address))
            self.address = 0


class Event:
    """A moment on a stream, of half a microsecond's resolution.

    The context of the stream must be current, for every method. They raise WnlbError where CUDA reports an error.
    """

    def __init__(self) -> None:
        self._cuda, self._event = _load(), ctypes.c_void_p()
        check(self._cuda.cuEventCreate(ctypes.byref(self._event), _BLOCKING_SYNC), "cuEventCreate")

    def record(self, stream: int) -> None:
        """Put it on the stream, behind all that is there."""
        check(self._cuda.cuEventRecord(self._event, ctypes.c_void_p(stream)), "cuEventRecord")

    def done(self) -> bool:
        """Whether the stream has come to it."""
        result = self._cuda.cuEventQuery(self._event)
        if result != _NOT_READY:
            check(result, "cuEventQuery")
        return result != _NOT_READY

    def synchronize(self) -> None:
        """Sleep until the stream has come to it."""
        check(self._cuda.cuEventSynchronize(self._event), "cuEventSynchronize")

    def ms_since(self, earlier: Event) -> float:
        """Milliseconds between two events that the stream has come to."""
        ms = ctypes.c_float()
        check(self._cuda.cuEventElapsedTime(ctypes.byref(ms), earlier._event, self._event), "cuEventElapsedTime")
        return ms.value

    def close(self) -> None:
        """May be called more than once."""
        if self._event:
            self._cuda.cuEventDestroy_v2(self._event)
            self._event = ctypes.c_void_p()


class Graph:
    """What ``enqueue`` puts on a stream, recorded once, to be launched again and again.

    The context of the stream must be current. Nothing may be allocated, and no buffer moved, after the recording.

    Args:
        stream: a CUstream, not the default one.

    Raises:
        WnlbError: it cannot be captured. The stream can be used as before.
    """

    def __init__(self, stream: int, enqueue: Callable[[], None]) -> None:
        self._cuda, self._stream = _load(), ctypes.c_void_p(stream)
        self._executable = ctypes.c_void_p()
        graph = ctypes.c_void_p()
        check(self._cuda.cuStreamBeginCapture_v2(self._stream, _THREAD_LOCAL), "cuStreamBeginCapture")
        try:
            try:
                enqueue()
            finally:
                ended = self._cuda.cuStreamEndCapture(self._stream, ctypes.byref(graph))
            check(ended, "cuStreamEndCapture")
            made = self._cuda.cuGraphInstantiateWithFlags(ctypes.byref(self._executable), graph, ctypes.c_ulonglong(0))
            check(made, "cuGraphInstantiate")
        finally:
            if graph:
                self._cuda.cuGraphDestroy(graph)

    def launch(self) -> None:
        """Put everything on the stream. Raises WnlbError."""
        check(self._cuda.cuGraphLaunch(self._executable, self._stream), "cuGraphLaunch")

    def close(self) -> None:
        """May be called more than once."""
        if self._executable:
            self._cuda.cuGraphExecDestroy(self._executable)
            self._executable = ctypes.c_void_p()


def check(result: int, call: str) -> None:
    """Raises WnlbError unless ``result`` is CUDA_SUCCESS."""
    if result:
        text = ctypes.c_char_p()
        _load().cuGetErrorString(result, ctypes.byref(text))
        raise WnlbError(f"CUDA: {call} failed: {(text.value or b'unknown error').decode()} ({result})")


def _load() -> Any:
    try:
        return ctypes.CDLL(LIBRARY)
    except OSError as error:
        raise MissingDependency(f"no NVIDIA driver on this machine ({LIBRARY} is not there)") from error
