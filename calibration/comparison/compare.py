"""Where files of one model differ: inner tensors in the order of the network, and the pictures that show it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from wnlb.calibration.accuracy.score import AGREEMENT_SCORE, agreement
from wnlb.calibration.precision.groups import blocks_of, scope_of
from wnlb.calibration.precision.ranges import Inputs, Tap
from wnlb.export.onnx_file.fuse import unfuse_attention

DRIFT = 0.1  # relative error from which a tap counts as drifted: noise 20 dB below the signal
SAME_BOX = 0.9  # IoU of a proposal that both have
PROPOSALS = 100  # the best ones that are looked for


@dataclass
class TapError:
    """How far one inner tensor of a file is from the reference's, over all pictures."""

    tap: str
    squares: float = 0.0  # sum of squared differences
    energy: float = 0.0  # sum of squares of the reference
    largest: float = 0.0

    @property
    def relative(self) -> float:
        """Root of the mean square error, against the root mean square of the reference."""
        return float(np.sqrt(self.squares / self.energy)) if self.energy else 0.0

    def add(self, reference: NDArray, other: NDArray) -> None:
        difference = other.astype(np.float64) - reference
        self.squares += float(np.square(difference).sum())
        self.energy += float(np.square(reference, dtype=np.float64).sum())
        self.largest = max(self.largest, float(np.abs(difference).max(initial=0)))


@dataclass
class TapReport:
    """All taps of one file against the reference."""

    errors: list[TapError]
    proposals: tuple[int, int] = (0, 0)  # of the reference's best ones, how many the file has, and how many there are

    def first_drift(self) -> str | None:
        """The first tap, in the order of the network, whose relative error is above ``DRIFT``."""
        return next((error.tap for error in self.errors if not error.relative <= DRIFT), None)


def taps_of(model: onnx.ModelProto) -> dict[str, str]:
    """What is looked at, in the order of the network: its name for people, to the tensor.

    C2..C5 before and after their blocks (C2..C5 where there are none), P2..P5, and the proposals.
    """
    order = {output: i for i, node in enumerate(model.graph.node) for output in node.output}
    found: dict[str, str] = {}
    for path, level in blocks_of(model).items():
        own = [node for node in model.graph.node if scope_of(node) == path or scope_of(node).startswith(f"{path}.")]
        made = {output for node in own for output in node.output}
        inputs = [name for node in own if node.op_type == "Conv" for name in _undo(model, node.input[0], made)]
        if inputs:
            found[f"{level.upper()} before block"] = inputs[0]
            found[f"{level.upper()} after block"] = max(made, key=lambda name: order[name])
    with_block = {name.split()[0] for name in found}
    for i in range(1, 5):
        last = [n.output[0] for n in model.graph.node if n.op_type == "Relu" and n.name.startswith(f"body.layer{i}.")]
        if last and f"C{i + 1}" not in with_block:
            found[f"C{i + 1}"] = last[-1]
    for i in range(4):
        name = f"fpn.layer_blocks.{i}.0/Conv:0"
        if name in order and f"P{i + 2}" not in with_block:
            found[f"P{i + 2}"] = name
    proposals = [n.output[0] for n in model.graph.node if n.op_type == "GatherElements" and scope_of(n) == "rpn"]
    if proposals:
        found["proposals"] = proposals[-1]
    return dict(sorted(found.items(), key=lambda item: order[item[1]]))


def compare_taps(
    models: Sequence[onnx.ModelProto],
    inputs: Iterable[Inputs],
    on_done: Callable[[], object] = lambda: None,
) -> list[TapReport]:
    """Inner tensors of each model but the first, against the first.

    Args:
        models: files of one export in different precisions; plugin nodes are run by their bodies.
        inputs: of the models, by name.
    """
    plain = []
    for model in models:
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        unfuse_attention(copy)
        plain.append(copy)
    taps = taps_of(plain[0])
    made = [{output for node in model.graph.node for output in node.output} for model in plain]
    taps = {label: name for label, name in taps.items() if all(name in own for own in made)}
    runs = [Tap(model, list(taps.values())) for model in plain]
    reports = [TapReport([TapError(label) for label in taps if label != "proposals"]) for _ in plain[1:]]
    for own in inputs:
        reference = runs[0](own)
        for run, report in zip(runs[1:], reports, strict=True):
            values = run(own)
            for error in report.errors:
                error.add(reference[taps[error.tap]], values[taps[error.tap]])
            if "proposals" in taps:
                name = taps["proposals"]
                same, total = _same_boxes(reference[name][0][:PROPOSALS], values[name][0])
                report.proposals = (report.proposals[0] + same, report.proposals[1] + total)
        on_done()
    return reports


@dataclass(frozen=True)
class DetectionError:
    """How far the detections of a file are from their partners in the reference, over all pictures."""

    pairs: int  # of one image and class, boxes that overlap by an IoU of 0.5 or more, both with a score of 0.5 or more
    box: float  # mean of the largest difference of an edge, in pixels of the picture
    score: float  # mean difference
    mask_iou: float | None  # mean; None without masks


def detection_error(first: Sequence[dict[str, Any]], second: Sequence[dict[str, Any]]) -> DetectionError:
    """Of two models' COCO results on the same pictures."""
    from pycocotools import mask as coco_mask

    groups: list[dict[tuple[int, int], list[dict[str, Any]]]] = [{}, {}]
    for group, results in zip(groups, (first, second), strict=True):
        for entry in results:
            if entry["score"] >= AGREEMENT_SCORE:
                group.setdefault((entry["image_id"], entry["category_id"]), []).append(entry)
    boxes, scores, masks = [], [], []
    for key in groups[0].keys() & groups[1].keys():
        ours, theirs = (group[key] for group in groups)
        overlap = coco_mask.iou([e["bbox"] for e in ours], [e["bbox"] for e in theirs], [0] * len(theirs))
        for i, j in zip(range(len(ours)), overlap.argmax(1), strict=True):
            if overlap[i, j] >= 0.5 and overlap[:, j].argmax() == i:  # each is the other's nearest
                corners = [np.array([x, y, x + w, y + h]) for x, y, w, h in (ours[i]["bbox"], theirs[j]["bbox"])]
                boxes.append(float(np.abs(corners[0] - corners[1]).max()))
                scores.append(abs(ours[i]["score"] - theirs[j]["score"]))
                if "segmentation" in ours[i] and "segmentation" in theirs[j]:
                    pair = ([e["segmentation"]] for e in (ours[i], theirs[j]))
                    masks.append(float(coco_mask.iou(*pair, [0])[0, 0]))
    if not boxes:
        return DetectionError(0, 0.0, 0.0, None)
    return DetectionError(
        len(boxes), float(np.mean(boxes)), float(np.mean(scores)), float(np.mean(masks)) if masks else None
    )


def most_different(first: Sequence[dict[str, Any]], second: Sequence[dict[str, Any]], count: int) -> list[int]:
    """Ids of the images on which two models' detections differ most, the worst first.

    Args:
        first, second: COCO results. Those that score 0.5 or more and have no partner count, by their scores.
    """
    images = {entry["image_id"] for entry in (*first, *second) if entry["score"] >= AGREEMENT_SCORE}
    alone = {}
    for image in images:
        own = [[e for e in results if e["image_id"] == image] for results in (first, second)]
        pairs, ours, theirs = agreement(*own)
        alone[image] = ours + theirs - 2 * pairs
    return sorted((i for i in alone if alone[i]), key=lambda i: (-alone[i], i))[:count]


def _undo(model: onnx.ModelProto, name: str, own: set[str]) -> list[str]:
    """The tensor from outside that ``name`` is, behind casts and Q/DQ; empty where it is from inside."""
    makers = {output: node for node in model.graph.node for output in node.output}
    while name in makers and makers[name].op_type in ("Cast", "QuantizeLinear", "DequantizeLinear"):
        name = makers[name].input[0]
    return [] if name in own else [name]


def _same_boxes(first: NDArray, second: NDArray) -> tuple[int, int]:
    """How many of the first boxes ``[n, 4]`` have a second one with an IoU of at least ``SAME_BOX``; and n."""
    corners = np.maximum(first[:, None, :2], second[None, :, :2]), np.minimum(first[:, None, 2:], second[None, :, 2:])
    overlap = np.clip(corners[1] - corners[0], 0, None).prod(2)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(1) for boxes in (first, second)]
    union = areas[0][:, None] + areas[1][None] - overlap
    best = np.divide(overlap, union, out=np.zeros_like(overlap), where=union > 0).max(1)
    return int((best >= SAME_BOX).sum()), len(first)
