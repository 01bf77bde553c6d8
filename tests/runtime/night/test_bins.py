"""Bins against sums that are known."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest

from wnlb.runtime.night.bins import Bins
from wnlb.runtime.night.spell import Spell
from wnlb.runtime.sensors import Reading


def test_nothing_is_forgotten_and_neighbours_stay_neighbours() -> None:
    rng = np.random.default_rng(3)
    moments = np.cumsum(rng.exponential(2.0, 3000))
    bins: Bins[list[float]] = Bins(48, 1.0, list, list.extend)
    for moment in moments.tolist():
        bins.at(moment).append(moment)
    assert len(bins.contents) <= 48
    assert bins.seconds == 2.0 ** math.ceil(math.log2(moments[-1] / 48))
    assert [moment for _, content in bins for moment in content] == moments.tolist()
    for start, content in bins:
        assert all(start <= moment < start + bins.seconds for moment in content)


def test_a_jump_of_the_clock_is_one_bin_more_and_what_is_before_the_beginning_is_in_the_first() -> None:
    bins: Bins[list[float]] = Bins(4, 1.0, list, list.extend)
    for moment in (0.5, 3.5, 1e9, -5.0):
        bins.at(moment).append(moment)
    assert [content for _, content in bins] == [[0.5, 3.5, -5.0], [1e9]]


def test_percentiles_are_those_of_all_frames_or_up_to_two_percent_more() -> None:
    rng = np.random.default_rng(1)
    times = rng.lognormal(3.5, 0.5, 2000)
    halves = [Spell(), Spell()]
    for i, ms in enumerate(times.tolist()):
        halves[i % 2].add_frame(Counter(), ms, 0.1)
    halves[0].absorb(halves[1])
    for percent in (1, 50, 95, 99, 100):
        exact = np.sort(times)[math.ceil(percent / 100 * len(times)) - 1]
        assert exact * (1 - 1e-9) <= halves[0].latency_ms(percent) <= 1.02 * exact * (1 + 1e-9)
    assert Spell().latency_ms(50) == 0
    odd = Spell()
    for ms in (0.0, 1e12):
        odd.add_frame(Counter(), ms, 0.0)
    assert odd.latency_ms(50) == pytest.approx(0.1)


def test_two_spells_together_are_one_that_saw_all() -> None:
    frames = [({1: 2}, 10.0, 0.02), ({1: 1, 3: 4}, 30.0, 0.5), ({}, 20.0, 0.001), ({3: 1}, 11.0, 0.1)]
    readings = [Reading(total_watts=7.0, celsius={"cpu": 50.0}), Reading(celsius={"cpu": 40.0, "gpu": 60.0})]
    whole, parts = Spell(), [Spell(), Spell()]
    for i, (labels, ms, light) in enumerate(frames):
        for spell in (whole, parts[i // 2]):
            spell.add_frame(Counter(labels), ms, light)
    for i, reading in enumerate(readings):
        for spell in (whole, parts[i]):
            spell.add_reading(reading)
    parts[0].absorb(parts[1])
    assert parts[0] == whole
    assert (whole.frames, whole.objects, whole.most) == (4, Counter({1: 3, 3: 5}), Counter({1: 2, 3: 4}))
    assert (whole.darkest, whole.brightest, whole.watts) == (0.001, 0.5, 7.0)
    assert whole.celsius == {"cpu": 50.0, "gpu": 60.0}
    assert Spell.from_json(whole.as_json(), 3) == whole
    assert Spell.from_json(Spell().as_json(), 3) == Spell()
