"""From an ONNX file to an engine, by TensorRT or TensorRT-RTX."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wnlb.runtime.contract import Contract
from wnlb.runtime.engine.driver import Gpu, find_gpu
from wnlb.runtime.engine.layers import layers_of_engine
from wnlb.runtime.engine.manifest import Manifest, manifest_path
from wnlb.runtime.engine.mask_cut import mask_rows, split_masks
from wnlb.runtime.engine.network import Job, Sizes, plugin_nodes
from wnlb.runtime.engine.progress import Progress
from wnlb.runtime.engine.tensorrt import TARGETS, TensorRt, load_tensorrt
from wnlb.runtime.engine.timing_cache import Timings
from wnlb.runtime.errors import GraphError, MissingDependency, WnlbError
from wnlb.runtime.files import atomic_path, sha256_of
from wnlb.runtime.machine import nvidia_driver
from wnlb.runtime.onnx_file import contract_of, described, read_onnx

if TYPE_CHECKING:
    import onnx

    from wnlb.plugins.library import PluginLibrary

ATTENTION = ("auto", "standard", "plugin")
MASK_ROWS = ("auto", "all")


@dataclass(frozen=True)
class BuildOptions:
    """How to build.

    ``attention``: "standard" and "plugin" rewrite the file's attention to that form; "auto" keeps the plugin nodes that
    the file has where the plugin can be used, and takes their standard bodies elsewhere.

    ``mask_rows``: "all" builds one engine, which computes masks for all rows of its outputs, whatever is found; "auto"
    cuts the mask branch off where that is possible, see ``split_masks``, and builds it for several numbers of rows.
    """

    target: str = "auto"  # or one of tensorrt.TARGETS
    attention: str = "auto"
    workspace: int = 0  # MiB; 0 for TensorRT's own limit, all of the GPU's memory
    optimization_level: int = 3  # 0 to 5
    timing_cache: Path | None = None  # None for a file in the user's cache folder
    compute_capabilities: tuple[str, ...] = ()  # TensorRT-RTX: "8.9"; () for its own choice
    mask_rows: str = "auto"
    batch: int = 0  # of a file that takes several, the number of frames to be fastest with; 0 for the most

    def __post_init__(self) -> None:
        if self.target not in ("auto", *TARGETS):
            raise WnlbError(f"target is {self.target!r}; expected auto, {', '.join(TARGETS)}")
        if self.attention not in ATTENTION:
            raise WnlbError(f"attention is {self.attention!r}; expected {', '.join(ATTENTION)}")
        if self.mask_rows not in MASK_ROWS:
            raise WnlbError(f"mask rows are {self.mask_rows!r}; expected {', '.join(MASK_ROWS)}")
        if not 0 <= self.workspace < 1 << 24:
            raise WnlbError(f"workspace is {self.workspace} MiB; expected 0 or more, and less than 16 TiB")
        if self.batch < 0:
            raise WnlbError(f"batch is {self.batch}; expected a number of frames, or 0 for the most of the file")
        if not 0 <= self.optimization_level <= 5:
            raise WnlbError(f"optimization level is {self.optimization_level}; expected 0 to 5")


def build_engine(
    source: Path, output: Path, options: BuildOptions | None = None, progress: Progress = lambda done, what: True
) -> Manifest:
    """Build ``output`` and its manifest ``output``.json. If anything fails, both stay as they were.

    (Killed between their two renamings, a manifest stays that is not the engine's, and both are refused.)

    Args:
        source: an ONNX file with static shapes, ours or not; of ours also one that takes several numbers of frames, by
            one optimisation profile.
        progress: called often; the build ends where it returns False.

    Raises:
        MissingDependency: there is no such library, no GPU where it needs one, no plugin where it was asked for.
        GraphError: the library cannot take the graph.
        WnlbError: something else is wrong with files or options, or the build failed or was stopped.
    """
    options = options or BuildOptions()
    started = time.perf_counter()
    model = read_onnx(source)
    onnx_sha256 = sha256_of(source)
    contract = contract_of(model)
    _check_static(source, model, contract)
    batches = _profile(source, contract, options.batch)
    _check_target(source, contract)
    library = load_tensorrt(options.target)
    _check_options(options, library)
    gpu = _gpu(library)
    plugin = _choose_attention(model, library, options.attention, gpu)
    timings = Timings(library, options.timing_cache, gpu)
    job = Job(source, library, options.workspace, options.optimization_level, options.compute_capabilities, timings)
    with atomic_path(output) as engine_path, atomic_path(manifest_path(output)) as json_path:
        built = _built(job, model, contract, options, batches, plugin is not None, gpu, progress)
        _write(engine_path, built.plans, output)
        manifest = Manifest(
            engine_sha256=_sha256(built.plans),
            engine_bytes=sum(plan.nbytes for plan in built.plans),
            onnx=source.name,
            onnx_sha256=onnx_sha256,
            library=library.name,
            version=library.version,
            **_facts_of(gpu, library),
            attention="plugin" if plugin else "standard",
            plugin_sha256=plugin.sha256 if plugin else "",
            options=_facts_of_options(options, batches, built),
            inputs={value.name: described(value) for value in model.graph.input},
            outputs={value.name: described(value) for value in model.graph.output},
            contract=json.loads(contract.to_json()) if contract else {},
            tool_version=importlib.metadata.version("wnlb-deploy"),
            build_seconds=round(time.perf_counter() - started, 1),
            layers_of=built.layers_of,
            layers=built.layers,
        )
        _write(json_path, [manifest.to_json().encode()], manifest_path(output))
    return manifest


@dataclass(frozen=True)
class _Built:
    """The networks of one engine file, one after the other."""

    plans: list[memoryview]  # serialised
    layers: list[dict[str, str]]
    layers_of: str  # "engine", as TensorRT fused them, or "network", as they were parsed
    mask_rows: tuple[int, ...]  # that the second network, of the masks, was built for; () where there is one alone


def _built(
    job: Job,
    model: onnx.ModelProto,
    contract: Contract | None,
    options: BuildOptions,
    batches: Sizes | None,
    plugin: bool,
    gpu: Gpu | None,
    progress: Progress,
) -> _Built:
    cut = split_masks(model, contract) if contract and options.mask_rows == "auto" else None
    rows = mask_rows(contract.detections) if contract and cut else ()
    if cut:
        first = job.serialized(cut[0], (), plugin, _share(progress, 0.0, 0.9))
        second = job.serialized(cut[1], [(r, r, r) for r in rows], False, _share(progress, 0.9, 1.0))
        parts = [first, second]
    else:
        parts = [job.serialized(model, [batches] if batches else (), plugin, progress)]
    plans = [memoryview(serialized) for serialized, _ in parts]
    fused = [layers_of_engine(job.library, plan) if gpu else None for plan in plans]
    layers = [layer for own, (_, parsed) in zip(fused, parts, strict=True) for layer in own or parsed]
    return _Built(plans, layers, "network" if None in fused else "engine", tuple(rows))


def _facts_of_options(options: BuildOptions, batches: Sizes | None, built: _Built) -> dict[str, Any]:
    """The manifest's entry of what was asked for, and of what came of it."""
    return {
        "workspace": options.workspace,
        "optimization_level": options.optimization_level,
        "compute_capabilities": list(options.compute_capabilities),
        **({"batches": list(batches)} if batches else {}),
        **({"masks": {"at": built.plans[0].nbytes, "rows": list(built.mask_rows)}} if built.mask_rows else {}),
    }


def _sha256(plans: list[memoryview]) -> str:
    """Of the file that they make one after the other."""
    digest = hashlib.sha256()
    for plan in plans:
        digest.update(plan)
    return digest.hexdigest()


def _share(progress: Progress, start: float, end: float) -> Progress:
    """Of a build, the part from ``start`` to ``end``."""
    return lambda done, what: progress(start + (end - start) * done, what)


def _check_options(options: BuildOptions, library: TensorRt) -> None:
    if options.compute_capabilities and not library.is_rtx:
        raise WnlbError("compute capabilities can be chosen for TensorRT-RTX only; TensorRT builds for the GPU at hand")
    if options.timing_cache and not library.keeps_timings:
        raise WnlbError(f"{library.title} keeps no timings; leave --timing-cache out")


def _facts_of(gpu: Gpu | None, library: TensorRt) -> dict[str, Any]:
    """The manifest's entries on the GPU; TensorRT-RTX's engines are not for this one alone."""
    if gpu is None:
        return dict.fromkeys(("gpu", "compute_capability", "driver", "cuda"), "")
    capability = "" if library.is_rtx else gpu.compute_capability
    return {"gpu": gpu.name, "compute_capability": capability, "driver": nvidia_driver(), "cuda": gpu.cuda}


def _write(path: Path, parts: Sequence[bytes | memoryview], target: Path) -> None:
    """One after the other."""
    try:
        with open(path, "wb") as file:
            file.writelines(parts)
    except OSError as error:
        raise WnlbError(f"{target} cannot be written: {error.strerror}") from error


def _profile(source: Path, contract: Contract | None, wanted: int) -> Sizes | None:
    """The fewest frames, those to be fastest with, and the most; None for a file of one fixed batch."""
    if contract is None or contract.min_batch is None:
        if wanted:
            raise WnlbError(f"{source} takes one number of frames; leave --batch out, or export it with --batch 1-8")
        return None
    if wanted and wanted not in contract.batches:
        raise WnlbError(f"batch is {wanted}; expected {contract.batch_text}, the frames that {source} takes")
    return contract.min_batch, wanted or contract.batch, contract.batch


def _check_static(source: Path, model: onnx.ModelProto, contract: Contract | None) -> None:
    shapes = contract.stated(contract.input_shapes) if contract and contract.min_batch is not None else {}
    weights = {tensor.name for tensor in model.graph.initializer}  # older files list them among the inputs
    for value in model.graph.input:
        tensor = value.type.tensor_type
        static = tensor.HasField("shape") and all(dim.dim_value > 0 for dim in tensor.shape.dim)
        promised = tuple(dim.dim_value or dim.dim_param for dim in tensor.shape.dim) == shapes.get(value.name)
        if value.name not in weights and not (static or promised):
            raise GraphError(
                f"{source}: input {value.name} is {described(value)}; expected a static shape: export the file with "
                "fixed sizes"
            )


def _check_target(source: Path, contract: Contract | None) -> None:
    if contract and contract.target == "cpu":
        raise GraphError(
            f"{source} was exported with --target cpu, for ONNX Runtime: it holds operators and numbers of rows that "
            "no engine allows; export it with --target gpu"
        )


def _gpu(library: TensorRt) -> Gpu | None:
    """The GPU at hand; TensorRT-RTX builds without one."""
    try:
        return find_gpu()
    except MissingDependency as error:
        if library.is_rtx:
            return None
        raise MissingDependency(
            f"{library.title} builds on the GPU that the engine is for: {error}; build there, or without a GPU for "
            "RTX cards with --target tensorrt-rtx"
        ) from error


def _choose_attention(
    model: onnx.ModelProto, library: TensorRt, attention: str, gpu: Gpu | None
) -> PluginLibrary | None:
    """Bring the attention of ``model`` into the wanted form; the plugin library where it is used, registered."""
    from wnlb.export.onnx_file.fuse import fuse_attention, unfuse_attention
    from wnlb.plugins.library import how_to_get_kernels, load

    if attention == "plugin":
        if not library.takes_plugins or gpu is None:
            raise WnlbError(f"{library.title} takes no plugins; use --attention standard or --target tensorrt")
        if not fuse_attention(model) and not plugin_nodes(model):
            raise GraphError("the file has no attention that the plugin computes; use --attention standard")
    if attention == "standard" or not library.takes_plugins or gpu is None:
        unfuse_attention(model)
    if not plugin_nodes(model):
        return None
    assert gpu is not None
    try:
        plugin = load()
        if not plugin.kernels_for(gpu.arch):
            raise MissingDependency(
                f"plugin library {plugin.path} has no kernels for {gpu.name} (SM {gpu.compute_capability}); "
                + how_to_get_kernels(gpu.arch)
            )
    except MissingDependency:
        if attention == "plugin":
            raise
        unfuse_attention(model)
        return None
    return load(tensorrt=library.trt)
