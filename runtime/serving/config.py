"""``config.pbtxt`` of a model: what Triton must know of it, in protobuf's text format.

Fields: https://github.com/triton-inference-server/common, protobuf/model_config.proto.
"""

from __future__ import annotations

from dataclasses import dataclass

from wnlb.runtime.contract import METADATA_KEY, Contract
from wnlb.runtime.errors import WnlbError

VARIANT_KEY = "wnlb.variant"
FILE_KEY = "wnlb.file"
SCORE_KEY = "wnlb.score_threshold"
VARIANTS = ("net", "full")
PICTURE = "picture"
BACKENDS = {".onnx": "onnxruntime", ".engine": "tensorrt"}
FILES = {".onnx": "model.onnx", ".engine": "model.plan"}
_TYPES = {
    "uint8": "TYPE_UINT8",
    "int32": "TYPE_INT32",
    "float16": "TYPE_FP16",
    "float32": "TYPE_FP32",
    "text": "TYPE_STRING",
}


@dataclass(frozen=True)
class Queue:
    """Of the requests that wait for a model. Raises WnlbError for numbers that are none."""

    most: int = 64  # the next one is refused: HTTP 503, gRPC UNAVAILABLE
    timeout_s: float = 10.0  # after which one is refused that still waits; clients may ask for another

    def __post_init__(self) -> None:
        if self.most < 1:
            raise WnlbError(f"--max-queue is {self.most}; expected 1 request or more")
        if not 0.001 <= self.timeout_s <= 3600:
            raise WnlbError(f"--queue-timeout is {self.timeout_s}; expected 0.001 to 3600 seconds")


@dataclass(frozen=True)
class Tensor:
    """An input or output as Triton is told of it."""

    name: str
    kind: str  # NumPy's name of the type, or "text"
    dims: tuple[int, ...]  # without the batch, where Triton makes batches; -1: any number
    per_frame: bool = False  # one number a frame, for which Triton has no shape: [N, 1] for clients


def makes_batches(contract: Contract) -> bool:
    """Whether Triton may put requests together: only files that take any number of frames from 1 up let it."""
    return contract.min_batch == 1


def tensors_of(contract: Contract) -> tuple[list[Tensor], list[Tensor]]:
    """Inputs and outputs of a model of ours that is served as it is."""

    def told(name: str, shape: tuple[int, ...]) -> Tensor:
        kind = contract.types[name]
        if makes_batches(contract):
            return Tensor(name, kind, shape[1:] or (1,), per_frame=not shape[1:])
        return Tensor(name, kind, shape if contract.min_batch is None else (-1, *shape[1:]))

    inputs, outputs = contract.input_shapes, contract.output_shapes
    return [told(*item) for item in inputs.items()], [told(*item) for item in outputs.items()]


def picture_tensors(contract: Contract) -> tuple[list[Tensor], list[Tensor]]:
    """Of ``--variant full``: encoded pictures in, detections out; see ``wnlb.runtime.serving.picture_model``."""
    found = [
        Tensor("size", "int32", (2,)),
        Tensor("count", "int32", (1,)),
        Tensor("boxes", "float32", (-1, 4)),
        Tensor("scores", "float32", (-1,)),
        Tensor("labels", "int32", (-1,)),
        Tensor("class_names", "text", (-1,)),
    ]
    if contract.masks != "none":
        found.append(Tensor("masks", "text", (-1,)))
    return [Tensor(PICTURE, "text", (1,))], found


def net_config(name: str, contract: Contract, suffix: str, instances: int, gpu: bool, queue: Queue) -> str:
    """Of a file as it is.

    ONNX Runtime's optimisations are off for INT8 files: one of them, which Triton's backend cannot leave out alone,
    gives FP16 biases scales that FP16 cannot hold (see ``wnlb.runtime.onnxruntime_backend``).

    Args:
        suffix: ".onnx" or ".engine".
        instances: of the model, which run at the same time.
    """
    most = contract.batch if makes_batches(contract) else 0
    head = [f"backend: {_quoted(BACKENDS[suffix])}", f"default_model_filename: {_quoted(FILES[suffix])}"]
    if suffix == ".onnx" and contract.precision.startswith("int8"):
        head.append("optimization { graph { level: 2 } }")
    return _text(
        head,
        (name, most, *tensors_of(contract)),
        _shared(instances, gpu, queue),
        {VARIANT_KEY: "net", METADATA_KEY: contract.to_json()},
    )


def picture_config(
    name: str, contract: Contract, file: str, instances: int, score_threshold: float, queue: Queue
) -> str:
    """Of the Python model around a file. Its instances are of the kind CPU: what they run on is their own choice."""
    return _text(
        ['backend: "python"'],
        (name, contract.batch, *picture_tensors(contract)),
        _shared(instances, False, queue),
        {
            VARIANT_KEY: "full",
            METADATA_KEY: contract.to_json(),
            FILE_KEY: file,
            SCORE_KEY: f"{score_threshold:g}",
        },
    )


def _shared(instances: int, gpu: bool, queue: Queue) -> str:
    """Instances, and the queue, which Triton only limits where it has its dynamic batcher, even for batches of one."""
    return f"""\
instance_group [ {{ count: {instances} kind: {"KIND_GPU" if gpu else "KIND_CPU"} }} ]
dynamic_batching {{
  default_queue_policy {{
    timeout_action: REJECT
    default_timeout_microseconds: {round(queue.timeout_s * 1e6)}
    allow_timeout_override: true
    max_queue_size: {queue.most}
  }}
}}"""


def _text(
    head: list[str],
    shape: tuple[str, int, list[Tensor], list[Tensor]],
    shared: str,
    parameters: dict[str, str],
) -> str:
    name, most, inputs, outputs = shape
    lines = [f"name: {_quoted(name)}", *head, f"max_batch_size: {most}"]
    for kind, tensors in (("input", inputs), ("output", outputs)):
        lines.append(f"{kind} [\n" + ",\n".join(_tensor(tensor) for tensor in tensors) + "\n]")
    lines.append(shared)
    lines += [
        f"parameters {{ key: {_quoted(key)} value {{ string_value: {_quoted(value)} }} }}"
        for key, value in parameters.items()
    ]
    return "\n".join(lines) + "\n"


def _tensor(tensor: Tensor) -> str:
    dims = ", ".join(map(str, tensor.dims))
    reshape = " reshape { shape: [ ] }" if tensor.per_frame else ""
    return f"  {{ name: {_quoted(tensor.name)} data_type: {_TYPES[tensor.kind]} dims: [ {dims} ]{reshape} }}"


def _quoted(text: str) -> str:
    """As the text format has it, in the quotes that leave JSON readable; what is not plain ASCII as octal bytes."""
    quote = "'" if '"' in text else '"'
    special = (*b"\\", ord(quote))
    plain = (chr(byte) if 32 <= byte < 127 and byte not in special else f"\\{byte:03o}" for byte in text.encode())
    return f"{quote}{''.join(plain)}{quote}"
