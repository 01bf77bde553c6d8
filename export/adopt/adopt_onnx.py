"""From a segmentation file of another tool to one of ours, verified against the original."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor

from wnlb.export.adopt.families.body import static_body
from wnlb.export.adopt.families.foreign import ForeignFile
from wnlb.export.adopt.families.parts import Block
from wnlb.export.adopt.join import joined
from wnlb.export.adopt.softmax_across import spread_softmax
from wnlb.export.adopt.verify_adopted import CaseReport, verify_adopted
from wnlb.export.graph.attention import AttentionPlan, plan_attention
from wnlb.export.onnx_file.attention_pieces import cut_attention
from wnlb.export.onnx_file.fuse import PLUGIN_OP, RUNTIME_OP, fuse_attention, use_multi_head_attention
from wnlb.export.onnx_file.lint import lint
from wnlb.export.onnx_file.passes import name_by_module, name_rows, set_metadata
from wnlb.export.onnx_file.trace import traced
from wnlb.export.onnx_file.verify import CASES
from wnlb.export.options import ExportOptions
from wnlb.runtime.contract import CONTENT, METADATA_KEY, Contract
from wnlb.runtime.errors import GraphError, WnlbError
from wnlb.runtime.files import atomic_path

STEPS = ("network", "input and output", "lint", *(f"verify: {case}" for case in CASES))
_REPLACED = {"plugin": (fuse_attention, PLUGIN_OP), "multi-head": (use_multi_head_attention, RUNTIME_OP)}
_TRACES = "torch 2.9 or later is known to trace it"


@dataclass(frozen=True)
class AdoptReport:
    """What was written and how it compared with the original."""

    contract: Contract
    plans: list[AttentionPlan]
    cases: list[CaseReport]


def adopt_onnx(
    file: ForeignFile,
    path: Path | str,
    options: ExportOptions,
    *,
    original: Path,
    sha256: str = "",
    on_plan: Callable[[list[AttentionPlan]], None] = lambda plans: None,
    on_step: Callable[[str], None] = lambda step: None,
) -> AdoptReport:
    """Write what a file of another tool computes as one of ours.

    Args:
        file: what was recognised.
        path: the file to write. It appears only when everything has held.
        options: size, counts, thresholds, attention, target.
        original: the file itself, as ONNX Runtime opens it for the verification.
        sha256: of it, for the contract.
        on_plan: called with the plans of its blocks.
        on_step: called with each of ``STEPS`` as it begins.

    Raises:
        GraphError: the network cannot be static, or the graph breaks a rule, see ``wnlb.export.onnx_file.lint``.
        VerificationError: the file computes something else than the original.
    """
    on_step("network")
    batches = None if options.min_batch is None else range(options.min_batch, options.batch + 1)
    body = static_body(file.model, (options.height, options.width), options.batch, batches)
    if options.target == "cpu":
        spread_softmax(body)
    blocks = file.name_parts(body)
    plans = _plans(blocks, options)
    on_plan(plans)
    contract = Contract(
        batch=options.batch,
        min_batch=options.min_batch,
        height=options.height,
        width=options.width,
        class_names=file.class_names,
        rpn_nms_threshold=None,
        pre_nms_top_n=None,
        post_nms_top_n=None,
        candidates=options.candidates,
        masks="none" if options.masks == "none" else "frame",
        target=options.target,
        attention={plan.level: f"{plan.mode}/{plan.form}" for plan in plans},
        opset=next(entry.version for entry in body.opset_import if entry.domain in ("", "ai.onnx")),
        tool_version=importlib.metadata.version("wnlb-deploy"),
        checkpoint_sha256=sha256,
        **file.entries(options),
    )
    on_step("input and output")
    graph = file.output_graph(options)
    model = joined(_before(file, contract, batches), body, _behind(graph, file, body, contract, batches), contract)
    name_rows(model)
    _form_attention(model, blocks, plans)
    set_metadata(model, {METADATA_KEY: contract.to_json()})
    on_step("lint")
    lint(model, contract)
    with atomic_path(path) as temporary:
        onnx.save(model, temporary)
        cases = verify_adopted(temporary, original, file, graph, options, lambda name: on_step(f"verify: {name}"))
    return AdoptReport(contract, plans, cases)


def _plans(blocks: list[Block], options: ExportOptions) -> list[AttentionPlan]:
    plans = [
        plan_attention(
            block.level,
            block,
            block.height,
            block.width,
            options.batch,
            options.attention_bytes,
            options.attention_form(block.level),
            options.target == "cpu",
        )
        for block in blocks
    ]
    unknown = options.attention_levels - {plan.level for plan in plans}
    if unknown:
        levels = ", ".join(plan.level for plan in plans) or "none"
        raise WnlbError(f"attention of {', '.join(sorted(unknown))} was asked for; the file has blocks at {levels}")
    return plans


def _before(file: ForeignFile, contract: Contract, batches: range | None) -> onnx.ModelProto:
    examples = {
        name: torch.zeros(shape, dtype=getattr(torch, contract.types[name]))
        for name, shape in contract.input_shapes.items()
    }
    model = traced(file.input_graph(contract.height, contract.width), examples, ("network",), batches, _TRACES)
    name_by_module(model)
    return model


def _behind(
    graph: Any, file: ForeignFile, body: onnx.ModelProto, contract: Contract, batches: range | None
) -> onnx.ModelProto:
    shapes = {
        value.name: [dim.dim_value or contract.batch for dim in value.type.tensor_type.shape.dim]
        for value in body.graph.output
    }
    examples: dict[str, Tensor] = {name: torch.zeros(shapes[name]) for name in file.outputs}
    examples[CONTENT] = torch.zeros(contract.input_shapes[CONTENT], dtype=torch.int32)
    model = traced(graph, examples, tuple(contract.output_shapes), batches, _TRACES)
    name_by_module(model)
    return model


def _form_attention(model: onnx.ModelProto, blocks: list[Block], plans: list[AttentionPlan]) -> None:
    """Cut where it was planned, then one node where that was asked for."""
    scopes = {f"{block.scope}/": plan for block, plan in zip(blocks, plans, strict=True)}
    cut_attention(model, {scope: plan.chunks for scope, plan in scopes.items() if plan.form != "multi-head"})
    for form, (replace, operator) in _REPLACED.items():
        wanted = tuple(scope for scope, plan in scopes.items() if plan.form == form)
        if wanted:
            replace(model, wanted)
            made = sum(node.op_type == operator for node in model.graph.node)
            if made != len(wanted):
                raise GraphError(
                    f"{made} of {len(wanted)} attentions became {form} nodes; adopt with --attention standard"
                )
