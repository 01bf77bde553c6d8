"""Graph passes, in place and idempotent; those of a whole file say whether they changed it."""

from __future__ import annotations

import ast
import re
from collections import Counter

import onnx
import onnx_ir
from onnx import helper
from onnx_ir.passes import common
from onnxscript import optimizer

from wnlb.export.onnx_file.open_sizes import drop_idle, shapes_behind_casts, state_targets

_SCOPES = "pkg.torch.onnx.name_scopes"
_NOWHERE = "_empty_nn_module_stack_from_metadata_hook"  # the module of what PyTorch adds, such as the size of a batch


def simplify(model: onnx_ir.Model, open_batch: bool = False) -> None:
    """What a graph of PyTorch's exporter needs: functions inlined, constants folded, nothing unused or twice.

    With ``open_batch`` also constants for what Reshape and Expand make, see ``state_targets``.

    ``onnxscript.optimizer.optimize``, which the exporter calls by default, also tries its rewrite rules at every node.
    That takes 40 % of an export and finds next to nothing in these graphs.
    """
    common.InlinePass()(model)
    optimizer.fold_constants(model)
    drop_idle(model)
    if open_batch:
        state_targets(model)
        shapes_behind_casts(model)
    for clean in (
        common.RemoveUnusedNodesPass(),
        common.RemoveUnusedFunctionsPass(),
        common.RemoveUnusedOpsetsPass(),
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.DeduplicateInitializersPass(),
        common.CommonSubexpressionEliminationPass(),
    ):
        clean(model)


def name_by_module(model: onnx.ModelProto) -> bool:
    """Name every node after the module it came from, and its outputs after the node.

    ``body.layer2.wnlb.theta/Conv`` and so on: names that stay the same from one PyTorch to the next, by which stages
    are profiled and tensors compared. Inputs, outputs and weights of the graph keep their names. What the exporter
    noted of source lines, with paths of the exporting machine, is removed.
    """
    graph = model.graph
    before = _but_weights(graph)
    fixed = {value.name for value in (*graph.input, *graph.output, *graph.initializer)}
    used: Counter[str] = Counter()
    renamed: dict[str, str] = {}
    for node in graph.node:
        scopes = next((entry.value for entry in node.metadata_props if entry.key == _SCOPES), None)
        if scopes is not None:
            module = ast.literal_eval(scopes)[-2]
            module = "graph" if module in ("", _NOWHERE) else module
            used[f"{module}/{node.op_type}"] += 1
            number = used[f"{module}/{node.op_type}"]
            node.name = f"{module}/{node.op_type}" + (f"_{number}" if number > 1 else "")
            for i, output in enumerate(node.output):
                if output and output not in fixed:
                    renamed[output] = f"{node.name}:{i}"
        node.ClearField("metadata_props")
        node.ClearField("doc_string")
    for node in graph.node:
        _replace(node.input, renamed)
        _replace(node.output, renamed)
    for value in (*graph.value_info, *graph.input, *graph.output):
        value.name = renamed.get(value.name, value.name)
        value.ClearField("metadata_props")
    for tensor in graph.initializer:
        tensor.ClearField("metadata_props")
    graph.ClearField("metadata_props")
    return _but_weights(graph) != before


def name_rows(model: onnx.ModelProto) -> bool:
    """Name the sizes that depend on data ``rows0``, ``rows1``, ...; PyTorch's exporter calls them u0, u1, ...

    What NonMaxSuppression gives is no tensor of PyTorch's and has no name: those are ``rows100``, ...
    """
    before = _but_weights(model.graph)
    kept = [node for node in model.graph.node if node.op_type == "NonMaxSuppression"]
    known = {value.name for value in model.graph.value_info}
    model.graph.value_info.extend(
        helper.make_tensor_value_info(node.output[0], onnx.TensorProto.INT64, [f"rows{number}", 3])
        for number, node in enumerate(kept, 100)
        if node.output[0] not in known
    )
    for value in (*model.graph.value_info, *model.graph.input, *model.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.HasField("dim_param"):
                dim.dim_param = re.sub(r"\bu(\d+)\b", r"rows\1", dim.dim_param)
    return _but_weights(model.graph) != before


def set_metadata(model: onnx.ModelProto, values: dict[str, str]) -> bool:
    """Set entries of the model's metadata; others stay."""
    before = {entry.key: entry.value for entry in model.metadata_props}
    onnx.helper.set_model_props(model, {**before, **values})
    return before != {**before, **values}


def _but_weights(graph: onnx.GraphProto) -> list[bytes]:
    """What passes that name things can change: all but the weights, which are hundreds of MiB."""
    notes = [entry for part in (graph, *graph.initializer) for entry in part.metadata_props]
    parts = (*graph.node, *graph.input, *graph.output, *graph.value_info, *notes)
    return [part.SerializeToString(deterministic=True) for part in parts]


def _replace(names: list[str], renamed: dict[str, str]) -> None:
    for i, name in enumerate(names):
        if name in renamed:
            names[i] = renamed[name]
