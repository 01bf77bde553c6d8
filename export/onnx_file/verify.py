"""Proof that an exported file computes what the checkpoint computes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import Tensor
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.image_list import ImageList

from wnlb.export.graph.deploy import DeployGraph
from wnlb.runtime.errors import VerificationError

BOX_TOLERANCE = 0.05  # input pixels
SCORE_TOLERANCE = 1e-4
MASK_TOLERANCE = 1e-3  # of a probability
SCORE_THRESHOLD = "detect.score_threshold"  # the file's constant of that meaning
Arrays = dict[str, NDArray]


@dataclass(frozen=True)
class CaseReport:
    """How one input compared; errors are the largest over all matched detections."""

    name: str
    detections: int  # of the eager model, over the whole batch
    missing: int  # eager detections that the file does not have
    extra: int  # detections of the file that the eager model does not have
    box_error: float  # input pixels
    score_error: float
    mask_error: float
    chains: dict[str, int]  # NMS stage -> rounds that its boxes need
    candidates_full: bool  # more detections than slots before the last NMS, with rows left over

    def problems(self, rounds: int) -> list[str]:
        """What keeps this case from passing, in words."""
        found = []
        if self.missing or self.extra:
            found.append(f"of {self.detections} detections {self.missing} are missing, and {self.extra} are extra")
        for what, error, tolerance in (
            ("boxes", self.box_error, BOX_TOLERANCE),
            ("scores", self.score_error, SCORE_TOLERANCE),
            ("masks", self.mask_error, MASK_TOLERANCE),
        ):
            if not error <= tolerance:  # NaN fails
                found.append(f"{what} differ by {error:.2g}, more than {tolerance:g}")
        for stage, needed in self.chains.items():
            if needed > rounds:
                found.append(f"NMS of the {stage} needs {needed} rounds, more than the {rounds} of --nms-rounds")
        if self.candidates_full:
            found.append("more candidates pass the score threshold than --candidates holds")
        return [f"{self.name}: {problem}" for problem in found]


def verify(
    onnx_path: Path,
    model: MaskRCNN,
    graph: DeployGraph,
    on_case: Callable[[str], None] = lambda name: None,
) -> list[CaseReport]:
    """Compare the file in ONNX Runtime with the eager torchvision model, in float32, on three inputs.

    Noise, a dark scene, and a black frame on which nothing passes the score threshold: where the model detects
    something even there, that case runs with the threshold raised to 1 in the model and in a copy of the file.

    Args:
        onnx_path: the exported file.
        model: the eager model, with the thresholds and counts of the file.
        graph: the static graph the file was made from; it measures the NMS chains.
        on_case: called with the name of each case before it runs.

    Raises:
        VerificationError: something differs by more than the tolerances of this module.
    """
    session = _session(str(onnx_path))
    shape = tuple(session.get_inputs()[0].shape)
    reports = []
    for name, images in (("noise", _noise(shape)), ("dark scene", dark_scene(shape))):
        on_case(name)
        reports.append(_case(name, session, model, graph, images))
    on_case("nothing to detect")
    black = np.zeros(shape, np.uint8)
    if any(len(found["scores"]) for found in eager_detections(model, black)[0]):
        session = _session(_with_score_threshold(onnx_path, 1.0))
        with _score_threshold(model, graph, 1.0):
            reports.append(_case("nothing to detect", session, model, graph, black))
    else:
        reports.append(_case("nothing to detect", session, model, graph, black))
    problems = [problem for report in reports for problem in report.problems(graph.rpn.nms.rounds)]
    if problems:
        raise VerificationError(f"verification failed, no file was written: {'; '.join(problems)}")
    return reports


def eager_detections(model: MaskRCNN, images: NDArray[np.uint8]) -> tuple[list[Arrays], list[Tensor]]:
    """Run torchvision's own stages on images that are already of the input's size.

    Args:
        images: uint8 RGB ``[N, H, W, 3]``.

    Returns:
        For each image boxes ``[D, 4]`` in input pixels, scores ``[D]``, labels ``[D]`` and masks ``[D, 28, 28]``
        (none where the mask predictor lacks classes, for which torchvision fails); and the pyramid P2..P6,
        ``[N, C, h, w]`` each.
    """
    batch, height, width = images.shape[:3]
    with torch.no_grad():
        x = torch.from_numpy(images).permute(0, 3, 1, 2).to(next(model.parameters()).dtype) / 255
        batched = ImageList(torch.stack([model.transform.normalize(image) for image in x]), [(height, width)] * batch)
        features = OrderedDict(model.backbone(batched.tensors))
        proposals, _ = model.rpn(batched, features)
        with _masks_where_it_has_them(model):
            detections, _ = model.roi_heads(features, proposals, batched.image_sizes)
    found = [{name: value.numpy() for name, value in d.items()} for d in detections]
    for d in found:
        if "masks" in d:
            d["masks"] = d["masks"][:, 0]
    return found, list(features.values())


@contextmanager
def _masks_where_it_has_them(model: MaskRCNN) -> Iterator[None]:
    """Without the mask branch for a while, where its predictor has fewer classes than there are labels."""
    heads, predictor = model.roi_heads, model.roi_heads.mask_predictor
    if predictor.mask_fcn_logits.out_channels < heads.box_predictor.cls_score.out_features:
        heads.mask_predictor = None
    try:
        yield
    finally:
        heads.mask_predictor = predictor


def match(eager: Arrays, outputs: Arrays, score_threshold: float) -> tuple[list[tuple[int, int]], int, int]:
    """Pair the detections of one image one to one: equal label, score and box within ten tolerances, nearest box first.

    A detection within the score tolerance of a cut (the threshold, or the last row where the output is full) may
    fall on either side of it.

    Returns:
        Pairs of rows (eager, file), eager rows that are missing in the file, and rows of the file that are extra.
    """
    count = int(outputs["count"])
    full = count == len(outputs["scores"])
    cut = max(score_threshold, float(outputs["scores"][-1]) if full else 0.0) + SCORE_TOLERANCE
    distance = np.abs(eager["boxes"][:, None] - outputs["boxes"][None, :count]).max(2)  # [eager, file]
    apart = np.abs(eager["scores"][:, None] - outputs["scores"][None, :count]) > 10 * SCORE_TOLERANCE
    distance[apart | (eager["labels"][:, None] != outputs["labels"][None, :count])] = np.inf
    pairs = []
    for _ in range(min(distance.shape)):
        i, j = divmod(int(distance.argmin()), count)
        if distance[i, j] > 10 * BOX_TOLERANCE:
            break
        pairs.append((i, j))
        distance[i, :] = distance[:, j] = np.inf
    missing = set(range(len(eager["scores"]))) - {i for i, _ in pairs}
    extra = set(range(count)) - {j for _, j in pairs}
    return pairs, sum(eager["scores"][i] > cut for i in missing), sum(outputs["scores"][j] > cut for j in extra)


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


def _case(
    name: str, session: ort.InferenceSession, model: MaskRCNN, graph: DeployGraph, images: NDArray[np.uint8]
) -> CaseReport:
    eager, features = eager_detections(model, images)
    names = [value.name for value in session.get_outputs()]
    outputs = dict(zip(names, session.run(None, {"image": images}), strict=True))
    missing = extra = 0
    errors = {"boxes": 0.0, "scores": 0.0, "masks": 0.0}
    for i, found in enumerate(eager):
        own = {key: value[i] for key, value in outputs.items()}
        pairs, own_missing, own_extra = match(found, own, float(graph.detect.score_threshold))
        missing, extra = missing + own_missing, extra + own_extra
        for key in errors.keys() & own.keys():
            for a, b in pairs:
                errors[key] = max(errors[key], float(np.abs(found[key][a] - own[key][b]).max()))
    total = sum(len(found["scores"]) for found in eager)
    chains, full = _nms_margins(graph, features)
    return CaseReport(name, total, missing, extra, errors["boxes"], errors["scores"], errors["masks"], chains, full)


def _nms_margins(graph: DeployGraph, features: list[Tensor]) -> tuple[dict[str, int], bool]:
    """Rounds that each suppression needs on these features, and whether candidates were cut off."""
    with torch.no_grad():
        boxes, _, valid = graph.rpn.ranked(features)
        chains = {"proposals": graph.rpn.nms.chain_length(boxes.flatten(0, 1), valid.flatten(0, 1))}
        proposals, real = graph.rpn(features)
        detect: Any = graph.detect
        boxes, _, labels, valid = detect.ranked(detect.layout.build(features[:4]), proposals, real)
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
