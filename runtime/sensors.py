"""Power, clocks and temperatures while models are measured, from sysfs alone; root is never needed."""

from __future__ import annotations

import bisect
import itertools
import math
import statistics
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

SETTLE_S = 0.05  # of a turn, in which a power monitor still averages over what was before
BELOW = 0.99  # of the GPU's highest clock: drivers round what they tell
OFFLINE = -200.0  # degrees; a zone that is switched off tells -256
_T = TypeVar("_T")
# The input of all others: of the module (Orin Nano, Orin NX) or of module and carrier board (Thor).
_WHOLE = ("VDD_IN", "VIN")
# Rails behind another one, which a sum would count twice. On AGX Orin VIN_SYS_5V0 supplies the memory's rail:
# https://forums.developer.nvidia.com/t/jetson-agx-orin-ina3221-power-monitor-layout/223111
_BEHIND = {"VDDQ_VDD2_1V8AO": "VIN_SYS_5V0"}


@dataclass(frozen=True)
class Reading:
    """What the sensors told at one moment; what cannot be read is left out, or None."""

    watts: dict[str, float] = field(default_factory=dict)  # by rail; near 0 it can be negative
    total_watts: float | None = None  # of ``Sensors.total_rails``; None where one of them cannot be read
    gpu_mhz: float | None = None
    gpu_below_highest: bool | None = None  # than it could be when the sensors were found
    cpu_mhz: float | None = None  # mean of the cores
    celsius: dict[str, float] = field(default_factory=dict)  # by thermal zone
    over_current_events: int | None = None  # since the machine was started; a low input voltage counts too


@dataclass(frozen=True)
class Sensors:
    """The files to read; all empty on a machine without any. See ``find_sensors``."""

    rails: dict[str, tuple[Path, ...]] = field(default_factory=dict)  # files whose product is microwatts
    gpu: Path | None = None  # Hz
    gpu_highest_mhz: float | None = None
    cpus: tuple[Path, ...] = ()  # kHz
    zones: dict[str, Path] = field(default_factory=dict)  # thousandths of a degree Celsius
    over_current: tuple[Path, ...] = ()  # counters

    @property
    def total_rails(self) -> tuple[str, ...]:
        """The rails whose sum is the total: the input of the whole where it is measured, else all side by side.

        The whole is the module on Orin, VDD_IN; on Thor the carrier board too, VIN; on AGX Orin the sum of
        VDD_GPU_SOC, VDD_CPU_CV and VIN_SYS_5V0. Totals of one kind of board can be compared, others not.
        """
        whole = [name for name in _WHOLE if name in self.rails]
        return tuple(whole[:1] or (name for name in self.rails if _BEHIND.get(name) not in self.rails))

    def read(self) -> Reading:
        """Everything, now. Never raises OSError: a sensor can go while a machine runs."""
        watts = {name: power for name, files in self.rails.items() if (power := _product(files)) is not None}
        known = bool(self.rails) and all(name in watts for name in self.total_rails)
        gpu = _number(self.gpu, 1e6)
        cpus = [mhz for file in self.cpus if (mhz := _number(file, 1e3)) is not None]
        degrees = {name: value for name, file in self.zones.items() if (value := _number(file, 1e3)) is not None}
        events = [count for file in self.over_current if (count := _number(file, 1)) is not None]
        return Reading(
            watts,
            sum(watts[name] for name in self.total_rails) if known else None,
            gpu,
            None if gpu is None or self.gpu_highest_mhz is None else gpu < BELOW * self.gpu_highest_mhz,
            statistics.fmean(cpus) if cpus else None,
            {name: value for name, value in degrees.items() if value > OFFLINE},
            int(sum(events)) if events and len(events) == len(self.over_current) else None,
        )


@dataclass(frozen=True)
class Conditions:
    """What one model met and used while it ran: means over the readings in its turns."""

    readings: int
    watts: dict[str, float]  # by rail
    total_watts: float | None
    joules_per_frame: float | None  # of the total, idle power included
    gpu_mhz: float | None
    gpu_below_highest: float | None  # share of the readings, 0 to 1; says not why: the load, the heat, the power mode
    cpu_mhz: float | None
    mean_celsius: dict[str, float]  # by thermal zone
    max_celsius: dict[str, float]


class Sampler:
    """Reads the sensors in a thread, from ``with`` to its end; starts none where nothing can be read.

    Args:
        period_s: from the end of one reading to the next.
        clock: seconds, the clock of the turns.
    """

    def __init__(self, sensors: Sensors, period_s: float = 0.1, clock: Callable[[], float] = time.perf_counter) -> None:
        self.readings: list[tuple[float, Reading]] = []  # moment and reading, in the order of time
        self._sensors, self._period_s, self._clock = sensors, period_s, clock
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def sample(self) -> None:
        """One reading more."""
        self.readings.append((self._clock(), self._sensors.read()))

    def __enter__(self) -> Sampler:
        self.sample()
        if self.readings[0][1] == Reading():
            self.readings.clear()
            return self
        self._thread = threading.Thread(target=self._run, name="wnlb sensors", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._thread is None:
            return
        self._ended.set()
        self._thread.join()
        self.sample()  # the counters of the whole time

    def _run(self) -> None:
        while not self._ended.wait(self._period_s):
            self.sample()


def find_sensors(root: Path = Path("/")) -> Sensors:
    """The sensors of this machine that need no root: all of a Jetson; clocks and temperatures elsewhere.

    The clock of the memory is left out: only root can read it.

    Args:
        root: where ``sys`` is.
    """
    gpu = _gpu(root)
    zones = ((_text(folder / "type"), folder / "temp") for folder in _found(root, "sys/class/thermal/thermal_zone*"))
    return Sensors(
        _by_name(_rails(root)),
        gpu / "cur_freq" if gpu else None,
        _number(gpu / "max_freq", 1e6) if gpu else None,
        tuple(_found(root, "sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_cur_freq")),
        _by_name((name, file) for name, file in zones if name),
        tuple(_found(root, "sys/class/hwmon/*/oc*_event_cnt")),
    )


def conditions_of(
    readings: Sequence[tuple[float, Reading]], turns: Sequence[tuple[float, float, int]]
) -> Conditions | None:
    """What a model met in its turns; None where no reading falls into them.

    A reading of the first ``SETTLE_S`` of a turn is left out. Energy is the mean power times the time of the turns.

    Args:
        readings: moments in seconds, as ``Sampler.readings``.
        turns: start and end in seconds of the same clock, and frames (runs times the batch); in the order of time.
    """
    starts = [start for start, _, _ in turns]
    found = []
    for moment, reading in readings:
        last = bisect.bisect_right(starts, moment) - 1
        if last >= 0 and turns[last][0] + SETTLE_S <= moment <= turns[last][1]:
            found.append(reading)
    if not found:
        return None
    watts = _mean(reading.total_watts for reading in found)
    frames = sum(frames for _, _, frames in turns)
    spent_s = sum(end - start for start, end, _ in turns)
    degrees = _gathered(reading.celsius for reading in found)
    rails = _gathered(reading.watts for reading in found)
    return Conditions(
        len(found),
        {name: statistics.fmean(values) for name, values in rails.items()},
        watts,
        watts * spent_s / frames if watts is not None and frames else None,
        _mean(reading.gpu_mhz for reading in found),
        _mean(reading.gpu_below_highest for reading in found),
        _mean(reading.cpu_mhz for reading in found),
        {name: statistics.fmean(values) for name, values in degrees.items()},
        {name: max(values) for name, values in degrees.items()},
    )


def over_current_growth(readings: Sequence[tuple[float, Reading]]) -> int | None:
    """By how much the machine's counters of over-current and low input voltage grew; None where it has none.

    An event can throttle CPU and GPU for a moment. The counters are the machine's, not one model's.
    """
    counts = [reading.over_current_events for _, reading in readings if reading.over_current_events is not None]
    return counts[-1] - counts[0] if counts else None


def _rails(root: Path) -> Iterator[tuple[str, tuple[Path, ...]]]:
    """Names as the device tree has them; in mV and curr in mA, power in microwatts (Linux, hwmon/sysfs-interface)."""
    for device in _found(root, "sys/bus/i2c/devices/*"):
        chip = _text(device / "name")
        for folder in _found(device, "hwmon/hwmon*"):
            if chip == "ina238":  # one channel without a label: on Thor's carrier board, its input
                yield "VIN", (folder / "power1_input",)
            for n in (1, 2, 3) if chip == "ina3221" else ():
                label = _text(folder / f"in{n}_label")
                if label not in ("", "NC") and _text(folder / f"in{n}_enable") != "0":
                    yield label, (folder / f"in{n}_input", folder / f"curr{n}_input")


def _gpu(root: Path) -> Path | None:
    """17000000.gpu on Orin; on Thor gpu-gpc-0 (its cores) beside gpu-nvd-0 (its video engines)."""
    for pattern in ("gpu-gpc-*", "*gpu*"):
        for folder in _found(root, f"sys/class/devfreq/{pattern}"):
            return folder
    return None


def _found(folder: Path, pattern: str) -> list[Path]:
    return sorted(folder.glob(pattern))


def _by_name(pairs: Iterable[tuple[str, _T]]) -> dict[str, _T]:
    """Of two with one name (zones of PCs) the second is numbered."""
    named: dict[str, _T] = {}
    for name, value in pairs:
        number = next(n for n in itertools.count(1) if (name if n == 1 else f"{name} {n}") not in named)
        named[name if number == 1 else f"{name} {number}"] = value
    return named


def _gathered(readings: Iterable[dict[str, float]]) -> dict[str, list[float]]:
    gathered: dict[str, list[float]] = {}
    for reading in readings:
        for name, value in reading.items():
            gathered.setdefault(name, []).append(value)
    return gathered


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def _product(files: Iterable[Path]) -> float | None:
    """Watts of microwatts, or of millivolts and milliamperes."""
    values = [_number(file, 1) for file in files]
    known = [value for value in values if value is not None]
    return math.prod(known) / 1e6 if len(known) == len(values) else None


def _number(file: Path | None, per: float) -> float | None:
    """None for what cannot be read: gone, forbidden, switched off (the zones of a sleeping engine), no number."""
    try:
        return int(file.read_text()) / per if file else None
    except (OSError, ValueError):
        return None


def _text(file: Path) -> str:
    try:
        return file.read_text(errors="replace").strip()
    except OSError:
        return ""
