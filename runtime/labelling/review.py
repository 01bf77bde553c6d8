"""The pictures that are most worth a person's look.

Three reasons, each with an order of its own; the list takes the first of each in turn, then the second, ...

- doubt: how many of its labels are likely to be wrong, taking scores for probabilities: a label of score s is one that
  should not be with 1 - s, an object that was left out for its low score is missing with s.
- darkness: how far its luminance lies from that of the others, in robust standard deviations of its logarithm.
- disagreement: objects that one of two models labels and the other does not, by class and IoU.
"""

from __future__ import annotations

import csv
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wnlb.runtime.errors import WnlbError
from wnlb.runtime.files import atomic_path
from wnlb.runtime.labelling.job import Job

SAME_OBJECT = 0.5  # IoU from which two labels are one
UNUSUAL = 3.0  # robust standard deviations
_FLOOR = 1e-4  # of a luminance, whose logarithm is taken


@dataclass(frozen=True)
class Candidate:
    """A picture and why it should be looked at; a reason that is 0 is none."""

    name: str
    luminance: float
    labels: int
    doubt: float  # labels that are likely to be wrong
    darkness: float  # deviations, negative for a darker one; 0 below ``UNUSUAL``
    disagreement: int  # objects


def write_review(job: Job, count: int, min_score: float, against: Job | None = None) -> int:
    """Write ``review.csv`` of up to ``count`` pictures into the job's folder; returns how many.

    Args:
        min_score: from which an object is a label.
        against: a job of another model on the same pictures.

    Raises:
        WnlbError: the other job is of other pictures, or not finished.
    """
    pictures = list(_measured(job, min_score, against))
    with atomic_path(job.folder / "review.csv") as temporary, open(temporary, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([item.name for item in fields(Candidate)])
        chosen = worth_a_look(pictures, count)
        for one in chosen:
            deviations = f"{one.darkness:.1f}"
            writer.writerow(
                [one.name, f"{one.luminance:.4f}", one.labels, f"{one.doubt:.2f}", deviations, one.disagreement]
            )
    return len(chosen)


def worth_a_look(pictures: Sequence[Candidate], count: int) -> list[Candidate]:
    """The first of each reason in turn, each picture once."""
    orders = []
    for reason in ("disagreement", "doubt", "darkness"):
        having = [one for one in pictures if getattr(one, reason)]
        orders.append(sorted(having, key=lambda one: (-abs(getattr(one, reason)), one.name)))
    turns = itertools.chain.from_iterable(itertools.zip_longest(*orders))
    return list(itertools.islice(dict.fromkeys(one for one in turns if one), count))


def _measured(job: Job, min_score: float, against: Job | None) -> Iterator[Candidate]:
    rows = ((row, doubt(row, min_score), _disagreement(row, other, min_score)) for row, other in _pairs(job, against))
    kept = [
        (row["name"], row["luminance"], sum(found["score"] >= min_score for found in row["objects"]), *reasons)
        for row, *reasons in rows
        if row["error"] is None
    ]
    unusual = deviations([luminance for _, luminance, *_ in kept])
    for (name, luminance, labels, expected, apart), deviation in zip(kept, unusual.tolist(), strict=True):
        yield Candidate(name, luminance, labels, expected, deviation if abs(deviation) >= UNUSUAL else 0.0, apart)


def _pairs(job: Job, against: Job | None) -> Iterator[tuple[dict[str, Any], dict[str, Any] | None]]:
    if against is None:
        yield from ((row, None) for row in job.rows())
        return
    if [one.name for one in job.inputs] != [one.name for one in against.inputs]:
        raise WnlbError(f"--against {against.folder} holds labels of other pictures; label the same SOURCE with both")
    others, passed = against.rows(), dict[str, dict[str, Any]]()
    for row in job.rows():  # in the same order, but where a video is cut short in one of them
        other = passed.pop(row["name"], None)
        while other is None and (following := next(others, None)):
            passed[following["name"]] = following
            other = passed.pop(row["name"], None)
        yield row, other


def doubt(row: dict[str, Any], min_score: float) -> float:
    """How many labels of a picture are likely to be wrong, where scores are probabilities."""
    scores = [found["score"] for found in row["objects"]]
    return sum(1 - score if score >= min_score else score for score in scores)


def deviations(luminances: Iterable[float]) -> NDArray[np.float64]:
    """Distances from the median in robust standard deviations (1.4826 times the median of distances), of logarithms."""
    logs = np.log10(np.maximum(np.array(list(luminances), np.float64), _FLOOR))
    if not len(logs):
        return logs
    apart = logs - np.median(logs)
    spread = 1.4826 * float(np.median(np.abs(apart)))
    return apart / spread if spread > 0 else np.zeros_like(apart)


def _disagreement(row: dict[str, Any], other: dict[str, Any] | None, min_score: float) -> int:
    if other is None or row["error"] or other["error"]:
        return 0
    both = [[found for found in each["objects"] if found["score"] >= min_score] for each in (row, other)]
    return sum(map(len, both)) - 2 * agreed(*both)


def agreed(first: list[dict[str, Any]], second: list[dict[str, Any]]) -> int:
    """How many objects of two lists are the same: of one class, IoU of boxes 0.5 or more, the best pairs first."""
    from pycocotools import mask as coco_mask

    if not first or not second:
        return 0
    boxes = [np.array([found["bbox"] for found in each], np.float64) for each in (first, second)]
    overlap = np.asarray(coco_mask.iou(*boxes, [0] * len(second)))  # [first, second]
    classes = [np.array([found["category"] for found in each]) for each in (first, second)]
    overlap = np.where(classes[0][:, None] == classes[1][None, :], overlap, 0)
    pairs = 0
    while overlap.max(initial=0) >= SAME_OBJECT:
        i, j = np.unravel_index(int(overlap.argmax()), overlap.shape)
        overlap[i, :] = overlap[:, j] = 0
        pairs += 1
    return pairs
