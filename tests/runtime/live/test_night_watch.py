from __future__ import annotations

import numpy as np
import pytest

from wnlb.runtime.darkness import luminance
from wnlb.runtime.live.night_watch import NightWatch, is_beyond


def frame(value: int) -> np.ndarray:
    return np.full((4, 6, 3), value, np.uint8)


LOW, HIGH = luminance(frame(40)), luminance(frame(120))


def told(watch: NightWatch, values: list[int], start: float = 0.0, pause: float = 1.0) -> list[tuple[int, str]]:
    said = [(i, watch.about(frame(value), start + i * pause)) for i, value in enumerate(values)]
    return [(i, line) for i, line in said if line]


@pytest.mark.parametrize("value", [20, 160])
def test_another_night_is_told_once_when_most_looks_are_beyond(value: int) -> None:
    watch = NightWatch((LOW, HIGH))
    ((number, line),) = told(watch, [80] * 40 + [value] * 100)
    assert number == 40 + 15  # the 16th of 30
    assert f"INT8 was calibrated on pictures of {LOW:.2g} to {HIGH:.2g}" in line
    assert told(watch, [80] * 40, 200) == []
    assert [number for number, _ in told(watch, [value] * 40, 300)] == [15]


def test_single_frames_and_the_edge_of_what_was_calibrated_are_nothing() -> None:
    watch = NightWatch((LOW, HIGH))
    assert told(watch, [80, 0] * 100) == []
    assert told(watch, [38, 130] * 100, 1000) == []  # within a quarter
    assert (is_beyond(LOW / 1.2, (LOW, HIGH)), is_beyond(LOW / 1.3, (LOW, HIGH))) == (False, True)
    assert (is_beyond(HIGH * 1.2, (LOW, HIGH)), is_beyond(HIGH * 1.3, (LOW, HIGH))) == (False, True)


def test_it_looks_once_a_second_and_not_at_all_without_calibration() -> None:
    watch = NightWatch((LOW, HIGH))
    assert [number for number, _ in told(watch, [0] * 600, pause=0.05)] == [15 * 20]
    assert told(NightWatch(None), [0] * 100) == []
