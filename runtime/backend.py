"""Backends: a dict of named arrays in, a dict of named arrays out."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray

from wnlb.runtime.contract import Contract
from wnlb.runtime.errors import WnlbError

SUFFIXES = (".onnx", ".engine")


class Backend(Protocol):
    """One opened model file. ``contract`` says what goes in and comes out."""

    contract: Contract
    takes_device_arrays: bool  # whether inputs may lie on the GPU (``__cuda_array_interface__``)

    @property
    def description(self) -> str:
        """``"ONNX Runtime 1.23.2, CPU, 2 threads"``."""
        ...

    def run(self, inputs: dict[str, Any]) -> dict[str, NDArray]:
        """Arrays by input name, of exactly the contract's shapes and types, to NumPy arrays by output name.

        Of the inputs only the image may lie on the GPU, where the backend takes that.

        The next run may overwrite them; after ``close`` they must not be read.
        """
        ...

    def close(self) -> None:
        """Free everything; may be called more than once."""
        ...


def open_backend(path: Path | str, *, device: str = "auto", threads: int = 0, trust: Path | None = None) -> Backend:
    """Open a model file with the backend that its suffix asks for: ``.onnx`` or ``.engine``.

    Args:
        device: "cpu", "cuda", or "auto" for CUDA where it works and the CPU elsewhere.
        threads: CPU threads of ONNX Runtime; 0 for one per core.
        trust: see ``TensorRtBackend``.

    Raises:
        WnlbError: the file is not there, not ours, or needs something that is not installed.
    """
    path = Path(path)
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise WnlbError(f"model {path} {what}; expected an .onnx or .engine file")
    if path.suffix not in SUFFIXES:
        raise WnlbError(f"model {path} has the suffix {path.suffix or 'none'!r}; expected .onnx or .engine")
    if path.suffix == ".engine":
        if device == "cpu":
            raise WnlbError(f"engine {path} runs on a GPU only; for the CPU give the .onnx file")
        from wnlb.runtime.engine.backend import TensorRtBackend

        return TensorRtBackend(path, trust=trust)
    if trust is not None:
        raise WnlbError(f"--trust is for engines; {path} carries its contract inside")
    from wnlb.runtime.onnxruntime_backend import OnnxRuntimeBackend

    return OnnxRuntimeBackend(path, device=device, threads=threads)
