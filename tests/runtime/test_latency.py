import pytest

from wnlb.runtime.latency import RecentTimes, percentile


def test_percentiles_are_trtexecs():
    """What its C++ gives for 1 to n, compiled: never interpolated, never past the end."""
    expected = {100: [1, 50, 90, 95, 100, 100], 7: [1, 4, 7, 7, 7, 7], 1000: [1, 500, 900, 950, 991, 1000]}
    for count, values in expected.items():
        times = [float(n) for n in range(count, 0, -1)]
        assert [percentile(times, p) for p in (0, 50, 90, 95, 99, 100)] == values
    assert percentile([3.0, 1.0, 2.0], 50) == 2
    assert percentile([7.0], 99) == 7
    assert percentile([], 99) == 0
    assert percentile([1.0, 2.0], 50) == 1  # not 1.5


def test_only_the_newest_times_count():
    recent = RecentTimes(kept=4)
    for number in range(10):
        recent.add(float(number), number / 10)
    assert recent.percentiles() == {"p50": 7, "p95": 9, "p99": 9}


def test_frames_a_second():
    recent = RecentTimes()
    assert recent.per_second(5) == 0
    recent.add(1, 10)
    assert recent.per_second(10) == 0
    for number in range(1, 41):
        recent.add(1, 10 + number / 20)
    assert recent.per_second(12) == pytest.approx(20)
    assert recent.per_second(13) == pytest.approx(10)  # two seconds, of which one without a frame
    assert recent.per_second(112) < 0.02
