"""Which model files are measured: those that were given, and those that are made of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from wnlb.plugins.library import load
from wnlb.runtime.engine.driver import find_gpu
from wnlb.runtime.engine.manifest import LIBRARIES, read_manifest
from wnlb.runtime.engine.tensorrt import load_tensorrt
from wnlb.runtime.errors import WnlbError
from wnlb.runtime.profile.making import Maker
from wnlb.runtime.served_model import Model

ONNX_RUNTIME = "onnxruntime"
TRITON = "triton"  # a server, whatever runs there
BACKENDS = (ONNX_RUNTIME, *LIBRARIES)
PRECISIONS = ("fp32", "fp16", "bf16", "int8")
ATTENTION = ("standard", "plugin")
CHECKPOINTS = (".pth", ".pt", ".pkl", ".safetensors")
SAMPLE = "sample"  # the package's own checkpoint


@dataclass(frozen=True)
class Wanted:
    """What is to be made of a model. Raises WnlbError for names that are none."""

    precisions: tuple[str, ...] = ()  # () to take a file as it is
    attention: tuple[str, ...] = ATTENTION
    backends: tuple[str, ...] = BACKENDS
    size: str = ""  # HxW of the input
    classes: Path | None = None
    config: Path | None = None  # of mmdetection or detectron2
    images: str = ""  # to calibrate on
    cpu: bool = True  # whether ONNX Runtime has no GPU here

    def __post_init__(self) -> None:
        for what, names, known in (
            ("precision", self.precisions, PRECISIONS),
            ("attention", self.attention, ATTENTION),
            ("backend", self.backends, BACKENDS),
        ):
            for name in names:
                if name not in known:
                    raise WnlbError(f"{what} is {name!r}; expected some of {','.join(known)}")

    def attention_in(self, backend: str) -> tuple[str, ...]:
        """The forms that differ in a backend: only TensorRT has the plugin."""
        if backend == "tensorrt" or "standard" not in self.attention:
            return self.attention
        return ("standard",)


@dataclass
class Variant:
    """One row to be: a model file and what runs it, or why there is none."""

    name: str  # of the file
    backend: str
    precision: str = ""  # "" to be read from the file
    attention: str = ""
    path: Model | None = None
    onnx: Path | None = None  # the file itself, or what the engine was built from
    reference: Path | None = None  # the FP32 file of the same model
    failure: str = ""


def is_checkpoint(source: Model) -> bool:
    """Whether ``wnlb export`` reads it."""
    if not isinstance(source, Path):
        return False
    return source.suffix.lower() in CHECKPOINTS or (str(source) == SAMPLE and not source.exists())


def variants_of(source: Model, wanted: Wanted, maker: Maker) -> list[Variant]:
    """What of one model is measured, made where it is missing. What cannot be made bears the reason."""
    if not isinstance(source, Path):
        return [Variant(str(source), TRITON, path=source)]
    if source.suffix == ".engine":
        return [_engine(source)]
    return [*_Family(source, wanted, maker)]


def _engine(source: Path) -> Variant:
    try:
        manifest = read_manifest(source)
    except WnlbError as error:
        return Variant(source.name, "tensorrt", failure=str(error))
    return Variant(source.name, manifest.library, attention=manifest.attention, path=source)


class _Family:
    """A checkpoint or an ONNX file, and everything that is made of it."""

    def __init__(self, source: Path, wanted: Wanted, maker: Maker) -> None:
        self._source, self._wanted, self._maker = source, wanted, maker
        self._files: dict[str, Path | WnlbError] = {}  # ONNX files by what they are, made once

    def __iter__(self) -> Iterator[Variant]:
        wanted = self._wanted
        for precision in wanted.precisions or ("",):
            for backend in wanted.backends:
                for attention in wanted.attention_in(backend):
                    yield self._variant(precision, backend, attention)
        if (
            is_checkpoint(self._source)
            and wanted.cpu
            and "fp32" in wanted.precisions
            and ONNX_RUNTIME in wanted.backends
        ):
            yield self._variant("cpu", ONNX_RUNTIME, "standard")

    def _variant(self, kind: str, backend: str, attention: str) -> Variant:
        """``kind``: a precision, "" for the file as it is, or "cpu" for FP32 exported for CPUs."""
        stem = f"{self._source.stem}.{kind}" if kind not in ("", "fp32") else self._source.stem
        variant = Variant(f"{stem}.onnx", backend, "fp32" if kind == "cpu" else kind, attention)
        if backend != ONNX_RUNTIME:
            variant.name = ".".join([stem, backend, *(["plugin"] if attention == "plugin" else []), "engine"])
        try:
            _check_can_run(backend, attention)
            variant.onnx = variant.path = self._onnx(kind)
            if self._wanted.precisions:
                variant.reference = self._onnx("fp32")
            if backend != ONNX_RUNTIME:
                words: list[str | Path] = ["build", variant.onnx, "--target", backend, "--attention", attention]
                state = [load_tensorrt(backend).version, str(find_gpu())]
                state += [load().sha256] if attention == "plugin" else []
                variant.path = self._maker.make(variant.name, words, [variant.onnx, *state])
        except WnlbError as error:
            variant.failure = str(error)
        return variant

    def _onnx(self, kind: str) -> Path:
        if kind not in self._files:
            try:
                self._files[kind] = self._made(kind)
            except WnlbError as error:
                self._files[kind] = error
        found = self._files[kind]
        if isinstance(found, WnlbError):
            raise found
        return found

    def _made(self, kind: str) -> Path:
        source, wanted = self._source, self._wanted
        if kind in ("fp32", "cpu", "") and is_checkpoint(source):
            words: list[str | Path] = ["export", source, "--size", wanted.size]
            words += ["--classes", wanted.classes] if wanted.classes else []
            words += ["--config", wanted.config] if wanted.config else []
            words += ["--target", "cpu"] if kind == "cpu" else []
            name = f"{source.stem}.cpu.onnx" if kind == "cpu" else f"{source.stem}.onnx"
            return self._maker.make(name, words, [path for path in (source, wanted.classes, wanted.config) if path])
        if kind in ("fp32", ""):
            return source
        base = self._onnx("fp32")
        words = ["convert", base, "--precision", kind, *(["--images", wanted.images] if wanted.images else [])]
        return self._maker.make(f"{source.stem}.{kind}.onnx", words, [base, wanted.images])


def _check_can_run(backend: str, attention: str) -> None:
    """Before anything is built. Raises WnlbError."""
    if backend == ONNX_RUNTIME:
        if attention == "plugin":
            raise WnlbError("ONNX Runtime has no plugin: it computes the standard form")
        return
    find_gpu()
    load_tensorrt(backend)
