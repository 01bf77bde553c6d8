"""What happened in a short time."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from wnlb.runtime.night.checked import MOST_S, number, text, whole
from wnlb.runtime.sensors import Reading

FASTEST_MS = 0.1
STEP = 1.02  # from a bucket of latencies to the next: percentiles are at most 2 % too high
_BUCKETS = 800  # to 12 minutes
_LIGHTS = 1000  # frames a second, or watts, that a sum over the time is of at most


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
    def from_json(cls, values: dict[str, Any], classes: int) -> Spell:
        """Raises ValueError, AttributeError or TypeError for what ``as_json`` did not write of so many classes."""
        frames, dropped, reconnects, readings = (
            whole(values.get(name, 0)) for name in ("frames", "dropped", "reconnects", "readings")
        )
        luminance, watts = (number(values.get(name, 0.0), most=MOST_S * _LIGHTS) for name in ("luminance", "watts"))
        made = cls(
            frames=frames,
            dropped=dropped,
            reconnects=reconnects,
            luminance=luminance,
            latencies=_counted(values.get("latencies", {}), 0, _BUCKETS),
            objects=_counted(values.get("objects", {}), 1, classes),
            most=_counted(values.get("most", {}), 1, classes),
            readings=readings,
            watts=watts,
            celsius={text(zone): number(value, -300) for zone, value in values.get("celsius", {}).items()},
        )
        if made.frames:
            made.darkest, made.brightest = number(values["darkest"]), number(values["brightest"])
        elif made.latencies or made.objects or made.most:
            raise ValueError("there is something in no frame")
        return made

    def _warm(self, celsius: dict[str, float]) -> None:
        for zone, degrees in celsius.items():
            self.celsius[zone] = max(degrees, self.celsius.get(zone, degrees))


def _counted(values: dict[str, Any], least: int, most: int) -> Counter[int]:
    return Counter({whole(int(key), least, most): whole(count, 1) for key, count in values.items()})


def _bucket(ms: float) -> int:
    """The first whose upper edge, ``FASTEST_MS * STEP**bucket``, is no less."""
    return min(max(math.ceil(math.log(max(ms, FASTEST_MS) / FASTEST_MS, STEP) - 1e-9), 0), _BUCKETS)
