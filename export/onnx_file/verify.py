"""Proof that an exported file computes what the checkpoint computes."""

from __future__ import annotations

import copy
import dataclasses
import warnings
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
    Arrays,
    Difference,
    as_outputs,
    difference,
    eager_detections,
    worst,
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
    """How one input compares with the eager model in float64."""

    file: Difference
    eager: Difference  # the eager model in float32, the worst that it does on any input


@dataclass(frozen=True)
class CaseReport:
    """How one input compared."""

    name: str
    found: Difference  # of the file from the eager model in float32
    rounding: Rounding | None  # where ``found`` is not within the tolerances, for this input or another
    chains: dict[str, int]  # NMS stage -> rounds that its boxes need
    candidates_full: bool  # more detections than slots before the last NMS, with rows left over

    def problems(self, rounds: int) -> list[str]:
        """What keeps this case from passing, in words."""
        found = _rounding_problems(self.rounding) if self.rounding else _beyond(self.found, TOLERANCES)
        for stage, needed in self.chains.items():
            if needed > rounds:
                found.append(f"NMS of the {stage} needs {needed} rounds, more than the {rounds} of --nms-rounds")
        if self.candidates_full:
            found.append("more candidates pass the score threshold than --candidates holds")
        return [f"{self.name}: {problem}" for problem in found]


def _rounding_problems(rounding: Rounding) -> list[str]:
    """What is wrong with the file, or with the network as its judge, in words."""
    eager = rounding.eager
    if eager.unmatched > MOST_UNMATCHED * eager.detections:
        return [
            f"of {eager.detections} detections in float64 the eager model misses {eager.missing} in float32 and has "
            f"{eager.extra} others: a network that amplifies rounding so cannot be verified"
        ]
    limits = {what: max(limit, AMPLIFIES * eager.errors[what]) for what, limit in TOLERANCES.items()}
    return _beyond(rounding.file, limits, AMPLIFIES * eager.unmatched)


def warning(reports: Sequence[CaseReport]) -> str:
    """One line where a network amplifies rounding beyond the tolerances; else empty."""
    judged = [report.rounding for report in reports if report.rounding]
    if not judged:
        return ""
    file, eager = (
        f"boxes {side.box_error:.2g} px, scores {side.score_error:.1g}, masks {side.mask_error:.2g}"
        for side in (worst(rounding.file for rounding in judged), judged[0].eager)
    )
    return f"this network amplifies rounding: against float64 the file errs by {file}, eager float32 itself by {eager}"


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

    Some networks amplify rounding, untrained ones above all. So where a case differs by more than the tolerances, file
    and eager model are held against the eager model in float64: the file may err ``AMPLIFIES`` times as much as eager
    float32 does on any of the inputs, and always as much as the tolerances say.

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
    *usual, (last, black) = zip(CASES, inputs, strict=True)
    cases = []
    for name, own in usual:
        on_case(name)
        cases.append(_case(name, session, model, graph, own))
    on_case(last)
    if any(len(found["scores"]) for found in eager_detections(model, *black)[0]):
        session = _session(_with_score_threshold(onnx_path, 1.0))
        with _score_threshold(model, graph, 1.0):
            cases.append(_case(last, session, model, graph, black))
    else:
        cases.append(_case(last, session, model, graph, black))
    reports = [case.report for case in cases]
    if any(_beyond(report.found, TOLERANCES) for report in reports):
        reports = _held_against_float64(cases, model)
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


@dataclass(frozen=True)
class _Case:
    """An input, and what was found in it."""

    report: CaseReport
    input: _Input
    threshold: float  # of scores
    eager: list[Arrays]
    outputs: Arrays  # of the file


def _case(name: str, session: ort.InferenceSession, model: MaskRCNN, graph: DeployGraph, own: _Input) -> _Case:
    eager, features = eager_detections(model, *own)
    names = [value.name for value in session.get_outputs()]
    outputs = dict(zip(names, session.run(None, {"image": own.image, CONTENT: own.content}), strict=True))
    threshold = model.roi_heads.score_thresh
    found = difference(eager, outputs, threshold)
    limit = limits(torch.from_numpy(own.content).to(features[0].dtype))
    report = CaseReport(name, found, None, *_nms_margins(graph, features, limit))
    return _Case(report, own, threshold, eager, outputs)


def _held_against_float64(cases: Sequence[_Case], model: MaskRCNN) -> list[CaseReport]:
    """The reports, with the rounding of file and eager model.

    What eager float32 errs is a matter of chance on one input and by one library; so it is taken on all inputs, both by
    oneDNN's kernels and by PyTorch's own.
    """
    doubled = copy.deepcopy(model).double()
    exact, sides = [], []
    for case in cases:
        with _score_threshold(doubled, None, case.threshold), _score_threshold(model, None, case.threshold):
            exact.append(eager_detections(doubled, *case.input)[0])
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # setting the flag warns of TF32 on Intel's GPUs
                with torch.backends.mkldnn.flags(enabled=False):
                    again, _ = eager_detections(model, *case.input)
        rows = model.roi_heads.detections_per_img
        sides.append([as_outputs(found, rows) for found in (case.eager, again)])

    def eager_error(slack: float) -> Difference:
        return worst(
            difference(truth, side, case.threshold, slack)
            for case, truth, own in zip(cases, exact, sides, strict=True)
            for side in own
        )

    slack = max(SCORE_TOLERANCE, AMPLIFIES * eager_error(SCORE_TOLERANCE).score_error)
    eager = eager_error(slack)
    return [
        dataclasses.replace(
            case.report, rounding=Rounding(difference(truth, case.outputs, case.threshold, slack), eager)
        )
        for case, truth in zip(cases, exact, strict=True)
    ]


def _nms_margins(graph: DeployGraph, features: list[Tensor], limit: Tensor) -> tuple[dict[str, int], bool]:
    """Rounds that each suppression needs on these features, and whether candidates were cut off."""
    with torch.no_grad():
        boxes, _, valid = graph.rpn.ranked(features, limit)
        chains = {"proposals": graph.rpn.nms.chain_length(boxes.flatten(0, 1), valid.flatten(0, 1))}
        proposals, real = graph.rpn(features, limit)
        detect: Any = graph.detect
        boxes, _, labels, valid = detect.ranked(detect.maps(features[:4]), proposals, real, limit)
        chains["detections"] = detect.nms.chain_length(boxes, valid, labels)
        cut_off = (valid.sum(1) == valid.shape[1]) & (detect.nms(boxes, valid, labels).sum(1) < detect.detections)
        every_pair = proposals.shape[1] * (detect.box_predictor.cls_score.out_features - 1)
    return chains, valid.shape[1] < every_pair and bool(cut_off.any())


@contextmanager
def _score_threshold(model: MaskRCNN, graph: DeployGraph | None, value: float) -> Iterator[None]:
    """Model and graph with another score threshold for a while."""
    before = model.roi_heads.score_thresh
    try:
        model.roi_heads.score_thresh = value
        if graph:
            graph.detect.score_threshold.fill_(value)
        yield
    finally:
        model.roi_heads.score_thresh = before
        if graph:
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
