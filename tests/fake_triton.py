"""A Triton server's gRPC side in this process, as far as clients use it: a repository's models, run by ONNX Runtime.

Codes and messages are those of Triton 2.51.
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2, service_pb2, service_pb2_grpc

from wnlb.runtime.onnxruntime_backend import OnnxRuntimeBackend

KINDS = {"UINT8": np.uint8, "INT32": np.int32, "FP16": np.float16, "FP32": np.float32}
TRITON_TYPES = {np.dtype(kind).name: name for name, kind in KINDS.items()}


def read_config(path: Path) -> Any:
    """A ``config.pbtxt`` by Triton's own protobuf; raises ParseError for what is none."""
    return text_format.Parse(path.read_text(), model_config_pb2.ModelConfig())


class FakeTriton(service_pb2_grpc.GRPCInferenceServiceServicer):
    """Serves a repository that ``wnlb triton`` wrote at ``address``, until it is closed."""

    def __init__(self, repository: Path, port: int = 0) -> None:
        self.configs = {path.parent.name: read_config(path) for path in repository.glob("*/config.pbtxt")}
        self.models = {name: OnnxRuntimeBackend(repository / name / "1" / "model.onnx") for name in self.configs}
        self.gate = threading.Event()  # while it is cleared, requests wait inside
        self.gate.set()
        self.entered = threading.Semaphore(0)  # released by each request that is inside
        self.full = 0  # requests that are still to be refused for a full queue
        self.timeouts: list[int] = []  # microseconds that requests want to wait in the queue at most
        self._server = grpc.server(ThreadPoolExecutor(8), options=[("grpc.so_reuseport", 0)])
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(self, self._server)
        self.port = self._server.add_insecure_port(f"127.0.0.1:{port}")
        self._server.start()

    def address(self, name: str) -> str:
        return f"triton://127.0.0.1:{self.port}/{name}"

    def __enter__(self) -> FakeTriton:
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()
        self.gate.set()

    def stop(self) -> None:
        """At once, whatever is inside; may be called more than once."""
        self._server.stop(None).wait(120)

    def ServerMetadata(self, request: Any, context: Any) -> Any:
        return service_pb2.ServerMetadataResponse(name="triton", version="2.51.0")

    def ModelConfig(self, request: Any, context: Any) -> Any:
        self._check_known(request.name, context)
        return service_pb2.ModelConfigResponse(config=self.configs[request.name])

    def ModelInfer(self, request: Any, context: Any) -> Any:
        self._check_known(request.model_name, context)
        self.entered.release()
        self.gate.wait()
        self.timeouts.append(request.parameters["timeout"].int64_param)
        if self.full:
            self.full -= 1
            context.abort(grpc.StatusCode.UNAVAILABLE, "Exceeds maximum queue size")
        inputs = {
            value.name: np.frombuffer(raw, KINDS[value.datatype]).reshape(tuple(value.shape))
            for value, raw in zip(request.inputs, request.raw_input_contents, strict=True)
        }
        outputs = self.models[request.model_name].run(inputs)
        per_frame = {value.name for value in self.configs[request.model_name].output if value.HasField("reshape")}
        answer = service_pb2.ModelInferResponse(model_name=request.model_name, model_version="1")
        for wanted in request.outputs:
            array = outputs[wanted.name]
            shape = (*array.shape, 1) if wanted.name in per_frame else array.shape
            answer.outputs.add(name=wanted.name, datatype=TRITON_TYPES[array.dtype.name], shape=shape)
            answer.raw_output_contents.append(array.tobytes())
        return answer

    def _check_known(self, name: str, context: Any) -> None:
        if name not in self.configs:
            context.abort(grpc.StatusCode.NOT_FOUND, f"Request for unknown model: '{name}' is not found")
