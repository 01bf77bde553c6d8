"""Floating-point numbers below the smallest normal one as zero, for the thread that asks.

A processor takes a hundred times as long for them, and softmax makes them by the million where a few keys outweigh the
others: frames with lamps took up to ten times as long in attention. What is lost is below 2^-126 of a sum of about 1.
"""

from __future__ import annotations

import ctypes
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# Where fenv_t (glibc, musl) holds the register of the mode, its size, and the bits: MXCSR's FTZ and DAZ, FPCR's FZ.
_ENVIRONMENTS = {"x86_64": (28, 32, 0x8040), "aarch64": (0, 8, 1 << 24)}
_SESSION_OPTION = "session.set_denormal_as_zero"


@contextmanager
def without_denormals() -> Iterator[None]:
    """Flush denormals to zero in this thread for a while; does nothing where it is not known how to."""
    if _CONTROL is None:
        yield
        return
    library, offset, size, bits = _CONTROL
    before = ctypes.create_string_buffer(size)
    library.fegetenv(before)
    flushing = ctypes.create_string_buffer(before.raw, size)
    register = ctypes.c_uint32.from_buffer(flushing, offset)
    register.value |= bits
    library.fesetenv(flushing)
    try:
        yield
    finally:
        library.fesetenv(before)


def flush_in_session(options: Any) -> None:
    """The same in the threads that an ``onnxruntime.InferenceSession`` with these options makes.

    Those that call it are not among them: run it ``without_denormals``. And open it so, for the first session of a
    process sets the mode of the thread that opens it, for good.
    """
    options.add_session_config_entry(_SESSION_OPTION, "1")


def _control() -> tuple[Any, int, int, int] | None:
    if not sys.platform.startswith("linux") or platform.machine() not in _ENVIRONMENTS:
        return None
    library = ctypes.CDLL(None)
    if not hasattr(library, "fegetenv"):
        try:
            library = ctypes.CDLL("libm.so.6")
        except OSError:
            return None
    return library, *_ENVIRONMENTS[platform.machine()]


_CONTROL = _control()
