"""The rules that every exported file keeps; they are what makes it run everywhere."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper, shape_inference

from wnlb.export.onnx_file.fuse import PLUGIN_OP, RUNTIME_DOMAIN, RUNTIME_OP, unfuse_attention
from wnlb.export.options import MAX_TOP_K
from wnlb.runtime.contract import Contract
from wnlb.runtime.conventions import MASK_RCNN
from wnlb.runtime.errors import GraphError
from wnlb.runtime.onnx_file import with_shapes

OPERATORS = frozenset(
    "Add And Cast Ceil Clip Concat Conv Div Equal Exp Expand Floor Gather GatherElements Gemm Greater "
    "GreaterOrEqual GridSample Less LessOrEqual MatMul Max MaxPool Min Mod Mul Not Pad ReduceMean ReduceSum Relu "
    "Reshape Resize Sigmoid Slice Softmax Split Squeeze Sub TopK Transpose Unsqueeze Where".split()
)
# In networks that are no Mask R-CNN: SOLOv2, and those that other tools wrote.
FOREIGN_OPERATORS = frozenset("ArgMax ConvTranspose InstanceNormalization ReduceMax ReduceMin".split())
# In files for a CPU alone. TensorRT-RTX needs a GPU to parse RoiAlign.
CPU_OPERATORS = frozenset(
    (
        *("CumSum", "NonMaxSuppression", "Range", "ReduceMax", "RoiAlign"),
        *("ScatterElements", "ScatterND", "Shape"),
        f"{RUNTIME_DOMAIN}.{RUNTIME_OP}",
    )
)
# The nodes of these files whose outputs may have a size that depends on data: as many rows as boxes are found or kept.
CPU_ROWS = ("detect.found", "detect.mask", "detect.nms", "rpn.nms")
# Of these those whose outputs may have it twice: every mask with every other.
CPU_SQUARES = ("detect.found.nms",)
# In files whose batch is open, for the numbers of their images.
BATCH_OPERATORS = frozenset(("Range", "Shape"))
# In files whose contract says INT8.
QUANTIZERS = frozenset(("QuantizeLinear", "DequantizeLinear"))


def lint(model: onnx.ModelProto, contract: Contract) -> None:
    """Raise GraphError listing every rule that ``model`` breaks.

    Inputs and outputs are those of the contract; only standard operators of ``OPERATORS`` (also of
    ``FOREIGN_OPERATORS`` in a network that is no Mask R-CNN, of ``CPU_OPERATORS`` in a file for a CPU, of
    ``BATCH_OPERATORS`` where the batch is open, of ``QUANTIZERS`` in an INT8 file), without subgraphs; no functions but
    the bodies of the plugin nodes that the contract tells of, which keep the same rules; every shape known once the
    batch is, but for one size of each tensor of NMS and masks in a file for a CPU (in Matrix NMS two); TopK
    within
    TensorRT's limit; inputs go straight into Cast.
    """
    promised = sum(form.endswith("/plugin") for form in contract.attention.values())
    found = sum(node.op_type == PLUGIN_OP for node in model.graph.node)
    if found != promised:
        raise GraphError(f"the graph has {found} plugin nodes, its contract tells of {promised}")
    if found:
        whole, model = model, onnx.ModelProto()
        model.CopyFrom(whole)
        unfuse_attention(model)
    problems = [*_interface(model, contract), *_operators(model, contract)]
    ends = {None} if contract.min_batch is None else {contract.batches[0], contract.batches[-1]}
    problems += dict.fromkeys(problem for batch in ends for problem in _shapes(model, contract, batch))
    problems += [*_top_k(model), *_input_cast(model)]
    if problems:
        more = f" and {len(problems) - 8} more" if len(problems) > 8 else ""
        raise GraphError(f"the graph breaks {len(problems)} rules: {'; '.join(problems[:8])}{more}")


def _interface(model: onnx.ModelProto, contract: Contract) -> list[str]:
    types = {name: helper.np_dtype_to_tensor_dtype(np.dtype(kind)) for name, kind in contract.types.items()}
    expected_in = {name: (types[name], shape) for name, shape in contract.stated(contract.input_shapes).items()}
    expected_out = {name: (types[name], shape) for name, shape in contract.stated(contract.output_shapes).items()}
    problems = []
    for kind, values, expected in (
        ("input", model.graph.input, expected_in),
        ("output", model.graph.output, expected_out),
    ):
        got = {value.name: (value.type.tensor_type.elem_type, _shape(value)) for value in values}
        problems += [
            f"{kind} {name} is {_described(got.get(name))}, expected {_described(expected.get(name))}"
            for name in sorted(got.keys() | expected.keys())
            if got.get(name) != expected.get(name)
        ]
        if not problems and list(got) != list(expected):
            problems.append(f"{kind}s are in the order {', '.join(got)}, expected {', '.join(expected)}")
    return problems


def _operators(model: onnx.ModelProto, contract: Contract) -> list[str]:
    allowed = OPERATORS | (CPU_OPERATORS if contract.target == "cpu" else frozenset())
    allowed |= FOREIGN_OPERATORS if contract.framework not in MASK_RCNN else frozenset()
    allowed |= BATCH_OPERATORS if contract.min_batch is not None else frozenset()
    allowed |= QUANTIZERS if contract.precision.startswith("int8") else frozenset()
    found = {f"{node.domain}.{node.op_type}".removeprefix(".") for node in model.graph.node}
    problems = [f"operator {name} is not allowed" for name in sorted(found - allowed)]
    return problems + (["it has local functions"] if model.functions else [])


def _shapes(model: onnx.ModelProto, contract: Contract, batch: int | None) -> list[str]:
    try:
        graph = with_shapes(model, strict=True, batch=batch).graph
    except shape_inference.InferenceError as error:
        return [f"shapes do not fit: {str(error).splitlines()[0]}"]
    known = {value.name: _shape(value) for value in (*graph.value_info, *graph.output)}
    problems = []
    for node in graph.node:
        with_rows = contract.target == "cpu" and node.name.startswith(CPU_ROWS)
        most = 2 if node.name.startswith(CPU_SQUARES) else 1
        expected = "whole numbers" + f" and {('once', 'twice')[most - 1]}, at most, a number of rows" * with_rows
        for output in filter(None, node.output):
            shape = known.get(output)
            open_sizes = ["unknown"] if shape is None else [size for size in shape if not isinstance(size, int)]
            rows = with_rows and len(open_sizes) <= most and all("rows" in size for size in open_sizes)
            if open_sizes and not rows:
                found = list(shape or ["unknown"])
                problems.append(f"{output} of {node.name} has the shape {found}, expected {expected}")
    return problems


def _top_k(model: onnx.ModelProto) -> list[str]:
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    problems = []
    for node in model.graph.node:
        if node.op_type == "TopK":
            k = numpy_helper.to_array(constants[node.input[1]]).item() if node.input[1] in constants else None
            if k is None or k > MAX_TOP_K:
                problems.append(f"{node.name} takes the best {k or 'variable'}, expected at most {MAX_TOP_K}")
    return problems


def _input_cast(model: onnx.ModelProto) -> list[str]:
    inputs = {value.name for value in model.graph.input}
    return [
        f"input goes into {node.name} ({node.op_type}), expected Cast"
        for node in model.graph.node
        if inputs & set(node.input) and node.op_type != "Cast"
    ]


def _shape(value: onnx.ValueInfoProto) -> tuple[int | str, ...]:
    """Dimensions; a name or "?" where one is not a number."""
    dims = value.type.tensor_type.shape.dim
    return tuple(dim.dim_value if dim.HasField("dim_value") else dim.dim_param or "?" for dim in dims)


def _described(value: tuple[int, tuple[int | str, ...]] | None) -> str:
    if value is None:
        return "absent"
    return f"{helper.tensor_dtype_to_string(value[0]).rpartition('.')[2].lower()} {list(value[1])}"
