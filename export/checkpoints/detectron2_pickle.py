"""detectron2's ``.pkl`` files: arrays by name, read without running anything of the file."""

from __future__ import annotations

import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wnlb.runtime.errors import CheckpointError


class _Type:
    """In place of ``numpy.dtype``: its text and byte order."""

    def __init__(self, text: Any = "", *_: Any) -> None:
        self.text, self.order = str(text), "="

    def __setstate__(self, state: Any) -> None:
        self.order = "=" if state[1] == "|" else str(state[1])


class _Array:
    """In place of ``numpy.ndarray``: what its pickle holds."""

    state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


def _reconstruct(*_: Any) -> _Array:
    return _Array()


def _no_bytes() -> bytes:
    """How the bytes of an empty array are written for Python 2."""
    return b""


def _encode(text: str, encoding: str = "latin1") -> bytes:
    """How Python 2's bytes are written for Python 3."""
    if encoding not in ("latin1", "latin-1"):
        raise ValueError(f"text in {encoding!r}")
    return text.encode("latin-1")


_KNOWN: dict[tuple[str, str], Any] = {
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _reconstruct for core in ("core", "_core")},
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Type,
    **{(module, "bytes"): _no_bytes for module in ("builtins", "__builtin__")},
    ("_codecs", "encode"): _encode,
    ("collections", "OrderedDict"): dict,
}


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _KNOWN:
            raise pickle.UnpicklingError(f"holds an object of type {module}.{name}")
        return _KNOWN[module, name]


def arrays_from_pkl(path: Path) -> dict[str, Tensor]:
    """The weights of a ``.pkl`` file of detectron2's model zoo.

    The reader knows NumPy's arrays and types by stand-ins of ours; anything else that a file names is refused.

    Raises:
        CheckpointError: it holds anything else, is damaged, or has the names of Detectron or Caffe2.
    """
    try:
        with path.open("rb") as file:
            content = _Reader(file, encoding="latin1").load()
    except OSError as error:
        raise CheckpointError(f"checkpoint {path} cannot be read: {error.strerror}") from error
    except pickle.UnpicklingError as error:
        reason = str(error) if str(error).startswith("holds") else "is damaged or no pickle"
        raise CheckpointError(f"checkpoint {path} {reason}; expected arrays by name") from error
    except Exception as error:  # a damaged pickle raises anything
        raise CheckpointError(f"checkpoint {path} is damaged or no pickle ({type(error).__name__})") from error
    caffe2 = isinstance(content, dict) and (content.get("matching_heuristics") or "blobs" in content)
    if caffe2:
        raise CheckpointError(
            f"checkpoint {path} has the names of Detectron or Caffe2 ('matching_heuristics'), which detectron2 "
            "matches by guess; load it in detectron2 and save the model: torch.save(model.state_dict(), path)"
        )
    weights = content.get("model") if isinstance(content, dict) else None
    if not isinstance(weights, dict) or not weights:
        raise CheckpointError(f"checkpoint {path} holds no weights under 'model'; expected a .pkl file of detectron2")
    return {str(name): _tensor(value, path, str(name)) for name, value in weights.items()}


def _tensor(value: Any, path: Path, name: str) -> Tensor:
    try:
        _, shape, kind, fortran, data = value.state
        raw = data.encode("latin-1") if isinstance(data, str) else data  # text: Python 2 wrote it
        numbers = np.frombuffer(bytearray(raw), np.dtype(kind.order + kind.text))
        if numbers.dtype.kind not in "biuf" or numbers.size != math.prod(shape):
            raise ValueError("no numbers, or not as many as its shape says")
        array = numbers.astype(numbers.dtype.newbyteorder("=")).reshape(shape, order="F" if fortran else "C")
        return torch.from_numpy(np.ascontiguousarray(array).reshape(shape))
    except Exception as error:  # whatever a damaged state makes of these steps
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:80]
        raise CheckpointError(f"checkpoint {path}: {name} is no array of numbers ({reason})") from error
