"""A model repository as Triton loads it, with what starts and watches its server: all of it, or nothing.

repository/model/config.pbtxt, model/1/model.onnx ...
repository/probe.py, compose.yaml, wnlb-triton.service     which Triton passes over
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from wnlb.runtime.contract import Contract
from wnlb.runtime.engine.manifest import Manifest, manifest_path, read_manifest
from wnlb.runtime.errors import ContractError, WnlbError
from wnlb.runtime.onnxruntime_backend import OnnxRuntimeBackend
from wnlb.runtime.serving import probe, triton_model
from wnlb.runtime.serving.config import FILES, Queue, net_config, picture_config
from wnlb.runtime.serving.starting import COMPOSE, DOCKERFILE, PROBE, UNIT, Start

VERSION = "1"
PLUGIN = "libwnlb_plugins.so"
RTX = ("tensorrt-rtx-cu13-libs", "tensorrt-rtx-cu13-bindings")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")  # fits URLs, folders and Triton


@dataclass(frozen=True)
class Served:
    """A model file that is to be served."""

    path: Path
    name: str
    contract: Contract
    manifest: Manifest | None  # of engines


@dataclass(frozen=True)
class How:
    """How models are served. Raises WnlbError for values that are none."""

    variant: str = "net"
    device: str = "auto"  # of .onnx files: "cpu", "cuda", "auto": a GPU, but for files made for a CPU
    instances: int = 0  # of each model; 0: two on a GPU, one on a CPU
    score_threshold: float = 0.5  # of variant full
    queue: Queue = field(default_factory=Queue)

    def __post_init__(self) -> None:
        if self.instances < 0:
            raise WnlbError(f"--instances is {self.instances}; expected 1 or more")
        if not 0 <= self.score_threshold <= 1:
            raise WnlbError(f"--score-threshold is {self.score_threshold}; expected a number from 0 to 1")

    def on_gpu(self, model: Served) -> bool:
        """Whether a model runs on a GPU."""
        return (
            model.manifest is not None
            or self.device == "cuda"
            or (self.device == "auto" and model.contract.target != "cpu")
        )


def read_models(paths: Sequence[Path], variant: str) -> list[Served]:
    """The models, checked: files that open, engines with their manifest.

    Raises:
        WnlbError: one is not there, not ours, or nothing that this variant can serve; or two have one name.
    """
    models = [_read(path, variant) for path in paths]
    name, count = Counter(model.name for model in models).most_common(1)[0]
    if count > 1:
        raise WnlbError(f"{count} models would be called {name}; rename their files")
    versions = sorted({model.manifest.version for model in models if model.manifest})
    if len(versions) > 1:
        raise WnlbError(
            f"engines of TensorRT {' and '.join(versions)} do not fit one server; build them with one version"
        )
    if len({model.manifest.plugin_sha256 for model in models if model.manifest and model.manifest.plugin_sha256}) > 1:
        raise WnlbError("engines with different plugin libraries do not fit one server; build them with one")
    return models


def _read(path: Path, variant: str) -> Served:
    if path.suffix not in FILES:
        raise WnlbError(f"model {path} has the suffix {path.suffix or 'none'!r}; expected .onnx or .engine")
    if not _NAME.fullmatch(path.stem):
        raise WnlbError(f"model {path} would be called {path.stem!r}; rename it to letters, digits, '.', '_' and '-'")
    if path.suffix == ".onnx":
        if not path.is_file():
            raise WnlbError(f"model {path} {'is a folder' if path.is_dir() else 'does not exist'}; expected a file")
        backend = OnnxRuntimeBackend(path, device="cpu")
        backend.close()
        return Served(path, path.stem, backend.contract, None)
    manifest = read_manifest(path)
    contract = manifest.read_contract()
    if contract is None:
        raise ContractError(f"engine {path} was built from {manifest.onnx}, which 'wnlb export' did not write")
    if variant == "net" and manifest.library != "tensorrt":
        raise WnlbError(
            f"engine {path} is of TensorRT-RTX, which Triton has no backend for; build it with --target tensorrt, or "
            "serve it with --variant full"
        )
    if variant == "net" and manifest.mask_rows:
        raise WnlbError(
            f"engine {path} holds two networks, and Triton runs one; build it with --mask-rows all, or serve it with "
            "--variant full"
        )
    return Served(path, path.stem, contract, manifest)


def start_of(models: Sequence[Served], how: How, container: str, listen: str) -> Start:
    """What starting these models takes."""
    manifests = [model.manifest for model in models if model.manifest]
    return Start(
        container,
        any(how.on_gpu(model) for model in models),
        how.variant == "full",
        PLUGIN if any(manifest.plugin_sha256 for manifest in manifests) else "",
        _packages(models, how),
        listen,
    )


def _packages(models: Sequence[Served], how: How) -> tuple[str, ...]:
    """What of PyPI runs these models in Python."""
    found: list[str] = []
    for model in models:
        if model.manifest is None:
            found.append("onnxruntime-gpu" if how.on_gpu(model) else "onnxruntime")
        else:
            names = ("tensorrt",) if model.manifest.library == "tensorrt" else RTX
            found += [*(f"{name}=={model.manifest.version}" for name in names), "cuda-python"]
    kept = dict.fromkeys(found)
    if "onnxruntime-gpu" in kept:  # it runs on a CPU too, and only one of the two may be installed
        kept.pop("onnxruntime", None)
    return tuple(kept)


def write_repository(models: Sequence[Served], how: How, start: Start, output: Path, overwrite: bool = False) -> None:
    """Write everything into a folder beside ``output``, and rename it to that at the end.

    Args:
        overwrite: replace a repository that is there. Anything else that is there is never touched.

    Raises:
        WnlbError: it is there already, or cannot be written.
    """
    with _whole(output, overwrite) as folder:
        for model in models:
            _write_model(model, how, folder / model.name)
        if start.plugin:
            _copy_plugin(models, folder / start.plugin)
        shutil.copyfile(probe.__file__, folder / PROBE)
        (folder / UNIT).write_text(start.unit(output))
        (folder / COMPOSE).write_text(start.compose())
        if start.python:
            (folder / DOCKERFILE).write_text(start.dockerfile())


def _write_model(model: Served, how: How, folder: Path) -> None:
    version = folder / VERSION
    version.mkdir(parents=True)
    gpu = how.on_gpu(model)
    instances = how.instances or (2 if gpu else 1)
    suffix = model.path.suffix
    if how.variant == "net":
        shutil.copyfile(model.path, version / FILES[suffix])
        text = net_config(model.name, model.contract, suffix, instances, gpu, how.queue)
    else:
        file = f"model{suffix}"
        shutil.copyfile(model.path, version / file)
        if model.manifest:
            shutil.copyfile(manifest_path(model.path), manifest_path(version / file))
        shutil.copyfile(triton_model.__file__, version / "model.py")
        text = picture_config(model.name, model.contract, file, how.instances or 1, how.score_threshold, how.queue)
    (folder / "config.pbtxt").write_text(text)


def _copy_plugin(models: Sequence[Served], target: Path) -> None:
    from wnlb.plugins.library import load

    wanted = next(model.manifest.plugin_sha256 for model in models if model.manifest and model.manifest.plugin_sha256)
    shutil.copyfile(load(sha256=wanted).path, target)


@contextlib.contextmanager
def _whole(output: Path, overwrite: bool) -> Iterator[Path]:
    """A temporary folder that becomes ``output`` when the block ends without an error."""
    output = output.absolute()
    mark = secrets.token_hex(4)
    temporary, before = (output.with_name(f".{output.name[:40]}.{mark}.{what}") for what in ("new", "old"))
    if os.path.lexists(output):
        if not output.is_dir():
            raise WnlbError(f"output {output} is no folder; choose another")
        filled = any(output.iterdir())
        if filled and not (output / UNIT).is_file():
            raise WnlbError(f"folder {output} holds something else than a repository of ours; choose another output")
        if filled and not overwrite:
            raise WnlbError(f"repository {output} exists; --overwrite replaces it")
    try:
        temporary.mkdir()
        yield temporary
        if output.is_dir():
            os.rename(output, before)
        try:
            os.rename(temporary, output)
        except OSError:
            if before.is_dir():
                os.rename(before, output)
            raise
    except OSError as error:
        raise WnlbError(f"repository {output} cannot be written: {error.strerror or error}") from error
    finally:
        for left in (temporary, before):
            shutil.rmtree(left, ignore_errors=True)
