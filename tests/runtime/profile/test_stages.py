"""Layers to stages, by name."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from model_inputs import whole

from wnlb.runtime.profile.onnxruntime_stages import kernel_times, stages_in_onnxruntime
from wnlb.runtime.profile.stages import STAGES, stage_of, stage_times


@pytest.mark.parametrize(
    ("name", "stage"),
    [
        ("body.conv1/Conv", "stem"),
        ("body.layer1.0.conv2/Conv", "c2"),
        ("body.layer3.wnlb.theta/Conv", "c4 block"),
        ("fpn.lateral.c3.g/Conv", "c3 block"),
        ("fpn.output.p5/Softmax", "p5 block"),
        ("fpn.layer_blocks.0.0/Conv:0_nchwc", "fpn"),
        ("rpn.head.conv.0.0/Conv", "rpn"),
        ("rpn.nms/MatMul", "proposals"),
        ("fused detect.box_head.fc6/Gemm", "box head"),
        ("InsertedPrecisionFreeCast_body.layer2.0.conv1.weight", "c3"),
        ("detect.box_predictor.cls_score/Gemm", "box head"),
        ("detect.box_pool/GridSample", "box roi align"),
        ("detect.mask.pool/GridSample", "mask roi align"),
        ("detect.mask.head.0.0/Conv + detect.mask.head.0.1/Relu", "mask head"),
        ("detect.nms/Slice", "detections"),
        ("graph/Cast", "input"),
        ("ReorderInput_token_7", None),
        ("antibody.layer1/Conv", None),
        ("", None),
    ],
)
def test_names(name: str, stage: str | None) -> None:
    assert stage_of(name) == stage


def test_every_node_of_an_exported_file_has_a_stage(small_model_path: Path) -> None:
    model = onnx.load(small_model_path)
    stages = Counter(stage_of(node.name) for node in model.graph.node)
    assert None not in stages
    of_solov2 = {"cells", "mask features", "masks", "matrix nms"}
    assert set(STAGES) - of_solov2 | {"c2 block", "c3 block", "c4 block", "c5 block"} == set(stages)


def test_times_add_up_and_stand_in_the_order_of_the_network() -> None:
    layers = [("ReorderInput", 1.0), ("detect.nms/Slice", 2.0), ("body.conv1/Conv", 4.0), ("Reorder", 8.0)]
    layers += [("body.layer1.wnlb/Softmax", 16.0), ("fpn.output.p3/Softmax", 32.0), ("body.layer1.0.conv1/Conv", 64.0)]
    times = stage_times(layers)
    assert times == {"stem": 12, "c2": 64, "c2 block": 16, "p3 block": 32, "detections": 3}
    assert list(times) == ["stem", "c2", "c2 block", "p3 block", "detections"]
    assert stage_times([("a", 1.0), ("b", 2.0)]) == {"unknown": 3}
    assert stage_times([]) == {}


def test_kernels_of_the_first_runs_are_left_out() -> None:
    def kernel(name: str, at: int, cat: str = "Node") -> dict:
        return {"name": name, "cat": cat, "ts": at, "dur": 1000}

    runs = [{"name": "model_run", "cat": "Session", "ts": start, "dur": 5000} for start in (0, 10000)]
    events = [kernel("a_kernel_time", 1000), kernel("b_kernel_time", 12000), kernel("a_kernel_time", 11000)]
    events += [kernel("a_fence_before", 11500), kernel("x_kernel_time", 11600, "Session"), *runs]
    assert kernel_times(events, 1) == [("a", 1.0), ("b", 1.0)]
    assert len(kernel_times(events, 0)) == 3


def test_in_onnx_runtime(small_model_path: Path) -> None:
    times = stages_in_onnxruntime(small_model_path, whole(np.zeros((1, 64, 96, 3), np.uint8)), 1, 2)
    assert {"stem", "c2 block", "proposals", "mask head"} <= set(times)
    assert "unknown" not in times
    assert all(ms >= 0 for ms in times.values())
