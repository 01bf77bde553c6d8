"""Files for a CPU in ONNX Runtime: masks for what is found, whatever its number."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from conftest import BATCHES
from numpy.typing import NDArray
from onnx import numpy_helper
from small_models import small_model

from wnlb.export.graph.deploy import DeployGraph
from wnlb.export.onnx_file.export_onnx import configure, make_contract, trace
from wnlb.export.onnx_file.lint import lint
from wnlb.export.onnx_file.passes import name_by_module, name_rows
from wnlb.export.onnx_file.verify import SCORE_THRESHOLD, dark_scene
from wnlb.export.options import ExportOptions
from wnlb.runtime.conventions import MMDETECTION, TORCHVISION, MaskRcnnConventions
from wnlb.runtime.profile.stages import stage_of

NAMES = ("boxes", "scores", "labels", "masks", "count")
ROWS = BATCHES["detections"]
Outputs = dict[str, NDArray]


class Traced(NamedTuple):
    file: onnx.ModelProto
    graph: DeployGraph

    def run(self, images: NDArray[np.uint8], content: NDArray[np.int32], threshold: float) -> Outputs:
        """The file's outputs with another score threshold."""
        constant = next(tensor for tensor in self.file.graph.initializer if tensor.name == SCORE_THRESHOLD)
        constant.CopyFrom(numpy_helper.from_array(np.float32(threshold), SCORE_THRESHOLD))
        session = ort.InferenceSession(self.file.SerializeToString(), providers=["CPUExecutionProvider"])
        return dict(zip(NAMES, session.run(None, {"image": images, "content": content}), strict=True))

    def all_rows(self, images: NDArray[np.uint8], content: NDArray[np.int32], threshold: float) -> NDArray:
        """Masks as PyTorch computes them where all rows are computed, and those that are not found set to zero."""
        self.graph.detect.score_threshold.fill_(threshold)
        branch = self.graph.detect.mask
        forward = branch.forward
        branch.forward = lambda maps, boxes, labels, found: (
            forward(maps, boxes, labels, torch.ones_like(found)) * found[:, :, None, None]
        )
        with torch.no_grad():
            masks = self.graph(torch.from_numpy(images), torch.from_numpy(content))[3]
        branch.forward = forward
        return masks.numpy()


def traced(batch: int, target: str = "cpu", conventions: MaskRcnnConventions = TORCHVISION) -> Traced:
    counts = {"pre_nms_top_n": 100, "post_nms_top_n": 60, "candidates": 480, "nms_rounds": 16, "detections": ROWS}
    model, options = small_model(), ExportOptions(64, 96, batch=batch, target=target, **counts)
    configure(model.float(), options)
    graph = DeployGraph(model, options, conventions)
    contract = make_contract(model, graph, options, ())
    file = trace(graph, contract)
    assert name_by_module(file)
    assert name_rows(file) == (target == "cpu")
    lint(file, contract)
    return Traced(file, graph)


def exported(request: pytest.FixtureRequest) -> Traced:
    """The file for 1 to 5 images that other tests share."""
    model, options = small_model(), ExportOptions(64, 96, target="cpu", **BATCHES)
    configure(model.float(), options)
    return Traced(onnx.load(request.getfixturevalue("batches_cpu_model_path")), DeployGraph(model, options))


def threshold_of(scores: NDArray, count: int) -> float:
    """One that so many of the descending ``scores`` pass."""
    return 1.0 if count == 0 else float(scores[count - 1 : count + 1].mean()) if count < len(scores) else 0.0


@pytest.fixture(scope="module", params=[TORCHVISION, MMDETECTION], ids=lambda each: each.framework)
def single(request: pytest.FixtureRequest) -> Traced:
    return traced(1, conventions=request.param)


IMAGE, WHOLE = dark_scene((1, 64, 96, 3)), np.array([[64, 96]], np.int32)


@pytest.mark.parametrize("count", [0, 1, 17, ROWS])
def test_any_number_of_detections(single: Traced, count: int) -> None:
    threshold = threshold_of(single.run(IMAGE, WHOLE, 0.0)["scores"][0], count)
    found = single.run(IMAGE, WHOLE, threshold)
    assert found["count"].tolist() == [count]
    assert found["masks"].shape == (1, ROWS, 28, 28)
    assert found["masks"][0, :count].all()
    assert not found["masks"][0, count:].any()
    np.testing.assert_allclose(found["masks"], single.all_rows(IMAGE, WHOLE, threshold), atol=2e-5, rtol=0)


@pytest.mark.parametrize("batch", [None, pytest.param(3, marks=pytest.mark.slow)], ids=["open", "3"])
def test_a_batch_of_none_some_and_all(request: pytest.FixtureRequest, batch: int | None) -> None:
    """The images share the rows that are computed; each finds its own again, and what the file for a GPU finds."""
    images = np.concatenate([dark_scene((2, 64, 96, 3)), np.full((1, 64, 96, 3), 7, np.uint8)])
    content = np.array([[64, 96], [64, 96], [0, 0]], np.int32)
    file = traced(batch) if batch else exported(request)
    lasts = file.run(images, content, 0.0)["scores"][:2, ROWS - 1]
    threshold = float(lasts.mean())
    full, some = int(lasts.argmax()), int(lasts.argmin())
    found = file.run(images, content, threshold)
    assert found["count"][full] == ROWS
    assert 0 < found["count"][some] < ROWS
    assert found["count"][2] == 0
    np.testing.assert_allclose(found["masks"], file.all_rows(images, content, threshold), atol=2e-5, rtol=0)
    if batch is None:
        return
    on_gpu = traced(batch, "gpu").run(images, content, threshold)
    for name, atol in (("boxes", 1e-3), ("scores", 1e-5), ("labels", 0), ("masks", 1e-4), ("count", 0)):
        np.testing.assert_allclose(found[name], on_gpu[name], atol=atol, rtol=0, err_msg=name)


def test_every_node_tells_its_stage(small_cpu_model_path: Path) -> None:
    names = [node.name for node in onnx.load(small_cpu_model_path).graph.node]
    stages = [stage_of(name) for name in names]
    assert None not in stages
    assert {"mask roi align", "mask head"} <= set(stages)
