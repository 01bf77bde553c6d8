"""From an ONNX file to an engine, by TensorRT or TensorRT-RTX."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wnlb.runtime.contract import Contract
from wnlb.runtime.engine.driver import Gpu, find_gpu
from wnlb.runtime.engine.layers import layers_of_engine, layers_of_network
from wnlb.runtime.engine.manifest import Manifest, manifest_path
from wnlb.runtime.engine.progress import Progress, interrupts_to, make_monitor
from wnlb.runtime.engine.tensorrt import TARGETS, TensorRt, last_error, load_tensorrt, make_logger
from wnlb.runtime.engine.timing_cache import Timings
from wnlb.runtime.errors import GraphError, MissingDependency, WnlbError
from wnlb.runtime.files import atomic_path, sha256_of
from wnlb.runtime.machine import nvidia_driver
from wnlb.runtime.onnx_file import contract_of, described, read_onnx

if TYPE_CHECKING:
    import onnx

    from wnlb.plugins.library import PluginLibrary

ATTENTION = ("auto", "standard", "plugin")


@dataclass(frozen=True)
class BuildOptions:
    """How to build.

    ``attention``: "standard" and "plugin" rewrite the file's attention to that form; "auto" keeps the plugin nodes that
    the file has where the plugin can be used, and takes their standard bodies elsewhere.
    """

    target: str = "auto"  # or one of tensorrt.TARGETS
    attention: str = "auto"
    workspace: int = 0  # MiB; 0 for TensorRT's own limit, all of the GPU's memory
    optimization_level: int = 3  # 0 to 5
    timing_cache: Path | None = None  # None for a file in the user's cache folder
    compute_capabilities: tuple[str, ...] = ()  # TensorRT-RTX: "8.9"; () for its own choice
    batch: int = 0  # of a file that takes several, the number of frames to be fastest with; 0 for the most

    def __post_init__(self) -> None:
        if self.target not in ("auto", *TARGETS):
            raise WnlbError(f"target is {self.target!r}; expected auto, {', '.join(TARGETS)}")
        if self.attention not in ATTENTION:
            raise WnlbError(f"attention is {self.attention!r}; expected {', '.join(ATTENTION)}")
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
    with atomic_path(output) as engine_path, atomic_path(manifest_path(output)) as json_path:
        serialized, network_layers = _build(source, model, library, options, batches, plugin, timings, progress)
        data = memoryview(serialized)
        _write(engine_path, data, output)
        fused_layers = layers_of_engine(library, data) if gpu else None
        manifest = Manifest(
            engine_sha256=hashlib.sha256(data).hexdigest(),
            engine_bytes=data.nbytes,
            onnx=source.name,
            onnx_sha256=onnx_sha256,
            library=library.name,
            version=library.version,
            **_facts_of(gpu, library),
            attention="plugin" if plugin else "standard",
            plugin_sha256=plugin.sha256 if plugin else "",
            options={
                "workspace": options.workspace,
                "optimization_level": options.optimization_level,
                "compute_capabilities": list(options.compute_capabilities),
                **({"batches": list(batches)} if batches else {}),
            },
            inputs={value.name: described(value) for value in model.graph.input},
            outputs={value.name: described(value) for value in model.graph.output},
            contract=json.loads(contract.to_json()) if contract else {},
            tool_version=importlib.metadata.version("wnlb-deploy"),
            build_seconds=round(time.perf_counter() - started, 1),
            layers_of="network" if fused_layers is None else "engine",
            layers=network_layers if fused_layers is None else fused_layers,
        )
        _write(json_path, manifest.to_json().encode(), manifest_path(output))
    return manifest


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


def _write(path: Path, data: bytes | memoryview, target: Path) -> None:
    try:
        path.write_bytes(data)
    except OSError as error:
        raise WnlbError(f"{target} cannot be written: {error.strerror}") from error


def _profile(source: Path, contract: Contract | None, wanted: int) -> tuple[int, int, int] | None:
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
    from wnlb.export.onnx_file.fuse import PLUGIN_OP, fuse_attention, unfuse_attention
    from wnlb.plugins.library import how_to_get_kernels, load

    if attention == "plugin":
        if not library.takes_plugins or gpu is None:
            raise WnlbError(f"{library.title} takes no plugins; use --attention standard or --target tensorrt")
        if not fuse_attention(model) and not _nodes(model, PLUGIN_OP):
            raise GraphError("the file has no attention that the plugin computes; use --attention standard")
    if attention == "standard" or not library.takes_plugins or gpu is None:
        unfuse_attention(model)
    if not _nodes(model, PLUGIN_OP):
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


def _nodes(model: onnx.ModelProto, op_type: str) -> list[str]:
    return [node.name for node in model.graph.node if node.op_type == op_type]


def _build(
    source: Path,
    model: onnx.ModelProto,
    library: TensorRt,
    options: BuildOptions,
    batches: tuple[int, int, int] | None,
    plugin: PluginLibrary | None,
    timings: Timings,
    progress: Progress,
) -> tuple[Any, list[dict[str, str]]]:
    """The serialised engine, and the layers of the network that it was made from."""
    from wnlb.export.onnx_file.fuse import PLUGIN_OP

    trt = library.trt
    logger, monitor = make_logger(trt), make_monitor(trt, progress)
    with interrupts_to(monitor):
        builder = library.start("Builder", logger)
        network = builder.create_network(library.network_flags())
        parser = trt.OnnxParser(network, logger)
        if plugin:
            library.prefer_plugins(model, parser, PLUGIN_OP)
        if not parser.parse(model.SerializeToString(), str(source)):
            raise GraphError(_parser_message(source, library, parser, logger))
        if plugin:
            _check_plugin_taken(model, library, network)
        config = builder.create_builder_config()
        config.builder_optimization_level = options.optimization_level
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
        if options.workspace:
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace << 20)
        if options.compute_capabilities:
            library.set_compute_capabilities(config, options.compute_capabilities)
        if batches:
            _add_profile(builder, network, config, batches)
        timings.read(config)
        config.progress_monitor = monitor
        serialized = None if monitor.stopped else builder.build_serialized_network(network, config)
    if monitor.stopped:
        raise monitor.reason or WnlbError(f"{source}: the build was stopped")
    if serialized is None:
        raise WnlbError(f"{source}: {library.title} cannot build it: {last_error(logger)}")
    timings.write(config)
    return serialized, layers_of_network(network)


def _add_profile(builder: Any, network: Any, config: Any, batches: tuple[int, int, int]) -> None:
    """Inputs of the fewest frames, those to be fastest with, and the most."""
    profile = builder.create_optimization_profile()
    for i in range(network.num_inputs):
        tensor = network.get_input(i)
        rest = tuple(tensor.shape)[1:]
        profile.set_shape(tensor.name, *((batch, *rest) for batch in batches))
    if config.add_optimization_profile(profile) < 0:
        raise GraphError(f"no optimisation profile of {batches[0]} to {batches[-1]} frames can be made of the inputs")


def _check_plugin_taken(model: onnx.ModelProto, library: TensorRt, network: Any) -> None:
    from wnlb.export.onnx_file.fuse import PLUGIN_OP

    taken = sum(network.get_layer(i).type == library.trt.LayerType.PLUGIN_V3 for i in range(network.num_layers))
    expected = len(_nodes(model, PLUGIN_OP))
    if taken != expected:
        raise GraphError(f"{library.title} took the plugin for {taken} of {expected} attention nodes")


def _parser_message(source: Path, library: TensorRt, parser: Any, logger: Any) -> str:
    if not parser.num_errors:
        return f"{source}: {library.title} cannot read the file: {last_error(logger)}"
    problem = parser.get_error(0)
    more = f" (and {parser.num_errors - 1} more)" if parser.num_errors > 1 else ""
    reason = " ".join(problem.desc().split())
    name, operator = problem.node_name(), problem.node_operator()
    if not (name or operator):
        return f"{source}: {library.title} cannot take the graph: {reason}{more}"
    return f"{source}: {library.title} cannot take node {name or problem.node()} ({operator or '?'}): {reason}{more}"
