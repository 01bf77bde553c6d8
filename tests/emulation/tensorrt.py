"""A TensorRT for a machine without one: what its Python module offers, as far as we use it, on top of ONNX Runtime.

An "engine" is the ONNX file with a header. Inference is put on the stream of the emulated CUDA driver, reads and writes
"GPU" addresses, and is captured into graphs as TensorRT's is. The parser chooses between plugin and local function by
the documented rules of the version that ``emulate`` sets; ``faults`` are what shall fail, ``planted_layers`` what the
engine's layers are called and take. A test holds the names here against the recorded ones of the real module.
"""

from __future__ import annotations

import contextlib
import ctypes
import enum
import json
import weakref
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

__version__ = ""
plugin_bodies: list[Any] = []  # local functions that compute what the plugin does, for engines without them
faults: set[str] = set()  # build, context, enqueue, capture, plugin
planted_layers: list[tuple[str, str, list[float]]] = []  # name, metadata, milliseconds of each profiled run
CONTEXT_BYTES = 1 << 20  # what an execution context takes on the GPU
_HOST_FUNCTION = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_cuda = ctypes.CDLL("libcuda.so.1", ctypes.RTLD_GLOBAL)


class _Severity(enum.Enum):
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)


class ILogger:
    Severity = _Severity
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = _Severity

    def __init__(self) -> None:
        pass


class DataType(enum.Enum):
    FLOAT, HALF, INT8, INT32, BOOL, UINT8, FP8, BF16, INT64, INT4 = range(10)


class LayerType(enum.IntEnum):
    IDENTITY, PLUGIN_V3 = range(2)


class NetworkDefinitionCreationFlag(enum.IntEnum):
    EXPLICIT_BATCH, STRONGLY_TYPED = range(2)


class ExecutionContextAllocationStrategy(enum.IntEnum):
    STATIC, ON_PROFILE_CHANGE, USER_MANAGED = range(3)


class MemoryPoolType(enum.IntEnum):
    WORKSPACE = 0


class ProfilingVerbosity(enum.IntEnum):
    LAYER_NAMES_ONLY, NONE, DETAILED = range(3)


class LayerInformationFormat(enum.IntEnum):
    ONELINE, JSON = range(2)


class _OldParserFlag(enum.IntEnum):
    NATIVE_INSTANCENORM = 0


class OnnxParserFlag(enum.IntEnum):
    NATIVE_INSTANCENORM, ENABLE_PLUGIN_OVERRIDE = range(2)


_NewParserFlag = OnnxParserFlag


def emulate(version: str) -> None:
    """Be this version, with no faults and no plugin."""
    global __version__, OnnxParserFlag
    __version__ = version
    OnnxParserFlag = _NewParserFlag if _release() >= (10, 15) else _OldParserFlag  # type: ignore[misc,assignment]
    faults.clear()
    plugin_bodies.clear()
    planted_layers.clear()
    IPluginRegistry.libraries.clear()


def _release() -> tuple[int, ...]:
    return tuple(map(int, __version__.split(".")[:2]))


def _header() -> bytes:
    return b"emulated engine of " + __version__.encode() + b"\n"


class IProgressMonitor:
    def __init__(self) -> None:
        pass


class IPluginRegistry:
    libraries: list[str] = []  # noqa: RUF012

    def load_library(self, path: str) -> object:
        if "plugin" in faults or self.libraries:  # it takes no plugin twice
            return None
        self.libraries.append(path)
        return object()


def get_plugin_registry() -> IPluginRegistry:
    return IPluginRegistry()


class ILayer:
    def __init__(self, node: Any, kind: LayerType) -> None:
        self.name, self.type, self.num_outputs = node.name, kind, len(node.output)

    def get_output_type(self, index: int) -> DataType:
        return DataType.FLOAT


class ITensor:
    def __init__(self, value: Any) -> None:
        self.name = value.name
        self.shape = tuple(dim.dim_value or -1 for dim in value.type.tensor_type.shape.dim)


class INetworkDefinition:
    def __init__(self, flags: int) -> None:
        assert flags == 1 << NetworkDefinitionCreationFlag.STRONGLY_TYPED
        self.model: Any = None
        self.layers: list[ILayer] = []

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    def get_layer(self, index: int) -> ILayer:
        return self.layers[index]

    @property
    def num_inputs(self) -> int:
        return len(self.model.graph.input)

    def get_input(self, index: int) -> ITensor:
        return ITensor(self.model.graph.input[index])


class ParserError:
    def __init__(self, node: Any, reason: str) -> None:
        self._node, self._reason = node, reason

    def desc(self) -> str:
        return self._reason

    def node(self) -> int:
        return 0

    def node_name(self) -> str:
        return self._node.name

    def node_operator(self) -> str:
        return self._node.op_type


class OnnxParser:
    def __init__(self, network: INetworkDefinition, logger: ILogger) -> None:
        self._network, self._errors, self._flags = network, list[ParserError](), set[int]()

    def set_flag(self, flag: int) -> None:
        self._flags.add(flag)

    @property
    def num_errors(self) -> int:
        return len(self._errors)

    def get_error(self, index: int) -> ParserError:
        return self._errors[index]

    def parse(self, data: bytes, path: str | None = None) -> bool:
        model = onnx.load_from_string(data)
        functions = {function.name for function in model.functions}
        for node in model.graph.node:
            if node.op_type in ("NonZero", "NonMaxSuppression"):
                self._errors.append(ParserError(node, "UNSUPPORTED_NODE: not\nemulated"))
            kind = LayerType.PLUGIN_V3 if self._takes_plugin(node, functions) else LayerType.IDENTITY
            self._network.layers.append(ILayer(node, kind))
        self._network.model = model
        return not self._errors

    def _takes_plugin(self, node: Any, functions: set[str]) -> bool:
        if node.op_type != "WnlbNonLocalAttention" or not IPluginRegistry.libraries:
            return False
        if node.op_type not in functions or (10, 7) <= _release() < (10, 15):
            return True
        if _release() < (10, 7):
            return False
        named = any(attribute.name == "plugin_namespace" for attribute in node.attribute)
        return named or getattr(OnnxParserFlag, "ENABLE_PLUGIN_OVERRIDE", -1) in self._flags


class ITimingCache:
    def __init__(self, data: bytes) -> None:
        self.data = data

    def serialize(self) -> bytes:
        return b"timings of " + __version__.encode()


class IOptimizationProfile:
    def __init__(self) -> None:
        self.shapes: dict[str, list[tuple[int, ...]]] = {}

    def set_shape(self, input: str, min: Any, opt: Any, max: Any) -> None:
        assert all(a <= b <= c for a, b, c in zip(min, opt, max, strict=True))
        self.shapes[input] = [tuple(min), tuple(opt), tuple(max)]


class IBuilderConfig:
    def __init__(self) -> None:
        self.profiles: list[IOptimizationProfile] = []
        self.builder_optimization_level = 3
        self.profiling_verbosity = ProfilingVerbosity.LAYER_NAMES_ONLY
        self.progress_monitor: Any = None
        self._cache: ITimingCache | None = None

    def add_optimization_profile(self, profile: IOptimizationProfile) -> int:
        if "profile" in faults:
            return -1
        self.profiles.append(profile)
        return len(self.profiles) - 1

    def set_memory_pool_limit(self, pool: MemoryPoolType, size: int) -> None:
        assert size > 0

    def create_timing_cache(self, data: bytes) -> ITimingCache | None:
        return ITimingCache(data) if not data or data.startswith(b"timings of ") else None

    def set_timing_cache(self, cache: ITimingCache, ignore_mismatch: bool) -> bool:
        self._cache = cache
        return cache.data in (b"", cache.serialize())

    def get_timing_cache(self) -> ITimingCache | None:
        return self._cache


class Builder:
    def __init__(self, logger: Any) -> None:
        self._logger = logger

    def create_network(self, flags: int) -> INetworkDefinition:
        return INetworkDefinition(flags)

    def create_builder_config(self) -> IBuilderConfig:
        return IBuilderConfig()

    def create_optimization_profile(self) -> IOptimizationProfile:
        return IOptimizationProfile()

    def build_serialized_network(self, network: INetworkDefinition, config: IBuilderConfig) -> bytes | None:
        monitor = config.progress_monitor
        monitor.phase_start("Building engine", None, 4)
        for step in range(4):
            if not monitor.step_complete("Building engine", step):
                self._logger.log(ILogger.ERROR, "stopped")
                return None
        monitor.phase_finish("Building engine")
        if "build" in faults:
            self._logger.log(ILogger.ERROR, "[virtualMemoryBuffer.cpp::resizePhysical] Error Code 2: OutOfMemory")
            return None
        inputs = [network.get_input(i) for i in range(network.num_inputs)]
        assert any(-1 in tensor.shape for tensor in inputs) == bool(config.profiles)
        profiles = [profile.shapes for profile in config.profiles]
        assert all(
            wanted in (-1, size)
            for tensor in inputs
            for shapes in profiles
            for shape in shapes[tensor.name]
            for wanted, size in zip(tensor.shape, shape, strict=True)
        )
        onnx.helper.set_model_props(network.model, {"profiles": json.dumps(profiles)})
        return _header() + network.model.SerializeToString()


class Runtime:
    def __init__(self, logger: Any) -> None:
        self._logger = logger

    def deserialize_cuda_engine(self, data: Any) -> ICudaEngine | None:
        if not bytes(data).startswith(_header()):
            self._logger.log(ILogger.ERROR, "IRuntime::deserializeCudaEngine: Error Code 1:\nSerialization (magicTag)")
            return None
        return ICudaEngine(bytes(data)[len(_header()) :], self._logger)


class TensorIOMode(enum.IntEnum):
    NONE, INPUT, OUTPUT = range(3)


class EngineInspector:
    def __init__(self, names: list[str]) -> None:
        self._names = names

    def get_engine_information(self, form: LayerInformationFormat) -> str:
        output = {"Name": "x", "Dimensions": [1], "Format/Datatype": "Row major linear FP16 format"}
        metadata = {name: f"[ONNX Layer: {name}]" for name in self._names}
        metadata.update((name, text) for name, text, _ in planted_layers)
        layers = [
            {"Name": name, "LayerType": "kgen", "Outputs": [output], "Metadata": text}
            for name, text in metadata.items()
        ]
        return json.dumps({"Layers": layers, "Bindings": []})


class IProfiler:
    def __init__(self) -> None:
        self._made = True

    def report_layer_time(self, layer_name: str, ms: float) -> None:
        raise NotImplementedError


_KINDS = {
    "tensor(uint8)": DataType.UINT8,
    "tensor(float)": DataType.FLOAT,
    "tensor(float16)": DataType.HALF,
    "tensor(int32)": DataType.INT32,
    "tensor(int64)": DataType.INT64,
    "tensor(bool)": DataType.BOOL,
}
_DTYPES = {
    DataType.UINT8: np.uint8,
    DataType.FLOAT: np.float32,
    DataType.HALF: np.float16,
    DataType.INT32: np.int32,
    DataType.INT64: np.int64,
    DataType.BOOL: np.bool_,
}


class ICudaEngine:
    def __init__(self, data: bytes, logger: Any) -> None:
        self._logger = logger
        self._model = onnx.load_from_string(data)
        if not self._model.functions:
            self._model.functions.extend(plugin_bodies)
        self.session = ort.InferenceSession(self._model.SerializeToString(), providers=["CPUExecutionProvider"])
        self.inputs = [value.name for value in self.session.get_inputs()]
        self.outputs = [value.name for value in self.session.get_outputs()]
        values = [*self.session.get_inputs(), *self.session.get_outputs()]
        self.tensors = {
            value.name: (tuple(-1 if isinstance(dim, str) else dim for dim in value.shape), _KINDS[value.type])
            for value in values
        }
        self._profiles = json.loads({p.key: p.value for p in self._model.metadata_props}["profiles"])

    @property
    def num_io_tensors(self) -> int:
        return len(self.tensors)

    def get_tensor_name(self, index: int) -> str:
        return list(self.tensors)[index]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.tensors[name][0]

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[tuple[int, ...]]:
        return [tuple(shape) for shape in self._profiles[profile_index][name]]

    @property
    def device_memory_size_v2(self) -> int:
        return CONTEXT_BYTES

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.INPUT if name in self.inputs else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> DataType:
        return self.tensors[name][1]

    def create_engine_inspector(self) -> EngineInspector:
        return EngineInspector([node.name for node in self._model.graph.node])

    def create_execution_context(
        self, strategy: ExecutionContextAllocationStrategy = ExecutionContextAllocationStrategy.STATIC
    ) -> IExecutionContext | None:
        memory = ctypes.c_void_p()
        if strategy == ExecutionContextAllocationStrategy.USER_MANAGED and "context" not in faults:
            return IExecutionContext(self, memory)
        if "context" in faults or _cuda.cuMemAlloc_v2(ctypes.byref(memory), ctypes.c_size_t(CONTEXT_BYTES)):
            self._logger.log(ILogger.ERROR, "IExecutionContext cannot be made")
            return None
        return IExecutionContext(self, memory)


class IExecutionContext:
    def __init__(self, engine: ICudaEngine, memory: ctypes.c_void_p) -> None:
        self._engine, self._memory, self._addresses = engine, memory, dict[str, int]()
        self._profiler: IProfiler | None = None
        self._profiled_runs = 0
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._profile = 0
        self._has_memory = bool(memory)
        self._captured = False
        itself = weakref.ref(self)  # freed when the last reference goes, as the real one

        def infer(_: int) -> None:
            context = itself()
            assert context is not None, "a graph was launched whose context is gone"
            context._infer()

        self._function = _HOST_FUNCTION(infer)

    def __del__(self) -> None:
        if self._memory:
            _cuda.cuMemFree_v2(self._memory)  # not done where no CUDA context is current

    @property
    def profiler(self) -> IProfiler | None:
        return self._profiler

    @profiler.setter
    def profiler(self, profiler: IProfiler | None) -> None:
        if profiler is not None and not hasattr(profiler, "_made"):
            raise TypeError("IProfiler.__init__() must be called when overriding __init__")
        self._profiler = profiler

    def set_device_memory(self, memory: int, size: int) -> None:
        self._has_memory = memory != 0 and size >= self._engine.device_memory_size_v2

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        assert not self._captured
        self._profile = profile_index
        return "shape" not in faults and profile_index < len(self._engine._profiles)

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        """A context that a graph was captured from must stay as it is: what its graph would do is undefined."""
        assert not self._captured, "the shape of a captured context was changed"
        least, _, most = self._engine.get_tensor_profile_shape(name, self._profile)
        if "shape" in faults or not all(a <= b <= c for a, b, c in zip(least, shape, most, strict=True)):
            return False
        self._shapes[name] = tuple(shape)
        return True

    def set_tensor_address(self, name: str, address: int) -> bool:
        self._addresses[name] = address
        return address != 0

    def execute_async_v3(self, stream: int) -> bool:
        if "enqueue" in faults or (_cuda.emulatedCapturing() and ("capture" in faults or self._profiler)):
            return False
        assert self._has_memory
        self._captured = self._captured or bool(_cuda.emulatedCapturing())
        if _cuda.cuLaunchHostFunc(ctypes.c_void_p(stream), self._function, None):
            return False
        if self._profiler:
            self._report(self._profiler)
        return True

    def _report(self, profiler: IProfiler) -> None:
        """What a callback raises is swallowed, as by the real one."""
        own = {"boxes", "masks"} & set(self._engine.outputs)  # of a network in two parts each has its layers
        for name, metadata, ms in planted_layers:
            if ("masks" if "detect.mask" in metadata else "boxes") in own:
                with contextlib.suppress(Exception):
                    profiler.report_layer_time(name, ms[self._profiled_runs])
        self._profiled_runs += 1

    def _infer(self) -> None:
        engine = self._engine
        inputs = {name: self._array(name, self._shapes.get(name, engine.tensors[name][0])) for name in engine.inputs}
        for name, value in zip(engine.outputs, engine.session.run(engine.outputs, inputs), strict=True):
            self._array(name, value.shape)[...] = value

    def _array(self, name: str, shape: tuple[int, ...]) -> Any:
        dtype = _DTYPES[self._engine.tensors[name][1]]
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        memory = (ctypes.c_uint8 * size).from_address(self._addresses[name])
        return np.frombuffer(memory, dtype).reshape(shape)


emulate("10.3.0")
