from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from wnlb.runtime.live.watchdog import Watchdog


@pytest.fixture(params=["path", "abstract"])
def systemd(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[socket.socket, str]]:
    """A socket as systemd has it, and its address in the environment."""
    name = str(tmp_path / "notify") if request.param == "path" else f"@wnlb-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(name.replace("@", "\0"))
        listening.setblocking(False)
        yield listening, name


def heard(listening: socket.socket) -> list[str]:
    found = []
    while True:
        try:
            found.append(listening.recv(100).decode())
        except BlockingIOError:
            return found


def test_signs_of_life_come_with_frames_alone(systemd: tuple[socket.socket, str]) -> None:
    listening, address = systemd
    with Watchdog(
        {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "60000000", "WATCHDOG_PID": str(os.getpid())}
    ) as watchdog:
        assert heard(listening) == []
        for now, expected in ((100, ["READY=1"]), (114.9, []), (115, ["WATCHDOG=1"]), (129, []), (131, ["WATCHDOG=1"])):
            watchdog.frame(now)
            assert heard(listening) == expected, now
        watchdog.frame(1000)  # a camera that was away: no sign between
        assert heard(listening) == ["WATCHDOG=1"]
    assert heard(listening) == ["STOPPING=1"]
    watchdog.frame(2000)
    assert heard(listening) == []


@pytest.mark.parametrize("more", [{}, {"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": "1"}, {"WATCHDOG_USEC": "often"}])
def test_without_a_watchdog_it_only_says_that_it_is_ready(
    systemd: tuple[socket.socket, str], more: dict[str, str]
) -> None:
    listening, address = systemd
    with Watchdog({"NOTIFY_SOCKET": address, **more}) as watchdog:
        for now in (1, 1e9):
            watchdog.frame(now)
    assert heard(listening) == ["READY=1", "STOPPING=1"]


def test_without_systemd_it_does_nothing_and_a_lost_one_ends_nothing(tmp_path: Path) -> None:
    for environment in ({}, {"NOTIFY_SOCKET": str(tmp_path / "gone"), "WATCHDOG_USEC": "4"}):
        with Watchdog(environment) as watchdog:
            watchdog.frame(1)
            watchdog.frame(2)
