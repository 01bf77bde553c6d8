"""``wnlb export``: checkpoint to one static, verified ONNX file."""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from wnlb.export.arguments import (
    add_file_arguments,
    add_frame_arguments,
    add_graph_arguments,
    add_weights_arguments,
    options_of,
    overrides_of,
)
from wnlb.runtime.contract import MASKS
from wnlb.runtime.files import check_output
from wnlb.runtime.geometry import parse_size
from wnlb.runtime.table import human_bytes
from wnlb.runtime.text_file import read_names

if TYPE_CHECKING:
    from wnlb.export.graph.attention import AttentionPlan

_DESCRIPTION = """\
Read a checkpoint of a Mask R-CNN of torchvision, mmdetection (LIS too) or detectron2, or of mmdetection's SOLOv2, with
or without weighted non-local blocks (.pth, .pt, .pkl, .safetensors, or the index of a sharded one; nothing in it is
run), and write one static ONNX file for ONNX Runtime, TensorRT 10.3 to 11.x and TensorRT-RTX, in FP32: 'wnlb convert'
makes FP16 and INT8 of it.

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
    parser.add_argument(
        "checkpoint",
        help="weights, as torch.save or safetensors wrote them, or the folder or *.index.json of their shards; "
        "'coco' or 'coco-v2', torchvision's for real photographs; 'sample', the small model of this package, which "
        "knows synthetic night scenes only; https://... or hf://owner/repo[@revision]/path. Downloads are kept in "
        "~/.cache/wnlb (or $WNLB_CACHE); $HF_TOKEN opens what Hugging Face shows only to some",
    )
    add_file_arguments(
        parser,
        size="input size in pixels, multiples of 32, e.g. 416x608",
        size_required=True,
        classes=" without background, in the place of those that the checkpoint tells",
    )
    graph = add_graph_arguments(
        parser,
        masks=MASKS,
        masks_default="as the network makes them: box, 28x28 probabilities in each box, or of SOLOv2 frame, a quarter "
        "of the input's height and width",
        detections="the model's, 100",
        score_threshold="the model's, 0.05",
        nms_threshold="the model's, 0.5",
        candidates="(proposal, class) pairs that enter the last NMS, or (cell, class) pairs of SOLOv2",
    )
    graph.add_argument(
        "--mask-rows",
        type=int,
        metavar="N",
        help="masks for the best N detections of a frame alone, at a fixed cost; the others keep box, label and score, "
        "and their mask is empty: mask AP counts them as wrong (default: all. Files for a CPU, and engines of files of "
        "batch 1, compute no more masks than are found anyhow)",
    )
    graph.add_argument(
        "--pre-nms",
        type=int,
        metavar="N",
        dest="pre_nms_top_n",
        help="anchors per level that enter NMS (default: the model's, 1000)",
    )
    graph.add_argument(
        "--post-nms",
        type=int,
        metavar="N",
        dest="post_nms_top_n",
        help="proposals (default: the model's, 1000); fewer are faster, and cost AP",
    )
    add_frame_arguments(
        parser,
        resize="models of mmdetection and detectron2 as they were trained, with their scale; others fit",
        interpolation="as it was trained, where that is told, else bilinear",
    )
    reading = add_weights_arguments(parser)
    reading.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="what an mmdetection (.py) or detectron2 (.yaml) checkpoint was trained with, read as data, never run; "
        "not needed where the checkpoint holds it",
    )
    reading.add_argument(
        "--sha256", type=_sha256, metavar="HEX", help="refuse the checkpoint if its SHA-256 is another"
    )


def run(arguments: argparse.Namespace) -> int:
    check_output(arguments.output, ".onnx")
    options = options_of(arguments, *parse_size(arguments.size))
    own = overrides_of(arguments.overrides)
    if arguments.classes:
        own["class_names"] = read_names(arguments.classes)
    hidden = arguments.json or None  # None: where stderr is no terminal
    bar = tqdm(total=None, file=sys.stderr, disable=hidden, leave=False, bar_format="{desc} [{elapsed}]")
    with bar:
        bar.set_description_str("load PyTorch")
        from wnlb.export.checkpoints.checkpoint import read_checkpoint
        from wnlb.export.checkpoints.files.fetched import fetched_checkpoint
        from wnlb.export.onnx_file.export_onnx import STEPS, export_onnx
        from wnlb.export.onnx_file.verify import warning
        from wnlb.export.report import json_of, plan_text, verification_text

        bar.set_description_str("find the checkpoint")
        fetched = fetched_checkpoint(arguments.checkpoint, arguments.sha256, hidden)
        bar.set_description_str(f"read {fetched.path.name}")
        checkpoint = read_checkpoint(
            fetched.path,
            key_map=arguments.key_map,
            overrides={**fetched.overrides, **own},
            weights=arguments.weights,
            trained_with=arguments.config,
        )

        def on_plan(plans: list[AttentionPlan]) -> None:
            if not arguments.json:
                bar.write(fetched.told, file=sys.stdout)
                bar.write(plan_text(fetched.path, checkpoint, plans, options), file=sys.stdout)

        report = export_onnx(
            checkpoint.model,
            arguments.output,
            options,
            class_names=checkpoint.config.class_names,
            origin=checkpoint.origin,
            checkpoint_sha256=fetched.sha256,
            checkpoint_weights=checkpoint.weights if checkpoint.others else "",
            on_plan=on_plan,
            on_step=lambda step: bar.set_description_str(f"step {STEPS.index(step) + 1} of {len(STEPS)}: {step}"),
        )
    if arguments.json:
        print(json.dumps(json_of(report, checkpoint, arguments.output), indent=2))
    else:
        print(verification_text(report))
        print(f"\nwrote {arguments.output}, {human_bytes(arguments.output.stat().st_size)}")
    if doubt := warning(report.cases):
        print(f"wnlb export: {doubt}", file=sys.stderr)
    return 0


def _sha256(text: str) -> str:
    if not re.fullmatch("[0-9a-fA-F]{64}", text):
        raise argparse.ArgumentTypeError(f"expected 64 hexadecimal digits, got {text!r}")
    return text.lower()
