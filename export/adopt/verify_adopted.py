"""Proof that an adopted file finds what the original finds with its own post-processing."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from torch import Tensor

from wnlb.export.adopt.families.foreign import ForeignFile
from wnlb.export.graph.output_graph import OutputGraph
from wnlb.export.onnx_file.reference import BOX_TOLERANCE, SCORE_TOLERANCE, Arrays, match
from wnlb.export.onnx_file.verify import (
    AMPLIFIES,
    CASES,
    JUDGES,
    MOST_UNMATCHED,
    Frames,
    dark_scene,
    onnx_session,
    padded,
    tried_batches,
    with_score_threshold,
)
from wnlb.export.options import ExportOptions
from wnlb.runtime.contract import CONTENT, METADATA_KEY, Contract
from wnlb.runtime.denormals import without_denormals
from wnlb.runtime.errors import VerificationError

TOLERANCES = {"box": BOX_TOLERANCE, "score": SCORE_TOLERANCE, "mask": 1e-3}  # of a mask: share of its pixels
# A network may amplify rounding. What it makes of inputs that differ by this share of each value, about what the
# rounding of some dozens of layers adds up to, is what its own float32 errs; so much times that a file may err.
_PERTURBATION = 2.0**-20
_PERTURBED = 3  # times
_ENOUGH = 20  # candidates that are to be compared; where fewer pass the threshold, others below it join in
_MORE = (200, 100, 50, 20, 10)  # that may join in, in a picture; as many as suppression has rounds for

Given = tuple[NDArray[np.float32], ...]  # what the network gives, of all images


@dataclass(frozen=True)
class Errors:
    """How far detections are from the original's, the largest of all matched ones."""

    missing: int = 0
    extra: int = 0
    box: float = 0.0  # input pixels
    score: float = 0.0
    mask: float = 0.0  # share of a mask's pixels that are others

    def and_of(self, other: Errors) -> Errors:
        """Of both."""
        worst = (float(np.maximum(getattr(self, name), getattr(other, name))) for name in TOLERANCES)  # NaN stays
        return Errors(self.missing + other.missing, self.extra + other.extra, *worst)

    def beyond(self, rounding: Errors | None = None) -> list[str]:
        """What is more than it may be, in words; with ``rounding``, than ``AMPLIFIES`` times that."""
        allowed, found = rounding or Errors(), []
        if self.missing + self.extra > AMPLIFIES * (allowed.missing + allowed.extra):
            found.append(f"{self.missing} detections are missing, and {self.extra} are extra")
        for name, tolerance in TOLERANCES.items():
            error, most = getattr(self, name), max(tolerance, AMPLIFIES * getattr(allowed, name))
            if not error <= most:  # NaN fails
                found.append(f"{name}s differ by {error:.2g}, more than {most:.2g}")
        return found


@dataclass(frozen=True)
class CaseReport:
    """How one input compared."""

    name: str
    detections: int  # of the original, in all images of all runs
    threshold: float  # of scores, that it was compared with
    errors: Errors
    rounding: Errors | None  # of the original itself, where ``errors`` are not within the tolerances
    chain: int | None  # rounds that suppression needs at the file's own threshold; None where any number is taken
    candidates_full: bool  # more pass that threshold than are looked at, and the others might be detections

    @property
    def is_chance(self) -> bool:
        """Whether rounding alone decides on so many detections that they say nothing of a file."""
        own = self.rounding
        return own is not None and own.missing + own.extra > MOST_UNMATCHED * self.detections

    def problems(self, rounds: int, judges: bool = True) -> list[str]:
        """What keeps this case from passing, in words; without ``judges`` only what does not depend on detections."""
        found = self.errors.beyond(self.rounding) if judges else []
        if judges and self.is_chance:
            found.append("rounding alone decides on what this network finds, which cannot be verified")
        if self.chain is not None and self.chain > rounds:
            found.append(f"NMS needs {self.chain} rounds, more than the {rounds} of --nms-rounds")
        if self.candidates_full:
            found.append("more candidates pass the score threshold than --candidates holds")
        return [f"{self.name}: {problem}" for problem in found]


def verify_adopted(
    path: Path,
    original: Path,
    file: ForeignFile,
    graph: OutputGraph,
    options: ExportOptions,
    on_case: Callable[[str], None] = lambda name: None,
) -> list[CaseReport]:
    """Compare a file in ONNX Runtime with the original there and the reference of its post-processing, on ``CASES``.

    Noise; a dark scene; pictures that do not fill the input, beside them noise that the network must not see; and a
    black frame with a threshold of 1, on which nothing may be found. A network that finds next to nothing in them, as
    one without training does, is compared with a lower threshold, which the reports tell. A file whose batch is open
    runs with the fewest images, the most and a number between. Where a file differs by more than the tolerances, as one
    with other operators for attention may, the original is compared with itself on inputs that differ by their last
    bits: the file may err ``AMPLIFIES`` times as much; where rounding alone decides on what is found, an input judges
    nothing, as long as the dark scene, whole or padded, judges.

    Args:
        original: as it came; it runs image by image.
        graph: that the file's outputs were made by; it measures chains and candidates.

    Raises:
        VerificationError: something differs by more than the tolerances.
    """
    session = onnx_session(str(path))
    contract = Contract.from_json(session.get_modelmeta().custom_metadata_map[METADATA_KEY])
    scene = dark_scene(contract.input_shape)
    whole = np.tile(np.array(contract.input_shape[1:3], np.int32), (contract.batch, 1))
    noise = np.random.default_rng(0).integers(0, 256, scene.shape, dtype=np.uint8)
    frames = (Frames(noise, whole), Frames(scene, whole), padded(scene, contract.padding == "centre"))
    given = _Original(original, file, options)
    cases = [_Case(name, own, given.run(own), given, graph) for name, own in zip(CASES, frames, strict=False)]
    reports = []
    for case in cases:
        on_case(case.name)
        threshold = case.threshold(contract)
        same = threshold == case.own_threshold
        reports.append(
            case.compared(session if same else onnx_session(with_score_threshold(path, threshold)), contract, threshold)
        )
    on_case(CASES[-1])
    black = Frames(np.zeros_like(scene), whole)
    last = _Case(CASES[-1], black, given.run(black), given, graph)
    reports.append(last.compared(onnx_session(with_score_threshold(path, 1.0)), contract, 1.0))
    judging = any(not report.is_chance for report in reports if report.name in JUDGES)
    problems = [
        problem
        for report in reports
        for problem in report.problems(options.nms_rounds, not (judging and report.is_chance))
    ]
    if problems:
        raise VerificationError(f"verification failed, no file was written: {'; '.join(problems)}")
    return reports


class _Original:
    """The file as it came, and what its tool would find."""

    def __init__(self, path: Path, file: ForeignFile, options: ExportOptions) -> None:
        self.session, self.file, self.options = onnx_session(str(path)), file, options
        self.batch = file.batch or 1

    def run(self, frames: Frames, seed: int | None = None) -> Given:
        """Of all images; with a seed, of such that differ by ``_PERTURBATION``."""
        x = self.file.reference_input(*frames)
        if seed is not None:
            signs = np.random.default_rng(seed).choice(np.array([-1, 1], np.float32), x.shape)
            x = x * (1 + np.float32(_PERTURBATION) * signs)
        filled = np.concatenate([x, np.zeros((-len(x) % self.batch, *x.shape[1:]), x.dtype)])
        name, outputs = self.session.get_inputs()[0].name, [value.name for value in self.session.get_outputs()]
        with without_denormals():
            runs = [
                self.file.given(
                    dict(zip(outputs, self.session.run(None, {name: filled[i : i + self.batch]}), strict=True))
                )
                for i in range(0, len(filled), self.batch)
            ]
        return tuple(np.concatenate(values)[: len(x)] for values in zip(*runs, strict=True))

    def least_score(self, threshold: float) -> float:
        """Of a detection."""
        return self.file.least_score(threshold, self.options)

    def found(self, given: Given, content: NDArray[np.int32], threshold: float) -> list[Arrays]:
        """Detections of each image."""
        return [
            self.file.reference(arrays, (height, width), threshold, self.options)
            for arrays, (height, width) in zip(zip(*given, strict=True), content.tolist(), strict=True)
        ]


@dataclass(frozen=True)
class _Case:
    """An input, and what the original file gives for it."""

    name: str
    frames: Frames
    given: Given
    original: _Original
    graph: OutputGraph

    def compared(self, session: ort.InferenceSession, contract: Contract, threshold: float) -> CaseReport:
        """The file at a threshold, with the original; the margins are those of the contract's threshold."""
        names = [value.name for value in session.get_outputs()]
        expected = self.original.found(self.given, self.frames.content, threshold)
        least = self.original.least_score(threshold)
        total, errors = 0, Errors()
        for n in tried_batches(contract):
            inputs = {contract.input_name: self.frames.image[-n:], CONTENT: self.frames.content[-n:]}
            with without_denormals():
                outputs = dict(zip(names, session.run(None, inputs), strict=True))
            for i, reference in enumerate(expected[-n:]):
                found = {key: value[i] for key, value in outputs.items()}
                total, errors = total + len(reference["scores"]), errors.and_of(_errors(reference, found, least))
        rounding = self._rounding(expected, threshold) if errors.beyond() else None
        return CaseReport(self.name, total, threshold, errors, rounding, *self._margins())

    def threshold(self, contract: Contract) -> float:
        """The file's own, or a lower one where that leaves too little to compare."""
        with torch.no_grad():
            scores = self.graph.best_scores(self._tensors()[0]).numpy()  # [N, R]
        if (scores > self.own_threshold).sum() >= _ENOUGH:
            return self.own_threshold
        for number in _MORE:
            if number < min(scores.shape[1], contract.candidates):
                threshold = float(np.sort(scores, 1)[:, -number - 1].max())  # at most so many in each image
                if (self.chain(threshold) or 0) <= (contract.nms_rounds or 0):
                    return min(threshold, self.own_threshold)
        return self.own_threshold

    def _rounding(self, expected: list[Arrays], threshold: float) -> Errors:
        rows, worst = self.original.file.entries(self.original.options)["detections"], Errors()
        least = self.original.least_score(threshold)
        for seed in range(_PERTURBED):
            others = self.original.found(self.original.run(self.frames, seed), self.frames.content, threshold)
            errors = Errors()
            for reference, other in zip(expected, others, strict=True):
                errors = errors.and_of(_errors(reference, as_rows(other, rows), least))
            kept = max(worst, errors, key=lambda one: one.missing + one.extra)
            worst = dataclasses.replace(worst.and_of(errors), missing=kept.missing, extra=kept.extra)
        return worst

    @property
    def own_threshold(self) -> float:
        """The first that scores meet in the file."""
        return self.graph.detect.score_threshold.item()

    def chain(self, threshold: float) -> int | None:
        """Rounds that suppression needs at a threshold; None where any number is taken."""
        with torch.no_grad():
            return self.graph.chain(*self._tensors(), threshold)

    def _margins(self) -> tuple[int | None, bool]:
        with torch.no_grad():
            return self.chain(self.own_threshold), self.graph.lacks_candidates(*self._tensors())

    def _tensors(self) -> tuple[list[Tensor], Tensor]:
        return [torch.from_numpy(value) for value in self.given], torch.from_numpy(self.frames.content)


def _errors(reference: Arrays, found: Arrays, least: float) -> Errors:
    """Of one image; ``found`` as a file gives it, ``least`` the score of a detection."""
    pairs, missing, extra = match(reference, found, least)
    errors = Errors(missing, extra)
    for a, b in pairs:
        box = np.abs(reference["boxes"][a] - found["boxes"][b]).max()
        share = 0.0
        if "masks" in found:
            first, second = reference["masks"][a] > 0, found["masks"][b] > 0
            share = (first != second).sum() / max((first | second).sum(), 1)
        score = abs(reference["scores"][a] - found["scores"][b])
        errors = errors.and_of(Errors(0, 0, float(box), float(score), float(share)))
    return errors


def as_rows(found: Arrays, rows: int) -> Arrays:
    """Detections of a reference as a file gives them: ``rows`` rows, 0 from ``count`` on."""
    count = len(found["scores"])
    padded_rows = {
        name: np.pad(value, [(0, rows - count)] + [(0, 0)] * (value.ndim - 1)) for name, value in found.items()
    }
    return {**padded_rows, "count": np.array(count)}
