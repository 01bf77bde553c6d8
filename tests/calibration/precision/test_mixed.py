from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from model_inputs import whole
from onnx import TensorProto, helper, numpy_helper

from wnlb.calibration.precision.convert import Converter
from wnlb.calibration.precision.groups import blocks_of, group_of, groups_of, in_order
from wnlb.calibration.precision.mixed import FP16_MAX, HEADROOM, float_tensors, heavy_nodes, to_half


def types_of(model: onnx.ModelProto) -> dict[str, int]:
    graph = onnx.shape_inference.infer_shapes(model).graph
    found = {tensor.name: tensor.data_type for tensor in graph.initializer}
    return found | {v.name: v.type.tensor_type.elem_type for v in (*graph.value_info, *graph.input, *graph.output)}


def chain() -> onnx.ModelProto:
    """x -> Mul (a) -> Mul (b) -> Add (c) -> Mul (d), all by weights."""
    value = helper.make_tensor_value_info
    weights = {"w1": 2.0, "w2": 1e-9, "w3": 70000.0, "w4": 0.5}
    nodes = [
        helper.make_node("Mul", ["x", "w1"], ["a"], "A"),
        helper.make_node("Mul", ["a", "w2"], ["b"], "B"),
        helper.make_node("Add", ["b", "w3"], ["c"], "C"),
        helper.make_node("Mul", ["c", "w4"], ["y"], "D"),
    ]
    graph = helper.make_graph(
        nodes,
        "chain",
        [value("x", TensorProto.FLOAT, [3])],
        [value("y", TensorProto.FLOAT, [3])],
        [numpy_helper.from_array(np.array([v] * 3, np.float32), name) for name, v in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def test_casts_stand_only_between_precisions() -> None:
    model = chain()
    report = to_half(model, "fp16", {"A", "B"})
    assert [node.op_type for node in model.graph.node] == ["Cast", "Mul", "Mul", "Cast", "Add", "Mul"]
    types = types_of(model)
    assert types["a"] == types["b"] == TensorProto.FLOAT16
    assert types["c"] == types["y"] == TensorProto.FLOAT
    assert report.half == 2
    assert report.vanishing == {"w2": 3}
    found = ort.InferenceSession(model.SerializeToString()).run(None, {"x": np.ones(3, np.float32)})[0]
    np.testing.assert_allclose(found, 35000)


def test_what_overflows_stays_in_fp32() -> None:
    model = chain()
    assert to_half(model, "fp16", {"A", "B", "C"}).overflowing == ("C",)  # a weight beyond FP16
    model = chain()
    limit = FP16_MAX / HEADROOM
    report = to_half(model, "fp16", {"A", "B"}, {"a": limit * 1.01, "b": 1.0})
    assert report.overflowing == ("A", "B")  # one makes it, the other reads it
    model = chain()
    assert to_half(model, "fp16", {"A", "B"}, {"a": limit * 0.99, "b": float("nan")}).overflowing == ("B",)
    model = chain()
    assert to_half(model, "bf16", {"A", "B"}, {"a": 1e9}).overflowing == ()


def test_the_callers_set_is_left_alone() -> None:
    heavy = {"A", "B", "C"}
    assert to_half(chain(), "fp16", heavy).overflowing == ("C",)
    assert heavy == {"A", "B", "C"}


def test_an_output_keeps_its_type() -> None:
    with pytest.raises(Exception, match="output y is made by D in fp16"):
        to_half(chain(), "fp16", {"D"})


@pytest.fixture(scope="module")
def fp16(brief_model_path: Path) -> onnx.ModelProto:
    return Converter(brief_model_path).half("fp16")[0]


def test_box_arithmetic_stays_fp32(fp16: onnx.ModelProto) -> None:
    types = types_of(fp16)
    half = {TensorProto.FLOAT16}
    for node in fp16.graph.node:
        kinds = {types[name] for name in (*node.input, *node.output) if name} & {TensorProto.FLOAT, *half}
        scope = node.name.rpartition("/")[0]
        if node.op_type == "Cast":
            continue
        if node.op_type in ("Conv", "Gemm", "MaxPool", "Resize") and scope.startswith(("body", "fpn", "rpn.head")):
            assert half <= kinds, node.name
        if node.op_type == "MatMul" and scope.startswith("body"):
            assert kinds == half, node.name
        if node.op_type in ("Softmax", "Sigmoid", "Exp", "TopK", "GridSample", "Div") or "nms" in scope:
            assert not kinds & half, node.name
        if scope in ("rpn", "graph"):  # the latter is the preparation: normalisation, content, limits of boxes
            assert not kinds & half, node.name


def test_fp32_neighbours_exchange_fp32(fp16: onnx.ModelProto) -> None:
    """No value goes to FP16 and back between two FP32 nodes: what other converters do to box arithmetic."""
    makers = {output: node for node in fp16.graph.node for output in node.output}
    for node in fp16.graph.node:
        if node.op_type == "Cast" and makers.get(node.input[0]) is not None:
            assert makers[node.input[0]].op_type != "Cast" or "image" in makers[node.input[0]].input, node.name


def test_detections_hardly_move(fp16: onnx.ModelProto, brief_model_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (1, 64, 96, 3), dtype=np.uint8)
    full = ort.InferenceSession(str(brief_model_path)).run(None, whole(image))
    half = ort.InferenceSession(fp16.SerializeToString()).run(None, whole(image))
    assert abs(int(full[4][0]) - int(half[4][0])) <= 0.1 * full[4][0]
    np.testing.assert_allclose(half[1][0][:10], full[1][0][:10], atol=0.02)
    assert not np.array_equal(half[1], full[1])


def test_feature_maps_are_half_up_to_the_sampling(brief_model_path: Path) -> None:
    model = onnx.load(brief_model_path)
    heavy = heavy_nodes(model)
    atlas = next(node for node in model.graph.node if node.op_type == "GridSample").input[0]
    maker = next(node for node in model.graph.node if atlas in node.output)
    assert maker.op_type == "Concat"
    assert maker.name in heavy
    tensors = float_tensors(model, heavy)
    assert atlas in tensors
    assert "image" not in tensors


def test_groups_cover_every_layer(brief_model_path: Path) -> None:
    model = onnx.load(brief_model_path)
    assert blocks_of(model) == {f"body.layer{i}.wnlb": f"c{i + 1}" for i in range(1, 5)}
    groups = groups_of(model)
    layers = [node for node in model.graph.node if node.op_type in ("Conv", "Gemm")]
    assert all(node.name in groups for node in layers)
    names = in_order({groups[node.name] for node in layers})
    assert names == [
        "stem", "c2", "c2 block", "c3", "c3 block", "c4", "c4 block", "c5", "c5 block",
        "fpn", "rpn", "box head", "mask head", "predictors",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("fpn.lateral.c3.theta/Conv", "c3 block"),
        ("fpn.output.p2/MatMul", "p2 block"),
        ("fpn.inner_blocks.0.0/Conv", "fpn"),
        ("body.layer3.1.conv2/Conv", "c4"),
        ("body.maxpool/MaxPool", "stem"),
        ("rpn.head.cls_logits/Conv_3", "predictors"),
        ("detect.mask.head.0.0/Conv", "mask head"),
        ("detect.nms/MatMul", None),
        ("rpn/TopK", None),
    ],
)
def test_group_of_a_node(name: str, group: str | None) -> None:
    node = helper.make_node("Conv", ["x"], ["y"], name)
    assert group_of(node, {"fpn.lateral.c3": "c3", "fpn.output.p2": "p2"}) == group
