"""The measurement on planted subjects: their times are known, and so is the clock."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import pytest

from wnlb.runtime.errors import WnlbError
from wnlb.runtime.profile.measure import Plan, Statistics, Times, measure, warnings_of


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Planted:
    """Takes the milliseconds that it is told, one after the other, and the clock goes on by them.

    A run of the inference alone takes ``gpu_ms``.
    """

    def __init__(
        self, name: str, clock: Clock, ms: Iterator[float], fails_at: int = -1, gpu_ms: float | None = None
    ) -> None:
        self.name, self.runs, self.turns, self._gpu_ms = name, 0, list[int](), gpu_ms
        self._clock, self._ms, self._fails_at = clock, ms, fails_at

    def run(self, count: int) -> list[Times]:
        self.turns.append(count)
        found = []
        for _ in range(count):
            if self.runs == self._fails_at:
                raise WnlbError("fell out")
            self.runs += 1
            ms = next(self._ms)
            self._clock.now += ms / 1e3
            found.append({"total": ms, "infer": ms / 2})
        return found

    def timed(self, count: int) -> list[Times]:
        if self._gpu_ms is None:
            return [{}] * count
        self._clock.now += count * self._gpu_ms / 1e3
        return [{"gpu": self._gpu_ms}] * count


PLAN = Plan(warm_up_s=0.125, duration_s=1, iterations=10, round_s=0.125)
MS = 15.625  # a 64th of a second: sums are exact


def test_turns_alternate_and_each_gets_its_duration_and_iterations() -> None:
    clock, order = Clock(), list[str]()
    fast, slow = Planted("fast", clock, itertools.repeat(MS)), Planted("slow", clock, itertools.repeat(500.0))
    samples = measure([fast, slow], PLAN, order.append, clock)
    assert fast.turns == [1] * 8 + [8] * 8  # an eighth of a second warm, then turns of an eighth until 1 s
    assert slow.turns == [1, 1] + [1] * 10  # two runs at least, ten iterations at least
    assert order == ["fast", "slow", *["fast", "slow"] * 8, "slow", "slow"]
    assert samples["fast"].of("total") == [MS] * 64
    assert samples["slow"].of("infer") == [250.0] * 10
    assert samples["slow"].of("paste") == []
    turns = samples["fast"].turns  # behind one another, with those of the other in between
    assert [count for _, _, count in turns] == [8] * 8
    assert turns[1][0] - turns[0][1] == 0.5
    moments = samples["fast"].moments()
    assert moments[:3] == [turns[0][0] + MS / 1e3 * (i + 1) for i in range(3)]
    assert (len(moments), moments[-1]) == (64, turns[-1][1])


def test_the_backends_own_times_lie_beside_the_turns() -> None:
    """Whose time and energy are the frames' alone."""
    clock = Clock()
    own = measure([Planted("a", clock, itertools.repeat(MS), gpu_ms=4 * MS)], PLAN, clock=clock)["a"]
    assert own.of("gpu") == [4 * MS] * 64 == [4 * total for total in own.of("total")]
    assert {end - start for start, end, _ in own.turns} == {8 * MS / 1e3}
    assert own.turns[1][0] - own.turns[0][1] == 8 * 4 * MS / 1e3


def test_the_first_runs_do_not_count() -> None:
    clock = Clock()
    ms = itertools.chain([500.0, 300.0], itertools.repeat(MS))
    samples = measure([Planted("a", clock, ms)], PLAN, clock=clock)
    assert set(samples["a"].of("total")) == {MS}


@pytest.mark.parametrize("fails_at", [0, 1, 40])
def test_one_that_fails_keeps_its_reason_and_the_others_go_on(fails_at: int) -> None:
    clock = Clock()
    bad = Planted("bad", clock, itertools.repeat(MS), fails_at)
    good = Planted("good", clock, itertools.repeat(MS))
    samples = measure([bad, good], PLAN, clock=clock)
    assert samples["bad"].failure == "fell out"
    assert (samples["good"].failure, len(samples["good"].times)) == ("", 64)


def test_statistics_are_exact() -> None:
    found = Statistics.of([float(n) for n in range(1000, 0, -1)])
    assert (found.count, found.mean, found.min, found.max) == (1000, 500.5, 1, 1000)
    assert (found.p50, found.p90, found.p95, found.p99) == (500, 900, 950, 991)  # trtexec's, see test_latency
    assert found.std == pytest.approx(288.675, abs=1e-3)
    with pytest.raises(ValueError, match="no times"):
        Statistics.of([])


def test_doubts() -> None:
    assert warnings_of([10.0, 10.1] * 20) == []
    assert warnings_of([10.0] * 39 + [60.0]) == ["unsteady: the standard deviation is 69 % of the mean"]
    assert warnings_of([10.0] * 20 + [11.0] * 20) == ["slower by 10 % in the second half"]
    assert warnings_of([11.0] * 20 + [10.0] * 20) == ["faster by 10 % in the second half"]
    assert warnings_of([10.0]) == ["only 1 runs"]


def test_plans_that_are_none() -> None:
    for options in (
        {"warm_up_s": -1},
        {"duration_s": -1},
        {"duration_s": math.inf},
        {"warm_up_s": math.nan},
        {"iterations": 0},
        {"round_s": 0},
    ):
        with pytest.raises(WnlbError, match="at least one iteration"):
            Plan(**options)
    clock = Clock()
    with pytest.raises(ValueError, match="same name"):
        measure([Planted("a", clock, itertools.repeat(1.0))] * 2, PLAN, clock=clock)
