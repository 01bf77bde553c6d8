"""Time of each form of multi-level RoIAlign in ONNX Runtime on the CPU, as ratios to torchvision's fixed sampling.

    python scripts/bench_roi_align.py
    python scripts/bench_roi_align.py --reference mmdet-caffe-open.reference.npz

Boxes are 1000 proposals (7 x 7) of the sample model on a night scene, and the best 100 of them (14 x 14, for masks),
or those that mmdetection or detectron2 left in a reference. Each form is a file of its own; they run in turn in one
process, which needs 9 GB of memory.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch
from counts import from_
from numpy.typing import NDArray
from torch import Tensor, nn

from wnlb.calibration.scenes.camera import Camera, expose
from wnlb.calibration.scenes.scene import make_scene
from wnlb.export.checkpoints.checkpoint import load_checkpoint
from wnlb.export.checkpoints.files.fetched import SAMPLE
from wnlb.export.graph.adaptive_roi_align import CellRoIAlign, NodeRoIAlign, default_buckets, level_areas, most_cells
from wnlb.export.graph.deploy import DeployGraph
from wnlb.export.graph.static_ops import AtlasLayout, AtlasRoIAlign
from wnlb.export.options import ExportOptions
from wnlb.runtime.errors import WnlbError, exit_code
from wnlb.runtime.geometry import parse_size
from wnlb.runtime.table import table

SCALES = [1 / 4, 1 / 8, 1 / 16, 1 / 32]
AREAS = level_areas(56, 1e-6)
TODAY, NODES = "GridSample, 2 x 2 samples (torchvision's)", "RoiAlign nodes, adaptive"


class Pooling(nn.Module):
    """P2..P5 and boxes to pooled maps."""

    def __init__(self, pool: nn.Module, layout: AtlasLayout | None) -> None:
        super().__init__()
        self.pool, self.layout = pool, layout

    def forward(self, p2: Tensor, p3: Tensor, p4: Tensor, p5: Tensor, boxes: Tensor) -> Tensor:
        levels = [p2, p3, p4, p5]
        return self.pool(levels if self.layout is None else self.layout.build(levels), boxes)


def forms(layout: AtlasLayout, side: int, rois: int) -> dict[str, Pooling]:
    """Every form by what it is called in the table."""
    most = most_cells(layout, SCALES, side, AREAS)

    def cells(buckets: Sequence[tuple[int, int]]) -> Pooling:
        return Pooling(CellRoIAlign(layout, SCALES, side, AREAS, buckets), layout)

    # What the references' boxes need if each sample is a point.
    samples = [(rois // 8, 32), (rois * 5 // 16, 20), (rois - rois // 8 - rois * 5 // 16, 12)]
    if side > 7:
        samples = [(rois // 8, 11), (rois - rois // 8, 6)]
    return {
        TODAY: Pooling(AtlasRoIAlign(layout, SCALES, side, 2, 224, 4), layout),
        NODES: Pooling(NodeRoIAlign(SCALES, side, AREAS), None),
        "cells, in buckets": cells(default_buckets(rois, side, most)),
        "cells, as many for each RoI": cells([(rois, most)]),
        "as many points as samples, in buckets": cells(samples),
    }


def session(form: Pooling, levels: list[Tensor], rois: int, threads: int) -> ort.InferenceSession:
    """``form`` as a file, opened."""
    names = ["p2", "p3", "p4", "p5", "boxes"]
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        file = Path(folder) / "form.onnx"
        example = (*levels, torch.rand(1, rois, 4))
        torch.onnx.export(form, example, file, input_names=names, opset_version=18, dynamo=True, verbose=False)
        return ort.InferenceSession(file, options, providers=["CPUExecutionProvider"])


def measure(boxes: NDArray[np.float32], side: int, arguments: argparse.Namespace) -> str:
    """A table of all forms for ``boxes [R, 4]``."""
    height, width = parse_size(arguments.size)
    generator = torch.Generator().manual_seed(0)
    levels = [torch.randn(1, 256, height // s, width // s, generator=generator) for s in (4, 8, 16, 32)]
    layout = AtlasLayout(tuple((level.shape[2], level.shape[3]) for level in levels))
    every = forms(layout, side, len(boxes))
    sessions = {name: session(form, levels, len(boxes), arguments.threads) for name, form in every.items()}
    feeds = {f"p{i}": level.numpy() for i, level in enumerate(levels, 2)} | {"boxes": boxes[None]}
    exact = sessions[NODES].run(None, feeds)[0]
    times: dict[str, list[float]] = {name: [] for name in sessions}
    for _ in range(arguments.rounds):
        for name, opened in sessions.items():
            start = time.perf_counter()
            opened.run(None, feeds)
            times[name].append(1e3 * (time.perf_counter() - start))
    rows = []
    for name, form in every.items():
        ratio = statistics.median(own / today for own, today in zip(times[name], times[TODAY], strict=True))
        error = np.abs(sessions[name].run(None, feeds)[0] - exact).max()
        pool, size, overflow = form.pool, "", ""
        if isinstance(pool, CellRoIAlign):
            size = ", ".join(f"{rois} x {cells}" for rois, cells in pool.buckets)
            overflow = str(pool.overflow(torch.from_numpy(boxes)[None]))
        median = f"{statistics.median(times[name]):.0f}"
        rows.append([name, size, overflow, f"{error:.0e}" if error else "0", median, f"{ratio:.2f}"])
    return table(["form", "RoIs x cells", "too large", "largest difference", "median ms", "times today's"], rows)


def sample_boxes(height: int, width: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """1000 proposals of the sample model on a night scene, and the best 100 of them."""
    model, _ = load_checkpoint(SAMPLE)
    graph = DeployGraph(model, ExportOptions(height, width))
    light = make_scene(0, 0, height, width).light
    picture = expose(light, Camera(), np.random.default_rng(0)).astype(np.uint8)
    with torch.no_grad():
        x = torch.from_numpy(picture)[None].permute(0, 3, 1, 2) * graph.scale + graph.shift
        boxes = graph.rpn(list(graph.fpn(graph.body(x)).values()))[0][0].numpy()
    return boxes, boxes[:100]


def reference_boxes(path: Path) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Proposals and detections of an archive of NumPy arrays. Raises WnlbError where it holds none."""
    try:
        arrays = np.load(path)
        return arrays["a_proposals"], arrays["a_boxes_input"]
    except (OSError, ValueError, LookupError) as error:
        raise WnlbError(f"{path}: {error}; expected an archive with a_proposals and a_boxes_input") from error


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="416x608", help="height x width of the input (default: %(default)s)")
    parser.add_argument("--reference", type=Path, help="arrays a_proposals and a_boxes_input, in pixels of the input")
    parser.add_argument("--threads", type=from_(1), default=2, help="of ONNX Runtime (default: %(default)s)")
    parser.add_argument("--rounds", type=from_(1), default=15, help="runs of each form (default: %(default)s)")
    arguments = parser.parse_args()
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    if arguments.reference is None:
        height, width = parse_size(arguments.size)
        proposals, detections = sample_boxes(height, width)
    else:
        proposals, detections = reference_boxes(arguments.reference)
    for boxes, side in ((proposals, 7), (detections, 14)):
        print(f"{len(boxes)} RoIs to {side} x {side}, 256 channels, {arguments.size}, {arguments.threads} threads")
        print(measure(boxes, side, arguments), end="\n\n")


if __name__ == "__main__":
    sys.exit(exit_code(main))
