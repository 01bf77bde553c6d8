"""ONNX files, read with the ``onnx`` package (which a machine that only runs engines does not have)."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wnlb.runtime.contract import BATCH, METADATA_KEY, Contract
from wnlb.runtime.errors import ContractError, WnlbError

if TYPE_CHECKING:
    import onnx

_MOST_VALUES = 1024  # of a constant whose values shapes may depend on


def read_onnx(path: Path) -> onnx.ModelProto:
    """An ONNX file, ours or not. Raises WnlbError where the file is not there or no ONNX file."""
    import onnx
    from google.protobuf.message import DecodeError

    if not path.is_file():
        raise WnlbError(f"{path} {'is a folder' if path.is_dir() else 'does not exist'}; expected an ONNX file")
    try:
        model = onnx.load(path, format="protobuf", load_external_data=False)
        _read_text(model)
    except (DecodeError, OSError, ValueError, MemoryError) as error:
        raise WnlbError(f"{path} is not a readable ONNX file: {error}") from error
    if not model.graph.node:
        raise WnlbError(f"{path} is not a readable ONNX file: its graph is empty")
    return model


def _read_text(message: Any) -> None:
    """Look at every text of a file once, for protobuf decodes them only when they are read.

    Raises ValueError (UnicodeDecodeError is one) for what is no text; some versions of protobuf give its bytes instead.
    """
    left = [message]
    while left:
        for field, value in left.pop().ListFields():  # one text or number, one message, or a row of them
            items = [value] if hasattr(value, "ListFields") or isinstance(value, (str, bytes)) else value
            if field.message_type is not None:
                left.extend(items)
            elif field.type == field.TYPE_STRING and not all(isinstance(item, str) for item in items):
                raise ValueError(f"its field {field.name} is no text in UTF-8")


def contract_of(model: onnx.ModelProto) -> Contract | None:
    """None for a file that ``wnlb export`` did not write. Raises ContractError for a contract that does not fit."""
    text = next((entry.value for entry in model.metadata_props if entry.key == METADATA_KEY), None)
    return None if text is None else Contract.from_json(text)


def no_contract(path: Path | str) -> str:
    """What is missing in a file of another tool, and what to do."""
    return (
        f"model {path} has no wnlb contract, which says how frames go in and detections come out; expected a file that "
        "'wnlb export' wrote, or 'wnlb adopt' of a YOLO-seg file"
    )


def read_model(path: Path) -> tuple[onnx.ModelProto, Contract]:
    """An ONNX file of ours and its contract. Raises WnlbError where it is none."""
    model = read_onnx(path)
    contract = contract_of(model)
    if contract is None:
        raise ContractError(no_contract(path))
    return model, contract


def with_shapes(model: onnx.ModelProto, strict: bool = False, batch: int | None = None) -> onnx.ModelProto:
    """A copy without local functions, with all types and shapes that can be inferred.

    Large weights are only declared in it, as inputs: their values do not matter, and copies of them take time.

    Args:
        batch: of a file whose first axis is open, the frames that it is to be taken for.

    Raises:
        onnx.shape_inference.InferenceError: ``strict``, and shapes do not fit.
    """
    import onnx
    from onnx import helper, inliner, shape_inference

    graph = onnx.GraphProto(name=model.graph.name, node=model.graph.node, input=model.graph.input)
    graph.output.extend(model.graph.output)
    graph.value_info.extend(model.graph.value_info)
    if batch is not None:
        _close_batch(graph, batch)
    declared = {value.name for value in graph.input}
    for tensor in model.graph.initializer:
        if math.prod(tensor.dims) <= _MOST_VALUES:
            graph.initializer.append(tensor)
        elif tensor.name not in declared:
            graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    light = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import, functions=model.functions)
    light.graph.CopyFrom(graph)
    if model.functions:
        light = inliner.inline_local_functions(light)
    return shape_inference.infer_shapes(light, strict_mode=strict, data_prop=True)


def _close_batch(graph: onnx.GraphProto, batch: int) -> None:
    """A number for the batch in all that is stated of shapes; what is not known then either is not stated."""
    stated = list(graph.value_info)
    del graph.value_info[:]
    for value in (*graph.input, *graph.output, *stated):
        for dim in value.type.tensor_type.shape.dim:
            if dim.HasField("dim_param"):
                text = re.sub(rf"\b{BATCH}\b", str(batch), dim.dim_param)
                if re.fullmatch(r"\d+(\*\d+)*", text):
                    dim.dim_value = math.prod(map(int, text.split("*")))
                else:
                    dim.dim_param = text
    known = [value for value in stated if all(_is_known(dim) for dim in value.type.tensor_type.shape.dim)]
    graph.value_info.extend(known)


def _is_known(dim: onnx.TensorShapeProto.Dimension) -> bool:
    """As a number, or as one that depends on the rows that are found."""
    return dim.HasField("dim_value") or "rows" in dim.dim_param


def described(value: Any) -> str:
    """Type and shape of a graph's input or output, ``"float32 [1, 3, ?]"``."""
    from onnx import helper

    tensor = value.type.tensor_type
    if not tensor.elem_type:  # a sequence, an optional, or not stated
        return value.type.WhichOneof("value") or "unknown"
    dims = [d.dim_value if d.HasField("dim_value") else d.dim_param or "?" for d in tensor.shape.dim]
    try:
        name = helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
    except KeyError:
        name = f"type {tensor.elem_type}"
    return f"{name} [{', '.join(map(str, dims))}]"
