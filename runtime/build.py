"""From an ONNX file to an engine, by TensorRT or TensorRT-RTX."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wnlb.runtime.driver import Gpu, find_gpu
from wnlb.runtime.engine_manifest import Manifest, manifest_path
from wnlb.runtime.errors import GraphError, MissingDependency, WnlbError
from wnlb.runtime.files import atomic_path
from wnlb.runtime.onnx_file import contract_of, described, read_onnx
from wnlb.runtime.tensorrt_library import TARGETS, TensorRt, load_tensorrt, make_logger

if TYPE_CHECKING:
    import onnx

    from wnlb.plugins.library import PluginLibrary

ATTENTION = ("auto", "standard", "plugin")
Progress = Callable[[float, str], bool]  # fraction from 0 to 1 and what is being done; False to stop
_PRECISIONS = {"FLOAT": "fp32", "HALF": "fp16", "BF16": "bf16"}
_WORDS = {"half": "fp16", "float": "fp32", "fp16": "fp16", "fp32": "fp32", "bf16": "bf16", "bfloat16": "bf16"}


@dataclass(frozen=True)
class BuildOptions:
    """How to build.

    ``attention``: "standard" and "plugin" rewrite the file's attention to that form; "auto" keeps the plugin nodes that
    the file has where the plugin can be used, and takes their standard bodies elsewhere.
    """

    target: str = "auto"  # or one of tensorrt_library.TARGETS
    attention: str = "auto"
    workspace: int = 0  # MiB; 0 for TensorRT's own limit, all of the GPU's memory
    optimization_level: int = 3  # 0 to 5
    timing_cache: Path | None = None  # None for a file in the user's cache folder
    compute_capabilities: tuple[str, ...] = ()  # TensorRT-RTX: "8.9"; () for its own choice

    def __post_init__(self) -> None:
        if self.target not in ("auto", *TARGETS):
            raise WnlbError(f"target is {self.target!r}; expected auto, {', '.join(TARGETS)}")
        if self.attention not in ATTENTION:
            raise WnlbError(f"attention is {self.attention!r}; expected {', '.join(ATTENTION)}")
        if self.workspace < 0:
            raise WnlbError(f"workspace is {self.workspace} MiB; expected 0 or more")
        if not 0 <= self.optimization_level <= 5:
            raise WnlbError(f"optimization level is {self.optimization_level}; expected 0 to 5")


def build_engine(
    source: Path, output: Path, options: BuildOptions | None = None, progress: Progress = lambda done, what: True
) -> Manifest:
    """Build ``output`` and its manifest ``output``.json; neither appears if anything fails.

    Args:
        source: an ONNX file with static shapes, ours or not.
        progress: called often; the build ends where it returns False.

    Raises:
        MissingDependency: there is no such library, no GPU where it needs one, no plugin where it was asked for.
        GraphError: the library cannot take the graph.
        WnlbError: something else is wrong with files or options, or the build failed or was stopped.
    """
    options = options or BuildOptions()
    started = time.perf_counter()
    model = read_onnx(source)
    contract = contract_of(model)
    _check_static(source, model)
    library = load_tensorrt(options.target)
    if options.compute_capabilities and not library.is_rtx:
        raise WnlbError("compute capabilities can be chosen for TensorRT-RTX only; TensorRT builds for the GPU at hand")
    gpu = _gpu(library)
    plugin = _choose_attention(model, library, options.attention, gpu)
    with atomic_path(output) as engine_path:
        serialized, network_layers = _build(source, model, library, options, plugin, gpu, progress)
        data = memoryview(serialized)
        engine_path.write_bytes(data)
        fused_layers = _inspected(library, data) if gpu else None
        manifest = Manifest(
            engine_sha256=hashlib.sha256(data).hexdigest(),
            engine_bytes=data.nbytes,
            onnx=source.name,
            onnx_sha256=hashlib.sha256(source.read_bytes()).hexdigest(),
            library=library.name,
            version=library.version,
            gpu=gpu.name if gpu else "",
            compute_capability=gpu.compute_capability if gpu and not library.is_rtx else "",
            cuda=gpu.cuda if gpu else "",
            attention="plugin" if plugin else "standard",
            plugin_sha256=plugin.sha256 if plugin else "",
            options={
                "workspace": options.workspace,
                "optimization_level": options.optimization_level,
                "compute_capabilities": list(options.compute_capabilities),
            },
            inputs={value.name: described(value) for value in model.graph.input},
            outputs={value.name: described(value) for value in model.graph.output},
            contract=json.loads(contract.to_json()) if contract else {},
            tool_version=importlib.metadata.version("wnlb-deploy"),
            build_seconds=round(time.perf_counter() - started, 1),
            layers_of="network" if fused_layers is None else "engine",
            layers=network_layers if fused_layers is None else fused_layers,
        )
        with atomic_path(manifest_path(output)) as json_path:
            json_path.write_text(manifest.to_json())
    return manifest


def _check_static(source: Path, model: onnx.ModelProto) -> None:
    weights = {tensor.name for tensor in model.graph.initializer}  # older files list them among the inputs
    for value in model.graph.input:
        dims = value.type.tensor_type.shape.dim
        if value.name not in weights and not all(dim.dim_value > 0 for dim in dims):
            raise GraphError(
                f"{source}: input {value.name} is {described(value)}; expected a static shape: export the file with "
                "fixed sizes"
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
    from wnlb.export.fuse import PLUGIN_OP, fuse_attention, unfuse_attention
    from wnlb.plugins.library import load

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
        plugin = load(tensorrt=library.trt)
        if not plugin.kernels_for(gpu.arch):
            raise MissingDependency(
                f"plugin library {plugin.path} has no kernels for {gpu.name} (SM {gpu.compute_capability}); run "
                f"'python -m wnlb.plugins.build --arch {gpu.arch}' and build it again"
            )
    except MissingDependency:
        if attention == "plugin":
            raise
        unfuse_attention(model)
        return None
    return plugin


def _nodes(model: onnx.ModelProto, op_type: str) -> list[str]:
    return [node.name for node in model.graph.node if node.op_type == op_type]


def _build(
    source: Path,
    model: onnx.ModelProto,
    library: TensorRt,
    options: BuildOptions,
    plugin: PluginLibrary | None,
    gpu: Gpu | None,
    progress: Progress,
) -> tuple[Any, list[dict[str, str]]]:
    """The serialised engine, and the layers of the network that it was made from."""
    from wnlb.export.fuse import PLUGIN_OP

    trt = library.trt
    logger = make_logger(trt)
    builder = trt.Builder(logger)
    network = builder.create_network(library.network_flags())
    parser = trt.OnnxParser(network, logger)
    if plugin:
        library.prefer_plugins(model, parser, PLUGIN_OP)
    if not parser.parse(model.SerializeToString(), str(source)):
        raise GraphError(_parser_message(source, library, parser))
    if plugin:
        taken = sum(network.get_layer(i).type == trt.LayerType.PLUGIN_V3 for i in range(network.num_layers))
        expected = len(_nodes(model, PLUGIN_OP))
        if taken != expected:
            raise GraphError(f"{library.title} took the plugin for {taken} of {expected} attention nodes")
    config = builder.create_builder_config()
    config.builder_optimization_level = options.optimization_level
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if options.workspace:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace << 20)
    if options.compute_capabilities:
        library.set_compute_capabilities(config, options.compute_capabilities)
    cache_path = _timing_cache(library, options, gpu)
    if cache_path:
        _read_timings(config, cache_path)
    monitor = _monitor(trt, progress)
    config.progress_monitor = monitor
    serialized = builder.build_serialized_network(network, config)
    if monitor.stopped:
        raise monitor.reason or WnlbError(f"{source}: the build was stopped")
    if serialized is None:
        raise WnlbError(f"{source}: {library.title} cannot build it: {_last_error(logger)}")
    if cache_path:
        _write_timings(config, cache_path)
    return serialized, [_layer_of_network(network.get_layer(i)) for i in range(network.num_layers)]


def _parser_message(source: Path, library: TensorRt, parser: Any) -> str:
    if not parser.num_errors:
        return f"{source}: {library.title} cannot read the file"
    error = parser.get_error(0)
    more = f" (and {parser.num_errors - 1} more)" if parser.num_errors > 1 else ""
    operator = error.node_operator() or "?"
    reason = " ".join(error.desc().split())
    return (
        f"{source}: {library.title} cannot take node {error.node_name() or error.node()} ({operator}): {reason}{more}"
    )


def _last_error(logger: Any) -> str:
    if not logger.errors:
        return "no reason given"
    line = " ".join(logger.errors[-1].split())
    if any("out of memory" in message.lower() or "outofmemory" in message.lower() for message in logger.errors):
        line += "; free GPU memory, lower --workspace, or export a smaller size or batch"
    return line


def _timing_cache(library: TensorRt, options: BuildOptions, gpu: Gpu | None) -> Path | None:
    if not library.keeps_timings or gpu is None:
        return None
    if options.timing_cache is not None:
        return options.timing_cache
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "wnlb"
    return folder / f"tensorrt-{library.version}-sm{gpu.arch}.timing"


def _read_timings(config: Any, path: Path) -> None:
    """Cached timings of another version or GPU, or a damaged file, count as none."""
    data = path.read_bytes() if path.is_file() else b""
    cache = config.create_timing_cache(data) or config.create_timing_cache(b"")
    if not config.set_timing_cache(cache, False):
        config.set_timing_cache(config.create_timing_cache(b""), False)


def _write_timings(config: Any, path: Path) -> None:
    """The engine is worth more than its timings: a folder that cannot be written is no error."""
    with contextlib.suppress(WnlbError, OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as temporary:
            temporary.write_bytes(memoryview(config.get_timing_cache().serialize()))


def _monitor(trt: Any, progress: Progress) -> Any:
    """TensorRT's nested phases as one fraction."""

    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            super().__init__()
            self.stopped = False
            self.reason: BaseException | None = None
            self.fraction = 0.0
            self.phases: dict[str, list[int]] = {}  # name to steps done and steps

        def phase_start(self, name: str, parent: str | None, steps: int) -> None:
            self.phases[name] = [0, max(steps, 1)]
            self.tell()

        def step_complete(self, name: str, step: int) -> bool:
            if name in self.phases:
                self.phases[name][0] = step + 1
            self.tell()
            return not self.stopped

        def phase_finish(self, name: str) -> None:
            self.phases.pop(name, None)
            self.tell()

        def tell(self) -> None:
            """No exception may cross TensorRT, an interrupt neither."""
            fraction = 0.0
            for done, steps in reversed(self.phases.values()):
                fraction = min((done + fraction) / steps, 1.0)
            self.fraction = max(self.fraction, fraction)  # a phase ends before its parent counts it
            try:
                self.stopped |= not progress(self.fraction, next(reversed(self.phases), ""))
            except BaseException as error:
                self.stopped, self.reason = True, error

    return Monitor()


def _layer_of_network(layer: Any) -> dict[str, str]:
    kind = layer.get_output_type(0).name if layer.num_outputs else ""
    precision = _PRECISIONS.get(kind, kind.lower())
    return {"name": layer.name, "type": layer.type.name, "precision": precision}


def _inspected(library: TensorRt, data: memoryview) -> list[dict[str, str]] | None:
    """Layers of the engine as TensorRT fused them; None where it cannot be opened here."""
    trt = library.trt
    runtime = trt.Runtime(make_logger(trt))
    engine = runtime.deserialize_cuda_engine(data)
    if engine is None:
        return None
    text = engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
    return layers_of_inspector(text)


def layers_of_inspector(text: str) -> list[dict[str, str]]:
    """Name, type and precision of each layer in the JSON of TensorRT's engine inspector, of any version."""
    layers = []
    for entry in json.loads(text).get("Layers", []):
        if isinstance(entry, str):  # not built with detailed verbosity
            layers.append({"name": entry, "type": "", "precision": ""})
            continue
        outputs = entry.get("Outputs") or [{}]
        stated = str(outputs[0].get("Datatype") or outputs[0].get("Format/Datatype") or "")
        precision = next((_WORDS.get(word, word) for word in _precision_words(stated)), "")
        kind = str(entry.get("LayerType", ""))
        layers.append({"name": str(entry.get("Name", "")), "type": kind, "precision": precision})
    return layers


def _precision_words(text: str) -> list[str]:
    words = re.findall(r"[a-z0-9]+", text.lower())
    return [word for word in words if word in _WORDS or re.fullmatch(r"u?int(4|8|32|64)|fp8|bool", word)]
