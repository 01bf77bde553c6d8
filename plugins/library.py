"""Find, check and load the TensorRT plugin library."""

from __future__ import annotations

import ctypes
import os
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wnlb.runtime.errors import MissingDependency, WnlbError
from wnlb.runtime.files import sha256_of

NAME = "libwnlb_plugins.so"
VARIABLE = "WNLB_PLUGIN_LIBRARY"
SOURCE = Path(__file__).resolve().parent  # CMakeLists.txt lies here, in the repository and in the wheel
_lock = threading.Lock()
_registered: dict[str, str] = {}  # path and SHA-256 of the library that this process registered
HOW_TO_BUILD = f"cmake -S {SOURCE} -B build && cmake --build build && export {VARIABLE}=$PWD/build/{NAME}"


def how_to_get_kernels(arch: int) -> str:
    """What helps where a library has no kernels for a GPU."""
    if arch < 80:
        return "there are none before SM 8.0; use --attention standard"
    return "run 'python -m wnlb.plugins.build' and build the library again"


@dataclass(frozen=True)
class PluginLibrary:
    """A library that fits."""

    path: Path
    sha256: str
    tensorrt: str  # whose headers it was compiled with
    kernels: int  # all that it holds

    def kernels_for(self, arch: int) -> int:
        """Kernels that a GPU of this compute capability times ten, such as 87, can run: its own or portable ones."""
        return int(ctypes.CDLL(str(self.path)).wnlbKernelCount(arch))


def load(path: Path | str | None = None, *, sha256: str = "", tensorrt: Any = None) -> PluginLibrary:
    """Check the plugin library and register it with TensorRT.

    Args:
        path: the library. By default the file that WNLB_PLUGIN_LIBRARY names, or the one beside this module.
        sha256: the hash it must have, as an engine's manifest says; "" for any.
        tensorrt: the ``tensorrt`` module to register the plugin with; None only checks.

    Raises:
        MissingDependency: there is no library; the message says how to build it.
        WnlbError: the file is no plugin library, is not the one that was asked for, was compiled for another major
            version of TensorRT, or TensorRT refuses it.
    """
    found = _find(path)
    digest = sha256_of(found)
    if sha256 and digest != sha256:
        raise WnlbError(
            f"plugin library {found} has the SHA-256 {digest[:12]}..., the engine was built with {sha256[:12]}...; "
            "build the engine again, or use the library that it was built with"
        )
    try:
        library = ctypes.CDLL(str(found))
        version, kernels = int(library.wnlbTensorRtVersion()), int(library.wnlbKernelCount(0))
    except (OSError, AttributeError) as error:
        raise WnlbError(f"{found} is not our plugin library ({error}); build it: {HOW_TO_BUILD}") from error
    if kernels < 1:
        raise WnlbError(f"plugin library {found} holds no kernels; run 'python -m wnlb.plugins.build', build it again")
    compiled_for = f"{version // 10000}.{version // 100 % 100}.{version % 100}"
    if tensorrt is not None:
        _register(found, digest, compiled_for, tensorrt)
    return PluginLibrary(found, digest, compiled_for, kernels)


def _find(path: Path | str | None) -> Path:
    named = path or os.environ.get(VARIABLE)
    found = Path(named) if named else SOURCE / NAME
    if not found.is_file():
        where = f"{found} does not exist" if named else f"{NAME} is neither in {SOURCE} nor named by {VARIABLE}"
        raise MissingDependency(f"the plugin library is missing: {where}; build it: {HOW_TO_BUILD}")
    return found.resolve()


def _register(path: Path, digest: str, compiled_for: str, tensorrt: Any) -> None:
    """Once a process: TensorRT refuses a library whose plugins are registered already."""
    if compiled_for.split(".")[0] != tensorrt.__version__.split(".")[0]:
        raise WnlbError(
            f"plugin library {path} was compiled for TensorRT {compiled_for}, this is {tensorrt.__version__}; "
            f"build it with this version's headers: {HOW_TO_BUILD}"
        )
    with _lock:
        if _registered.get("sha256") == digest:
            return
        if _registered:
            raise WnlbError(f"plugin library {_registered['path']} is loaded, {path} is another; use one in a process")
        registry = tensorrt.get_plugin_registry()
        if registry.load_library(str(path)) is None:
            raise WnlbError(f"TensorRT {tensorrt.__version__} refuses the plugin library {path}")
        _registered.update(sha256=digest, path=str(path))
