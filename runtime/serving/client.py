"""Models of a Triton Inference Server over gRPC: arrays in, arrays out, computed elsewhere."""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wnlb.runtime.contract import METADATA_KEY, Contract
from wnlb.runtime.errors import ContractError, MissingDependency, Unavailable, WnlbError
from wnlb.runtime.inputs import check_inputs
from wnlb.runtime.served_model import ServedModel
from wnlb.runtime.serving.config import VARIANT_KEY, tensors_of

_OPEN_S = 10.0  # for the server to tell what it is and what its model takes
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.02, 0.5  # before a server with a full queue is asked again
_TRITON_TYPES = {"uint8": "UINT8", "int32": "INT32"}
_CHANNEL = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    # A server that is back is found within seconds; gRPC's default grows to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 500),
    ("grpc.max_reconnect_backoff_ms", 4000),
]


class _Overloaded(Unavailable):
    """A queue that is full, or in which the request waited too long."""


class TritonBackend:
    """A model that ``wnlb triton`` put on a server; see ``wnlb.runtime.backend.Backend``.

    The contract is read from the server's model configuration. Where the queue is full, ``run`` asks again until
    ``ServedModel.timeout_s`` is over. After a failure the connection is made anew by itself, and the contract is
    compared: another model under the same name is refused.

    Raises:
        Unavailable: the server does not answer.
        WnlbError: it does not know the model, or the model is not ours.
    """

    takes_device_arrays = False
    at_once = 1

    def __init__(self, model: ServedModel) -> None:
        self._model, self._grpc = model, _import_client()
        self._client: Any = self._grpc.InferenceServerClient(model.target, channel_args=_CHANNEL)
        self._doubted = False  # whether the server may be another one than before
        try:
            self.contract, backend = self._read_contract()
            with self._told():
                version = self._client.get_server_metadata(client_timeout=_OPEN_S).version
        except BaseException:
            self.close()
            raise
        self.description = f"Triton {version} at {model.target}, model {model.name}, {backend}"

    def run(self, inputs: dict[str, Any]) -> dict[str, NDArray]:
        """Raises Unavailable where the server does not answer in time, WnlbError where it cannot answer."""
        if self._client is None:
            raise WnlbError("the backend is closed; open the model again")
        batch = check_inputs(inputs, self.contract)
        until, wait = time.monotonic() + self._model.timeout_s, _FIRST_WAIT_S
        try:
            if self._doubted:
                self._check_again()
            while True:
                try:
                    return self._answer(inputs, batch, until - time.monotonic())
                except _Overloaded:
                    if time.monotonic() + wait > until:
                        raise
                time.sleep(wait * random.uniform(0.5, 1))  # or all clients come back at once
                wait = min(2 * wait, _LONGEST_WAIT_S)
        except Unavailable:
            self._doubted = True
            raise

    def close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            client.close()

    def _answer(self, inputs: dict[str, Any], batch: int, seconds: float) -> dict[str, NDArray]:
        contract = self.contract
        sent = []
        for name in contract.input_shapes:
            value = self._grpc.InferInput(name, list(inputs[name].shape), _TRITON_TYPES[contract.types[name]])
            sent.append(value.set_data_from_numpy(np.ascontiguousarray(inputs[name])))
        wanted = [self._grpc.InferRequestedOutput(name) for name in contract.output_shapes]
        seconds = max(seconds, 1e-3)
        with self._told():
            answer = self._client.infer(
                self._model.name,
                sent,
                outputs=wanted,
                client_timeout=seconds,
                timeout=round(1e6 * seconds),  # so that it does not compute what nobody waits for
            )
        return {name: self._array(answer, name, (batch, *shape[1:])) for name, shape in contract.output_shapes.items()}

    def _array(self, answer: Any, name: str, shape: tuple[int, ...]) -> NDArray:
        array, kind = answer.as_numpy(name), self.contract.types[name]
        if array is None or array.dtype != kind or array.size != np.prod(shape):
            got = "nothing" if array is None else f"{array.dtype} {list(array.shape)}"
            raise WnlbError(f"{self._model} answered {got} as {name}; expected {kind} {list(shape)}")
        return array.reshape(shape)

    def _read_contract(self) -> tuple[Contract, str]:
        with self._told():
            config = self._client.get_model_config(self._model.name, client_timeout=_OPEN_S).config
        parameters = {key: value.string_value for key, value in config.parameters.items()}
        if METADATA_KEY not in parameters:
            raise ContractError(
                f"{self._model} is not ours: it has no wnlb contract; expected one that 'wnlb triton' wrote"
            )
        if parameters.get(VARIANT_KEY) != "net":
            raise ContractError(
                f"{self._model} takes encoded pictures (--variant full), for clients without this package; "
                "expected a model of --variant net"
            )
        try:
            contract = Contract.from_json(parameters[METADATA_KEY])
        except ContractError as error:
            raise ContractError(f"{self._model}: {error}") from error
        inputs, outputs = tensors_of(contract)
        for told, promised in ((config.input, inputs), (config.output, outputs)):
            got = {value.name: tuple(value.dims) for value in told}
            if got != {tensor.name: tensor.dims for tensor in promised}:
                raise ContractError(f"{self._model} has {got}, unlike its contract; write it again with 'wnlb triton'")
        return contract, config.backend

    def _check_again(self) -> None:
        contract, _ = self._read_contract()
        if contract != self.contract:
            raise WnlbError(f"{self._model} is another model than before; start again")
        self._doubted = False

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """What gRPC raises, in one line."""
        import grpc
        from tritonclient.utils import InferenceServerException

        try:
            yield
        except InferenceServerException as error:
            status, said = str(error.status()), " ".join(str(error.message() or "").split())
        except grpc.RpcError as error:
            status, said = f"{getattr(error, 'code', str)()}", str(error)
        else:
            return
        raise _meaning(self._model, status.removeprefix("StatusCode."), said)


def _meaning(model: ServedModel, status: str, said: str) -> WnlbError:
    if "maximum queue size" in said or "timeout expired" in said.lower():
        return _Overloaded(f"{model} has too many requests waiting ({said}); send fewer, or serve more instances")
    if status == "DEADLINE_EXCEEDED":
        return Unavailable(f"{model} did not answer in time; ?timeout=SECONDS at its end waits longer")
    if "unknown model" in said and "not at ready state" not in said:
        return WnlbError(
            f"{model}: the server has no model {model.name!r}; its models are the folders of its repository"
        )
    if status == "UNAVAILABLE" and "model" not in said:
        return Unavailable(f"no server answers at {model.target} ({said or 'no connection'})")
    if status in ("UNAVAILABLE", "CANCELLED") or "is not healthy" in said:
        return Unavailable(f"{model} is not ready: {said}")
    return WnlbError(f"{model} cannot answer: {said or status}")


def _import_client() -> Any:
    try:
        import tritonclient.grpc
    except ImportError as error:
        raise MissingDependency(
            f"Triton's client cannot be imported ({error}): pip install 'wnlb-deploy[triton]'"
        ) from error
    return tritonclient.grpc
