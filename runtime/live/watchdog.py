"""systemd's watchdog (sd_notify(3), sd_watchdog_enabled(3)): a service without frames for too long is started again."""

from __future__ import annotations

import contextlib
import math
import os
import socket
from collections.abc import Mapping


class Watchdog:
    """Tells systemd ``READY=1`` with the first frame that is through, and ``WATCHDOG=1`` while more follow.

    Nothing else sends it: a camera that hangs, a network that does not return and an output that blocks all end it.
    Without ``NOTIFY_SOCKET`` in the environment, as elsewhere than in a service of ``Type=notify``, it does nothing.
    """

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        address = environment.get("NOTIFY_SOCKET", "")
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) if address else None
        period = environment.get("WATCHDOG_USEC", "")
        is_ours = environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        # Four in the time that is allowed, and no more.
        self._pause = int(period) / 1e6 / 4 if period.isdecimal() and is_ours else math.inf
        self._next = -math.inf

    def frame(self, now: float) -> None:
        """A frame was through all outputs at ``now``, seconds of a clock that grows."""
        if self._socket is None or now < self._next:
            return
        self._send("READY=1" if math.isinf(self._next) else "WATCHDOG=1")
        self._next = now + self._pause

    def close(self) -> None:
        if self._socket is not None:
            self._send("STOPPING=1")
            self._socket.close()
            self._socket = None

    def _send(self, text: str) -> None:
        assert self._socket
        with contextlib.suppress(OSError):  # nobody listens: it must not end what works
            self._socket.sendto(text.encode(), self._address)

    def __enter__(self) -> Watchdog:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
