"""Backends: a dict of named arrays in, a dict of named arrays out."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray

from wnlb.runtime.contract import Contract
from wnlb.runtime.errors import WnlbError
from wnlb.runtime.served_model import Model, ServedModel, model_of

SUFFIXES = (".onnx", ".engine")


class Backend(Protocol):
    """One opened model, of a file or a server. ``contract`` says what goes in and comes out."""

    contract: Contract
    takes_device_arrays: bool  # whether inputs may lie on the GPU (``__cuda_array_interface__``)
    at_once: int  # runs that it takes at once, from as many threads; the arrays of such a backend are the caller's

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


def open_backend(
    model: Model | str, *, device: str = "auto", threads: int = 0, trust: Path | None = None, at_once: int = 1
) -> Backend:
    """Open a model with the backend that its name asks for: ``.onnx``, ``.engine`` or ``triton://host:8001/model``.

    Args:
        device: "cpu", "cuda", or "auto" for CUDA where it works and the CPU elsewhere.
        threads: CPU threads of ONNX Runtime; 0 for one per core.
        trust: see ``TensorRtBackend``.
        at_once: see ``OnnxRuntimeBackend``; the others take one run.

    Raises:
        WnlbError: the model is not there, not ours, or needs something that is not installed.
    """
    model = model_of(model) if isinstance(model, str) else model
    if isinstance(model, ServedModel):
        if device != "auto" or threads or trust is not None:
            raise WnlbError(f"--device, --threads and --trust are for files; the server of {model} has its own")
        from wnlb.runtime.serving.client import TritonBackend

        return TritonBackend(model)
    if not model.is_file():
        what = "is a folder" if model.is_dir() else "does not exist"
        raise WnlbError(f"model {model} {what}; expected an .onnx or .engine file, or triton://HOST:8001/MODEL")
    if model.suffix not in SUFFIXES:
        raise WnlbError(f"model {model} has the suffix {model.suffix or 'none'!r}; expected .onnx or .engine")
    if model.suffix == ".engine":
        if device == "cpu":
            raise WnlbError(f"engine {model} runs on a GPU only; for the CPU give the .onnx file")
        from wnlb.runtime.engine.backend import TensorRtBackend

        return TensorRtBackend(model, trust=trust)
    if trust is not None:
        raise WnlbError(f"--trust is for engines; {model} carries its contract inside")
    from wnlb.runtime.onnxruntime_backend import OnnxRuntimeBackend

    return OnnxRuntimeBackend(model, device=device, threads=threads, at_once=at_once)
