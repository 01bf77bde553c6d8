"""Tensors inside checkpoints: where their bytes lie, and how pickles of PyTorch and NumPy speak of them."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wnlb.export.checkpoints.files.pickles import Buildable, Builder, Inert, Name, build

_STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
    "QInt8Storage": torch.int8,
    "QUInt8Storage": torch.uint8,
    "QInt32Storage": torch.int32,
    "UntypedStorage": torch.uint8,
}
_DTYPES = {str(value): value for value in vars(torch).values() if isinstance(value, torch.dtype)}


class Storage:
    """A row of numbers in a file, read when it is first needed.

    Args:
        dtype: of its numbers.
        read: gives all of its bytes; may be set later.
    """

    def __init__(self, dtype: torch.dtype, read: Callable[[], bytes] | None = None) -> None:
        self.dtype, self.read = dtype, read
        self._bytes: Tensor | None = None

    def bytes(self) -> Tensor:
        """uint8 ``[n]``."""
        if self._bytes is None:
            data = bytearray(self.read()) if self.read else bytearray()
            self._bytes = torch.frombuffer(data, dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)
        return self._bytes


@dataclass(frozen=True, eq=False)
class StoredTensor:
    """A strided view of a storage, not yet read; offset and strides in numbers of ``dtype``."""

    storage: Storage
    dtype: torch.dtype
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]

    def load(self) -> Tensor:
        """Raises ValueError where it does not lie within its storage."""
        whole = [self.offset, *self.size, *self.stride]
        if any(type(number) is not int or number < 0 for number in whole) or len(self.size) != len(self.stride):
            raise ValueError(f"a tensor has the size {self.size} and the strides {self.stride}")
        count = math.prod(self.size)
        span = 1 + sum((n - 1) * step for n, step in zip(self.size, self.stride, strict=True)) if count else 0
        width, raw = self.dtype.itemsize, self.storage.bytes()
        start, end = self.offset * width, (self.offset + span) * width
        if (count and end > len(raw)) or count * width > max(len(raw), 2**20):  # a few repeat one number, not many
            raise ValueError(f"a tensor of {count} numbers reaches beyond its {len(raw)} bytes")
        return (
            torch.empty(self.size, dtype=self.dtype)
            if not count
            else raw[start:end].view(self.dtype).as_strided(self.size, self.stride)
        )


class NumpyType(Buildable):
    """``numpy.dtype``, of plain numbers."""

    def __init__(self, text: str, *_: Any) -> None:
        self.text, self.order = str(text), "="

    def set_state(self, state: Any) -> None:
        self.order = str(state[1])

    def dtype(self) -> np.dtype:
        if not re.fullmatch(r"[biufc]\d{1,2}", self.text):
            raise ValueError(f"an array holds {self.text!r}, which are no numbers")
        return np.dtype((self.order if self.order in "<>" else "=") + self.text)


class NumpyArray(Buildable):
    """``numpy.ndarray``, with the bytes that its pickle holds."""

    def __init__(self) -> None:
        self.state: Any = None

    def set_state(self, state: Any) -> None:
        self.state = state

    def load(self) -> Tensor:
        """Raises ValueError where bytes and shape do not fit."""
        _, shape, kind, fortran, data = self.state[-5:] if len(self.state) >= 5 else (1, *self.state)
        if not isinstance(kind, NumpyType) or not isinstance(data, (bytes, bytearray, str)):
            raise ValueError("an array holds objects, which are no numbers")
        raw = bytearray(data.encode("latin-1") if isinstance(data, str) else data)  # text: Python 2 wrote it
        array = np.frombuffer(raw, kind.dtype()).reshape(shape, order="F" if fortran else "C")
        return torch.from_numpy(np.ascontiguousarray(array.astype(array.dtype.newbyteorder("="))).reshape(shape))


Weight = Tensor | StoredTensor | NumpyArray


def loaded(weight: Weight) -> Tensor:
    """The numbers of a weight, wherever they were."""
    return weight if isinstance(weight, Tensor) else weight.load()


def storage_type(name: Any) -> torch.dtype:
    """Raises ValueError for what is no class of storages."""
    found = _STORAGES.get(name.name) if isinstance(name, Name) and name.module.split(".")[0] == "torch" else None
    if found is None:
        raise ValueError(f"{name} is no kind of tensor storage")
    return found


def _tensor(storage: Any, offset: int, size: Any, stride: Any, *_: Any) -> StoredTensor:
    return _typed_tensor(storage, offset, size, stride, None, None, None)


def _typed_tensor(
    storage: Any, offset: int, size: Any, stride: Any, grad: Any, hooks: Any, dtype: Name | None, *_: Any
) -> StoredTensor:
    if not isinstance(storage, Storage):
        raise ValueError("a tensor lies in something that is no storage")
    return StoredTensor(
        storage, storage.dtype if dtype is None else _DTYPES[str(dtype)], offset, tuple(size), tuple(stride)
    )


def _first(value: Any, *_: Any) -> Any:
    return value


def _subclass(made: Any, kind: Any, arguments: Any, *_: Any) -> Any:
    return build(KNOWN, made, arguments)


def _mapping(items: Any = (), *_: Any) -> dict[Any, Any]:
    return dict(items)


def _default_mapping(factory: Any = None, items: Any = ()) -> dict[Any, Any]:
    return dict(items)


def _sequence(items: Any = (), *_: Any) -> list[Any]:
    return [] if not isinstance(items, (list, tuple, set, frozenset)) else list(items)


def _encoded(text: str, encoding: str = "utf-8") -> bytes:
    if encoding not in ("latin1", "latin-1", "utf-8", "ascii"):
        raise ValueError(f"text in {encoding!r}")
    return text.encode(encoding)


def _reconstructed(kind: Any, base: Any = None, state: Any = None, *_: Any) -> Inert:
    return Inert(kind, state if isinstance(state, dict) else None)


def _raw_bytes(data: Any = b"", encoding: str = "latin-1") -> bytes:
    return _encoded(data, encoding) if isinstance(data, str) else bytes(data if isinstance(data, bytes) else b"")


def _numpy_array(*_: Any) -> NumpyArray:
    return NumpyArray()


def _numpy_from_buffer(data: Any, kind: Any, shape: Any, order: str, *_: Any) -> NumpyArray:
    array = NumpyArray()
    array.set_state((1, shape, kind, order == "F", data))
    return array


# Whatever stands here makes plain data of its arguments and does nothing else.
KNOWN: Mapping[tuple[str, str], Builder] = {
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_tensor_v3"): _typed_tensor,
    ("torch._utils", "_rebuild_parameter"): _first,
    ("torch._utils", "_rebuild_parameter_with_state"): _first,
    ("torch._utils", "_rebuild_device_tensor_from_cpu_tensor"): _first,
    ("torch._utils", "_rebuild_device_tensor_from_numpy"): _first,
    ("torch._utils", "_rebuild_xla_tensor"): _first,
    ("torch._tensor", "_rebuild_from_type_v2"): _subclass,
    ("torch.nn.parameter", "Parameter"): _first,
    ("torch", "Size"): lambda *items: tuple(items[0]) if items else (),
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _numpy_array for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _numpy_from_buffer for core in ("core", "_core")},
    ("numpy", "dtype"): NumpyType,
    ("collections", "OrderedDict"): _mapping,
    ("collections", "Counter"): _mapping,
    ("collections", "defaultdict"): _default_mapping,
    ("collections", "deque"): _sequence,
    ("builtins", "dict"): _mapping,
    ("builtins", "list"): _sequence,
    ("builtins", "tuple"): lambda items=(), *_: tuple(_sequence(items)),
    ("builtins", "set"): lambda items=(), *_: set(_sequence(items)),
    ("builtins", "frozenset"): lambda items=(), *_: frozenset(_sequence(items)),
    ("builtins", "bytearray"): _raw_bytes,
    ("builtins", "bytes"): _raw_bytes,
    ("_codecs", "encode"): _encoded,
    ("copyreg", "_reconstructor"): _reconstructed,
}
