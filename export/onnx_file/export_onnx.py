"""From an eager network to one verified ONNX file."""

from __future__ import annotations

import dataclasses
import importlib.metadata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import torch
from torchvision.models.detection import MaskRCNN

from wnlb.export.backbone import blocks_by_level
from wnlb.export.checkpoints.checkpoint import Origin
from wnlb.export.checkpoints.configurations.settings import TORCHVISION as TORCHVISION_SETTINGS
from wnlb.export.graph.attention import AttentionPlan
from wnlb.export.graph.deploy import DeployGraph
from wnlb.export.graph.solov2 import Solov2Graph
from wnlb.export.onnx_file.fuse import PLUGIN_OP, RUNTIME_OP, fuse_attention, use_multi_head_attention
from wnlb.export.onnx_file.lint import lint
from wnlb.export.onnx_file.passes import name_by_module, name_rows, set_metadata
from wnlb.export.onnx_file.reference import Eager
from wnlb.export.onnx_file.trace import OPSET, traced
from wnlb.export.onnx_file.verify import CASES, CaseReport, Graph, verify
from wnlb.export.options import ExportOptions
from wnlb.export.solov2 import Solov2
from wnlb.runtime.contract import METADATA_KEY, Contract
from wnlb.runtime.conventions import FRAMEWORKS, TORCHVISION
from wnlb.runtime.errors import GraphError, WnlbError
from wnlb.runtime.files import atomic_path

# Forms of attention that are one node, how it gets into the file, and what it is called.
REPLACED = {"plugin": (fuse_attention, PLUGIN_OP), "multi-head": (use_multi_head_attention, RUNTIME_OP)}
STEPS = ("fold", "trace", "lint", *(f"verify: {case}" for case in CASES))


@dataclass(frozen=True)
class ExportReport:
    """What was written and how it compared with the eager model."""

    contract: Contract
    plans: list[AttentionPlan]
    cases: list[CaseReport]


def export_onnx(
    model: MaskRCNN | Solov2,
    path: Path | str,
    options: ExportOptions,
    *,
    class_names: tuple[str, ...] = (),
    origin: Origin | None = None,
    checkpoint_sha256: str = "",
    checkpoint_weights: str = "",
    on_plan: Callable[[list[AttentionPlan]], None] = lambda plans: None,
    on_step: Callable[[str], None] = lambda step: None,
) -> ExportReport:
    """Write ``model`` as one ONNX file, verified against the eager network.

    Args:
        model: a torchvision ``MaskRCNN`` with FPN, or a ``Solov2``. Counts and thresholds of ``options`` are set on it.
        path: the file to write. It appears only when everything has held.
        class_names: one for each class but the background; ``class 1`` ... where there are none.
        origin: of a model that another framework trained: it is computed, and verified, as that computes it.
        checkpoint_sha256, checkpoint_weights: where it came from, for the contract.
        on_plan: called with the attention plans before anything is built.
        on_step: called with each of ``STEPS`` as it begins.

    Raises:
        GraphError: the graph breaks a rule, see ``wnlb.export.onnx_file.lint``.
        VerificationError: the file computes something else than the model.
        CheckpointError: pictures of this network are padded to other sizes.
    """
    if origin and not options.resize:
        origin.settings.check_size(options.height, options.width)
    configure(model.float(), options)
    on_step("fold")
    graph = deploy_graph(model, options, origin)
    on_plan(graph.plans)
    contract = dataclasses.replace(
        make_contract(model, graph, options, class_names, origin),
        checkpoint_sha256=checkpoint_sha256,
        checkpoint_weights=checkpoint_weights,
    )
    on_step("trace")
    file = trace(graph, contract)
    name_by_module(file)
    name_rows(file)
    paths = [path.removeprefix("backbone.") for _, path, _ in blocks_by_level(model)]
    for form, replace in REPLACED.items():
        scopes = [f"{path}/" for path, plan in zip(paths, graph.plans, strict=True) if plan.form == form]
        _replace_attention(file, scopes, form, *replace)
    set_metadata(file, {METADATA_KEY: contract.to_json()})
    on_step("lint")
    lint(file, contract)
    with atomic_path(path) as temporary:
        onnx.save(file, temporary)
        cases = verify(temporary, Eager(model, origin), graph, lambda name: on_step(f"verify: {name}"))
    return ExportReport(contract, graph.plans, cases)


def deploy_graph(model: MaskRCNN | Solov2, options: ExportOptions, origin: Origin | None) -> Graph:
    """The static graph of a network whose counts and thresholds are set."""
    if isinstance(model, Solov2):
        return Solov2Graph(model, options)
    return DeployGraph(model, options, origin.conventions if origin else TORCHVISION)


def configure(model: MaskRCNN | Solov2, options: ExportOptions) -> None:
    """Give the eager model the counts and thresholds of ``options``, and evaluation mode.

    Raises:
        WnlbError: one of them is of something that the network does not have.
    """
    model.eval()
    if isinstance(model, Solov2):
        model.selection = model.selection.with_options(options)
        return
    if options.masks == "frame":
        raise WnlbError("masks is 'frame', which this network does not make; expected none, or leave it out")
    for name, attribute in (("pre_nms_top_n", "_pre_nms_top_n"), ("post_nms_top_n", "_post_nms_top_n")):
        if (count := getattr(options, name)) is not None:
            getattr(model.rpn, attribute)["testing"] = count
    for name, attribute in (
        ("detections", "detections_per_img"),
        ("score_threshold", "score_thresh"),
        ("nms_threshold", "nms_thresh"),
    ):
        if (value := getattr(options, name)) is not None:
            setattr(model.roi_heads, attribute, value)
    rows = model.roi_heads.detections_per_img
    if options.mask_rows is not None and options.mask_rows > rows:
        raise WnlbError(
            f"mask_rows is {options.mask_rows}, but there are {rows} rows of detections; expected at most {rows}: "
            "leave it out for masks of all"
        )


def make_contract(
    model: MaskRCNN | Solov2,
    graph: Graph,
    options: ExportOptions,
    class_names: tuple[str, ...],
    origin: Origin | None = None,
) -> Contract:
    """The contract of a graph, of which no checkpoint is told.

    Raises:
        GraphError: the number of class names does not fit.
    """
    own, classes, mean, std = _of_solov2(model) if isinstance(model, Solov2) else _of_mask_rcnn(model, options)
    names = class_names or tuple(f"class {i + 1}" for i in range(classes))
    if len(names) != classes:
        raise GraphError(f"{len(names)} class names for {classes} classes; expected one for each but the background")
    settings = origin.settings if origin else TORCHVISION_SETTINGS
    resize = options.resize or settings.resize or "fit"
    rows = graph.detect.detections
    return Contract(
        batch=options.batch,
        min_batch=options.min_batch,
        height=options.height,
        width=options.width,
        class_names=names,
        detections=rows,
        mask_rows=options.mask_rows if (options.mask_rows or rows) < rows else None,
        candidates=options.candidates,
        framework=settings.framework,
        resize=resize,
        # An asked-for way of resizing fills the input, as torchvision's models do.
        scale=settings.scale if origin and not options.resize else None,
        interpolation=options.interpolation or settings.interpolation or "bilinear",
        # All frameworks pad with zeros after normalising: with the mean, before it.
        pad_rgb=(round(255 * mean[0]), round(255 * mean[1]), round(255 * mean[2])),
        mean=tuple(mean),
        std=tuple(std),
        masks=options.masks or FRAMEWORKS[settings.framework].masks,
        target=options.target,
        attention={plan.level: f"{plan.mode}/{plan.form}" for plan in graph.plans},
        opset=OPSET,
        tool_version=importlib.metadata.version("wnlb-deploy"),
        checkpoint_settings=settings.told() if origin else _untold(model),
        **own,
    )


def _untold(model: MaskRCNN | Solov2) -> dict[str, Any]:
    """What a torchvision model computes with and its weights do not tell: fields of ``ModelConfig``."""
    if isinstance(model, Solov2):
        return {}
    generator: Any = model.rpn.anchor_generator
    dot = any(block.mode == "dot" for _, _, block in blocks_by_level(model))  # which has the weights of "embedded"
    return {
        "norm_eps": model.backbone.body.bn1.eps,
        "anchor_sizes": [list(sizes) for sizes in generator.sizes],
        "aspect_ratios": [list(ratios) for ratios in generator.aspect_ratios],
        **({"mode": "dot"} if dot else {}),
    }


_Own = tuple[dict[str, Any], int, Sequence[float], Sequence[float]]  # entries; classes; mean and std of RGB in 0..1


def _of_mask_rcnn(model: MaskRCNN, options: ExportOptions) -> _Own:
    entries = {
        "score_threshold": model.roi_heads.score_thresh,
        "nms_threshold": model.roi_heads.nms_thresh,
        "rpn_nms_threshold": model.rpn.nms_thresh,
        "pre_nms_top_n": model.rpn.pre_nms_top_n(),
        "post_nms_top_n": model.rpn.post_nms_top_n(),
        "nms_rounds": options.nms_rounds,
    }
    classes = model.roi_heads.box_predictor.cls_score.out_features - 1
    return entries, classes, model.transform.image_mean, model.transform.image_std


def _of_solov2(model: Solov2) -> _Own:
    absent = ("nms_threshold", "rpn_nms_threshold", "pre_nms_top_n", "post_nms_top_n", "nms_rounds")
    entries = {"score_threshold": model.selection.score_threshold, **dict.fromkeys(absent)}
    return entries, model.config.num_classes - 1, model.config.image_mean, model.config.image_std


def _replace_attention(
    file: onnx.ModelProto, scopes: list[str], form: str, replace: Callable[..., bool], operator: str
) -> None:
    """One node for each block, given by how the names of its nodes begin."""
    if scopes:
        replace(file, tuple(scopes))
        made = sum(node.op_type == operator for node in file.graph.node)
        if made != len(scopes):
            raise GraphError(
                f"{made} of {len(scopes)} attentions became {form} nodes; export with --attention standard"
            )


def trace(graph: Graph, contract: Contract) -> onnx.ModelProto:
    """``graph`` as ONNX."""
    examples = {
        name: torch.zeros(shape, dtype=getattr(torch, contract.types[name]))
        for name, shape in contract.input_shapes.items()
    }
    batches = None if contract.min_batch is None else contract.batches
    expected = "expected a Mask R-CNN or SOLOv2 with FPN (torch 2.9 or later is known to trace it)"
    return traced(graph, examples, tuple(contract.output_shapes), batches, expected)
