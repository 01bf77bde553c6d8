"""An engine file, opened by the library that it was built with."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wnlb.runtime.engine.driver import Gpu
from wnlb.runtime.engine.manifest import Manifest
from wnlb.runtime.engine.tensorrt import TARGETS, TensorRt, last_error, load_tensorrt, make_logger
from wnlb.runtime.errors import MissingDependency, WnlbError


@dataclass
class Engines:
    """What a file holds. They must be dropped before the runtime that made them, and contexts before them."""

    library: TensorRt
    logger: Any
    runtime: Any
    parts: list[Any]  # ICudaEngine: the whole network, or what comes before the masks, and the masks

    def close(self) -> None:
        self.parts, self.runtime = [], None


def open_engines(path: Path, manifest: Manifest | None, plugin: bool, gpu: Gpu) -> Engines:
    """Deserialise a file with the library of its manifest; without one, with the first that takes it.

    Raises:
        WnlbError: this machine's library, GPU or plugin do not fit; says which, and what to do.
    """
    data = memoryview(_read(path))
    at = manifest.masks_at if manifest else 0
    plans = [data[:at], data[at:]] if at else [data]
    refusals = []
    for name in (manifest.library,) if manifest else TARGETS:
        try:
            library = load_tensorrt(name)
            if manifest:
                _check_fit(path, manifest, library, gpu)
            _load_plugin(library, manifest, plugin)
        except WnlbError as error:
            if manifest:
                raise
            refusals.append(str(error))
            continue
        logger = make_logger(library.trt)
        runtime = library.start("Runtime", logger)
        parts = [runtime.deserialize_cuda_engine(plan) for plan in plans]
        if None not in parts:
            return Engines(library, logger, runtime, parts)
        refusals.append(f"{library.title} cannot open engine {path}: {last_error(logger)}")
    raise WnlbError(f"{'; '.join(refusals)}; build it again here")


def _check_fit(path: Path, manifest: Manifest, library: TensorRt, gpu: Gpu) -> None:
    if manifest.version != library.version:
        raise WnlbError(
            f"engine {path} was built with {manifest.library} {manifest.version}, this is {library.version}; "
            f"build it again here: wnlb build {manifest.onnx} -o {path}"
        )
    wanted = manifest.compute_capability
    if wanted and wanted != gpu.compute_capability:
        raise WnlbError(
            f"engine {path} was built for {manifest.gpu} (SM {wanted}), this is {gpu.name} "
            f"(SM {gpu.compute_capability}); build it again here: wnlb build {manifest.onnx} -o {path}"
        )
    chosen = manifest.options.get("compute_capabilities")
    if chosen and gpu.compute_capability not in chosen:
        raise WnlbError(
            f"engine {path} was built for SM {', '.join(chosen)}, this is {gpu.name} (SM {gpu.compute_capability}); "
            f"build it again with --compute-capability {gpu.compute_capability}"
        )


def _load_plugin(library: TensorRt, manifest: Manifest | None, plugin: bool) -> None:
    """The plugin library that the engine was built with; any, for a trusted engine that may have our nodes."""
    from wnlb.plugins.library import load

    if manifest and manifest.plugin_sha256:
        load(sha256=manifest.plugin_sha256, tensorrt=library.trt)
    elif not manifest and plugin and library.takes_plugins:
        with contextlib.suppress(MissingDependency):  # it may have been built through the function bodies
            load(tensorrt=library.trt)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise WnlbError(f"engine {path} cannot be read: {error.strerror}") from error
