"""What the commands that write files have in common: their options, and how these are read."""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
from pathlib import Path
from typing import Any

from wnlb.export.options import ExportOptions
from wnlb.runtime.contract import INTERPOLATIONS, RESIZES, TARGETS
from wnlb.runtime.errors import WnlbError

DEFAULTS = {field.name: field.default for field in dataclasses.fields(ExportOptions)}


def add_file_arguments(parser: argparse.ArgumentParser, *, size: str, size_required: bool, classes: str) -> None:
    """The file to write, its size and its classes; ``size`` and ``classes`` say when they are needed."""
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="the ONNX file to write")
    parser.add_argument("--size", required=size_required, metavar="HxW", help=size)
    names = f"class names{classes}: one a line, a JSON list, or COCO's annotations"
    parser.add_argument("--classes", type=Path, metavar="FILE", help=names)
    parser.add_argument("--json", action="store_true", help="print plan and verification as JSON")


def add_graph_arguments(
    parser: argparse.ArgumentParser,
    *,
    masks: tuple[str, ...],
    masks_default: str,
    detections: str,
    score_threshold: str,
    nms_threshold: str,
    candidates: str,
) -> argparse._ArgumentGroup:
    """The group of what a graph computes, named as ``ExportOptions`` names it.

    Args:
        masks: the forms that there are.
        masks_default, detections, score_threshold, nms_threshold: what holds where they are not given.
        candidates: what enters the last NMS.
    """
    graph = parser.add_argument_group("graph")
    graph.add_argument(
        "--target",
        choices=TARGETS,
        default=DEFAULTS["target"],
        help="what the file is made for: gpu, for engines and FP16 or INT8; or cpu, for ONNX Runtime without a GPU, "
        "where masks cost what is found. It detects the same; one for gpu runs on both (default: %(default)s)",
    )
    graph.add_argument(
        "--batch",
        default=str(DEFAULTS["batch"]),
        metavar="N",
        help="frames per run; A-B for a file that takes any number from A to B, such as 1-8 (default: %(default)s)",
    )
    graph.add_argument(
        "--masks", choices=masks, help=f"none: boxes only, faster (default: {masks_default})", default=DEFAULTS["masks"]
    )
    graph.add_argument("--detections", type=int, metavar="N", help=f"rows of the outputs (default: {detections})")
    graph.add_argument("--score-threshold", type=float, metavar="S", help=f"default: {score_threshold}")
    graph.add_argument("--nms-threshold", type=float, metavar="IOU", help=f"default: {nms_threshold}")
    for option, what in (
        ("--candidates", candidates),
        ("--nms-rounds", "longest chain of overlapping boxes that NMS resolves"),
    ):
        default = DEFAULTS[option[2:].replace("-", "_")]
        graph.add_argument(option, type=int, default=default, metavar="N", help=f"{what} (default: %(default)s)")
    graph.add_argument(
        "--attention",
        default=DEFAULTS["attention"],
        metavar="FORM",
        help="of non-local blocks: standard operators, one node of our TensorRT plugin each (plugin), or the plugin "
        "where the standard form would be cut into chunks (auto); also per level: c2=plugin,c3=standard "
        "(default: %(default)s)",
    )
    graph.add_argument(
        "--attention-memory",
        metavar="SIZE",
        help="most that a piece of an attention matrix may take (default: 256MiB; 32MiB for --target cpu)",
    )
    return graph


def add_frame_arguments(parser: argparse.ArgumentParser, *, resize: str, interpolation: str) -> None:
    """The group of how frames get into the input; its arguments say what holds where they are not given."""
    frames = parser.add_argument_group("frames")
    both = "fit: keep the aspect ratio and pad; stretch; both fill the input"
    frames.add_argument("--resize", choices=RESIZES, help=f"{both} (default: {resize})")
    nearest = "nearest keeps sensor noise as it was in training on LIS"
    frames.add_argument("--interpolation", choices=INTERPOLATIONS, help=f"{nearest} (default: {interpolation})")


def add_weights_arguments(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """The group of how a checkpoint is read; see ``overrides_of``."""
    reading = parser.add_argument_group("reading the checkpoint")
    reading.add_argument(
        "--weights",
        metavar="NAME",
        help="which weights, where a checkpoint holds several: model, ema, state_dict.ema_model (default: the model, "
        "not its moving average; what was taken and what else there is, is told)",
    )
    reading.add_argument(
        "--key-map",
        type=Path,
        metavar="FILE",
        help="lines 'regular expression => replacement' for the names of weights; an empty replacement drops them",
    )
    reading.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        dest="overrides",
        help="a field of ModelConfig that the weights do not tell: mode=dot, norm_eps=0, "
        "anchor_sizes=[32,64,128,256,512] (or a list of them at each level), aspect_ratios=[0.5,1,2], "
        "image_mean=[0.5,0.5,0.5], image_std=[1,1,1]; of mmdetection and detectron2 what their configuration would "
        "tell: style=caffe, channel_order=bgr, mean=[103.5,116.3,123.7], scale=[600,400], of SOLOv2 also "
        "cell_threshold=0.1, nms_candidates=500, nms_sigma=2, and what a class of your own is to be read as: "
        "backbone_type=ResNet",
    )
    return reading


def overrides_of(texts: list[str]) -> dict[str, Any]:
    """``["mode=dot", "norm_eps=0"]`` as names and values. Raises WnlbError."""
    overrides = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.strip():
            raise WnlbError(f"--set got {text!r}; expected NAME=VALUE")
        try:
            overrides[name.strip()] = json.loads(value)
        except ValueError:
            overrides[name.strip()] = value.strip()
    return overrides


def options_of(arguments: argparse.Namespace, height: int, width: int) -> ExportOptions:
    """What was chosen, for an input of this size. Raises WnlbError."""
    min_batch, batch = parse_batches(arguments.batch)
    memory = parse_bytes(arguments.attention_memory) if arguments.attention_memory else None
    own = {"height": height, "width": width, "batch": batch, "min_batch": min_batch, "attention_memory": memory}
    chosen = {name: getattr(arguments, name) for name in DEFAULTS if hasattr(arguments, name)}
    return ExportOptions(**{**chosen, **own})


def parse_batches(text: str) -> tuple[int | None, int]:
    """``min_batch`` and ``batch``: of ``"4"`` None and 4, of ``"1-8"`` 1 and 8. Raises WnlbError."""
    found = re.fullmatch(r"(?:(\d{1,9})-)?(\d{1,9})", text, re.ASCII)
    if not found:
        raise WnlbError(f"batch is {text!r}; expected a number of frames such as 4, or the fewest and the most: 1-8")
    return (int(found[1]) if found[1] else None), int(found[2])


def parse_bytes(text: str) -> int:
    """``"256MiB"`` to bytes. Raises WnlbError."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(KiB|MiB|GiB)?", text, re.IGNORECASE)
    if not found:
        raise WnlbError(f"attention memory is {text!r}; expected a size such as 256MiB or 1GiB")
    return int(float(found[1]) * 1024 ** ["", "kib", "mib", "gib"].index((found[2] or "").lower()))
