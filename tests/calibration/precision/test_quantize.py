"""Placement on small planted graphs, and scales computed by hand."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from wnlb.calibration.precision.quantize import Graph, check_placement, quantize, quantized_weight
from wnlb.runtime.errors import GraphError

RNG = np.random.default_rng(0)


def conv(scope: str, source: str, channels: int = 4, kernel: int = 3) -> tuple[onnx.NodeProto, onnx.TensorProto]:
    weight = RNG.normal(size=(channels, 4, kernel, kernel)).astype(np.float32)
    node = helper.make_node(
        "Conv", [source, f"{scope}.weight"], [f"{scope}/Conv:0"], f"{scope}/Conv", pads=[kernel // 2] * 4
    )
    return node, numpy_helper.from_array(weight, f"{scope}.weight")


def plain(op: str, scope: str, *inputs: str, **attributes: object) -> onnx.NodeProto:
    return helper.make_node(op, list(inputs), [f"{scope}/{op}:0"], f"{scope}/{op}", **attributes)


def model(parts: list[tuple[onnx.NodeProto, onnx.TensorProto] | onnx.NodeProto], output: str) -> onnx.ModelProto:
    nodes = [part if isinstance(part, onnx.NodeProto) else part[0] for part in parts]
    weights = [part[1] for part in parts if not isinstance(part, onnx.NodeProto)]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "planted",
        [value("x", TensorProto.FLOAT, [1, 4, 8, 8])],
        [value(output, TensorProto.FLOAT, None)],
        weights,
    )
    return onnx.shape_inference.infer_shapes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=10)
    )


def residual() -> onnx.ModelProto:
    """Stem, pooling, and two residual blocks: one with its input as the shortcut, one with a convolution."""
    return model(
        [
            conv("body.conv1", "x"),
            plain("Relu", "body.relu", "body.conv1/Conv:0"),
            plain("MaxPool", "body.maxpool", "body.relu/Relu:0", kernel_shape=[2, 2], strides=[2, 2]),
            conv("body.layer1.0.conv1", "body.maxpool/MaxPool:0"),
            plain("Add", "body.layer1.0", "body.layer1.0.conv1/Conv:0", "body.maxpool/MaxPool:0"),
            plain("Relu", "body.layer1.0.relu", "body.layer1.0/Add:0"),
            conv("body.layer2.0.conv1", "body.layer1.0.relu/Relu:0"),
            conv("body.layer2.0.downsample.0", "body.layer1.0.relu/Relu:0", kernel=1),
            plain("Add", "body.layer2.0", "body.layer2.0.conv1/Conv:0", "body.layer2.0.downsample.0/Conv:0"),
            plain("Relu", "body.layer2.0.relu", "body.layer2.0/Add:0"),
        ],
        "body.layer2.0.relu/Relu:0",
    )


def quantized(graph: onnx.ModelProto, ranges: dict[str, float] | None = None) -> onnx.ModelProto:
    planted = Graph(graph)
    wanted = {layer.node for layer in planted.layers()}
    quantize(graph, wanted, ranges or {name: 12.7 * (i + 1) for i, name in enumerate(planted.activations())})
    onnx.checker.check_model(graph, full_check=True)
    return graph


def inputs_of(graph: onnx.ModelProto, name: str) -> list[str]:
    return list(next(node for node in graph.graph.node if node.name == name).input)


def scale(graph: onnx.ModelProto, tensor: str) -> float:
    found = next(t for t in graph.graph.initializer if t.name == f"{tensor}.scale")
    return float(numpy_helper.to_array(found))


def test_residual_blocks() -> None:
    graph = quantized(residual())
    check_placement(graph)
    shortcut = "body.maxpool/MaxPool:0.dequantized"
    assert inputs_of(graph, "body.layer1.0/Add") == ["body.layer1.0.conv1/Conv:0", shortcut]
    assert inputs_of(graph, "body.layer1.0.conv1/Conv")[0] == shortcut  # one pair for both readers
    assert inputs_of(graph, "body.layer2.0/Add") == [
        "body.layer2.0.conv1/Conv:0",
        "body.layer2.0.downsample.0/Conv:0.dequantized",
    ]
    quantizers = [node.input[0] for node in graph.graph.node if node.op_type == "QuantizeLinear"]
    assert len(quantizers) == len(set(quantizers)) == 4
    for layer in ("body.conv1", "body.layer1.0.conv1", "body.layer2.0.conv1", "body.layer2.0.downsample.0"):
        assert all(name.endswith(".dequantized") for name in inputs_of(graph, f"{layer}/Conv")[:2])


def test_pooling_shares_the_scale_of_its_input() -> None:
    """P6 is pooled from P5, and both go into a layer."""
    graph = model(
        [
            conv("fpn.layer_blocks.3.0", "x"),
            plain("MaxPool", "fpn.extra_blocks", "fpn.layer_blocks.3.0/Conv:0", kernel_shape=[1, 1], strides=[2, 2]),
            conv("rpn.head.conv.0.0", "fpn.layer_blocks.3.0/Conv:0"),
            (conv("rpn.head.conv.1.0", "fpn.extra_blocks/MaxPool:0")),
            plain("MaxPool", "rpn.head", "rpn.head.conv.0.0/Conv:0", kernel_shape=[2, 2], strides=[2, 2]),
            plain("Concat", "rpn.head", "rpn.head/MaxPool:0", "rpn.head.conv.1.0/Conv:0", axis=1),
        ],
        "rpn.head/Concat:0",
    )
    assert set(Graph(graph).activations()) == {"x", "fpn.layer_blocks.3.0/Conv:0"}
    quantized(graph)
    check_placement(graph)
    assert scale(graph, "fpn.extra_blocks/MaxPool:0") == scale(graph, "fpn.layer_blocks.3.0/Conv:0")
    assert inputs_of(graph, "rpn.head/Concat") == ["rpn.head/MaxPool:0", "rpn.head.conv.1.0/Conv:0"]  # stays clean


def test_attention_stays_clean() -> None:
    flat = numpy_helper.from_array(np.array([1, 4, 64], np.int64), "flat")
    block = "body.layer1.wnlb"
    parts = [conv(f"{block}.{name}", "x", kernel=1) for name in ("theta", "phi", "g")]
    nodes = [plain("Reshape", f"{block}.{name}", f"{block}.{name}/Conv:0", "flat") for name in ("theta", "phi", "g")]
    rest = [
        plain("Transpose", block, f"{block}.theta/Reshape:0", perm=[0, 2, 1]),
        helper.make_node("MatMul", [f"{block}/Transpose:0", f"{block}.phi/Reshape:0"], ["logits"], f"{block}/MatMul"),
        helper.make_node("Softmax", ["logits"], ["weights"], f"{block}/Softmax", axis=-1),
        helper.make_node("Transpose", [f"{block}.g/Reshape:0"], ["value"], f"{block}/Transpose_2", perm=[0, 2, 1]),
        helper.make_node("MatMul", ["weights", "value"], ["y"], f"{block}/MatMul_2"),
    ]
    last = (rest.pop(), flat)
    graph = model([*parts, *nodes, *rest, last], "y")
    assert {layer.group for layer in Graph(graph).layers()} == {"c2 block"}
    quantized(graph)
    check_placement(graph)
    for name in ("MatMul", "Softmax", "MatMul_2", "Transpose", "Transpose_2"):
        assert not any("dequantized" in tensor for tensor in inputs_of(graph, f"{block}/{name}"))
    graph.graph.node[-1].input[0] = next(n.output[0] for n in graph.graph.node if n.op_type == "DequantizeLinear")
    with pytest.raises(GraphError, match="feeds MatMul"):
        check_placement(graph)


def test_scales_by_hand() -> None:
    graph = quantized(residual(), dict.fromkeys(Graph(residual()).activations(), 12.7))
    assert scale(graph, "x") == pytest.approx(0.1, rel=5e-4)  # rounded to what FP16 holds
    assert scale(graph, "x") == np.float32(np.float16(0.1))
    values = np.array([[1.27, -0.5], [0.0, 0.0], [1e-7, 2e-7]], np.float32)
    integers, scales = quantized_weight(values, 0)
    np.testing.assert_allclose(scales, [np.float16(0.01), 1.0, 2.0**-14])
    assert integers.tolist() == [[127, -50], [0, 0], [0, 0]]
    integers, scales = quantized_weight(values.T, 1)
    assert integers.T.tolist() == [[127, -50], [0, 0], [0, 0]]


def test_a_quantised_graph_computes_nearly_the_same() -> None:
    graph = residual()
    x = RNG.normal(size=(1, 4, 8, 8)).astype(np.float32)
    tensors = Graph(graph).activations()
    tapped = onnx.ModelProto()
    tapped.CopyFrom(graph)
    tapped.graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in tensors if name != "x"
    )
    names = [graph.graph.output[0].name, *(name for name in tensors if name != "x")]
    expected, *values = ort.InferenceSession(tapped.SerializeToString()).run(names, {"x": x})
    ranges = {
        "x": float(np.abs(x).max()),
        **{n: float(np.abs(v).max()) for n, v in zip(names[1:], values, strict=True)},
    }
    found = ort.InferenceSession(quantized(graph, ranges).SerializeToString()).run(None, {"x": x})[0]
    error = np.sqrt(np.square(found - expected).mean() / np.square(expected).mean())
    assert 1e-4 < error < 0.03


def test_a_layer_that_is_left_out_has_no_pair() -> None:
    graph = residual()
    quantize(graph, {"body.conv1/Conv"}, {"x": 1.0})
    check_placement(graph)
    assert sum(node.op_type == "QuantizeLinear" for node in graph.graph.node) == 1
    with pytest.raises(GraphError, match=r"no range was measured for body\.relu"):
        quantize(residual(), {"body.layer1.0.conv1/Conv"}, {"x": 1.0})


def damage(graph: onnx.ModelProto, what: str) -> None:
    nodes = {node.name: node for node in graph.graph.node}
    weights = {tensor.name: tensor for tensor in graph.graph.initializer}
    if what == "zero":
        weights["int8.zero"].CopyFrom(numpy_helper.from_array(np.int8(3).reshape(()), "int8.zero"))
    elif what == "weight":
        nodes["body.conv1/Conv"].input[1] = "spare"
        graph.graph.initializer.append(numpy_helper.from_array(np.ones((4, 4, 3, 3), np.float32), "spare"))
    elif what == "shortcut":
        nodes["body.layer1.0/Add"].input[1] = "body.maxpool/MaxPool:0"
    elif what == "scale":
        node = nodes["x/DequantizeLinear"]
        node.input[1] = "other"
        graph.graph.initializer.append(numpy_helper.from_array(np.float32(0.5), "other"))
    elif what == "channels":
        name = "body.conv1.weight"
        for suffix, array in ((".scale", np.ones((), np.float32)), (".zero", np.zeros((), np.int8))):
            weights[name + suffix].CopyFrom(numpy_helper.from_array(array, name + suffix))


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("zero", "no int8 zero point of 0"),
        ("weight", "only its input quantised"),
        ("shortcut", r"shortcut into body\.layer1\.0/Add is not quantised"),
        ("scale", "different scales"),
        ("channels", "without one scale for each of its 4 output channels"),
    ],
)
def test_each_broken_rule_is_named(what: str, message: str) -> None:
    graph = quantized(residual())
    check_placement(graph)
    damage(graph, what)
    with pytest.raises(GraphError, match=message):
        check_placement(graph)
