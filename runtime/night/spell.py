"""What happened in a short time."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from wnlb.runtime.sensors import Reading

FASTEST_MS = 0.1
STEP = 1.02  # from a bucket of latencies to the next: percentiles are at most 2 % too high
_BUCKETS = 800  # to 12 minutes


@dataclass
class Spell:
    """Counts of one bin of time; two can be added."""

    frames: int = 0  # with a result
    dropped: int = 0  # for newer ones
    reconnects: int = 0
    luminance: float = 0.0  # sum over the frames of their mean linear luminance, 0 to 1
    darkest: float = math.inf  # of the frames
    brightest: float = -math.inf
    latencies: Counter[int] = field(default_factory=Counter)  # frames by bucket
    objects: Counter[int] = field(default_factory=Counter)  # label -> sum over the frames of how many were in view
    most: Counter[int] = field(default_factory=Counter)  # label -> most in view at once
    readings: int = 0  # of the sensors
    watts: float = 0.0  # sum over the readings; 0 where power cannot be read
    celsius: dict[str, float] = field(default_factory=dict)  # the highest of each thermal zone

    def add_frame(self, labels: Counter[int], latency_ms: float, luminance: float) -> None:
        """``labels``: how many of each label are in view."""
        self.frames += 1
        self.luminance += luminance
        self.darkest, self.brightest = min(self.darkest, luminance), max(self.brightest, luminance)
        self.latencies[_bucket(latency_ms)] += 1
        self.objects.update(labels)
        self.most |= labels

    def add_reading(self, reading: Reading) -> None:
        self.readings += 1
        self.watts += reading.total_watts or 0.0
        self._warm(reading.celsius)

    def absorb(self, other: Spell) -> None:
        """Become both together."""
        self.frames += other.frames
        self.dropped += other.dropped
        self.reconnects += other.reconnects
        self.luminance += other.luminance
        self.darkest, self.brightest = min(self.darkest, other.darkest), max(self.brightest, other.brightest)
        self.latencies += other.latencies
        self.objects += other.objects
        self.most |= other.most
        self.readings += other.readings
        self.watts += other.watts
        self._warm(other.celsius)

    def latency_ms(self, percent: float) -> float:
        """What ``percent`` of the frames did not exceed, at most 2 % too high; 0 where there are none."""
        left = math.ceil(percent / 100 * self.frames)
        for bucket in sorted(self.latencies):
            left -= self.latencies[bucket]
            if left <= 0:
                return FASTEST_MS * STEP**bucket
        return 0.0

    def as_json(self) -> dict[str, Any]:
        """Only what is not as in an empty one."""
        empty = vars(Spell())
        return {name: value for name, value in vars(self).items() if value != empty[name]}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Spell:
        """Raises TypeError or ValueError for what ``as_json`` did not write."""
        counted: dict[str, Any] = {
            name: Counter({int(key): int(count) for key, count in values[name].items()})
            for name in ("latencies", "objects", "most")
            if name in values
        }
        return cls(**{**values, **counted})

    def _warm(self, celsius: dict[str, float]) -> None:
        for zone, degrees in celsius.items():
            self.celsius[zone] = max(degrees, self.celsius.get(zone, degrees))


def _bucket(ms: float) -> int:
    """The first whose upper edge, ``FASTEST_MS * STEP**bucket``, is no less."""
    return min(max(math.ceil(math.log(max(ms, FASTEST_MS) / FASTEST_MS, STEP) - 1e-9), 0), _BUCKETS)
