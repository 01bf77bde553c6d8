"""Proof that an exported file computes what the checkpoint computes."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import Tensor
from torchvision.models.detection import MaskRCNN

from wnlb.export.graph.deploy import DeployGraph, limits
from wnlb.export.onnx_file.reference import (
    BOX_TOLERANCE,
    MASK_TOLERANCE,
    SCORE_TOLERANCE,
    Difference,
    as_outputs,
    difference,
    eager_detections,
)
from wnlb.runtime.contract import CONTENT
from wnlb.runtime.errors import VerificationError

CASES = ("noise", "dark scene", "padded", "nothing to detect")
SCORE_THRESHOLD = "detect.score_threshold"  # the file's constant of that meaning
TOLERANCES = {"boxes": BOX_TOLERANCE, "scores": SCORE_TOLERANCE, "masks": MASK_TOLERANCE}
AMPLIFIES = 2.0  # how many times the rounding of eager float32 a file may err, where that is more than the tolerances
MOST_UNMATCHED = 0.1  # of its detections in float64, eager float32 must have all but this share


@dataclass(frozen=True)
class Rounding:
    """Both against the eager model in float64."""

    file: Difference
    eager: Difference  # the eager model in float32

    def problems(self) -> list[str]:
        """What is wrong with the file, or with the network as a judge, in words."""
        if self.eager.unmatched > MOST_UNMATCHED * self.eager.detections:
            return [
                f"of {self.eager.detections} detections in float64 the eager model misses {self.eager.missing} in "
                f"float32 and has {self.eager.extra} others: a network that amplifies rounding so cannot be verified"
            ]
        limits = {what: max(limit, AMPLIFIES * self.eager.errors[what]) for what, limit in TOLERANCES.items()}
        return _beyond(self.file, limits, AMPLIFIES * self.eager.unmatched)


@dataclass(frozen=True)
class CaseReport:
    """How one input compared."""

    name: str
    found: Difference  # of the file from the eager model in float32
    rounding: Rounding | None  # where ``found`` is not within the tolerances
    chains: dict[str, int]  # NMS stage -> rounds that its boxes need
    candidates_full: bool  # more detections than slots before the last NMS, with rows left over

    def problems(self, rounds: int) -> list[str]:
        """What keeps this case from passing, in words."""
        found = self.rounding.problems() if self.rounding else _beyond(self.found, TOLERANCES)
        for stage, needed in self.chains.items():
            if needed > rounds:
                found.append(f"NMS of the {stage} needs {needed} rounds, more than the {rounds} of --nms-rounds")
        if self.candidates_full:
            found.append("more candidates pass the score threshold than --candidates holds")
        return [f"{self.name}: {problem}" for problem in found]


def warning(reports: Sequence[CaseReport]) -> str:
    """One line where a network amplifies rounding beyond the tolerances; else empty."""
    judged = [(report.name, report.rounding) for report in reports if report.rounding]
    if not judged:
        return ""

    def worst(pair: tuple[str, Rounding]) -> float:
        return max(pair[1].eager.errors[what] / limit for what, limit in TOLERANCES.items())

    name, rounding = max(judged, key=worst)
    file, eager = (
        f"boxes {side.box_error:.2g} px, scores {side.score_error:.1g}, masks {side.mask_error:.2g}"
        for side in (rounding.file, rounding.eager)
    )
    return (
        f"this network amplifies rounding; against float64 ({name}) the file errs by {file}, eager float32 by {eager}"
    )


def verify(
    onnx_path: Path,
    model: MaskRCNN,
    graph: DeployGraph,
    on_case: Callable[[str], None] = lambda name: None,
) -> list[CaseReport]:
    """Compare the file in ONNX Runtime with the eager torchvision model, in float32, on ``CASES``.

    Noise; a dark scene; pictures of different sizes that do not fill the input, beside them noise that the network must
    not see; and a black frame on which nothing passes the score threshold: where the model detects something even
    there, that case runs with the threshold raised to 1 in the model and in a copy of the file.

    Some networks amplify rounding, untrained ones above all. So where a case differs by more than the tolerances, both
    sides are held against the eager model in float64: the file may err ``AMPLIFIES`` times as much as eager float32
    does, and always as much as the tolerances say.

    Args:
        onnx_path: the exported file.
        model: the eager model, with the thresholds and counts of the file.
        graph: the static graph the file was made from; it measures the NMS chains.
        on_case: called with the name of each case before it runs.

    Raises:
        VerificationError: something differs by more than that.
    """
    session = _session(str(onnx_path))
    shape = tuple(session.get_inputs()[0].shape)
    whole = np.tile(np.array(shape[1:3], np.int32), (shape[0], 1))
    scene = dark_scene(shape)
    inputs = (_Input(_noise(shape), whole), _Input(scene, whole), padded(scene), _Input(np.zeros_like(scene), whole))
    *cases, (last, black) = zip(CASES, inputs, strict=True)
    reports = []
    for name, own in cases:
        on_case(name)
        reports.append(_case(name, session, model, graph, own))
    on_case(last)
    if any(len(found["scores"]) for found in eager_detections(model, *black)[0]):
        session = _session(_with_score_threshold(onnx_path, 1.0))
        with _score_threshold(model, graph, 1.0):
            reports.append(_case(last, session, model, graph, black))
    else:
        reports.append(_case(last, session, model, graph, black))
    problems = [problem for report in reports for problem in report.problems(graph.rpn.nms.rounds)]
    if problems:
        raise VerificationError(f"verification failed, no file was written: {'; '.join(problems)}")
    return reports


def _beyond(found: Difference, limits: dict[str, float], unmatched: float = 0) -> list[str]:
    """What of a difference is more than it may be, in words."""
    problems = []
    if found.unmatched > unmatched:
        problems.append(f"of {found.detections} detections {found.missing} are missing, and {found.extra} are extra")
    for what, error in found.errors.items():
        if not error <= limits[what]:  # NaN fails
            problems.append(f"{what} differ by {error:.2g}, more than {limits[what]:g}")
    return problems


def dark_scene(shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Lamps, boxes and a gradient at a few photons per pixel: uint8 ``[N, H, W, 3]``, the same each time."""
    rng = np.random.default_rng(0)
    batch, height, width = shape[:3]
    images = np.empty((batch, height, width, 3))
    y, x = np.mgrid[:height, :width]
    for image in images:
        image[:] = 2 + 8 * (y / height)[..., None]
        for _ in range(12):
            w, h = rng.uniform(0.05, 0.4, 2) * (width, height)
            left, top = rng.uniform(0, 1, 2) * (width - w, height - h)
            image[int(top) : int(top + h) + 1, int(left) : int(left + w) + 1] = rng.uniform(1, 40, 3)
        for _ in range(3):
            distance = np.hypot(x - rng.uniform(0, width), y - rng.uniform(0, height))
            image += (120 * np.exp(-((distance / (0.05 * width)) ** 2)))[..., None] * rng.uniform(0.5, 1, 3)
    return np.clip(rng.poisson(images) + rng.normal(0, 1.5, images.shape), 0, 255).astype(np.uint8)


def _noise(shape: tuple[int, ...]) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


class _Input(NamedTuple):
    """What a file takes."""

    image: NDArray[np.uint8]  # [N, H, W, 3]
    content: NDArray[np.int32]  # [N, 2]


def padded(scene: NDArray[np.uint8]) -> _Input:
    """Parts of the images ``[N, H, W, 3]``, from the left top: of each another, by odd numbers, noise beside it.

    In turns all but the right, all but the bottom, and all but both.
    """
    batch, height, width = scene.shape[:3]
    narrow, low = width - width // 4 - 3, height - height // 3 - 5
    sizes = [(height, narrow), (low, width), (low + 2, narrow + 1)]
    content = np.array([sizes[(i + 2) % 3] for i in range(batch)], np.int32)
    image = _noise(scene.shape)
    for out, own, (h, w) in zip(image, scene, content, strict=True):
        out[:h, :w] = own[:h, :w]
    return _Input(image, content)


def _case(name: str, session: ort.InferenceSession, model: MaskRCNN, graph: DeployGraph, own: _Input) -> CaseReport:
    eager, features = eager_detections(model, *own)
    names = [value.name for value in session.get_outputs()]
    outputs = dict(zip(names, session.run(None, {"image": own.image, CONTENT: own.content}), strict=True))
    threshold = model.roi_heads.score_thresh
    found = difference(eager, outputs, threshold)
    rounding = None
    if _beyond(found, TOLERANCES):
        exact, _ = eager_detections(copy.deepcopy(model).double(), *own)
        as_file = as_outputs(eager, graph.detect.detections)
        slack = AMPLIFIES * difference(exact, as_file, threshold).score_error
        slack = max(slack, SCORE_TOLERANCE)
        rounding = Rounding(*(difference(exact, side, threshold, slack) for side in (outputs, as_file)))
    limit = limits(torch.from_numpy(own.content).to(features[0].dtype))
    chains, full = _nms_margins(graph, features, limit)
    return CaseReport(name, found, rounding, chains, full)


def _nms_margins(graph: DeployGraph, features: list[Tensor], limit: Tensor) -> tuple[dict[str, int], bool]:
    """Rounds that each suppression needs on these features, and whether candidates were cut off."""
    with torch.no_grad():
        boxes, _, valid = graph.rpn.ranked(features, limit)
        chains = {"proposals": graph.rpn.nms.chain_length(boxes.flatten(0, 1), valid.flatten(0, 1))}
        proposals, real = graph.rpn(features, limit)
        detect: Any = graph.detect
        boxes, _, labels, valid = detect.ranked(detect.layout.build(features[:4]), proposals, real, limit)
        chains["detections"] = detect.nms.chain_length(boxes, valid, labels)
        cut_off = (valid.sum(1) == valid.shape[1]) & (detect.nms(boxes, valid, labels).sum(1) < detect.detections)
        every_pair = proposals.shape[1] * (detect.box_predictor.cls_score.out_features - 1)
    return chains, valid.shape[1] < every_pair and bool(cut_off.any())


@contextmanager
def _score_threshold(model: MaskRCNN, graph: DeployGraph, value: float) -> Iterator[None]:
    """Both with another score threshold for a while."""
    before = model.roi_heads.score_thresh
    model.roi_heads.score_thresh = value
    graph.detect.score_threshold.fill_(value)
    try:
        yield
    finally:
        model.roi_heads.score_thresh = before
        graph.detect.score_threshold.fill_(before)


def _with_score_threshold(onnx_path: Path, value: float) -> bytes:
    file = onnx.load(onnx_path)
    threshold = next(tensor for tensor in file.graph.initializer if tensor.name == SCORE_THRESHOLD)
    threshold.CopyFrom(numpy_helper.from_array(np.float32(value).reshape(threshold.dims), SCORE_THRESHOLD))
    return file.SerializeToString()


def _session(model: str | bytes) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
