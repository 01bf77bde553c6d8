"""Files that take several numbers of images: each image as the eager model finds it, whatever comes with it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from conftest import BATCHES
from numpy.typing import NDArray
from onnx import helper
from small_models import small_model

from wnlb.calibration.precision.convert import Converter, Int8Choice, save_checked
from wnlb.export.backbone import blocks_by_level
from wnlb.export.onnx_file.export_onnx import configure
from wnlb.export.onnx_file.fuse import fuse_attention
from wnlb.export.onnx_file.lint import lint
from wnlb.export.onnx_file.reference import BOX_TOLERANCE, MASK_TOLERANCE, SCORE_TOLERANCE, difference, eager_detections
from wnlb.export.onnx_file.verify import dark_scene, tried_batches
from wnlb.export.options import ExportOptions
from wnlb.runtime.errors import GraphError
from wnlb.runtime.onnx_file import read_model
from wnlb.runtime.onnxruntime_backend import OnnxRuntimeBackend
from wnlb.runtime.profile.stages import stage_of
from wnlb.runtime.profile.work import work_by_stage

MOST = BATCHES["batch"]
SIZES = (1, 3, MOST)
CONTENT = np.array([[64, 96], [41, 96], [0, 0], [64, 67], [35, 51]], np.int32)
Outputs = dict[str, NDArray]


class Open(NamedTuple):
    """A file for 1 to 5 images, and all five of them."""

    path: Path
    images: NDArray[np.uint8]

    def run(self, which: list[int]) -> Outputs:
        inputs = {"image": self.images[which], "content": CONTENT[which]}
        return OnnxRuntimeBackend(self.path, device="cpu").run(inputs)


@pytest.fixture(scope="module", params=["cpu", pytest.param("gpu", marks=pytest.mark.slow)])  # 27 s to export it
def opened(request: pytest.FixtureRequest) -> Open:
    name = {"gpu": "batches_model_path", "cpu": "batches_cpu_model_path"}[request.param]
    return Open(request.getfixturevalue(name), dark_scene((MOST, 64, 96, 3)))


def test_every_image_of_every_batch_is_what_the_eager_model_finds(opened: Open) -> None:
    """Torchvision, one image at a time."""
    model = small_model()
    configure(model.float(), ExportOptions(64, 96, **BATCHES))
    heads = model.roi_heads
    truth = [eager_detections(model, opened.images[i : i + 1], CONTENT[i : i + 1])[0][0] for i in (0, 1, 3, 4)]
    truth.insert(2, {name: value[:0] for name, value in truth[0].items()})  # of no picture it makes none
    for size in SIZES:
        which = list(range(MOST))[-size:]
        found = difference(
            [truth[i] for i in which], opened.run(which), heads.score_thresh, nms_threshold=heads.nms_thresh
        )
        assert found.detections > 10
        assert found.unmatched == 0
        assert found.box_error < BOX_TOLERANCE
        assert found.score_error < SCORE_TOLERANCE
        assert found.mask_error < MASK_TOLERANCE


def test_neighbours_change_nothing(opened: Open) -> None:
    """Nor does its place, or how many come with it: up to the rounding of products of other sizes."""
    alone = [opened.run([i]) for i in range(MOST)]
    for which in ([0, 1, 2, 3, 4], [4, 3, 2, 1, 0], [3, 2], [1, 1, 4]):
        together = opened.run(which)
        for place, i in enumerate(which):
            for name, atol in (("count", 0), ("labels", 0), ("boxes", 2e-3), ("scores", 2e-5), ("masks", 2e-4)):
                np.testing.assert_allclose(together[name][place], alone[i][name][0], atol=atol, rtol=0, err_msg=name)
    assert [int(own["count"][0]) for own in alone][2] == 0


def test_the_file_states_its_open_axis(opened: Open) -> None:
    model, contract = read_model(opened.path)
    assert (contract.min_batch, contract.batch) == (1, MOST)
    assert tried_batches(contract) == [1, 3, 5]
    for value in (*model.graph.input, *model.graph.output):
        dims = [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        assert dims[0] == "batch"
        assert all(isinstance(size, int) for size in dims[1:])
    assert None not in [stage_of(node.name) for node in model.graph.node]
    lint(model, contract)


def test_lint_takes_this_open_axis_and_no_other(opened: Open) -> None:
    model, contract = read_model(opened.path)
    with pytest.raises(
        GraphError, match=r"input image is uint8 \['batch', 64, 96, 3\], expected uint8 \[5, 64, 96, 3\]"
    ):
        lint(model, replace(contract, min_batch=None))
    other = onnx.ModelProto.FromString(model.SerializeToString())
    for name in ("width", "batch"):
        other.graph.input[0].type.tensor_type.shape.dim[2].dim_param = name
        with pytest.raises(GraphError, match=rf"input image is uint8 \['batch', 64, '{name}', 3\], expected uint8"):
            lint(other, contract)
    # Of an inner tensor: as many images as the first one has detections.
    nodes = [
        helper.make_node("CumSum", ["count", "zero"], ["ends"]),
        helper.make_node("Slice", ["ends", "none", "one"], ["end"]),
        helper.make_node("Slice", ["scores", "none", "end"], ["found"], name="detect/found"),
    ]
    model.graph.node.extend(nodes)
    for name, value in (("zero", 0), ("none", [0]), ("one", [1])):
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(value, np.int32), name))
    with pytest.raises(GraphError, match=r"found of detect/found has the shape .*, expected whole numbers"):
        lint(model, replace(contract, target="cpu"))


def test_its_work_is_that_of_its_images(opened: Open) -> None:
    model = onnx.load(opened.path)
    one, four = work_by_stage(model, 1), work_by_stage(model, 4)
    assert one.keys() == four.keys()
    for stage in ("stem", "c2 block", "c5", "fpn", "rpn", "box head"):
        assert four[stage].flops["fp32"] == pytest.approx(4 * one[stage].flops["fp32"], rel=1e-3)
        assert one[stage].bytes < four[stage].bytes <= 4 * one[stage].bytes


@pytest.mark.slow
def test_attention_becomes_plugin_nodes(batches_model_path: Path) -> None:
    model, contract = read_model(batches_model_path)
    assert fuse_attention(model)
    blocks = len(list(blocks_by_level(small_model())))
    forms = {level: form.replace("standard", "plugin") for level, form in contract.attention.items()}
    assert len(forms) == blocks
    lint(model, replace(contract, attention=forms))
    inputs = {"image": dark_scene((MOST, 64, 96, 3)), "content": CONTENT}
    for size in SIZES:
        own = {name: value[:size] for name, value in inputs.items()}
        whole, fused = (
            ort.InferenceSession(file.SerializeToString(), providers=["CPUExecutionProvider"]).run(["boxes"], own)[0]
            for file in (onnx.load(batches_model_path), model)
        )
        np.testing.assert_allclose(fused, whole, atol=1e-3, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_it_is_converted(batches_model_path: Path, tmp_path: Path, precision: str) -> None:
    converter = Converter(batches_model_path)
    model = converter.half("fp16")[0]
    if precision == "int8":
        ranges = dict.fromkeys(converter.activations, 4.0)
        model = converter.int8(Int8Choice(frozenset(converter.groups), "max", "fp16"), ranges)
    save_checked(model, tmp_path / "half.onnx")  # runs it with one image and with five
    assert read_model(tmp_path / "half.onnx")[1].batches == range(1, MOST + 1)
    assert work_by_stage(model, 2)["c2"].flops.keys() <= {"fp16", "fp32", "int8"}
