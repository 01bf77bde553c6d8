"""Attention to plugin nodes and back: our files, the authors' block in another network, and not look-alikes."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from conftest import BRIEF
from model_inputs import whole
from onnx import TensorProto, checker, helper, numpy_helper
from small_models import small_config, small_model
from torch import Tensor, nn

from wnlb.export.onnx_file.export_onnx import export_onnx
from wnlb.export.onnx_file.fuse import (
    PLUGIN_OP,
    RUNTIME_OP,
    fuse_attention,
    unfuse_attention,
    use_multi_head_attention,
)
from wnlb.export.onnx_file.lint import lint
from wnlb.export.options import ExportOptions
from wnlb.runtime.contract import METADATA_KEY, Contract
from wnlb.runtime.errors import GraphError


def copy_of(model: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy


def plugin_nodes(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    return [node for node in model.graph.node if node.op_type == PLUGIN_OP]


def operators(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


def outputs(model: onnx.ModelProto, *inputs: np.ndarray) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, dict(zip([i.name for i in session.get_inputs()], inputs, strict=True)))


def assert_fuses_and_comes_back(model: onnx.ModelProto, nodes: int, *inputs: np.ndarray) -> onnx.ModelProto:
    """The fused model, after all that must hold of it."""
    fused = copy_of(model)
    assert fuse_attention(fused)
    checker.check_model(fused)
    assert len(plugin_nodes(fused)) == len(fused.functions) == nodes
    for node in plugin_nodes(fused):
        assert {a.name: a.s for a in node.attribute} == {"plugin_namespace": b"wnlb", "plugin_version": b"1"}
    again = copy_of(fused)
    assert not fuse_attention(again)  # idempotent
    assert again == fused
    back = copy_of(fused)
    assert unfuse_attention(back)
    checker.check_model(back)
    assert operators(back) == operators(model)
    assert len(back.graph.initializer) >= len(model.graph.initializer)  # a constant of two bodies comes back twice
    assert not back.functions
    assert [entry.domain for entry in back.opset_import] == [entry.domain for entry in model.opset_import]
    for expected, *got in zip(outputs(model, *inputs), outputs(fused, *inputs), outputs(back, *inputs), strict=True):
        assert all(np.array_equal(expected, other) for other in got)
    refused = copy_of(back)
    assert fuse_attention(refused)
    assert len(plugin_nodes(refused)) == nodes
    return fused


# Our files


@pytest.fixture(scope="module")
def standard(small_model_path: Path) -> onnx.ModelProto:
    return onnx.load(small_model_path)


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (1, 64, 96, 3), np.uint8)


def test_our_file(standard: onnx.ModelProto, picture: np.ndarray) -> None:
    fused = assert_fuses_and_comes_back(standard, 4, *whole(picture).values())
    assert [node.name for node in plugin_nodes(fused)] == [f"body.layer{i}.wnlb/{PLUGIN_OP}" for i in (1, 2, 3, 4)]


def test_some_levels_only(standard: onnx.ModelProto) -> None:
    fused = copy_of(standard)
    assert fuse_attention(fused, ("body.layer1.", "body.layer4."))
    assert [node.name[:11] for node in plugin_nodes(fused)] == ["body.layer1", "body.layer4"]
    assert fuse_attention(fused)  # the others, later
    assert len({function.domain for function in fused.functions}) == 4


def test_names_inside_a_body_differ_from_those_outside(standard: onnx.ModelProto) -> None:
    fused = copy_of(standard)
    fuse_attention(fused)
    outside = {name for node in fused.graph.node for name in (*node.input, *node.output)}
    inside = {name for f in fused.functions for node in f.node for name in (*node.input, *node.output)}
    assert not inside & outside


@pytest.mark.parametrize("mode", ["embedded", "gaussian"])
def test_exported_as_plugin(mode: str, tmp_path: Path, picture: np.ndarray) -> None:
    """In pieces, so that the body has Split and Concat; verified in ONNX Runtime by the export itself."""
    model = small_model(mode=mode, levels=("c2", "c4"))
    options = ExportOptions(128, 128, attention="c2=plugin", attention_memory=2**20, **BRIEF)
    report = export_onnx(model, tmp_path / "model.onnx", options, class_names=small_config().class_names)
    assert report.contract.attention == {"c2": f"{mode}/plugin", "c4": f"{mode}/standard"}
    file = onnx.load(tmp_path / "model.onnx")
    assert [node.name for node in plugin_nodes(file)] == [f"body.layer1.wnlb/{PLUGIN_OP}"]
    body = Counter(node.op_type for node in file.functions[0].node)
    assert body["MatMul"] == 2 * body["Softmax"] > 2
    assert body["Concat"] == 1
    assert body["Split"] == 1 or body["Slice"] == body["Softmax"]


def test_lint_counts_plugin_nodes(standard: onnx.ModelProto, small_model_path: Path) -> None:
    contract = Contract.from_json({p.key: p.value for p in standard.metadata_props}[METADATA_KEY])
    lint(standard, contract)
    fused = copy_of(standard)
    fuse_attention(fused)
    with pytest.raises(GraphError, match="4 plugin nodes, its contract tells of 0"):
        lint(fused, contract)


# The authors' block in another network


class AuthorsBlock(nn.Module):
    """The paper's block, in its own words (view, permute, matmul)."""

    def __init__(self, channels: int, mode: str = "embedded") -> None:
        super().__init__()
        self.inner = channels // 2
        self.mode = mode
        self.g, self.theta, self.phi = (nn.Conv2d(channels, self.inner, 1) for _ in range(3))
        self.W_z = nn.Sequential(nn.Conv2d(self.inner, channels, 1), nn.BatchNorm2d(channels))
        self.w = nn.Parameter(torch.tensor([0.4]))

    def forward(self, x: Tensor) -> Tensor:
        batch, channels = x.shape[:2]
        g = self.g(x).view(batch, self.inner, -1).permute(0, 2, 1)
        if self.mode == "gaussian":
            theta, phi = x.view(batch, channels, -1).permute(0, 2, 1), x.view(batch, channels, -1)
        else:
            theta = self.theta(x).view(batch, self.inner, -1).permute(0, 2, 1)
            phi = self.phi(x).view(batch, self.inner, -1)
        f = F.softmax(torch.matmul(theta, phi), dim=-1)
        y = torch.matmul(f, g).permute(0, 2, 1).contiguous().view(batch, self.inner, *x.shape[2:])
        return self.w * self.W_z(y) + (1 - self.w) * x


class OtherDetector(nn.Module):
    """A one-stage head with two blocks, to stand for YOLO and SOLO."""

    def __init__(self, mode: str) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, 2, 1)
        self.first, self.second = AuthorsBlock(16, mode), AuthorsBlock(32, mode)
        self.down = nn.Conv2d(16, 32, 3, 2, 1)
        self.head = nn.Conv2d(32, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(self.stem(x).relu())
        return self.head(self.second(self.down(x).relu()))


def exported(model: nn.Module, example: Tensor, dynamo: bool) -> onnx.ModelProto:
    model = model.eval()
    if dynamo:
        return torch.onnx.export(model, (example,), dynamo=True, verbose=False, opset_version=18).model_proto
    buffer = io.BytesIO()
    torch.onnx.export(model, (example,), buffer, dynamo=False, opset_version=17)
    return onnx.load_from_string(buffer.getvalue())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("mode", ["embedded", "gaussian"])
@pytest.mark.parametrize("dynamo", [True, False], ids=["dynamo", "legacy"])
def test_the_authors_block_in_another_network(dynamo: bool, mode: str) -> None:
    torch.manual_seed(0)
    example = torch.randn(2, 3, 24, 20)
    model = exported(OtherDetector(mode), example, dynamo)
    assert_fuses_and_comes_back(model, 2, example.numpy())


# By hand: casts, and what must stay as it is


def by_hand(change: Callable[[dict[str, onnx.NodeProto], list[onnx.NodeProto]], None] = lambda named, nodes: None):
    """A minimal block in ONNX, ``[1, 8, 4, 6]`` to ``[1, 4, 4, 6]``, after ``change(nodes by name, all nodes)``."""
    rng = np.random.default_rng(1)
    weights = {f"w_{n}": rng.standard_normal((4, 8, 1, 1), np.float32) for n in ("theta", "phi", "g")}
    weights |= {"flat": np.array([1, 4, 24]), "map": np.array([1, 4, 4, 6]), "scale": np.array(0.5, np.float32)}
    node = helper.make_node
    nodes = [
        *(node("Conv", ["x", f"w_{n}"], [f"{n}_map"], f"{n}_conv") for n in ("theta", "phi", "g")),
        *(node("Reshape", [f"{n}_map", "flat"], [f"{n}_flat"], f"{n}_reshape") for n in ("theta", "phi", "g")),
        node("Transpose", ["theta_flat"], ["query"], "turn_query", perm=[0, 2, 1]),
        node("Transpose", ["g_flat"], ["value"], "turn_value", perm=[0, 2, 1]),
        node("MatMul", ["query", "phi_flat"], ["logits"], "product"),
        node("Softmax", ["logits"], ["weights"], "softmax", axis=-1),
        node("MatMul", ["weights", "value"], ["sum"], "sum"),
        node("Transpose", ["sum"], ["turned"], "turn_back", perm=[0, 2, 1]),
        node("Reshape", ["turned", "map"], ["y"], "reshape_back"),
    ]
    change({n.name: n for n in nodes}, nodes)
    tensor = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "block",
        [tensor("x", TensorProto.FLOAT, [1, 8, 4, 6])],
        [tensor("y", TensorProto.FLOAT, [1, 4, 4, 6])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    checker.check_model(model, full_check=True)
    return model


def insert(
    nodes: list[onnx.NodeProto], before: onnx.NodeProto, which: int, op_type: str, extra=(), **attributes
) -> None:
    """Put a node between ``before`` and its input number ``which``."""
    name = f"{before.name}_{op_type}"
    nodes.insert(
        nodes.index(before), helper.make_node(op_type, [before.input[which], *extra], [name], name, **attributes)
    )
    before.input[which] = name


X = np.random.default_rng(2).standard_normal((1, 8, 4, 6)).astype(np.float32)


def test_by_hand() -> None:
    fused = assert_fuses_and_comes_back(by_hand(), 1, X)
    assert operators(fused) == {"Conv": 3, "Reshape": 4, PLUGIN_OP: 1}


def test_half_precision_with_softmax_in_float32() -> None:
    def change(named, nodes):
        for name in ("turn_query", "phi_reshape", "turn_value"):
            insert(nodes, named[name], 0, "Cast", to=TensorProto.FLOAT16)
        insert(nodes, named["softmax"], 0, "Cast", to=TensorProto.FLOAT)
        insert(nodes, named["sum"], 0, "Cast", to=TensorProto.FLOAT16)
        insert(nodes, named["reshape_back"], 0, "Cast", to=TensorProto.FLOAT)

    fused = assert_fuses_and_comes_back(by_hand(change), 1, X)
    assert operators(fused)["Cast"] == 4  # those around softmax are inside the body
    assert Counter(node.op_type for node in fused.functions[0].node)["Cast"] == 2


def test_quantised_inputs_are_seen_through() -> None:
    def change(named, nodes):
        for name in ("theta_conv", "phi_conv", "g_conv"):
            insert(nodes, named[name], 0, "QuantizeLinear", ["scale"])
            insert(nodes, named[name], 0, "DequantizeLinear", ["scale"])

    assert_fuses_and_comes_back(by_hand(change), 1, X)


def in_slices(borders: tuple[int, ...], order: tuple[int, ...]):
    """Queries cut by Slice nodes between ``borders``, the results put together in ``order``."""

    def change(named, nodes):
        at = nodes.index(named["product"])
        for name in ("product", "softmax", "sum"):
            nodes.remove(named[name])
        made = []
        for i, (start, end) in enumerate(pairwise(borders)):
            for name, value in (("start", start), ("end", end), ("axis", 1)):
                made.append(helper.make_node("Constant", [], [f"{name}{i}"], value_ints=[value]))
            made.append(helper.make_node("Slice", ["query", f"start{i}", f"end{i}", f"axis{i}"], [f"query{i}"]))
            made.append(helper.make_node("MatMul", [f"query{i}", "phi_flat"], [f"logits{i}"]))
            made.append(helper.make_node("Softmax", [f"logits{i}"], [f"weights{i}"], axis=2))
            made.append(helper.make_node("MatMul", [f"weights{i}", "value"], [f"sum{i}"]))
        made.append(helper.make_node("Concat", [f"sum{i}" for i in order], ["sum"], axis=1))
        nodes[at:at] = made

    return change


def constants_to_initializers(model: onnx.ModelProto) -> onnx.ModelProto:
    """As the exporter leaves them."""
    constants = [node for node in model.graph.node if node.op_type == "Constant"]
    for node in constants:
        values = np.array(helper.get_attribute_value(node.attribute[0]), np.int64)
        model.graph.initializer.append(numpy_helper.from_array(values, node.output[0]))
        model.graph.node.remove(node)
    return model


def test_pieces_by_slices() -> None:
    model = constants_to_initializers(by_hand(in_slices((0, 10, 20, 24), (0, 1, 2))))
    fused = assert_fuses_and_comes_back(model, 1, X)
    assert operators(fused) == {"Conv": 3, "Reshape": 4, PLUGIN_OP: 1}


@pytest.mark.parametrize(
    "pieces", [lambda named, nodes: None, in_slices((0, 10, 20, 24), (0, 1, 2))], ids=["whole", "cut"]
)
def test_as_the_operator_of_onnx_runtime(pieces: Callable[..., None]) -> None:
    model = constants_to_initializers(by_hand(pieces))
    native = copy_of(model)
    assert use_multi_head_attention(native)
    assert operators(native) == {"Conv": 3, "Reshape": 4, "Transpose": 4, RUNTIME_OP: 1}
    assert np.allclose(*outputs(native, X), *outputs(model, X), rtol=1e-6, atol=1e-6)
    known = {value.name: [d.dim_value for d in value.type.tensor_type.shape.dim] for value in native.graph.value_info}
    (node,) = (node for node in native.graph.node if node.op_type == RUNTIME_OP)
    assert known[node.output[0]] == [1, 24, 4]
    before = copy_of(native)
    assert not use_multi_head_attention(native)  # idempotent
    assert native == before


@pytest.mark.parametrize("borders", [(0, 10, 20), (4, 10, 24)], ids=str)
def test_pieces_that_are_not_the_whole_stay(borders: tuple[int, ...]) -> None:
    def change(named, nodes):
        in_slices(borders, (0, 1))(named, nodes)
        nodes[:] = [n for n in nodes if n.name != "reshape_back"]
        nodes[-1].output[0] = "short"
        nodes.append(helper.make_node("ReduceMean", ["short"], ["mean"], keepdims=0))
        nodes.append(helper.make_node("Mul", ["theta_map", "mean"], ["y"]))

    assert not fuse_attention(constants_to_initializers(by_hand(change)))


def test_pieces_out_of_order_stay() -> None:
    model = constants_to_initializers(by_hand(in_slices((0, 12, 24), (1, 0))))
    assert not fuse_attention(model)


def _scaled_logits(named, nodes):
    insert(nodes, named["softmax"], 0, "Mul", ["scale"])


def _scaled_query(named, nodes):
    insert(nodes, named["turn_query"], 0, "Mul", ["scale"])


def _softmax_over_queries(named, nodes):
    named["softmax"].attribute[0].i = 1


def _attention_over_channels(named, nodes):
    """softmax over channels: theta and phi change places with their transposes."""
    named["product"].input[:] = ["theta_flat", "phi_turned"]
    nodes.insert(6, helper.make_node("Transpose", ["phi_flat"], ["phi_turned"], perm=[0, 2, 1]))
    named["sum"].input[1] = "g_flat"
    del named["turn_back"].attribute[:]
    named["turn_back"].attribute.append(helper.make_attribute("perm", [0, 1, 2]))
    nodes.remove(named["turn_query"])
    nodes.remove(named["turn_value"])


def _key_of_another_map(named, nodes):
    nodes.insert(0, helper.make_node("Relu", ["x"], ["other"]))
    named["phi_conv"].input[0] = "other"


def _key_from_a_wider_convolution(named, nodes):
    nodes.insert(0, helper.make_node("Pad", ["w_phi", "margins"], ["w_wide"]))
    nodes.insert(0, helper.make_node("Constant", [], ["margins"], value_ints=[0, 0, 1, 1, 0, 0, 1, 1]))
    named["phi_conv"].input[1] = "w_wide"
    named["phi_conv"].attribute.append(helper.make_attribute("pads", [1, 1, 1, 1]))


def _weights_read_by_others(named, nodes):
    nodes.append(helper.make_node("ReduceMean", ["weights"], ["shown"], keepdims=0))
    nodes.append(helper.make_node("Add", ["y0", "shown"], ["y"]))
    named["reshape_back"].output[0] = "y0"


def _two_heads(named, nodes):
    for name, perm in (("turn_query", [0, 1, 3, 2]), ("turn_value", [0, 1, 3, 2]), ("turn_back", [0, 1, 3, 2])):
        del named[name].attribute[:]
        named[name].attribute.append(helper.make_attribute("perm", perm))
    nodes.insert(0, helper.make_node("Constant", [], ["heads"], value_ints=[1, 2, 2, 24]))
    for name in ("theta", "phi", "g"):
        named[f"{name}_reshape"].input[1] = "heads"


@pytest.mark.parametrize(
    "change",
    [
        _scaled_logits,
        _scaled_query,
        _softmax_over_queries,
        _attention_over_channels,
        _key_of_another_map,
        _key_from_a_wider_convolution,
        _weights_read_by_others,
        _two_heads,
    ],
)
def test_look_alikes_stay(change) -> None:
    model = by_hand(change)
    before = copy_of(model)
    assert not fuse_attention(model)
    assert model == before
    assert not unfuse_attention(model)
