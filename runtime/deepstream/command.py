"""``wnlb deepstream``: a folder that DeepStream runs."""

from __future__ import annotations

import argparse
import math
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from wnlb.runtime.deepstream.configuration import (
    APP,
    ENGINE,
    LABELS,
    MODEL,
    NVINFER,
    Deployment,
    app_text,
    nvinfer_text,
    resized,
)
from wnlb.runtime.errors import WnlbError
from wnlb.runtime.files import atomic_path, make_folder
from wnlb.runtime.inputs import geometry_of
from wnlb.runtime.served_model import file_of

if TYPE_CHECKING:
    from wnlb.runtime.contract import Contract

_DESCRIPTION = """\
Write what NVIDIA DeepStream needs to run a model on its cameras: the file with the input that Gst-nvinfer feeds, the
source of a parser for its detections and masks, and configurations of Gst-nvinfer and deepstream-app.

  wnlb deepstream model.fp16.onnx -o night/ --frame 1080x1920
  wnlb deepstream model.fp16.onnx -o night/ --frame 1080x1920 --cameras 4 --source rtsp://camera/night

--frame is what the cameras give: where the picture lies in the input becomes part of the file. Then, where DeepStream
is installed, the lines that are printed. Frames are resized by NVIDIA's hardware, within some grey levels of what the
other commands do. DeepStream itself has not been run with it; parser, file and sizes are tested.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = _DESCRIPTION
    parser.add_argument("model", type=file_of, help="an ONNX file of 'wnlb export' (for a GPU) or 'wnlb convert'")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FOLDER", help="made where it is not there")
    parser.add_argument("--frame", required=True, metavar="HxW", help="of the cameras, pixels: 1080x1920")
    parser.add_argument(
        "--cameras", type=int, default=1, metavar="N", help="that are batched; at most the file's batch (default: 1)"
    )
    parser.add_argument(
        "--score-threshold", type=float, default=0.5, metavar="S", help="leave out detections below S (default: 0.5)"
    )
    parser.add_argument(
        "--source",
        default="file:///opt/nvidia/deepstream/deepstream/samples/streams/sample_1080p_h264.mp4",
        metavar="URI",
        help="of the cameras, for deepstream-app (default: a sample that comes with DeepStream)",
    )


def run(arguments: argparse.Namespace) -> int:
    from wnlb.export.onnx_file.fuse import PLUGIN_NAMESPACE, unfuse_attention
    from wnlb.plugins.library import SOURCE
    from wnlb.runtime.deepstream.planar import for_nvinfer
    from wnlb.runtime.geometry import parse_size
    from wnlb.runtime.onnx_file import read_model

    frame = parse_size(arguments.frame)
    model, contract = read_model(arguments.model)
    _check(arguments, contract, frame)
    if unfuse_attention(model):
        told = "its attention is written in standard operators: Gst-nvinfer loads no plugin library of ours"
        print(f"wnlb deepstream: {told} ({PLUGIN_NAMESPACE})", file=sys.stderr)
    content = resized(contract, frame)
    placed = geometry_of(contract).place(*frame)
    deployment = Deployment(frame, arguments.cameras, arguments.score_threshold, arguments.source)
    texts = {
        NVINFER: nvinfer_text(contract, deployment),
        APP: app_text(contract, deployment),
        LABELS: "".join(f"{name.replace(';', ',')}\n" for name in contract.class_names),
    }
    make_folder(arguments.output)
    for name, text in texts.items():
        with atomic_path(arguments.output / name) as temporary:
            temporary.write_text(text)
    for source in ("parser.cpp", "Makefile"):
        with atomic_path(arguments.output / source) as temporary:
            shutil.copyfile(SOURCE / "deepstream" / source, temporary)
    with atomic_path(arguments.output / MODEL) as temporary:
        temporary.write_bytes(for_nvinfer(model, contract, content).SerializeToString(deterministic=True))
    print(f"wrote {MODEL}, {', '.join(texts)}, parser.cpp and Makefile to {arguments.output}/")
    if content != (placed.height, placed.width):
        print(
            f"to be known: DeepStream makes {content[1]}x{content[0]} px of a frame, the other commands "
            f"{placed.width}x{placed.height}"
        )
    if contract.interpolation == "antialiased":
        print("to be known: the model was trained on antialiased pictures, and DeepStream has no such filter")
    print(f"\nwhere DeepStream is installed:\n{_next_steps(arguments.output, contract, arguments.cameras)}")
    return 0


def _check(arguments: argparse.Namespace, contract: Contract, frame: tuple[int, int]) -> None:
    if contract.target == "cpu":
        raise WnlbError(f"{arguments.model} is made for a CPU; expected a file exported without --target cpu")
    if contract.masks == "frame":
        raise WnlbError(f"{arguments.model} has masks of the frame; Gst-nvinfer takes masks inside boxes alone")
    if contract.format == 1:
        raise WnlbError(f"{arguments.model} is of contract format 1, without content; export the checkpoint again")
    if min(frame) < 2 or max(frame) > 16384:
        raise WnlbError(f"--frame is {arguments.frame}; expected HEIGHTxWIDTH of the cameras, 2 to 16384 pixels a side")
    if not 0 < arguments.score_threshold <= 1 or math.isnan(arguments.score_threshold):
        raise WnlbError(f"score threshold is {arguments.score_threshold}; expected a number above 0 up to 1")
    if contract.batch > 1 and contract.min_batch is None:
        raise WnlbError(
            f"{arguments.model} takes {contract.batch} frames, never fewer, and cameras do not keep step; export with "
            f"--batch 1-{contract.batch}"
        )
    if not 1 <= arguments.cameras <= contract.batch:
        raise WnlbError(
            f"--cameras is {arguments.cameras}; expected 1 to {contract.batch}, the frames that {arguments.model} "
            "takes at once; 'wnlb export --batch 1-8' makes a file that takes up to eight"
        )
    if "\n" in arguments.source:
        raise WnlbError("--source has more than one line; expected an address")


def _next_steps(folder: Path, contract: Contract, cameras: int) -> str:
    shapes = ""
    if contract.min_batch is not None:
        tail = f"x3x{contract.height}x{contract.width}"
        named = (("min", contract.min_batch), ("opt", cameras), ("max", contract.batch))
        shapes = "".join(f" --{which}Shapes={contract.input_name}:{frames}{tail}" for which, frames in named)
    return (
        f"  cd {folder} && make\n"
        f"  trtexec --onnx={MODEL} --stronglyTyped --saveEngine={ENGINE}{shapes}\n"
        f"  deepstream-app -c {APP}"
    )
