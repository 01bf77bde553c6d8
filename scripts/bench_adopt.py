"""Speed of an adopted file against the original with a post-processing in Python, on the same frame.

    python scripts/bench_adopt.py best.onnx model.onnx night.jpg
    python scripts/bench_adopt.py best.onnx model.onnx night.jpg --rounds 20 --threads 2
    python scripts/bench_adopt.py solov2.onnx model.onnx night.jpg

``model.onnx`` is what ``wnlb adopt best.onnx`` wrote, best with --target cpu. The other side is what a user has without
it: OpenCV's resizing and padding, ONNX Runtime on the original, and its detections by PyTorch, in the pixels of the
frame. Of a YOLO-seg: best classes and torchvision's nms, masks of coefficients and prototypes. Of a SOLOv2: the
reference of mmdetection's post-processing (wnlb.export.references.solov2), which makes masks of what passes the
threshold alone. Both in turns, from frame to masks; so whatever the machine does meanwhile meets both alike.
Figures are medians of the rounds, ratios those of each round; of the time that passed, and of the processor's time in
all threads, which other programs on the machine change less.
"""

from __future__ import annotations

import argparse
import sys
import time
from abc import ABC, abstractmethod
from pathlib import Path

import cv2
import numpy as np
import onnxruntime as ort
import torch
from counts import from_
from numpy.typing import NDArray
from torch.nn.functional import interpolate
from torchvision.ops import nms

from wnlb.export.adopt.recognise import recognised
from wnlb.export.options import ExportOptions
from wnlb.runtime.contract import Contract
from wnlb.runtime.conventions import MMDETECTION_SOLOV2
from wnlb.runtime.errors import WnlbError, exit_code
from wnlb.runtime.inputs import geometry_of
from wnlb.runtime.predictor import Predictor
from wnlb.runtime.table import table

_SETTLED_S = 0.05  # after which the threads of the side before no longer wait busily for more work
WARM_UP = 2  # rounds


class InPython(ABC):
    """The original file, and what stands around it in a script."""

    def __init__(self, path: Path, contract: Contract, threads: int) -> None:
        options = ort.SessionOptions()
        options.log_severity_level, options.intra_op_num_threads = 3, threads
        self.session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.contract, self.geometry = contract, geometry_of(contract)

    @abstractmethod
    def __call__(self, frame_bgr: NDArray[np.uint8]) -> tuple[torch.Tensor, torch.Tensor]:
        """Boxes ``[D, 4]`` and masks ``[D, h, w]`` of the frame."""

    def outputs(self, x: NDArray[np.float32]) -> dict[str, NDArray]:
        """Of the network, by name."""
        names = [value.name for value in self.session.get_outputs()]
        return dict(zip(names, self.session.run(None, {self.session.get_inputs()[0].name: x}), strict=True))


class YoloInPython(InPython):
    """A YOLO-seg file."""

    def __call__(self, frame_bgr: NDArray[np.uint8]) -> tuple[torch.Tensor, torch.Tensor]:
        image, placement = self.geometry.prepare(frame_bgr)
        x = np.ascontiguousarray(image.transpose(2, 0, 1)[None]).astype(np.float32) / 255
        outputs = self.outputs(x).values()
        predictions, prototypes = sorted((torch.from_numpy(value[0]) for value in outputs), key=lambda t: t.ndim)
        classes = len(self.contract.class_names)
        scores, labels = predictions[4 : 4 + classes].max(0)
        kept = scores > self.contract.score_threshold
        rows, scores, labels = predictions[:, kept].T, scores[kept], labels[kept]
        boxes = torch.cat([rows[:, :2] - rows[:, 2:4] / 2, rows[:, :2] + rows[:, 2:4] / 2], 1)
        found = nms(boxes + labels[:, None] * 7680.0, scores, self.contract.nms_threshold or 1.0)
        found = found[: self.contract.detections]
        boxes = torch.from_numpy(placement.boxes_to_frame(boxes[found].numpy()))
        if not len(found):
            return boxes, torch.zeros((0, *frame_bgr.shape[:2]), dtype=torch.bool)
        masks = (rows[found, 4 + classes :] @ prototypes.flatten(1)).view(-1, *prototypes.shape[1:])
        whole = interpolate(masks[None], image.shape[:2], mode="bilinear")[..., placement.rows, placement.columns]
        masks = interpolate(whole, frame_bgr.shape[:2], mode="bilinear")[0] > 0
        x1, y1, x2, y2 = (side[:, None, None] for side in boxes.T)
        ys, xs = torch.arange(masks.shape[1])[:, None], torch.arange(masks.shape[2])
        return boxes, masks & (xs >= x1) & (xs < x2) & (ys >= y1) & (ys < y2)


class Solov2InPython(InPython):
    """A SOLOv2 file with the outputs of its head."""

    def __init__(self, path: Path, contract: Contract, threads: int) -> None:
        super().__init__(path, contract, threads)
        self.file = recognised(path, contract.class_names, overrides=contract.checkpoint_settings)
        self.options = ExportOptions(
            contract.height,
            contract.width,
            detections=contract.detections,
            score_threshold=contract.score_threshold,
        )
        self.threshold = contract.checkpoint_settings["cell_threshold"]

    def __call__(self, frame_bgr: NDArray[np.uint8]) -> tuple[torch.Tensor, torch.Tensor]:
        image, placement = self.geometry.prepare(frame_bgr)
        content = (placement.rows.stop, placement.columns.stop)
        x = self.file.reference_input(image[None], np.array([content], np.int32))
        given = [value[0] for value in self.file.given(self.outputs(x))]
        found = self.file.reference(given, content, self.threshold, self.options)
        masks = torch.from_numpy(found["masks"])
        boxes = torch.from_numpy(placement.boxes_to_frame(found["boxes"]))
        if not len(masks):
            return boxes, torch.zeros((0, *frame_bgr.shape[:2]), dtype=torch.bool)
        whole = interpolate(masks[None], scale_factor=4, mode="bilinear")[..., placement.rows, placement.columns]
        return boxes, interpolate(whole, frame_bgr.shape[:2], mode="bilinear")[0] > 0


def main(words: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("original", type=Path)
    parser.add_argument("adopted", type=Path)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--rounds", type=from_(1), default=15, metavar="N")
    parser.add_argument(
        "--threads", type=from_(0), default=0, metavar="N", help="of ONNX Runtime (default: one per core)"
    )
    arguments = parser.parse_args(words)
    frame = cv2.imread(str(arguments.picture))
    if frame is None:
        raise WnlbError(f"{arguments.picture} cannot be read; expected a picture")
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    with Predictor(arguments.adopted, device="cpu", threads=arguments.threads) as predictor, torch.no_grad():
        kind = Solov2InPython if predictor.contract.conventions == MMDETECTION_SOLOV2 else YoloInPython
        python = kind(arguments.original, predictor.contract, arguments.threads)
        sides = {"original and Python": python, "adopted": predictor}
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}  # passed, of the processor
        for _ in range(WARM_UP + arguments.rounds):
            for name, side in sides.items():
                time.sleep(_SETTLED_S)
                started = time.perf_counter(), time.process_time()
                side(frame)
                ended = time.perf_counter(), time.process_time()
                times[name].append((1e3 * (ended[0] - started[0]), 1e3 * (ended[1] - started[1])))
        masks = python(frame)[-1]  # the Predictor drops detections without a pixel, as ultralytics does
        counts = (int(masks.flatten(1).any(1).sum()) if len(masks) else 0, len(predictor(frame)))
    kept = {name: np.array(values[WARM_UP:]) for name, values in times.items()}
    rows = [
        (name, count, *(f"{value:.1f}" for value in np.median(kept[name], 0)))
        for name, count in zip(sides, counts, strict=True)
    ]
    print(table(("file", "detections", "median ms", "of the processor"), rows))
    passed, processor = np.median(kept["original and Python"] / kept["adopted"], 0)
    print(
        f"\nadopted: {passed:.2f} times as fast, {processor:.2f} by the processor's time, medians of "
        f"{arguments.rounds} rounds; ONNX Runtime {ort.__version__}"
    )


if __name__ == "__main__":
    sys.exit(exit_code(lambda: main(sys.argv[1:])))
