"""Proof that an exported file computes what the checkpoint computes."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import Tensor

from wnlb.export.graph.adaptive_roi_align import CellRoIAlign
from wnlb.export.graph.deploy import DeployGraph
from wnlb.export.graph.pyramid import limits
from wnlb.export.graph.solov2 import Solov2Graph
from wnlb.export.graph.static_ops import StaticNMS
from wnlb.export.onnx_file.reference import (
    BOX_TOLERANCE,
    MASK_TOLERANCE,
    SCORE_TOLERANCE,
    Arrays,
    Difference,
    Eager,
    as_outputs,
    difference,
    worst,
)
from wnlb.runtime.contract import CONTENT, METADATA_KEY, Contract
from wnlb.runtime.denormals import flush_in_session, without_denormals
from wnlb.runtime.errors import VerificationError

Graph = DeployGraph | Solov2Graph
CASES = ("noise", "dark scene", "padded", "nothing to detect")
JUDGES = ("dark scene", "padded")  # of these one at least has to judge
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
    chains: dict[str, int]  # NMS stage -> rounds that its boxes need; empty where any number is taken
    candidates_full: bool  # more detections than slots before the last NMS, with rows left over
    crowded: dict[str, int] = field(default_factory=dict)  # RoIAlign's stage -> boxes of more samples than it takes
    # The eager model's own detections are chance on this input, while others judge: it only has to run.
    left_out: bool = False

    def problems(self, rounds: int) -> list[str]:
        """What keeps this case from passing, in words."""
        found = _rounding_problems(self.rounding) if self.rounding else _beyond(self.found, TOLERANCES)
        found = [] if self.left_out else found
        for stage, needed in self.chains.items():
            if needed > rounds:
                found.append(f"NMS of the {stage} needs {needed} rounds, more than the {rounds} of --nms-rounds")
        for stage, boxes in self.crowded.items():
            if boxes:
                found.append(
                    f"RoIAlign of the {stage} takes too few samples of {boxes} boxes, which are large for their level: "
                    "export with --target cpu, whose RoIAlign takes all"
                )
        if self.candidates_full:
            found.append("more candidates pass the score threshold than --candidates holds")
        return [f"{self.name}: {problem}" for problem in found]


def _rounding_problems(rounding: Rounding) -> list[str]:
    """What is wrong with the file, or with the network as its judge, in words."""
    eager = rounding.eager
    if _is_chance(eager):
        return [
            f"of {eager.detections} detections in float64 the eager model misses {eager.missing} in float32 and has "
            f"{eager.extra} others: a network that amplifies rounding so cannot be verified"
        ]
    limits = {what: max(limit, AMPLIFIES * eager.errors[what]) for what, limit in TOLERANCES.items()}
    return _beyond(rounding.file, limits, AMPLIFIES * eager.unmatched)


def _is_chance(eager: Difference) -> bool:
    """Whether rounding alone decides on so many detections that they say nothing of a file."""
    return eager.unmatched > MOST_UNMATCHED * eager.detections


def warning(reports: Sequence[CaseReport]) -> str:
    """One line where a network amplifies rounding beyond the tolerances; else empty."""
    judged = [report.rounding for report in reports if report.rounding and not report.left_out]
    if not judged:
        return ""
    file, eager = (
        f"boxes {side.box_error:.2g} px, scores {side.score_error:.1g}, masks {side.mask_error:.2g}"
        for side in (worst(rounding.file for rounding in judged), judged[0].eager)
    )
    left_out = ", ".join(report.name for report in reports if report.left_out)
    chance = f"; left out, for there rounding alone decides what is found: {left_out}" if left_out else ""
    return (
        f"this network amplifies rounding: against float64 the file errs by {file}, eager float32 itself by {eager}"
        f"{chance}"
    )


def verify(
    onnx_path: Path,
    eager: Eager,
    graph: Graph,
    on_case: Callable[[str], None] = lambda name: None,
) -> list[CaseReport]:
    """Compare the file in ONNX Runtime with the eager model, in float32, on ``CASES``.

    Noise; a dark scene; pictures of different sizes that do not fill the input, beside them noise that the network must
    not see; and a black frame on which nothing passes the score threshold: where the model detects something even
    there, that case runs with the threshold raised to 1 in the model and in a copy of the file. A file whose batch is
    open runs with the fewest images, the most and a number between; a smaller batch holds the last images of the
    largest, each in another place.

    Some networks amplify rounding, untrained ones above all. So where a case differs by more than the tolerances, file
    and eager model are held against the eager model in float64: the file may err ``AMPLIFIES`` times as much as eager
    float32 does on any of the inputs, and always as much as the tolerances say. An input on which eager float32 misses
    more than ``MOST_UNMATCHED`` judges nothing: it is left out, as long as the dark scene, whole or padded, judges.

    Args:
        onnx_path: the exported file.
        eager: the network, with the thresholds and counts of the file.
        graph: the static graph the file was made from; it measures the NMS chains.
        on_case: called with the name of each case before it runs.

    Raises:
        VerificationError: something differs by more than that.
    """
    session = onnx_session(str(onnx_path))
    contract = Contract.from_json(session.get_modelmeta().custom_metadata_map[METADATA_KEY])
    batches, shape = tried_batches(contract), contract.input_shape
    whole = np.tile(np.array(shape[1:3], np.int32), (shape[0], 1))
    scene = dark_scene(shape)
    inputs = (Frames(_noise(shape), whole), Frames(scene, whole), padded(scene), Frames(np.zeros_like(scene), whole))
    *usual, (last, black) = zip(CASES, inputs, strict=True)
    cases = []
    for name, own in usual:
        on_case(name)
        cases.append(_case(name, session, eager, graph, own, batches))
    on_case(last)
    if any(len(found["scores"]) for found in eager.detections(*black)[0]):
        session = onnx_session(with_score_threshold(onnx_path, 1.0))
        with eager.with_first_threshold(1.0), _score_threshold(graph, 1.0):
            cases.append(_case(last, session, eager, graph, black, batches))
    else:
        cases.append(_case(last, session, eager, graph, black, batches))
    reports = [case.report for case in cases]
    if any(_beyond(report.found, TOLERANCES) for report in reports):
        reports = _held_against_float64(cases, eager)
    nms = None if isinstance(graph, Solov2Graph) else graph.rpn.nms
    nms_rounds = nms.rounds if isinstance(nms, StaticNMS) else 0
    problems = [problem for report in reports for problem in report.problems(nms_rounds)]
    if problems:
        raise VerificationError(f"verification failed, no file was written: {'; '.join(problems)}")
    return reports


def tried_batches(contract: Contract) -> list[int]:
    """The numbers of images that a file is verified with, the most last."""
    batches = contract.batches
    return sorted({batches[0], batches[len(batches) // 2], batches[-1]})


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


class Frames(NamedTuple):
    """What a file takes."""

    image: NDArray[np.uint8]  # [N, H, W, 3]
    content: NDArray[np.int32]  # [N, 2]


def padded(scene: NDArray[np.uint8], centred: bool = False) -> Frames:
    """Parts of the images ``[N, H, W, 3]``: of each another, by odd numbers, noise beside it.

    In turns all but the right, all but the bottom, and all but both; at the left top, or in the middle.
    """
    batch, height, width = scene.shape[:3]
    narrow, low = width - width // 4 - 3, height - height // 3 - 5
    sizes = [(height, narrow), (low, width), (low + 2, narrow + 1)]
    content = np.array([sizes[(i + 2) % 3] for i in range(batch)], np.int32)
    image = _noise(scene.shape)
    for out, own, (h, w) in zip(image, scene, content, strict=True):
        top, left = ((height - h) // 2, (width - w) // 2) if centred else (0, 0)
        out[top : top + h, left : left + w] = own[:h, :w]
    return Frames(image, content)


@dataclass(frozen=True)
class _Case:
    """An input, and what was found in it."""

    report: CaseReport
    input: Frames
    threshold: float  # the first of scores
    least: float  # score of a detection
    eager: list[Arrays]  # of each image of each run of the file
    outputs: Arrays  # of the file, all runs one after the other
    images: list[int]  # of the input, which were run


def _case(
    name: str, session: ort.InferenceSession, eager: Eager, graph: Graph, own: Frames, batches: Sequence[int]
) -> _Case:
    found_eagerly, features = eager.detections(*own)
    names = [value.name for value in session.get_outputs()]
    with without_denormals():
        runs = [session.run(None, {"image": own.image[-n:], CONTENT: own.content[-n:]}) for n in batches]
    outputs = dict(zip(names, map(np.concatenate, zip(*runs, strict=True)), strict=True))
    if "masks" in outputs and isinstance(graph, DeployGraph):
        outputs["masks"] = outputs["masks"][:, : graph.detect.mask_rows]
    images = [image for n in batches for image in range(batches[-1])[-n:]]
    truth = [found_eagerly[image] for image in images]
    found = difference(truth, outputs, eager.least_score, nms_threshold=eager.nms_threshold)
    limit = limits(torch.from_numpy(own.content).to(features[0].dtype))
    report = CaseReport(name, found, None, *_margins(graph, features, limit))
    return _Case(report, own, eager.first_threshold, eager.least_score, truth, outputs, images)


def _held_against_float64(cases: Sequence[_Case], eager: Eager) -> list[CaseReport]:
    """The reports, with the rounding of file and eager model.

    What eager float32 errs is a matter of chance on one input and by one library; so it is taken on all inputs, both by
    oneDNN's kernels and by PyTorch's own.
    """
    doubled = eager.doubled()
    exact, sides = [], []
    for case in cases:
        with doubled.with_first_threshold(case.threshold), eager.with_first_threshold(case.threshold):
            in_double = doubled.detections(*case.input)[0]
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # setting the flag warns of TF32 on Intel's GPUs
                with torch.backends.mkldnn.flags(enabled=False):
                    again, _ = eager.detections(*case.input)
        exact.append([in_double[image] for image in case.images])
        sides.append([as_outputs(found, eager.rows) for found in (case.eager, [again[image] for image in case.images])])

    def errors_of_eager(slack: float) -> list[Difference]:
        return [
            worst(difference(truth, side, case.least, slack, eager.nms_threshold) for side in own)
            for case, truth, own in zip(cases, exact, sides, strict=True)
        ]

    slack = max(SCORE_TOLERANCE, AMPLIFIES * worst(errors_of_eager(SCORE_TOLERANCE)).score_error)
    by_eager = errors_of_eager(slack)
    steady = [not _is_chance(error) for error in by_eager]
    judging = any(own and case.report.name in JUDGES for own, case in zip(steady, cases, strict=True))
    of_all = worst(error for error, own in zip(by_eager, steady, strict=True) if own or not judging)
    return [
        dataclasses.replace(
            case.report,
            rounding=Rounding(
                difference(truth, case.outputs, case.least, slack, eager.nms_threshold), of_all if own else error
            ),
            left_out=judging and not own,
        )
        for case, truth, error, own in zip(cases, exact, by_eager, steady, strict=True)
    ]


def _margins(graph: Graph, features: list[Tensor], limit: Tensor) -> tuple[dict[str, int], bool, dict[str, int]]:
    """Rounds that each suppression needs on these features, whether candidates were cut off, and how many boxes have
    more samples than RoIAlign takes."""
    if isinstance(graph, Solov2Graph):
        with torch.no_grad():
            return {}, graph.lacks_candidates(features, limit), {}
    detect: Any = graph.detect
    with torch.no_grad():
        boxes, _, valid = graph.rpn.ranked(features, limit)
        chains = {}
        if isinstance(graph.rpn.nms, StaticNMS):
            chains["proposals"] = graph.rpn.nms.chain_length(boxes.flatten(0, 1), valid.flatten(0, 1))
        proposals, real = graph.rpn(features, limit)
        maps = detect.maps(features[:4])
        boxes, _, labels, valid = detect.ranked(maps, proposals, real, limit)
        if isinstance(detect.nms, StaticNMS):
            chains["detections"] = detect.nms.chain_length(boxes, valid, labels)
        cut_off = (valid.sum(1) == valid.shape[1]) & (detect.nms(boxes, valid, labels).sum(1) < detect.detections)
        every_pair = proposals.shape[1] * (detect.box_predictor.cls_score.out_features - 1)
        crowded = {}
        if isinstance(detect.box_pool, CellRoIAlign):
            crowded["boxes"] = detect.box_pool.overflow(proposals * real.unsqueeze(-1))
            if detect.with_masks:
                crowded["masks"] = detect.mask.pool.overflow(
                    detect(features[:4], proposals, real, limit)[0][:, : detect.mask_rows]
                )
    return chains, valid.shape[1] < every_pair and bool(cut_off.any()), crowded


@contextmanager
def _score_threshold(graph: Graph, value: float) -> Iterator[None]:
    """The graph with another first threshold of scores for a while."""
    before = graph.detect.score_threshold.item()
    try:
        graph.detect.score_threshold.fill_(value)
        yield
    finally:
        graph.detect.score_threshold.fill_(before)


def with_score_threshold(onnx_path: Path, value: float) -> bytes:
    """An exported file with another score threshold; its contract still tells the old one."""
    file = onnx.load(onnx_path)
    threshold = next(tensor for tensor in file.graph.initializer if tensor.name == SCORE_THRESHOLD)
    threshold.CopyFrom(numpy_helper.from_array(np.float32(value).reshape(threshold.dims), SCORE_THRESHOLD))
    return file.SerializeToString()


def onnx_session(model: str | bytes) -> ort.InferenceSession:
    """A file, or its bytes, in ONNX Runtime on the CPU."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    flush_in_session(options)
    with without_denormals():
        return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
