"""Latencies of several models, measured in turns so that whatever the machine does meets all alike."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from wnlb.runtime.errors import WnlbError
from wnlb.runtime.latency import percentile

Times = dict[str, float]  # milliseconds of one frame by part, "total" among them
UNSTEADY = 0.15  # standard deviation over mean, above which numbers are doubted
DRIFT = 0.05  # difference of the medians of first and second half, over the median


class Subject(Protocol):
    """Something that can be run."""

    name: str

    def run(self, count: int) -> list[Times]:
        """That many frames, one after the other. Raises WnlbError where it fails."""
        ...

    def timed(self, count: int) -> list[Times]:
        """As many runs of the inference alone, by the backend's own clock; empty parts where it has none.

        They follow each turn of frames and are no part of it. Raises WnlbError where it fails.
        """
        ...


@dataclass(frozen=True)
class Plan:
    """How long to measure; trtexec's names and defaults."""

    warm_up_s: float = 0.2  # and two runs at least: ONNX Runtime allocates in both
    duration_s: float = 3.0  # of each subject's frames, at least
    iterations: int = 10  # of each subject, at least
    round_s: float = 0.25  # of one turn

    def __post_init__(self) -> None:
        finite = all(map(math.isfinite, (self.warm_up_s, self.duration_s, self.round_s)))
        if not finite or min(self.warm_up_s, self.duration_s) < 0 or self.iterations < 1 or self.round_s <= 0:
            raise WnlbError(
                f"warm-up {self.warm_up_s:g} s, duration {self.duration_s:g} s, {self.iterations} iterations; expected "
                "times from 0 and at least one iteration"
            )


@dataclass
class Samples:
    """What was measured of one subject, in the order of time."""

    times: list[Times] = field(default_factory=list)
    turns: list[tuple[float, float, int]] = field(default_factory=list)  # start and end by the clock, frames run
    failure: str = ""

    def of(self, part: str) -> list[float]:
        return [times[part] for times in self.times if part in times]

    def moments(self) -> list[float]:
        """When each run ended, by the clock, as if the runs of a turn had taken equally long."""
        return [start + (end - start) * (i + 1) / count for start, end, count in self.turns for i in range(count)]


@dataclass(frozen=True)
class Statistics:
    """Of one part, in milliseconds; percentiles as trtexec's."""

    count: int
    mean: float
    std: float
    min: float
    p50: float
    p90: float
    p95: float
    p99: float
    max: float

    @classmethod
    def of(cls, times: Sequence[float]) -> Statistics:
        """Raises ValueError for no times."""
        if not times:
            raise ValueError("no times")
        points = {f"p{p}": percentile(times, p) for p in (50, 90, 95, 99)}
        std = statistics.pstdev(times)
        return cls(len(times), statistics.fmean(times), std, min(times), max=max(times), **points)


def measure(
    subjects: Sequence[Subject],
    plan: Plan,
    progress: Callable[[str], object] = lambda name: None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Samples]:
    """Samples by the subjects' names. One that fails keeps its reason, and the others go on.

    Args:
        progress: called with the subject's name before each of its turns.
        clock: seconds.
    """
    samples = {subject.name: Samples() for subject in subjects}
    if len(samples) != len(subjects):
        raise ValueError("two subjects have the same name")
    spent = dict.fromkeys(samples, 0.0)
    counts: dict[str, int] = {}
    for subject in subjects:
        progress(subject.name)
        counts[subject.name] = _warm_up(subject, plan, samples[subject.name], clock)
    while True:
        waiting = [
            subject
            for subject in subjects
            if not samples[subject.name].failure
            and (len(samples[subject.name].times) < plan.iterations or spent[subject.name] < plan.duration_s)
        ]
        if not waiting:
            return samples
        for subject in waiting:
            progress(subject.name)
            spent[subject.name] += _turn(subject, counts[subject.name], samples[subject.name], clock)


def warnings_of(times: Sequence[float]) -> list[str]:
    """Why these numbers should be doubted, if they should."""
    if len(times) < 4:
        return [f"only {len(times)} runs"]
    found, middle = [], percentile(times, 50)
    spread = statistics.pstdev(times) / statistics.fmean(times)
    if spread > UNSTEADY:
        found.append(f"unsteady: the standard deviation is {100 * spread:.0f} % of the mean")
    half = len(times) // 2
    drift = (percentile(times[half:], 50) - percentile(times[:half], 50)) / middle
    if abs(drift) > DRIFT:
        found.append(f"{'slower' if drift > 0 else 'faster'} by {100 * abs(drift):.0f} % in the second half")
    return found


def _warm_up(subject: Subject, plan: Plan, samples: Samples, clock: Callable[[], float]) -> int:
    """Run until it is warm; how many runs make a turn."""
    started, runs = clock(), 0
    warm = Samples()
    while runs < 2 or clock() - started < plan.warm_up_s:
        _turn(subject, 1, warm, clock)
        runs += 1
        if warm.failure:
            samples.failure = warm.failure
            return 1
    last = max(min(warm.of("total")), 1e-3)
    return max(int(1e3 * plan.round_s / last), 1)


def _turn(subject: Subject, count: int, samples: Samples, clock: Callable[[], float]) -> float:
    """How long the frames took, in seconds."""
    try:
        started = clock()
        frames = subject.run(count)
        ended = clock()
        parts = subject.timed(count)
    except WnlbError as error:
        samples.failure = str(error)
        return 0.0
    samples.times += [{**frame, **own} for frame, own in zip(frames, parts, strict=True)]
    samples.turns.append((started, ended, count))
    return ended - started
