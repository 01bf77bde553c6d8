"""What machine this is."""

from __future__ import annotations

import os
import platform
import re
import sys
from pathlib import Path


def jetson_model() -> str:
    """``"NVIDIA Jetson Orin Nano Developer Kit"``; "" for a machine that is none."""
    model = _text("/proc/device-tree/model").strip("\0 \n")
    return model if "Jetson" in model else ""


def jetpack_release() -> str:
    """Version of the L4T below JetPack, ``"36.4.3"``; "" where there is none."""
    first = _text("/etc/nv_tegra_release").partition("\n")[0]  # R36 (release), REVISION: 4.3, GCID: ...
    major = first.partition("# R")[2].partition(" ")[0]
    revision = first.partition("REVISION: ")[2].partition(",")[0]
    return f"{major}.{revision}" if major and revision else ""


def power_mode() -> str:
    """The name of a Jetson's power mode, ``"MAXN"``; "" where it cannot be read."""
    status = _text("/var/lib/nvpmodel/status").strip()  # pmode:0002
    number = status.rpartition(":")[2]
    if not number.isdecimal():
        return ""
    for line in _text("/etc/nvpmodel.conf").splitlines():
        if line.startswith("< POWER_MODEL ") and f"ID={int(number)} " in line:
            return line.partition("NAME=")[2].strip(" >")
    return f"mode {int(number)}"


def fastest_power_mode() -> str:
    """Number of a Jetson's MAXN mode for ``nvpmodel -m``; "" where it cannot be read."""
    for line in _text("/etc/nvpmodel.conf").splitlines():
        if line.startswith("< POWER_MODEL ") and "NAME=MAXN" in line:
            return line.partition("ID=")[2].partition(" ")[0]
    return ""


def clocks_are_fixed() -> bool | None:
    """Whether a Jetson's GPU stays at its highest clock, as ``jetson_clocks`` sets it; None where it cannot be read."""
    for folder in sorted(Path("/sys/class/devfreq").glob("*gpu*")):
        low, high = _text(f"{folder}/min_freq").strip(), _text(f"{folder}/max_freq").strip()
        if low and high:
            return low == high
    return None


def nvidia_driver() -> str:
    """Version of the NVIDIA driver, ``"560.35.03"``; "" where there is none or it does not tell."""
    found = re.search(r"Module.*?(\d+(\.\d+)+)", _text("/proc/driver/nvidia/version"))
    return found[1] if found else ""


def processor() -> str:
    """Name of the CPU and how many of its cores this process may use."""
    names = [line.partition(":")[2].strip() for line in _text("/proc/cpuinfo").splitlines() if "model name" in line]
    return f"{names[0] if names else platform.machine()}, {usable_cores()} cores"


def usable_cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def free_memory() -> int:
    """Bytes that new processes can have without swapping, as far as the kernel can tell; 0 where it does not.

    Of a container, no more than its limit.
    """
    found = re.search(r"^MemAvailable: +(\d+) kB", _text("/proc/meminfo"), re.MULTILINE)
    limit = _text("/sys/fs/cgroup/memory.max").strip()
    return min(1024 * int(found[1]) if found else 0, int(limit) if limit.isdecimal() else sys.maxsize)


def _text(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""
