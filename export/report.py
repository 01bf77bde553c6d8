"""What ``wnlb export`` tells: the plan and the verification, as text and as JSON."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from wnlb.export.checkpoints.checkpoint import LoadedCheckpoint
from wnlb.export.graph.attention import AttentionPlan, plan_table
from wnlb.export.onnx_file.export_onnx import ExportReport
from wnlb.export.onnx_file.verify import tried_batches
from wnlb.export.options import ExportOptions
from wnlb.runtime.files import sha256_of
from wnlb.runtime.table import table


def plan_text(path: Path, checkpoint: LoadedCheckpoint, plans: list[AttentionPlan], options: ExportOptions) -> str:
    """What was read of the checkpoint ``path``, and how its attention will be computed."""
    config = checkpoint.config
    kind = f"{config.mode} blocks {config.placement}" if plans else "no blocks"
    network = f"{config.backbone}, {config.num_classes - 1} classes, {kind}"
    if checkpoint.origin:
        network = f"{checkpoint.origin.settings.framework}, style {checkpoint.origin.settings.style}, {network}"
    header = f"{path.name}: {network}; input {options.height}x{options.width}"
    if checkpoint.others:
        header += f"\nweights: {checkpoint.weights}; also there: {', '.join(checkpoint.others)} (--weights NAME)"
    header += "".join(f"\nhint: {hint}" for hint in checkpoint.hints)
    return f"{header}\n\n{plan_table(plans)}\n" if plans else f"{header}\n"


def verification_text(report: ExportReport) -> str:
    """How the file compared with the eager model."""
    contract = report.contract
    rows = [
        (
            case.name,
            case.found.detections,
            *(f"{error:.1e}" for error in case.found.errors.values()),
            f"{max(case.chains.values())} of {contract.nms_rounds}" if case.chains else "as needed",
        )
        for case in report.cases
    ]
    columns = ("verified on", "detections", "boxes px", "scores", "masks", "NMS rounds")
    sizes = "" if contract.min_batch is None else f", in batches of {', '.join(map(str, tried_batches(contract)))}"
    return f"same detections as the eager model{sizes}; largest differences:\n\n" + table(columns, rows)


def json_of(report: ExportReport, checkpoint: LoadedCheckpoint, output: Path) -> dict[str, Any]:
    """All of it for programs."""
    return {
        "file": str(output),
        "bytes": output.stat().st_size,
        "sha256": sha256_of(output),
        "checkpoint_sha256": report.contract.checkpoint_sha256,
        "weights": {"taken": checkpoint.weights, "others": checkpoint.others},
        "hints": checkpoint.hints,
        "contract": json.loads(report.contract.to_json()),
        "plan": [{**dataclasses.asdict(plan), "positions": plan.positions} for plan in report.plans],
        "verification": [_flat(dataclasses.asdict(case)) for case in report.cases],
    }


def _flat(case: dict[str, Any]) -> dict[str, Any]:
    return {**case.pop("found"), **case}
