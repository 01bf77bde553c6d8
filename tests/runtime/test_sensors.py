"""Planted trees of sysfs, as Orin Nano, AGX Orin, Thor and a PC have them, and readings whose means are known."""

from __future__ import annotations

import itertools
import threading
from pathlib import Path

import pytest

from wnlb.runtime.sensors import (
    SETTLE_S,
    Reading,
    Sampler,
    Sensors,
    conditions_of,
    find_sensors,
    over_current_growth,
)

HWMON = "sys/class/hwmon/hwmon3"
ZONE = "sys/class/thermal/thermal_zone"
GPU = "sys/devices/platform/bus@0/17000000.gpu/devfreq/17000000.gpu"


def plant(root: Path, files: dict[str, object]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{content}\n")
    return root


def ina3221(device: str, hwmon: int, *channels: tuple[str, int, int]) -> dict[str, object]:
    """Label, mV and mA of each; with the shunt voltages and their sum, which are no rails."""
    folder = f"sys/bus/i2c/devices/{device}/hwmon/hwmon{hwmon}"
    files: dict[str, object] = {f"sys/bus/i2c/devices/{device}/name": "ina3221", f"{folder}/name": "ina3221"}
    for n, (label, mv, ma) in enumerate(channels, 1):
        files |= {f"{folder}/in{n}_input": mv, f"{folder}/curr{n}_input": ma, f"{folder}/in{n + 3}_input": 20}
        files |= {f"{folder}/in{n}_label": label} if label else {}
    return files | {f"{folder}/in7_label": "sum of shunt voltages", f"{folder}/in7_input": 60}


@pytest.fixture
def orin_nano(tmp_path: Path) -> Path:
    files = ina3221("1-0040", 1, ("VDD_IN", 5000, 2000), ("VDD_CPU_GPU_CV", 4984, 752), ("VDD_SOC", 4992, 500))
    files |= {"sys/bus/i2c/devices/i2c-1/name": "3160000.i2c", "sys/bus/i2c/devices/1-0025/name": "bq25703a"}
    files |= {f"{GPU}/cur_freq": 306000000, f"{GPU}/max_freq": 1020000000}
    files |= {f"sys/devices/system/cpu/cpu{n}/cpufreq/scaling_cur_freq": khz for n, khz in enumerate((729600, 1510400))}
    files |= {"sys/devices/system/cpu/cpufreq/policy0/scaling_cur_freq": 1}
    files |= {f"{ZONE}0/type": "cpu-thermal", f"{ZONE}0/temp": 48281, f"{ZONE}1/type": "gpu-thermal"}
    files |= {f"{ZONE}1/temp": -256000, f"{ZONE}2/type": "cv0-thermal", f"{ZONE}10/type": "tj-thermal"}
    files |= {f"{ZONE}10/temp": 49500, f"{HWMON}/name": "soctherm_oc", f"{HWMON}/oc1_throt_en": 1}
    files |= {f"{HWMON}/oc{n}_event_cnt": count for n, count in ((1, 0), (2, 3), (3, 40))}
    plant(tmp_path, files)
    devfreq = tmp_path / "sys/class/devfreq"
    devfreq.mkdir(parents=True)
    (devfreq / "17000000.gpu").symlink_to(tmp_path / GPU)  # as the kernel does
    return tmp_path


def test_orin_nano(orin_nano: Path) -> None:
    sensors = find_sensors(orin_nano)
    assert sensors.total_rails == ("VDD_IN",)
    assert sensors.read() == Reading(
        watts={"VDD_IN": 10.0, "VDD_CPU_GPU_CV": 3.747968, "VDD_SOC": 2.496},
        total_watts=10.0,
        gpu_mhz=306,
        gpu_below_highest=True,
        cpu_mhz=1120,
        celsius={"cpu-thermal": 48.281, "tj-thermal": 49.5},  # gpu: switched off; cv0: has no temperature
        over_current_events=43,
    )
    plant(orin_nano, {f"{GPU}/cur_freq": 1015000000, f"{GPU}/max_freq": 306000000, f"{ZONE}1/temp": 50000})
    reading = sensors.read()
    assert reading.gpu_below_highest is False  # against the highest of before, up to rounding
    assert reading.celsius["gpu-thermal"] == 50


def test_agx_orin_counts_no_rail_twice(tmp_path: Path) -> None:
    files = ina3221("1-0040", 3, ("VDD_GPU_SOC", 19000, 1000), ("VDD_CPU_CV", 19000, 500), ("VIN_SYS_5V0", 5000, 900))
    files |= ina3221("1-0041", 4, ("NC", 0, 0), ("VDDQ_VDD2_1V8AO", 5000, 200), ("", 0, 0))
    sensors = find_sensors(plant(tmp_path, files))
    assert sensors.total_rails == ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0")  # which supplies the fourth
    reading = sensors.read()
    assert reading.watts == {"VDD_GPU_SOC": 19, "VDD_CPU_CV": 9.5, "VIN_SYS_5V0": 4.5, "VDDQ_VDD2_1V8AO": 1}
    assert reading.total_watts == 33


def test_thor_is_measured_at_its_input(tmp_path: Path) -> None:
    files = ina3221("2-0040", 4, ("VDD_GPU", 12000, -30), ("VDD_CPU_SOC_MSS", 12000, 500), ("VIN_SYS_5V0", 5000, 1200))
    thor = find_sensors(plant(tmp_path, files))
    assert thor.total_rails == ("VDD_GPU", "VDD_CPU_SOC_MSS", "VIN_SYS_5V0")
    assert thor.read().total_watts == pytest.approx(11.64)  # an idle GPU measures as less than nothing
    plant(tmp_path, {"sys/bus/i2c/devices/2-0044/name": "ina238"})
    plant(tmp_path, {"sys/bus/i2c/devices/2-0044/hwmon/hwmon5/power1_input": 23000000})
    for name, hz in (("bwmgr", 4266000000), ("gpu-gpc-0", 1575000000), ("gpu-nvd-0", 1692000000)):
        files = {f"sys/class/devfreq/{name}/{file}": hz for file in ("cur_freq", "max_freq")}
        plant(tmp_path, files)
    thor = find_sensors(tmp_path)
    assert thor.total_rails == ("VIN",)
    assert (thor.read().total_watts, thor.read().gpu_mhz, thor.read().gpu_below_highest) == (23, 1575, False)


def test_a_pc_has_temperatures_and_clocks(tmp_path: Path) -> None:
    files: dict[str, object] = {f"{ZONE}{n}/type": "acpitz" for n in (0, 1)} | {f"{ZONE}0/temp": 27800}
    files |= {f"{ZONE}1/temp": 16800, f"{ZONE}2/type": "x86_pkg_temp", f"{ZONE}2/temp": 61000}
    files |= {"sys/bus/i2c/devices/i2c-0/name": "SMBus I801 adapter", "sys/class/hwmon/hwmon0/temp1_input": 61000}
    sensors = find_sensors(plant(tmp_path, files))
    assert sensors.total_rails == ()
    assert sensors.read() == Reading(celsius={"acpitz": 27.8, "acpitz 2": 16.8, "x86_pkg_temp": 61})
    plant(tmp_path, {"sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": 3400000})
    assert find_sensors(tmp_path).read().cpu_mhz == 3400


def test_a_machine_without_sensors(tmp_path: Path) -> None:
    assert find_sensors(tmp_path) == Sensors()
    assert Sensors().read() == Reading()


def test_disabled_channels_are_no_rails(tmp_path: Path) -> None:
    files = ina3221("1-0040", 3, ("VDD_GPU_SOC", 19000, 1000), ("VDD_CPU_CV", 19000, 500), ("VIN_SYS_5V0", 5000, 900))
    files |= {"sys/bus/i2c/devices/1-0040/hwmon/hwmon3/in1_enable": 1}
    files |= {"sys/bus/i2c/devices/1-0040/hwmon/hwmon3/in2_enable": 0}
    assert find_sensors(plant(tmp_path, files)).read().total_watts == 23.5


def test_files_that_break_take_only_their_own_number_along(orin_nano: Path) -> None:
    sensors = find_sensors(orin_nano)
    rail = "sys/bus/i2c/devices/1-0040/hwmon/hwmon1/curr"
    plant(orin_nano, {f"{rail}2_input": "", f"{ZONE}0/temp": "warm"})
    (orin_nano / f"{HWMON}/oc2_event_cnt").unlink()
    (orin_nano / "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq").write_bytes(b"\xff\xfe")
    (orin_nano / GPU / "cur_freq").unlink()
    (orin_nano / GPU / "cur_freq").mkdir()  # as good as forbidden, and so for root too
    reading = sensors.read()
    assert reading.watts == {"VDD_IN": 10, "VDD_SOC": 2.496}
    assert (reading.total_watts, reading.gpu_mhz, reading.gpu_below_highest) == (10, None, None)
    assert (reading.cpu_mhz, reading.celsius, reading.over_current_events) == (1510.4, {"tj-thermal": 49.5}, None)
    (orin_nano / f"{rail}1_input").unlink()
    assert sensors.read().total_watts is None  # and no sum of what is left


def test_forbidden_files(orin_nano: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sensors = find_sensors(orin_nano)

    def refuse(*_: object, **__: object) -> str:
        raise PermissionError

    monkeypatch.setattr(Path, "read_text", refuse)
    assert sensors.read() == Reading()
    assert find_sensors(orin_nano).rails == {}
    with Sampler(sensors) as sampler:
        assert "wnlb sensors" not in {thread.name for thread in threading.enumerate()}
    assert sampler.readings == []


def test_the_sampler_reads_before_while_and_after(orin_nano: Path) -> None:
    """The sampling step is called here; the thread's own period never passes."""
    clock = itertools.count(100.0)
    with Sampler(find_sensors(orin_nano), period_s=3600, clock=lambda: next(clock)) as sampler:
        assert "wnlb sensors" in {thread.name for thread in threading.enumerate()}
        plant(orin_nano, {f"{HWMON}/oc3_event_cnt": 45})
        sampler.sample()
        (orin_nano / "sys/bus/i2c/devices/1-0040/hwmon/hwmon1/in1_input").unlink()
    assert "wnlb sensors" not in {thread.name for thread in threading.enumerate()}
    assert [moment for moment, _ in sampler.readings] == [100, 101, 102]
    assert [reading.total_watts for _, reading in sampler.readings] == [10, 10, None]
    assert over_current_growth(sampler.readings) == 5


def test_the_thread_samples_until_the_end(orin_nano: Path) -> None:
    third = threading.Event()
    clock = itertools.count()

    def tick() -> float:
        moment = next(clock)
        if moment == 3:
            third.set()
        return moment

    with Sampler(find_sensors(orin_nano), period_s=1e-4, clock=tick) as sampler:
        assert third.wait(timeout=120)
    moments = [moment for moment, _ in sampler.readings]
    assert moments == list(range(len(moments)))
    assert len(moments) >= 4


def test_no_thread_where_nothing_can_be_read() -> None:
    with Sampler(Sensors()) as sampler:
        assert "wnlb sensors" not in {thread.name for thread in threading.enumerate()}
    assert sampler.readings == []
    assert over_current_growth(sampler.readings) is None


def reading(watts: float | None, **others: object) -> Reading:
    return Reading({} if watts is None else {"VDD_IN": watts}, watts, **others)  # type: ignore[arg-type]


def test_readings_count_for_the_model_in_whose_turn_they_fall() -> None:
    readings = [
        (0.9, reading(1000)),  # before
        (1.0 + SETTLE_S / 2, reading(1000)),  # still averages over what was before
        (
            1.125,
            reading(10, gpu_mhz=1020.0, gpu_below_highest=False, cpu_mhz=1500.0, celsius={"tj": 50.0, "cpu": 40.0}),
        ),
        (1.25, reading(12, gpu_mhz=510.0, gpu_below_highest=True, celsius={"tj": 52.0})),
        (1.375, reading(1000)),  # another model's
        (2.25, reading(20, gpu_mhz=1020.0, gpu_below_highest=False, celsius={"tj": 60.0})),
        (2.5, reading(None)),
        (2.75, reading(1000)),  # after
    ]
    found = conditions_of(readings, [(1.0, 1.25, 4), (2.0, 2.5, 3)])
    assert found is not None
    assert found.readings == 4
    assert found.watts == {"VDD_IN": 14}
    assert found.total_watts == 14
    assert found.joules_per_frame == 14 * 0.75 / 7
    assert (found.gpu_mhz, found.cpu_mhz) == (850, 1500)
    assert found.gpu_below_highest == pytest.approx(1 / 3)
    assert (found.mean_celsius, found.max_celsius) == ({"tj": 54, "cpu": 40}, {"tj": 60, "cpu": 40})


def test_energy_is_power_by_time_whatever_the_turns() -> None:
    """A machine at 8 W: a frame of 31.25 ms takes a quarter of a joule, in one long turn and in many short ones."""
    readings = [(n / 16, reading(8)) for n in range(400)]
    for length in (8, 16, 64):
        turns = [(start / 32, (start + length) / 32, length) for start in range(0, 512, 2 * length)]
        found = conditions_of(readings, turns)
        assert found is not None
        assert found.joules_per_frame == 0.25
    double = conditions_of([(moment, reading(16)) for moment, _ in readings], turns)
    assert double is not None
    assert double.joules_per_frame == 0.5


def test_what_is_not_known() -> None:
    assert conditions_of([], [(0, 1, 1)]) is None
    assert conditions_of([(0.5, reading(1))], []) is None
    assert conditions_of([(SETTLE_S / 2, reading(1)), (1.5, reading(1))], [(0, 1, 1)]) is None
    warm = conditions_of([(0.5, Reading(celsius={"acpitz": 30.0}))], [(0, 1, 1)])
    assert warm is not None
    assert (warm.joules_per_frame, warm.total_watts, warm.gpu_mhz, warm.gpu_below_highest) == (None,) * 4
    assert warm.max_celsius == {"acpitz": 30}
    idle = conditions_of([(0.5, reading(1))], [(0, 1, 0)])
    assert idle is not None
    assert (idle.total_watts, idle.joules_per_frame) == (1, None)
