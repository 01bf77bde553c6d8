"""What is written for Triton, read by Triton's own protobuf."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_triton import read_config
from google.protobuf.text_format import ParseError
from tritonclient.grpc import model_config_pb2 as pb

from wnlb.runtime.contract import METADATA_KEY, Contract
from wnlb.runtime.errors import WnlbError
from wnlb.runtime.serving.config import Queue, net_config, picture_config

MakeContract = Callable[..., Contract]


def parsed(text: str, folder: Path) -> Any:
    (folder / "config.pbtxt").write_text(text)
    return read_config(folder / "config.pbtxt")


def shapes(values: Any) -> dict[str, tuple[int, list[int]]]:
    return {value.name: (value.data_type, list(value.dims)) for value in values}


def test_a_file_of_a_fixed_batch(make_contract: MakeContract, tmp_path: Path) -> None:
    contract = make_contract(batch=2)
    config = parsed(net_config("night", contract, ".onnx", 3, True, Queue(5, 0.25)), tmp_path)
    assert (config.name, config.backend, config.max_batch_size) == ("night", "onnxruntime", 0)
    assert shapes(config.input) == {"image": (pb.TYPE_UINT8, [2, 64, 96, 3]), "content": (pb.TYPE_INT32, [2, 2])}
    assert shapes(config.output) == {
        "boxes": (pb.TYPE_FP32, [2, 2, 4]),
        "scores": (pb.TYPE_FP32, [2, 2]),
        "labels": (pb.TYPE_INT32, [2, 2]),
        "masks": (pb.TYPE_FP32, [2, 2, 28, 28]),
        "count": (pb.TYPE_INT32, [2]),
    }
    (group,) = config.instance_group
    assert (group.count, group.kind) == (3, pb.ModelInstanceGroup.KIND_GPU)
    policy = config.dynamic_batching.default_queue_policy
    assert (policy.max_queue_size, policy.default_timeout_microseconds) == (5, 250_000)
    assert policy.timeout_action == pb.ModelQueuePolicy.REJECT
    assert policy.allow_timeout_override
    assert not config.optimization.HasField("graph")
    assert Contract.from_json(config.parameters[METADATA_KEY].string_value) == contract


def test_a_file_of_one_to_eight_is_batched(make_contract: MakeContract, tmp_path: Path) -> None:
    """What is one number a frame has no shape left, for which Triton has the reshape."""
    contract = make_contract(batch=8, min_batch=1)
    config = parsed(net_config("night", contract, ".engine", 1, True, Queue()), tmp_path)
    assert (config.backend, config.default_model_filename, config.max_batch_size) == ("tensorrt", "model.plan", 8)
    assert shapes(config.input)["image"] == (pb.TYPE_UINT8, [64, 96, 3])
    assert shapes(config.output)["count"] == (pb.TYPE_INT32, [1])
    assert {value.name for value in config.output if value.HasField("reshape")} == {"count"}


def test_a_file_of_two_to_eight_is_not(make_contract: MakeContract, tmp_path: Path) -> None:
    """Triton's batches begin with one frame, which such a file does not take."""
    config = parsed(net_config("night", make_contract(batch=8, min_batch=2), ".onnx", 1, False, Queue()), tmp_path)
    assert config.max_batch_size == 0
    assert shapes(config.input)["image"] == (pb.TYPE_UINT8, [-1, 64, 96, 3])
    assert config.instance_group[0].kind == pb.ModelInstanceGroup.KIND_CPU


def test_pictures(make_contract: MakeContract, tmp_path: Path) -> None:
    text = picture_config("night", make_contract(masks="none", batch=4), "model.engine", 2, 0.25, Queue())
    config = parsed(text, tmp_path)
    assert (config.backend, config.max_batch_size) == ("python", 4)
    assert shapes(config.input) == {"picture": (pb.TYPE_STRING, [1])}
    assert shapes(config.output)["boxes"] == (pb.TYPE_FP32, [-1, 4])
    assert shapes(config.output)["class_names"] == (pb.TYPE_STRING, [-1])
    assert "masks" not in shapes(config.output)
    values = {key: value.string_value for key, value in config.parameters.items()}
    assert (values["wnlb.file"], values["wnlb.score_threshold"]) == ("model.engine", "0.25")


def test_optimisations_that_harm_int8_are_off(make_contract: MakeContract, tmp_path: Path) -> None:
    contract = make_contract(precision="int8+fp16")
    assert parsed(net_config("night", contract, ".onnx", 1, False, Queue()), tmp_path).optimization.graph.level == 2
    engine = parsed(net_config("night", contract, ".engine", 1, True, Queue()), tmp_path)
    assert not engine.optimization.HasField("graph")


def test_class_names_of_any_alphabet_survive(make_contract: MakeContract, tmp_path: Path) -> None:
    contract = make_contract(class_names=("猫", 'l\'âne "noir"\\', "tab\there"))
    config = parsed(net_config("night", contract, ".onnx", 1, False, Queue()), tmp_path)
    assert Contract.from_json(config.parameters[METADATA_KEY].string_value) == contract


def test_the_parser_refuses_what_triton_does_not_know(tmp_path: Path) -> None:
    """Else the tests above would hold of any text."""
    with pytest.raises(ParseError, match="max_batch"):
        parsed('name: "night" max_batch: 3', tmp_path)


@pytest.mark.parametrize("wrong", [{"most": 0}, {"timeout_s": 0.0}, {"timeout_s": float("nan")}])
def test_queues_are_checked(wrong: dict[str, Any]) -> None:
    with pytest.raises(WnlbError, match="expected"):
        Queue(**wrong)
