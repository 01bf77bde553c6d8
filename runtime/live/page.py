"""A web page that shows what a stream sees, for a machine without a screen."""

from __future__ import annotations

import ipaddress
import json
import math
import socket
import sys
import threading
import time
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from typing import Any
from urllib.parse import parse_qs, urlsplit

import cv2
import numpy as np
from numpy.typing import NDArray

from wnlb.runtime.detections import Detections
from wnlb.runtime.errors import WnlbError
from wnlb.runtime.overlay import color_of

_CONNECTIONS = 32  # at a time
_JPEG_QUALITY = 80
_WATCHED_S = 3.0  # after the last request for a picture
_LISTED = 20  # detections by name beside the picture
_WAIT_S = 2.0  # that a request waits for a newer picture


class LivePage:
    """Serves ``/`` (the page), ``/frame.jpg?after=N`` (the first picture after N, waited for) and ``/state.json``.

    A browser asks for the next picture when it has drawn the last one, so a slow link lowers the rate and not the
    freshness. Nothing can be changed through the page. Names that other sites give to a loopback address are refused.

    Args:
        address: ``HOST:PORT``; port 0 takes a free one.
        facts: shown on the page: model, source, backend.
        class_names: label 1 is the first.

    Raises:
        WnlbError: the address is none, or is in use.
    """

    def __init__(self, address: str, facts: dict[str, str], class_names: tuple[str, ...]) -> None:
        host, port = host_and_port(address)
        self.state: Callable[[], dict[str, Any]] = dict
        self._facts, self._names = facts, class_names
        self._changed = threading.Condition()
        self._picture: NDArray[np.uint8] | None = None
        self._detections = Detections.none(0, 0)
        self._encoded = (0, b"", "")
        self._number, self.closed = 0, False
        self._asked = -math.inf  # never
        handler = type("Handler", (_Handler,), {"page": self})
        try:
            self._server = (_Server6 if ":" in host else _Server)((host, port), handler)
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or error
            raise WnlbError(
                f"page at {address} cannot be served: {reason}; choose another --serve HOST:PORT"
            ) from error
        self.is_loopback = ipaddress.ip_address(self._server.socket.getsockname()[0]).is_loopback
        shown = f"[{host}]" if ":" in host else host
        self.url = f"http://{shown}:{self._server.server_address[1]}/"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,), name="wnlb page", daemon=True)
        self._thread.start()

    @property
    def watched(self) -> bool:
        """Whether a browser asked for a picture in the last seconds."""
        return time.monotonic() - self._asked < _WATCHED_S

    def show(self, picture: NDArray[np.uint8], detections: Detections) -> None:
        """The newest picture, uint8 BGR ``[h, w, 3]``, and what is in it; it must not be changed afterwards."""
        with self._changed:
            self._picture, self._detections, self._number = picture, detections, self._number + 1
            self._changed.notify_all()

    def close(self) -> None:
        """Stop serving; may be called more than once."""
        with self._changed:
            if self.closed:
                return
            self.closed = True
            self._changed.notify_all()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def frame_after(self, number: int) -> tuple[int, bytes, str] | None:
        """Number, JPEG and detections (JSON) of the newest picture once it is newer; None if that takes too long."""
        with self._changed:
            if not self.watched:  # what was drawn for somebody long ago is not the newest
                self._picture = None
            self._asked = time.monotonic()
            after = number if number <= self._number else 0  # a page that saw an earlier run
            self._changed.wait_for(lambda: self._has_after(after) or self.closed, _WAIT_S)
            if not self._has_after(after) or self.closed or self._picture is None:
                return None
            if self._encoded[0] != self._number:  # once for all browsers
                _, data = cv2.imencode(".jpg", self._picture, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
                self._encoded = (self._number, data.tobytes(), self._listed())
            return self._encoded

    def _has_after(self, number: int) -> bool:
        return self._picture is not None and self._number > number

    def _listed(self) -> str:
        found = self._detections
        return json.dumps(
            [
                {
                    "class": self._names[label - 1],
                    "track": 0 if found.track_ids is None else int(found.track_ids[i]),
                    "score": round(float(found.scores[i]), 3),
                    "color": _css(color_of(found, i)),
                }
                for i, label in enumerate(found.labels[:_LISTED].tolist())
            ]
        )

    def page_state(self) -> dict[str, Any]:
        return {**self._facts, **self.state()}


class _Server(ThreadingHTTPServer):
    """A thread for each of a limited number of connections; a browser that left is no error."""

    daemon_threads = True
    request_queue_size = 2 * _CONNECTIONS  # of the default, 5, others that come at once try again after 1, 3, 7 s

    def __init__(self, *arguments: Any) -> None:
        self._free = threading.BoundedSemaphore(_CONNECTIONS)
        super().__init__(*arguments)

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._free.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], (ConnectionError, TimeoutError)):
            super().handle_error(request, client_address)


class _Server6(_Server):
    address_family = socket.AF_INET6


class _Handler(BaseHTTPRequestHandler):
    page: LivePage
    protocol_version = "HTTP/1.1"
    timeout = 10  # seconds for a client that says nothing

    def do_GET(self) -> None:
        if self.page.closed:  # the connection may have outlived it
            self.close_connection = True
            return
        if not self._host_fits():
            self._answer(HTTPStatus.FORBIDDEN, "text/plain", b"this page is served to its own address only\n")
            return
        url = urlsplit(self.path)
        if url.path == "/":
            html = files("wnlb.runtime.live").joinpath("page.html").read_bytes()
            self._answer(HTTPStatus.OK, "text/html; charset=utf-8", html)
        elif url.path == "/state.json":
            self._answer(HTTPStatus.OK, "application/json", json.dumps(self.page.page_state()).encode())
        elif url.path == "/frame.jpg":
            after = parse_qs(url.query).get("after", ["0"])[0]
            frame = self.page.frame_after(int(after) if after.isdecimal() and len(after) < 16 else 0)
            if frame is None:
                self._answer(HTTPStatus.NO_CONTENT, "image/jpeg", b"")
            else:
                number, jpeg, detections = frame
                self._answer(HTTPStatus.OK, "image/jpeg", jpeg, {"X-Frame": str(number), "X-Detections": detections})
        else:
            self._answer(HTTPStatus.NOT_FOUND, "text/plain", b"there is /, /frame.jpg and /state.json\n")

    def _host_fits(self) -> bool:
        """A page of another site must not read the camera through a name that it points at this machine."""
        try:
            named = urlsplit(f"//{self.headers.get('Host', '')}").hostname or ""
        except ValueError:
            return False
        try:
            return ipaddress.ip_address(named).is_loopback or not self.page.is_loopback
        except ValueError:  # a name; urlsplit has put it in lower case
            own = socket.gethostname().lower()
            return named == "localhost" or (not self.page.is_loopback and named in (own, f"{own}.local"))

    def _answer(self, status: HTTPStatus, kind: str, body: bytes, more: dict[str, str] | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        inline = "'unsafe-inline'"
        policy = f"default-src 'self'; img-src 'self' blob:; style-src {inline}; script-src {inline}"
        self.send_header("Content-Security-Policy", policy)
        for name, value in (more or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


def host_and_port(address: str) -> tuple[str, int]:
    """``HOST:PORT`` or ``[IPv6]:PORT`` in two. Raises WnlbError for anything else."""
    host, colon, port = address.rpartition(":")
    host = host.strip("[]")
    if not colon or not port.isdecimal() or int(port) > 65535 or not host:
        raise WnlbError(f"address is {address!r}; expected HOST:PORT such as 127.0.0.1:8080 or 0.0.0.0:8080")
    return host, int(port)


def _css(color_bgr: tuple[int, int, int]) -> str:
    blue, green, red = color_bgr
    return f"rgb({red} {green} {blue})"
