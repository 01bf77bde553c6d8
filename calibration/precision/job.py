"""What every precision of ``wnlb convert`` works with: the file, the pictures, and how its accuracy is judged."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx
from tqdm import tqdm

from wnlb.calibration.accuracy.judge import Judge, evenly
from wnlb.calibration.precision.convert import Converter
from wnlb.calibration.precision.ranges import Inputs
from wnlb.calibration.precision.selection import Selection
from wnlb.runtime.inputs import prepared_inputs
from wnlb.runtime.predictor import AT_ONCE, Predictor

OVERFLOW_PICTURES = 16  # that are looked at for values beyond FP16's range


@dataclass
class Job:
    """One conversion.

    ``facts`` is what it tells programs at its end; ``held`` whether the accuracy budget holds.
    """

    arguments: argparse.Namespace
    converter: Converter
    selection: Selection
    folder: Path  # of the measurements
    facts: dict[str, Any] = field(default_factory=dict)
    held: bool = True
    _told: bool = False  # what is odd about the labels

    def say(self, text: str) -> None:
        """To people only."""
        if not self.arguments.json:
            print(text)

    def bar(self, total: int | None, what: str) -> Any:
        return progress_bar(total, what, self.arguments.json)

    def inputs(self, count: int | None = None) -> Iterator[Inputs]:
        """Inputs of the model, of chosen pictures as the Predictor makes them; its smallest batch, of one of them."""
        contract = self.converter.contract
        for _, frame in self.selection.frames(evenly(len(self.selection.chosen), count)):
            yield prepared_inputs(contract, [frame] * contract.batches[0])

    def watch_overflow(self, count: int | None = None) -> None:
        chosen = len(self.selection.chosen)
        with self.bar(min(count or chosen, chosen), "look for overflow") as bar:
            self.converter.watch_overflow(self.inputs(count), bar.update)

    def judge(self, count: int | None) -> Judge:
        """On the labels, or on agreement with FP32; ``count`` pictures of them, evenly taken, or all."""
        arguments = self.arguments
        if arguments.annotations:
            judge = Judge.on_labels(arguments.annotations, arguments.eval_images, count)
            for note in () if self._told else judge.notes:
                print(f"wnlb convert: {note}", file=sys.stderr)
            self._told = True
            return judge
        pictures = dict(self.selection.frames(evenly(len(self.selection.chosen), count or arguments.trial_pictures)))
        with Predictor(self.converter.path, at_once=AT_ONCE) as reference, self.bar(len(pictures), "run FP32") as bar:
            return Judge.on_agreement(reference, pictures, bar.update)

    def say_drop(self, drop: float, judge: Judge) -> None:
        budget = self.arguments.max_ap_drop
        against = "labels" if judge.truth == "labels" else "what FP32 finds"
        verdict = "" if budget is None else ", within the budget" if drop <= budget else f", more than {budget:g}"
        pictures = f"{len(judge)} pictures, against {against}"
        self.say(f"AP drops by {drop:.2f} (worse of box and mask, {pictures}){verdict}")


def progress_bar(total: int | None, what: str, hidden: bool) -> Any:
    """``hidden``; and where standard error is no terminal."""
    return tqdm(total=total, desc=what, unit="picture", disable=hidden or None, file=sys.stderr, leave=False)


def convert_half(job: Job) -> onnx.ModelProto:
    """FP16 or BF16."""
    precision = job.arguments.precision
    if precision == "fp16":  # BF16 has FP32's range
        job.watch_overflow()
    model, report = job.converter.half(precision)
    job.facts |= {"precision": precision, "half": report.half, "fp32": report.full}
    job.facts |= {"overflowing": list(report.overflowing), "vanishing": report.vanishing}
    job.say(f"\n{report.half} nodes in {precision.upper()}, {report.full} in FP32")
    if report.overflowing:
        job.say(f"kept in FP32, for their values leave FP16's range: {', '.join(report.overflowing)}")
    if report.vanishing:
        total = sum(report.vanishing.values())
        job.say(f"{total} weights are below FP16's range and become 0, in {len(report.vanishing)} tensors:")
        job.say(", ".join(f"{name} ({count})" for name, count in report.vanishing.items()))
    if job.arguments.max_ap_drop is not None:
        _hold_budget(job, model)
    return model


def _hold_budget(job: Job, model: onnx.ModelProto) -> None:
    judge = job.judge(None)
    with tempfile.TemporaryDirectory() as folder, job.bar(2 * len(judge), "measure") as bar:
        onnx.save(model, Path(folder) / "half.onnx")
        before = judge.measure(job.converter.path, bar.update)
        drop = before.drop(judge.measure(Path(folder) / "half.onnx", bar.update))
    job.facts["drop"] = drop
    job.held = drop <= job.arguments.max_ap_drop
    job.say_drop(drop, judge)
