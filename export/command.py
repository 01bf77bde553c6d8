"""``wnlb export``: checkpoint to one static, verified ONNX file."""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from wnlb.export.arguments import parse_batches, parse_bytes, parse_setting
from wnlb.export.options import ExportOptions
from wnlb.runtime.contract import INTERPOLATIONS, MASKS, RESIZES, TARGETS
from wnlb.runtime.errors import WnlbError
from wnlb.runtime.files import sha256_of
from wnlb.runtime.table import human_bytes, table
from wnlb.runtime.text_file import read_names

if TYPE_CHECKING:
    from wnlb.export.checkpoints.checkpoint import LoadedCheckpoint
    from wnlb.export.graph.attention import AttentionPlan
    from wnlb.export.onnx_file.export_onnx import ExportReport

_DESCRIPTION = """\
Read a checkpoint of a Mask R-CNN of torchvision, mmdetection (LIS too) or detectron2, or of mmdetection's SOLOv2, with
or without weighted non-local blocks (.pth, .pt, .pkl, .safetensors, or the index of a sharded one; nothing in it is
run), and write one static ONNX file for ONNX Runtime, TensorRT 10.3 to 11.x and TensorRT-RTX.

The file is compared with the eager model of the framework that trained it on four inputs before it appears; where
anything differs by more than rounding, no file is written and the exit code is 1.

  wnlb export sample -o model.onnx --size 320x320
  wnlb export coco -o model.onnx --size 608x800                                  # detects in real photographs
  wnlb export hf://owner/repo/model.safetensors -o model.onnx --size 416x608 --sha256 HEX
  wnlb export checkpoint.pth -o model.onnx --size 416x608
  wnlb export epoch_12.pth -o model.onnx --size 416x608                           # mmdetection, SOLOv2 too; LIS
  wnlb export epoch_12.pth -o model.onnx --size 416x608 --config mask_rcnn.py     # ... where it holds no configuration
  wnlb export model_final.pth -o model.onnx --size 800x1344 --config config.yaml  # detectron2
  wnlb export checkpoint.pth -o model.onnx --size 416x608 --classes names.txt --interpolation nearest
  wnlb export checkpoint.pth -o model.onnx --size 800x1344 --attention auto
  wnlb export checkpoint.pth -o model.onnx --size 416x608 --target cpu                                   # no GPU
  wnlb export checkpoint.pth -o model.onnx --size 416x608 --batch 1-8                        # any number of frames to 8
  wnlb export checkpoint.pth -o model.onnx --size 320x320 --set mode=dot --set norm_eps=0
  wnlb export checkpoint.pth -o model.onnx --size 320x320 --weights ema
  wnlb export checkpoint.pth -o m.onnx --size 96x96 --set 'anchor_sizes=[[24,32],[48,64],[96,128],[192,256],[384,512]]'
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = _DESCRIPTION
    defaults = {field.name: field.default for field in dataclasses.fields(ExportOptions)}
    parser.add_argument(
        "checkpoint",
        help="weights, as torch.save or safetensors wrote them, or the folder or *.index.json of their shards; "
        "'coco' or 'coco-v2', torchvision's for real photographs; 'sample', the small model of this package, which "
        "knows synthetic night scenes only; https://... or hf://owner/repo[@revision]/path. Downloads are kept in "
        "~/.cache/wnlb (or $WNLB_CACHE); $HF_TOKEN opens what Hugging Face shows only to some",
    )
    parser.add_argument("-o", "--output", type=Path, required=True, help="the ONNX file to write")
    parser.add_argument(
        "--size", required=True, metavar="HxW", help="input size in pixels, multiples of 32, e.g. 416x608"
    )
    names = "class names without background: one a line, a JSON list, or COCO's annotations"
    parser.add_argument("--classes", type=Path, metavar="FILE", help=names)
    parser.add_argument("--precision", choices=("fp32",), default="fp32", help="of the file (default: fp32)")

    _add_graph_arguments(parser.add_argument_group("graph"), defaults)
    _add_frame_arguments(parser.add_argument_group("frames"))
    _add_reading_arguments(parser.add_argument_group("reading the checkpoint"))
    parser.add_argument("--json", action="store_true", help="print plan and verification as JSON")


def _add_graph_arguments(graph: argparse._ArgumentGroup, defaults: dict[str, Any]) -> None:
    graph.add_argument(
        "--target",
        choices=TARGETS,
        default=defaults["target"],
        help="what the file is made for: gpu, for engines and FP16 or INT8; or cpu, for ONNX Runtime without a GPU, "
        "where masks cost what is found. It detects the same; one for gpu runs on both (default: gpu)",
    )
    graph.add_argument(
        "--batch",
        default=str(defaults["batch"]),
        metavar="N",
        help="frames per run; A-B for a file that takes any number from A to B, such as 1-8 (default: %(default)s)",
    )
    graph.add_argument(
        "--masks",
        choices=MASKS,
        help="none: boxes only, faster (default: as the network makes them: box, 28x28 probabilities in each box, or "
        "of SOLOv2 frame, a quarter of the input's height and width)",
    )
    graph.add_argument("--detections", type=int, metavar="N", help="rows of the outputs (default: the model's, 100)")
    graph.add_argument(
        "--mask-rows",
        type=int,
        metavar="N",
        help="masks for the best N detections of a frame alone, at a fixed cost; the others keep box, label and score, "
        "and their mask is empty: mask AP counts them as wrong (default: all. Files for a CPU, and engines of files of "
        "batch 1, compute no more masks than are found anyhow)",
    )
    graph.add_argument("--score-threshold", type=float, metavar="S", help="default: the model's, 0.05")
    graph.add_argument("--nms-threshold", type=float, metavar="IOU", help="default: the model's, 0.5")
    graph.add_argument(
        "--pre-nms", type=int, metavar="N", help="anchors per level that enter NMS (default: the model's, 1000)"
    )
    graph.add_argument(
        "--post-nms",
        type=int,
        metavar="N",
        help="proposals (default: the model's, 1000); fewer are faster, and cost AP",
    )
    graph.add_argument(
        "--candidates",
        type=int,
        default=defaults["candidates"],
        metavar="N",
        help="(proposal, class) pairs that enter the last NMS, or (cell, class) pairs of SOLOv2 (default: %(default)s)",
    )
    graph.add_argument(
        "--nms-rounds",
        type=int,
        default=defaults["nms_rounds"],
        metavar="N",
        help="longest chain of overlapping boxes that NMS resolves (default: %(default)s)",
    )
    graph.add_argument(
        "--attention",
        default=defaults["attention"],
        metavar="FORM",
        help="standard operators, one node of our TensorRT plugin a block (plugin), or the plugin where the "
        "standard form would be cut into chunks (auto); also per level: c2=plugin,c3=standard (default: %(default)s)",
    )
    graph.add_argument(
        "--attention-memory",
        metavar="SIZE",
        help="most that a piece of an attention matrix may take (default: 256MiB; 32MiB for --target cpu)",
    )


def _add_frame_arguments(frames: argparse._ArgumentGroup) -> None:
    frames.add_argument(
        "--resize",
        choices=RESIZES,
        help="fit: keep the aspect ratio and pad; stretch; both fill the input (default: models of mmdetection and "
        "detectron2 as they were trained, with their scale; others fit)",
    )
    frames.add_argument(
        "--interpolation",
        choices=INTERPOLATIONS,
        help="nearest keeps sensor noise as it was in training on LIS (default: as it was trained, where that is told, "
        "else bilinear)",
    )


def _add_reading_arguments(reading: argparse._ArgumentGroup) -> None:
    reading.add_argument(
        "--sha256", type=_sha256, metavar="HEX", help="refuse the checkpoint if its SHA-256 is another"
    )
    reading.add_argument(
        "--weights",
        metavar="NAME",
        help="which weights, where a checkpoint holds several: model, ema, state_dict.ema_model (default: the model, "
        "not its moving average; what was taken and what else there is, is told)",
    )
    reading.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="what an mmdetection (.py) or detectron2 (.yaml) checkpoint was trained with, read as data, never run; "
        "not needed where the checkpoint holds it",
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


def run(arguments: argparse.Namespace) -> int:
    options = _options(arguments)
    overrides = dict(map(parse_setting, arguments.overrides))
    names = read_names(arguments.classes) if arguments.classes else ()
    if not arguments.output.parent.is_dir():
        raise WnlbError(f"folder {arguments.output.parent} does not exist; create it or choose another output")
    hidden = arguments.json or None  # None: where stderr is no terminal
    bar = tqdm(total=None, file=sys.stderr, disable=hidden, leave=False, bar_format="{desc} [{elapsed}]")
    with bar:
        bar.set_description_str("load PyTorch")
        from wnlb.export.checkpoints.checkpoint import read_checkpoint
        from wnlb.export.checkpoints.files.fetched import fetched_checkpoint
        from wnlb.export.onnx_file.export_onnx import STEPS, export_onnx
        from wnlb.export.onnx_file.verify import warning

        bar.set_description_str("find the checkpoint")
        fetched = fetched_checkpoint(arguments.checkpoint, arguments.sha256, hidden)
        overrides = {**fetched.overrides, **overrides}
        bar.set_description_str(f"read {fetched.path.name}")
        checkpoint = read_checkpoint(
            fetched.path,
            key_map=arguments.key_map,
            overrides=overrides,
            weights=arguments.weights,
            trained_with=arguments.config,
        )

        def on_plan(plans: list[AttentionPlan]) -> None:
            if not arguments.json:
                bar.write(fetched.told, file=sys.stdout)
                bar.write(_plan_text(fetched.path, checkpoint, plans, options), file=sys.stdout)

        report = export_onnx(
            checkpoint.model,
            arguments.output,
            options,
            class_names=names or checkpoint.config.class_names or _coco_names(checkpoint.config.num_classes),
            origin=checkpoint.origin,
            checkpoint_sha256=fetched.sha256,
            checkpoint_weights=checkpoint.weights if checkpoint.others else "",
            on_plan=on_plan,
            on_step=lambda step: bar.set_description_str(f"step {STEPS.index(step) + 1} of {len(STEPS)}: {step}"),
        )
    size = arguments.output.stat().st_size
    if arguments.json:
        print(json.dumps(_json(report, checkpoint, arguments.output, size), indent=2))
    else:
        print(_verification_text(report))
        print(f"\nwrote {arguments.output}, {human_bytes(size)}")
    if doubt := warning(report.cases):
        print(f"wnlb export: {doubt}", file=sys.stderr)
    return 0


def _sha256(text: str) -> str:
    if not re.fullmatch("[0-9a-fA-F]{64}", text):
        raise argparse.ArgumentTypeError(f"expected 64 hexadecimal digits, got {text!r}")
    return text.lower()


def _options(arguments: argparse.Namespace) -> ExportOptions:
    from wnlb.runtime.geometry import parse_size

    height, width = parse_size(arguments.size)
    min_batch, batch = parse_batches(arguments.batch)
    return ExportOptions(
        height=height,
        width=width,
        batch=batch,
        min_batch=min_batch,
        pre_nms_top_n=arguments.pre_nms,
        post_nms_top_n=arguments.post_nms,
        detections=arguments.detections,
        mask_rows=arguments.mask_rows,
        score_threshold=arguments.score_threshold,
        nms_threshold=arguments.nms_threshold,
        candidates=arguments.candidates,
        nms_rounds=arguments.nms_rounds,
        masks=arguments.masks,
        attention=arguments.attention,
        attention_memory=parse_bytes(arguments.attention_memory) if arguments.attention_memory else None,
        target=arguments.target,
        resize=arguments.resize,
        interpolation=arguments.interpolation,
    )


def _coco_names(num_classes: int) -> tuple[str, ...]:
    """COCO's names where the count is that of torchvision's COCO models."""
    from torchvision.models.detection import MaskRCNN_ResNet50_FPN_Weights

    names = tuple(MaskRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"][1:])
    return names if len(names) == num_classes - 1 else ()


def _plan_text(path: Path, checkpoint: LoadedCheckpoint, plans: list[AttentionPlan], options: ExportOptions) -> str:
    from wnlb.export.graph.attention import plan_table

    config = checkpoint.config
    kind = f"{config.mode} blocks {config.placement}" if plans else "no blocks"
    network = f"{config.backbone}, {config.num_classes - 1} classes, {kind}"
    if checkpoint.origin:
        network = f"{checkpoint.origin.settings.framework}, style {checkpoint.origin.settings.style}, {network}"
    header = f"{path.name}: {network}; input {options.height}x{options.width}"
    if checkpoint.others:
        header += f"\nweights: {checkpoint.weights}; also there: {', '.join(checkpoint.others)} (--weights NAME)"
    header += "".join(f"\nhint: {hint}" for hint in checkpoint.hints)
    if not plans:
        return header + "\n"
    return f"{header}\n\n{plan_table(plans)}\n"


def _verification_text(report: ExportReport) -> str:
    from wnlb.export.onnx_file.verify import tried_batches

    rounds = report.contract.nms_rounds
    rows = [
        (
            case.name,
            case.found.detections,
            *(f"{error:.1e}" for error in case.found.errors.values()),
            f"{max(case.chains.values())} of {rounds}" if case.chains else "as needed",
        )
        for case in report.cases
    ]
    columns = ("verified on", "detections", "boxes px", "scores", "masks", "NMS rounds")
    contract = report.contract
    sizes = "" if contract.min_batch is None else f", in batches of {', '.join(map(str, tried_batches(contract)))}"
    return f"same detections as the eager model{sizes}; largest differences:\n\n" + table(columns, rows)


def _json(report: ExportReport, checkpoint: LoadedCheckpoint, output: Path, size: int) -> dict[str, Any]:
    return {
        "file": str(output),
        "bytes": size,
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
