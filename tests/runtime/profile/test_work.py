"""FLOPs and bytes by stage: graphs counted by hand, PyTorch's own count, and the exporter's plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from small_models import small_model
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from wnlb.export.graph.attention import plan_attention
from wnlb.export.onnx_file.fuse import PLUGIN_OP, fuse_attention
from wnlb.runtime.engine.mask_cut import split_masks, with_rows
from wnlb.runtime.errors import WnlbError
from wnlb.runtime.onnx_file import read_model
from wnlb.runtime.profile.stages import STAGES, stage_of
from wnlb.runtime.profile.work import Work, work_by_stage

FLOAT, HALF, INT64 = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT64
Node = onnx.NodeProto


def made(
    nodes: Sequence[Node],
    inputs: Mapping[str, Sequence[int | str]],
    outputs: Sequence[str],
    constants: dict[str, np.ndarray] | None = None,
    kind: int = FLOAT,
) -> onnx.ModelProto:
    """A model whose inputs have one type, and whose outputs tell no shape."""
    given = [helper.make_tensor_value_info(name, kind, shape) for name, shape in inputs.items()]
    wanted = [helper.make_empty_tensor_value_info(name) for name in outputs]
    weights = [numpy_helper.from_array(array, name) for name, array in (constants or {}).items()]
    graph = helper.make_graph(nodes, "test", given, wanted, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])


def node(op: str, inputs: str, outputs: str, name: str = "", **attributes: Any) -> Node:
    return helper.make_node(op, inputs.split(), outputs.split(), name, **attributes)


def zeros(*shape: int, kind: type = np.float32) -> np.ndarray:
    return np.zeros(shape, kind)


def only(model: onnx.ModelProto) -> Work:
    (work,) = work_by_stage(model).values()
    return work


@pytest.fixture(scope="module")
def body() -> Any:
    """The backbone of ``small_model_path``."""
    return small_model().backbone.body


# FLOPs


@pytest.mark.parametrize(
    ("nodes", "inputs", "constants", "flops"),
    [
        pytest.param(
            [node("Conv", "x w b", "y", strides=[2, 2], pads=[1, 1, 1, 1])],
            {"x": [2, 6, 9, 7]},
            {"w": zeros(4, 6, 3, 3), "b": zeros(4)},
            2 * (2 * 4 * 5 * 4) * (6 * 9),
            id="convolution with stride and padding",
        ),
        pytest.param(
            [node("Conv", "x w", "y", group=3)],
            {"x": [1, 6, 5, 5]},
            {"w": zeros(12, 2, 1, 3)},
            2 * (12 * 5 * 3) * (2 * 3),
            id="convolution in groups",
        ),
        pytest.param(
            [node("ConvTranspose", "x w", "y", strides=[2, 2])],
            {"x": [1, 4, 7, 5]},
            {"w": zeros(4, 3, 2, 2)},
            2 * (4 * 7 * 5) * (3 * 2 * 2),
            id="transposed convolution",
        ),
        pytest.param(
            [node("MatMul", "a b", "y")],
            {"a": [5, 1, 3, 7], "b": [2, 7, 11]},
            {},
            2 * (5 * 2 * 3 * 11) * 7,
            id="batches of products",
        ),
        pytest.param([node("Gemm", "a b", "y")], {"a": [3, 5]}, {"b": zeros(5, 7)}, 2 * 3 * 5 * 7, id="Gemm"),
        pytest.param(
            [node("Gemm", "a b c", "y", transA=1, transB=1)],
            {"a": [5, 3]},
            {"b": zeros(7, 5), "c": zeros(7)},
            2 * 3 * 5 * 7,
            id="Gemm of transposed matrices",
        ),
        pytest.param([node("Add", "a b", "y")], {"a": [3, 1], "b": [5]}, {}, 15, id="sum"),
        pytest.param([node("Softmax", "a", "y")], {"a": [3, 5]}, {}, 5 * 15, id="softmax"),
        pytest.param([node("ReduceSum", "a", "y")], {"a": [3, 5]}, {}, 15, id="reduction"),
        pytest.param(
            [node("MaxPool", "a", "y", kernel_shape=[3, 3], strides=[2, 2])], {"a": [1, 2, 9, 9]}, {}, 32 * 9, id="pool"
        ),
        pytest.param([node("GridSample", "x g", "y")], {"x": [1, 3, 9, 9], "g": [1, 4, 5, 2]}, {}, 8 * 60, id="grid"),
        pytest.param(
            [node("Reshape", "x s", "a"), node("Transpose", "a", "b"), node("Concat", "b b", "y", axis=0)],
            {"x": [4, 6]},
            {"s": np.array([3, 8])},
            0,
            id="data movement",
        ),
    ],
)
def test_flops_of_operators(
    nodes: list[Node], inputs: dict[str, list[int | str]], constants: dict[str, np.ndarray], flops: int
) -> None:
    found = only(made(nodes, inputs, ["y"], constants)).flops
    assert found == ({"fp32": flops} if flops else {})


def test_integers_count_no_flops() -> None:
    assert only(made([node("Add", "a b", "y")], {"a": [3], "b": [3]}, ["y"], kind=INT64)).flops == {}


@pytest.mark.parametrize(
    ("kind", "precision"),
    [(FLOAT, "fp32"), (HALF, "fp16"), (TensorProto.BFLOAT16, "bf16"), (TensorProto.DOUBLE, "fp32")],
)
def test_the_precision_is_that_of_the_inputs(kind: int, precision: str) -> None:
    model = made([node("MatMul", "a b", "y")], {"a": [3, 5], "b": [5, 7]}, ["y"], kind=kind)
    assert only(model).flops == {precision: 2 * 3 * 5 * 7}


def test_the_first_floating_input_tells_the_precision() -> None:
    nodes = [node("Cast", "x", "c", to=TensorProto.BOOL), node("Where", "c x x", "y")]
    assert only(made(nodes, {"x": [6]}, ["y"], kind=HALF)).flops == {"fp16": 6}


def quantized(x: str) -> list[Node]:
    return [node("QuantizeLinear", f"{x} s z", f"{x}.q"), node("DequantizeLinear", f"{x}.q s z", f"{x}.d")]


PAIR = {"s": np.float32(0.5), "z": np.int8(0)}


def test_a_layer_between_pairs_is_int8() -> None:
    nodes = [
        *quantized("x"),
        node("DequantizeLinear", "w s z", "w.d"),
        node("Conv", "x.d w.d b", "c"),  # its bias is float32
        node("Relu", "c", "y"),
    ]
    model = made(nodes, {"x": [1, 3, 4, 4]}, ["y"], {**PAIR, "w": zeros(5, 3, 1, 1, kind=np.int8), "b": zeros(5)})
    assert only(model).flops == {"int8": 2 * 80 * 3, "fp32": 80}


def test_int8_passes_through_changes_of_shape() -> None:
    nodes = [
        *quantized("x"),
        node("Reshape", "x.d shape", "a"),
        node("DequantizeLinear", "w s z", "w.d"),
        node("Transpose", "w.d", "b"),
        node("MatMul", "a b", "y"),
    ]
    constants = {**PAIR, "w": zeros(7, 5, kind=np.int8), "shape": np.array([3, 5])}
    assert only(made(nodes, {"x": [15]}, ["y"], constants)).flops == {"int8": 2 * 3 * 5 * 7}


def test_with_one_quantised_input_a_layer_is_not_int8() -> None:
    nodes = [*quantized("x"), node("MatMul", "x.d w", "a"), node("Add", "a x.d", "y")]
    assert only(made(nodes, {"x": [3, 3]}, ["y"], {**PAIR, "w": zeros(3, 3)})).flops == {"fp32": 2 * 27 + 9}


def test_what_a_runtime_computes_when_it_loads_counts_as_the_constant_that_it_becomes() -> None:
    nodes = [
        node("MatMul", "u v", "w"),
        node("Constant", "", "t", value=numpy_helper.from_array(zeros(9))),
        node("Add", "w t", "k"),
        node("Mul", "x k", "y"),
    ]
    work = only(made(nodes, {"x": [9, 9]}, ["y"], {"u": zeros(9, 2), "v": zeros(2, 9)}))
    assert work == Work({"fp32": 81}, 3 * 4 * 81)


# Bytes

STEM, C2, RPN = "body.conv1/", "body.layer1.0/", "rpn.head/"


def test_tensors_count_where_they_cross_and_weights_where_they_are_read() -> None:
    nodes = [
        node("MatMul", "x w", "a", STEM),  # x 2 x 3, w 3 x 5
        node("Relu", "a", "b", STEM),
        node("Relu", "b", "c", C2),
        node("Neg", "b", "d", C2),  # read again, for nothing
        node("Add", "c d", "e", C2),
        node("Mul", "e v", "f", RPN),
        node("MatMul", "b u", "g", RPN),  # a second reader of b; u 5 x 7
    ]
    constants = {"w": zeros(3, 5), "v": zeros(1), "u": zeros(5, 7)}
    works = work_by_stage(made(nodes, {"x": [2, 3]}, ["f", "g"], constants))
    assert {stage: work.bytes // 4 for stage, work in works.items()} == {
        "stem": 6 + 15 + 10,
        "c2": 10 + 10,
        "rpn": 10 + 1 + 10 + 10 + 35 + 14,
    }


def test_a_weight_of_two_stages_is_read_by_both() -> None:
    nodes = [node("Mul", "x w", "a", STEM), node("Mul", "a w", "y", C2)]
    works = work_by_stage(made(nodes, {"x": [10]}, ["y"], {"w": zeros(10)}))
    assert {stage: work.bytes for stage, work in works.items()} == {"stem": 120, "c2": 120}


def test_another_shape_is_no_other_tensor() -> None:
    nodes = [
        node("Relu", "x", "a", STEM),
        node("Reshape", "a shape", "b", C2),
        node("Transpose", "b", "c", C2),
        node("Relu", "a", "d", C2),
        node("MatMul", "b c", "e", C2),
        node("Transpose", "e", "y", RPN),  # the output, made in c2
    ]
    works = work_by_stage(made(nodes, {"x": [12]}, ["y"], {"shape": np.array([3, 4])}))
    assert {stage: work.bytes // 4 for stage, work in works.items()} == {"stem": 24, "c2": 12 + 9, "rpn": 0}


def test_between_quantised_layers_crosses_one_byte_an_element() -> None:
    nodes = [
        node("Relu", "x", "a", STEM),
        node("QuantizeLinear", "a s z", "a.q", f"{C2}conv1/QuantizeLinear"),
        node("DequantizeLinear", "a.q s z", "a.d", f"{C2}conv1/DequantizeLinear"),
        node("DequantizeLinear", "w s z", "w.d", f"{C2}conv1.weight/DequantizeLinear"),
        node("Conv", "a.d w.d", "y", f"{C2}conv1/Conv"),
    ]
    constants = {**PAIR, "w": zeros(5, 3, 1, 1, kind=np.int8)}
    works = work_by_stage(made(nodes, {"x": [1, 3, 4, 4]}, ["y"], constants))
    assert works["stem"] == Work({"fp32": 48}, 4 * 48 + 48)
    assert works["c2"] == Work({"int8": 2 * 80 * 3}, 48 + 15 + 4 * 80)


def test_a_quantised_input_of_the_model_is_read_by_the_stage_that_quantises_it() -> None:
    nodes = [
        node("QuantizeLinear", "x s z", "x.q", f"{STEM}QuantizeLinear"),
        node("DequantizeLinear", "x.q s z", "x.d", f"{C2}DequantizeLinear"),
        node("Relu", "x.d", "y", f"{C2}Relu"),
    ]
    works = work_by_stage(made(nodes, {"x": [10]}, ["y"], PAIR))
    assert works == {"stem": Work({}, 40 + 10), "c2": Work({"int8": 10}, 10 + 40)}


# Stages


def test_a_node_whose_name_tells_none_has_the_stage_of_the_one_before() -> None:
    nodes = [
        node("Relu", "x", "a", "first"),
        node("Relu", "a", "b", f"{C2}Relu"),
        node("Relu", "b", "c"),
        node("Relu", "x", "d", f"{STEM}Relu"),
        node("Add", "c d", "y", f"{RPN}Add"),
    ]
    works = work_by_stage(made(nodes, {"x": [10]}, ["y"]))
    assert list(works) == ["stem", "c2", "rpn"]
    assert [work.flops["fp32"] for work in works.values()] == [10, 30, 10]
    assert list(work_by_stage(made([node("Relu", "x", "y")], {"x": [10]}, ["y"]))) == ["unknown"]


def test_a_shape_that_is_not_known_is_refused_by_the_name_of_its_node() -> None:
    model = made([node("Relu", "x", "y", "body/Relu")], {"x": [1, "height"]}, ["y"])
    with pytest.raises(WnlbError, match=r"node body/Relu \(Relu\) has a tensor x without a known type"):
        work_by_stage(model)


def test_rows_that_depend_on_what_is_found() -> None:
    """Count as none where nothing is told of them, those of levels always."""
    nodes = [
        node("Relu", "x", "a"),
        node("MatMul", "a w", "b"),
        node("Pad", "b pads", "c"),
        node("Relu", "c", "y", f"{RPN}Relu"),
    ]
    model = made(nodes, {"x": ["196*rows0 + rows1", 8]}, ["y"], {"w": zeros(8, 8), "pads": np.array([1, 0, 0, 0])})
    model.graph.value_info.append(helper.make_tensor_value_info("c", TensorProto.FLOAT, ["196*rows0 + rows1 + 1", 8]))
    assert work_by_stage(model)["rpn"] == Work({"fp32": 8}, 2 * 4 * 8)
    of_three = work_by_stage(model, rows=3)["rpn"]
    flops = 8 * 591 + 2 * 8 * 8 * 591 + 8 * 592
    assert of_three == Work({"fp32": flops}, 4 * 8 * (591 + 592) + 4 * 8 * 8 + 4 * 8)  # both ends, weights, pads
    for name in ("rows100", "2*rows101 + rows102"):
        levels = made([node("Relu", "x", "y", f"{RPN}Relu")], {"x": [name, 8]}, ["y"])
        assert work_by_stage(levels, rows=3)["rpn"] == Work({}, 0)


def test_a_file_for_a_cpu_has_work(small_cpu_model_path: Path, brief_model_path: Path) -> None:
    works = work_by_stage(onnx.load(small_cpu_model_path))
    same = work_by_stage(onnx.load(brief_model_path))
    assert list(works) == list(same)
    assert works["c2"] == same["c2"]
    assert works["mask head"].flops.get("fp32", 0) < 1e-3 * same["mask head"].flops["fp32"]
    five, ten = (work_by_stage(onnx.load(small_cpu_model_path), rows=rows)["mask head"] for rows in (5, 10))
    assert ten.flops["fp32"] == pytest.approx(2 * five.flops["fp32"], rel=0.05)
    assert 0.02 < five.flops["fp32"] / same["mask head"].flops["fp32"] < 0.08
    assert five.bytes < ten.bytes


def test_the_parts_of_a_cut_file_share_its_work(brief_model_path: Path) -> None:
    model, contract = read_model(brief_model_path)
    whole, cut = work_by_stage(model), split_masks(model, contract)
    assert cut
    before, masks = work_by_stage(cut[0]), work_by_stage(with_rows(cut[1], contract.detections))
    both = {stage: before.get(stage, none) + masks.get(stage, none) for none in [Work({}, 0)] for stage in whole}
    assert {stage: work.flops for stage, work in both.items()} == {stage: work.flops for stage, work in whole.items()}
    tenth = work_by_stage(with_rows(cut[1], contract.detections // 10))["mask head"]
    assert tenth.flops["fp32"] == pytest.approx(masks["mask head"].flops["fp32"] / 10)


def test_a_loop_is_refused() -> None:
    branch = helper.make_graph([node("Identity", "x", "z")], "branch", [], [helper.make_empty_tensor_value_info("z")])
    nodes = [node("If", "c", "y", "choice", then_branch=branch, else_branch=branch)]
    with pytest.raises(WnlbError, match=r"node choice \(If\) has graphs of its own"):
        work_by_stage(made(nodes, {"x": [3]}, ["y"], {"c": np.array(True)}))


def test_weights_may_lie_in_another_file(tmp_path: Path) -> None:
    model = made([node("MatMul", "x w", "y")], {"x": [2, 16]}, ["y"], {"w": zeros(16, 64)})
    expected = work_by_stage(model)
    onnx.save(model, tmp_path / "model.onnx", save_as_external_data=True, location="weights", size_threshold=0)
    assert work_by_stage(onnx.load(tmp_path / "model.onnx", load_external_data=False)) == expected


# Attention


def attention(pieces: int) -> onnx.ModelProto:
    """Softmax attention of 60 positions with 8 channels, the queries in so many pieces."""
    scope = "body.layer1.wnlb"
    queries, parts = [f"q{i}" for i in range(pieces)], [f"p{i}" for i in range(pieces)]
    sizes = np.full(pieces, 60 // pieces)
    nodes = [node("Transpose", f"{name}.c", name, f"{scope}/T{name}", perm=[0, 2, 1]) for name in "qv"]
    nodes.append(node("Split", "q sizes", " ".join(queries), "split", axis=1))
    for query, part in zip(queries, parts, strict=True):
        nodes.append(node("MatMul", f"{query} k.c", f"{part}.logits", f"{scope}/{part}"))
        nodes.append(node("Softmax", f"{part}.logits", f"{part}.weights", f"{scope}/Softmax{part}"))
        nodes.append(node("MatMul", f"{part}.weights v", part, f"{scope}/{part}.2"))
    nodes.append(node("Concat", " ".join(parts), "o", f"{scope}/Concat", axis=1))
    nodes.append(node("Transpose", "o", "y", f"{scope}/Transpose", perm=[0, 2, 1]))
    return made(nodes, {name: [1, 8, 60] for name in ("q.c", "k.c", "v.c")}, ["y"], {"sizes": sizes})


@pytest.mark.parametrize("pieces", [1, 4])
def test_attention_in_pieces_is_the_same_work_and_its_matrix_is_no_traffic(pieces: int) -> None:
    (work,) = work_by_stage(attention(pieces)).values()
    sizes = 8 * pieces  # the numbers of the split, int64
    assert work == Work({"fp32": 2 * 60 * 60 * (8 + 8) + 5 * 60 * 60}, 4 * 4 * 8 * 60 + sizes)


def test_a_plugin_node_is_the_work_of_its_body(small_model_path: Path) -> None:
    model = onnx.load(small_model_path)
    standard = work_by_stage(model)
    assert fuse_attention(model)
    before = model.SerializeToString()
    assert sum(node.op_type == PLUGIN_OP for node in model.graph.node) == 4
    assert work_by_stage(model) == standard
    assert model.SerializeToString() == before  # it stays as it is


def test_an_exported_block_is_the_work_that_was_planned(small_model_path: Path, body: Any) -> None:
    works = work_by_stage(onnx.load(small_model_path))
    blocks = {name: module.wnlb for name, module in body.items() if hasattr(module, "wnlb")}
    assert len(blocks) == 4
    for name, block in blocks.items():
        level = int(name.removeprefix("layer")) + 1
        height, width = 64 >> level, 96 >> level
        plan = plan_attention(f"c{level}", block, height, width, 1, 2**28)
        n = plan.positions
        elementwise = 5 * n * n + 2 * n * plan.channels  # softmax; (1 - w) x and the sum
        assert works[f"c{level} block"].flops == {"fp32": plan.flops + elementwise}


# A whole network


def test_the_backbone_is_what_pytorch_counts(small_model_path: Path, body: Any) -> None:
    works = work_by_stage(onnx.load(small_model_path))
    elementwise = dict.fromkeys(("stem", "c2", "c3", "c4", "c5"), 0)

    def count(name: str, times: int) -> Any:
        def hook(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            elementwise[name] += times * output.numel()

        return hook

    for name, module in body.named_modules():
        stage = stage_of(f"body.{name}/")
        if type(module).__name__ in ("ReLU", "BasicBlock"):  # a block's sum has the size of its output
            module.register_forward_hook(count(str(stage), 1))
    body.maxpool.register_forward_hook(count("stem", 9))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        body(torch.zeros(1, 3, 64, 96))
    counts = {name: sum(ops.values()) for name, ops in counter.get_flop_counts().items()}
    prefix = next(name for name in counts if name.endswith("conv1") and "layer" not in name).removesuffix("conv1")
    expected = {"stem": counts[f"{prefix}conv1"]}
    for level in range(1, 5):
        layer = f"{prefix}layer{level}"
        expected[f"c{level + 1}"] = counts[layer] - counts[f"{layer}.wnlb"]
    for stage, convolutions in expected.items():
        assert works[stage].flops == {"fp32": convolutions + elementwise[stage]}


def test_every_stage_of_an_exported_file_has_work(small_model_path: Path) -> None:
    works = work_by_stage(onnx.load(small_model_path))
    of_solov2 = {"cells", "mask features", "masks", "matrix nms"}
    assert [stage for stage in works if not stage.endswith("block")] == [s for s in STAGES if s not in of_solov2]
    assert all(work.flops and work.bytes for work in works.values())
