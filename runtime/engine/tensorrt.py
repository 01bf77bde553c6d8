"""TensorRT or TensorRT-RTX: which of them there is, and everything that differs between them and their versions."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from wnlb.runtime.errors import MissingDependency, WnlbError

if TYPE_CHECKING:
    import onnx

TARGETS = ("tensorrt", "tensorrt-rtx")
OLDEST = (10, 3)
HOW_TO_INSTALL = {
    "tensorrt": "JetPack brings it on a Jetson (make the virtual environment with --system-site-packages); elsewhere "
    "pip install 'wnlb-deploy[tensorrt]'",
    "tensorrt-rtx": "pip install 'wnlb-deploy[tensorrt-rtx]'",
}


@dataclass(frozen=True)
class TensorRt:
    """One of the two libraries, imported."""

    name: str  # one of TARGETS
    version: str
    trt: Any

    @property
    def title(self) -> str:
        """``"TensorRT 10.3.0"``."""
        return f"{'TensorRT-RTX' if self.is_rtx else 'TensorRT'} {self.version}"

    @property
    def is_rtx(self) -> bool:
        return self.name == "tensorrt-rtx"

    @property
    def takes_plugins(self) -> bool:
        """TensorRT-RTX takes none: its parser ends the process where a creator has the name of a node."""
        return not self.is_rtx

    @property
    def keeps_timings(self) -> bool:
        """In TensorRT-RTX the timing cache does nothing."""
        return not self.is_rtx

    @property
    def compute_capabilities(self) -> dict[str, str]:
        """What TensorRT-RTX builds for, "8.9", by its name there."""
        names = (name for name in dir(self.trt.ComputeCapability) if name[:2] == "SM")
        return {f"{name[2:-1]}.{name[-1]}": name for name in names}  # SM120 is 12.0

    def start(self, what: str, logger: Any) -> Any:
        """A ``trt.Builder`` or ``trt.Runtime``, named by ``what``. Raises WnlbError where CUDA does not start."""
        try:
            return getattr(self.trt, what)(logger)
        except TypeError as error:  # what its bindings make of a null pointer
            reason = (logger.errors or [logger.warning or "no reason given"])[-1]
            raise WnlbError(
                f"{self.title} cannot start here: {' '.join(reason.split())}; is the driver new enough for its CUDA, "
                "and memory free? 'wnlb doctor' and nvidia-smi tell"
            ) from error

    def network_flags(self) -> int:
        """Strongly typed: the precisions that the graph says."""
        return 1 << int(self.trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)

    def prefer_plugins(self, model: onnx.ModelProto, parser: Any, op_type: str) -> None:
        """Make the parser take the plugin for nodes ``op_type``, which are also local functions of ``model``.

        Up to 10.6 a function comes before a plugin: it is taken out of ``model``. From 10.7 a plugin comes first, from
        10.15 only for a node with ``plugin_namespace`` (ours have one) or with ENABLE_PLUGIN_OVERRIDE.
        """
        if self._release() < (10, 7):
            functions = [function for function in model.functions if function.name != op_type]
            del model.functions[:]
            model.functions.extend(functions)
        if hasattr(self.trt.OnnxParserFlag, "ENABLE_PLUGIN_OVERRIDE"):
            parser.set_flag(self.trt.OnnxParserFlag.ENABLE_PLUGIN_OVERRIDE)

    def set_compute_capabilities(self, config: Any, wanted: tuple[str, ...]) -> None:
        """Build for these GPUs ("8.9") instead of TensorRT-RTX's own choice. Raises WnlbError for one that it lacks."""
        known = self.compute_capabilities
        for capability in wanted:
            if capability not in known:
                raise WnlbError(f"{self.title} builds for {', '.join(sorted(known))}, not for {capability}")
        config.num_compute_capabilities = len(wanted)
        for i, capability in enumerate(wanted):
            config.set_compute_capability(getattr(self.trt.ComputeCapability, known[capability]), i)

    def _release(self) -> tuple[int, int]:
        major, minor = self.version.split(".")[:2]
        return int(major), int(minor)


def load_tensorrt(target: str = "auto") -> TensorRt:
    """Import a library: one of TARGETS, or "auto" for TensorRT where it is installed and TensorRT-RTX elsewhere.

    Raises:
        MissingDependency: it is not installed, or a library below it is missing.
        WnlbError: it is older than 10.3.
    """
    if target not in ("auto", *TARGETS):
        raise WnlbError(f"library is {target!r}; expected {', '.join(TARGETS)}")
    missing = []
    for name in TARGETS if target == "auto" else (target,):
        try:
            found = _import(name)
        except ImportError as error:
            missing.append(f"{name} ({error}): {HOW_TO_INSTALL[name]}")
            continue
        if not found.is_rtx and found._release() < OLDEST:
            raise WnlbError(f"TensorRT {found.version} is too old; 10.3 or later is needed")
        return found
    raise MissingDependency("no TensorRT can be loaded: " + "; or ".join(missing))


def _import(name: str) -> TensorRt:
    if name == "tensorrt":
        trt = importlib.import_module("tensorrt")
        return TensorRt(name, trt.__version__, trt)
    package = importlib.import_module("tensorrt_rtx_bindings")  # loads the libraries
    trt = importlib.import_module("tensorrt_rtx_bindings.tensorrt_rtx")
    return TensorRt(name, package.__version__, trt)


def make_logger(trt: Any) -> Any:
    """A ``trt.ILogger`` that keeps the newest errors in ``errors``, the last warning, and prints nothing."""

    class Messages(trt.ILogger):
        def __init__(self) -> None:
            super().__init__()
            self.errors: list[str] = []
            self.warning = ""

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.errors = [*self.errors[-99:], message]
            elif severity == trt.ILogger.WARNING:
                self.warning = message

    return Messages()


def last_error(logger: Any) -> str:
    """The last error in one line, with what to do where memory was short."""
    if not logger.errors:
        return "no reason given"
    line = " ".join(logger.errors[-1].split())
    if any("outofmemory" in message.lower().replace(" ", "") for message in logger.errors):
        line += "; free GPU memory, build with a smaller --workspace, or export a smaller size or batch"
    return line
