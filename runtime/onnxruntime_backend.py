"""ONNX Runtime, on the CPU or with its CUDA provider."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from wnlb.runtime.contract import METADATA_KEY, Contract
from wnlb.runtime.denormals import flush_in_session, without_denormals
from wnlb.runtime.errors import ContractError, MissingDependency, WnlbError
from wnlb.runtime.inputs import check_inputs
from wnlb.runtime.machine import usable_cores
from wnlb.runtime.onnx_file import no_contract

DEVICES = ("auto", "cpu", "cuda")
MOST_THREADS = 1024
# It gives FP16 biases beside INT8 layers scales that FP16 cannot hold: 22 AP lost (ONNX Runtime 1.32).
_HARMFUL = ["WeightBiasQuantization"]
# So long a thread waits busily for its next piece of work. ONNX Runtime's default, a million pauses, keeps cores from
# the stages and programs beside it: a fifth of a frame's processor time. Versions that do not know it ignore it.
_SPIN_US = 100


class OnnxRuntimeBackend:
    """Runs an exported ``.onnx`` file; see ``wnlb.runtime.backend.Backend``.

    With ``device="auto"`` the CUDA provider is used where ONNX Runtime has one that works. With ``"cuda"`` it is used
    or the constructor fails: ONNX Runtime alone would quietly run on the CPU.

    Args:
        at_once: runs to take at once on a CPU, sharing its threads: for many frames. Each takes longer, all together
            less, for no core waits where a run has work for one alone. No more than there are threads.
    """

    takes_device_arrays = False

    def __init__(self, path: Path | str, *, device: str = "auto", threads: int = 0, at_once: int = 1) -> None:
        check_threads(threads)
        at_once = min(at_once, threads or usable_cores())
        # Each thread that runs the session works itself; beside it work those of the session, less one.
        own = threads if at_once == 1 else (threads or usable_cores()) - at_once + 1
        session = open_session(path, device=device, threads=own)
        try:
            text = session.get_modelmeta().custom_metadata_map.get(METADATA_KEY)
            self._outputs = [value.name for value in session.get_outputs()]
            values = [*session.get_inputs(), *session.get_outputs()]
            shapes = {value.name: tuple(value.shape) for value in values}
        except UnicodeDecodeError as error:
            raise WnlbError(f"model {path} is damaged: its names or metadata are no text ({error})") from error
        if text is None:
            raise ContractError(no_contract(path))
        self.contract = Contract.from_json(text)
        self._path = path
        on_cuda = session.get_providers()[0] == "CUDAExecutionProvider"
        self.at_once = 1 if on_cuda else at_once
        where = "CUDA" if on_cuda else f"CPU, {threads or 'all'} threads"
        where += f", {self.at_once} frames at once" if self.at_once > 1 else ""
        self.description = f"ONNX Runtime {_import_onnxruntime().__version__}, {where}"
        self._session: Any = session
        if self._outputs != list(self.contract.output_shapes):
            raise ContractError(f"model {path} has the outputs {', '.join(self._outputs)}, unlike its contract")
        promised = self.contract.stated({**self.contract.input_shapes, **self.contract.output_shapes})
        for name, shape in promised.items():
            if shapes.get(name) != shape:
                raise ContractError(f"model {path} has {name} {shapes.get(name)}, unlike its contract: {shape}")

    def run(self, inputs: dict[str, Any]) -> dict[str, NDArray]:
        if self._session is None:
            raise WnlbError("the backend is closed; open the model again")
        check_inputs(inputs, self.contract)
        try:
            with without_denormals():
                outputs = self._session.run(self._outputs, inputs)
        except Exception as error:  # its exception types are not public
            raise WnlbError(f"model {self._path} cannot be run by ONNX Runtime: {_first_line(error)}") from error
        return dict(zip(self._outputs, outputs, strict=True))

    def close(self) -> None:
        self._session = None


def open_session(path: Path | str, *, device: str = "auto", threads: int = 0, profile_prefix: str = "") -> Any:
    """An ``onnxruntime.InferenceSession`` of any ONNX file; see ``OnnxRuntimeBackend`` for the arguments.

    Run it ``without_denormals``.

    Args:
        profile_prefix: of the file that the session's profile is written to; "" for no profile.

    Raises:
        WnlbError: the file cannot be opened, or not on that device.
    """
    if device not in DEVICES:
        raise WnlbError(f"device is {device!r}; expected {', '.join(DEVICES)}")
    check_threads(threads)
    ort = _import_onnxruntime()
    has_cuda = "CUDAExecutionProvider" in ort.get_available_providers()
    if device == "cuda" and not has_cuda:
        raise WnlbError("this ONNX Runtime has no CUDA provider; install wnlb-deploy[gpu] instead of [cpu]")
    providers = ["CPUExecutionProvider"]
    if has_cuda and device != "cpu":
        providers.insert(0, "CUDAExecutionProvider")
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    flush_in_session(options)
    # One block for all tensors of a run, planned ahead: 160 MiB more at the peak of a ResNet-50, and no faster.
    options.enable_mem_pattern = False
    options.add_session_config_entry("session.intra_op.spin_duration_us", str(_SPIN_US))
    if profile_prefix:
        options.enable_profiling, options.profile_file_prefix = True, profile_prefix
    try:
        # On the CPU there is nothing to fall back to: it would only print that it tries again.
        again = {"disabled_optimizers": _HARMFUL, "enable_fallback": int(len(providers) > 1)}
        with without_denormals():
            session = ort.InferenceSession(str(path), options, providers=providers, **again)
    except Exception as error:  # its exception types are not public
        empty = Path(path).is_file() and not Path(path).stat().st_size
        why = "it is empty (0 bytes)" if empty else _first_line(error)
        raise WnlbError(f"model {path} cannot be opened by ONNX Runtime: {why}; copy or export it again") from error
    if device == "cuda" and session.get_providers()[0] != "CUDAExecutionProvider":
        raise WnlbError("ONNX Runtime's CUDA provider does not start; its CUDA and cuDNN must be installed")
    return session


def check_threads(threads: int) -> None:
    """Raise WnlbError for a number of CPU threads that is none; 0 is one per core."""
    if not 0 <= threads <= MOST_THREADS:
        raise WnlbError(f"threads is {threads}; expected 0 (one per core) to {MOST_THREADS}")


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _import_onnxruntime() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingDependency(
            "ONNX Runtime is not installed: pip install 'wnlb-deploy[cpu]' (or [gpu] for NVIDIA GPUs)"
        ) from error
    return onnxruntime
