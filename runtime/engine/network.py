"""One network, from ONNX to the bytes of an engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wnlb.runtime.engine.layers import layers_of_network
from wnlb.runtime.engine.progress import Progress, interrupts_to, make_monitor
from wnlb.runtime.engine.tensorrt import TensorRt, last_error, make_logger
from wnlb.runtime.engine.timing_cache import Timings
from wnlb.runtime.errors import GraphError, WnlbError

if TYPE_CHECKING:
    import onnx

Sizes = tuple[int, int, int]  # of an open axis: the least, the one to be fastest with, the most


@dataclass(frozen=True)
class Job:
    """What networks of one file have in common."""

    source: Path  # for messages
    library: TensorRt
    workspace: int
    optimization_level: int
    compute_capabilities: tuple[str, ...]
    timings: Timings

    def serialized(
        self, model: onnx.ModelProto, profiles: Sequence[Sizes], plugin: bool, progress: Progress
    ) -> tuple[Any, list[dict[str, str]]]:
        """The serialised engine of ``model``, and the layers of the network that it was made from.

        Args:
            profiles: an optimisation profile each, for the one size that is open in the inputs; none where all are
                static.
            plugin: whether our plugin is to be taken for its nodes.

        Raises:
            GraphError: the library cannot take the graph.
            WnlbError: the build failed, or ``progress`` stopped it.
        """
        from wnlb.export.onnx_file.fuse import PLUGIN_OP

        library, trt = self.library, self.library.trt
        logger, monitor = make_logger(trt), make_monitor(trt, progress)
        with interrupts_to(monitor):
            builder = library.start("Builder", logger)
            network = builder.create_network(library.network_flags())
            parser = trt.OnnxParser(network, logger)
            if plugin:
                library.prefer_plugins(model, parser, PLUGIN_OP)
            if not parser.parse(model.SerializeToString(), str(self.source)):
                raise GraphError(_parser_message(self.source, library, parser, logger))
            if plugin:
                _check_plugin_taken(model, library, network)
            config = self._config(builder, network, profiles)
            config.progress_monitor = monitor
            serialized = None if monitor.stopped else builder.build_serialized_network(network, config)
        if monitor.stopped:
            raise monitor.reason or WnlbError(f"{self.source}: the build was stopped")
        if serialized is None:
            raise WnlbError(f"{self.source}: {library.title} cannot build it: {last_error(logger)}")
        self.timings.write(config)
        return serialized, layers_of_network(network)

    def _config(self, builder: Any, network: Any, profiles: Sequence[Sizes]) -> Any:
        trt = self.library.trt
        config = builder.create_builder_config()
        config.builder_optimization_level = self.optimization_level
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
        if self.workspace:
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, self.workspace << 20)
        if self.compute_capabilities:
            self.library.set_compute_capabilities(config, self.compute_capabilities)
        for sizes in profiles:
            _add_profile(builder, network, config, sizes)
        self.timings.read(config)
        return config


def plugin_nodes(model: onnx.ModelProto) -> int:
    from wnlb.export.onnx_file.fuse import PLUGIN_OP

    return sum(node.op_type == PLUGIN_OP for node in model.graph.node)


def _add_profile(builder: Any, network: Any, config: Any, sizes: Sizes) -> None:
    profile = builder.create_optimization_profile()
    for i in range(network.num_inputs):
        tensor = network.get_input(i)
        profile.set_shape(tensor.name, *(tuple(size if d < 0 else d for d in tensor.shape) for size in sizes))
    if config.add_optimization_profile(profile) < 0:
        raise GraphError(f"no optimisation profile of {sizes[0]} to {sizes[-1]} can be made of the inputs")


def _check_plugin_taken(model: onnx.ModelProto, library: TensorRt, network: Any) -> None:
    taken = sum(network.get_layer(i).type == library.trt.LayerType.PLUGIN_V3 for i in range(network.num_layers))
    expected = plugin_nodes(model)
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
