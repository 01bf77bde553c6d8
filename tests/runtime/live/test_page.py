"""The live page, asked as a browser asks it, and in a browser where there is one."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from chromium import open_page

from wnlb.runtime.detections import Detections
from wnlb.runtime.errors import WnlbError
from wnlb.runtime.live import page as live_page
from wnlb.runtime.live.page import LivePage

STATE = {
    "state": "running",
    "captured": 20,
    "dropped": 8,
    "odd": 0,
    "done": 12,
    "fps": 9.5,
    "latency_ms": {"p50": 21.0, "p95": 30.0, "p99": 44.0},
    "reconnects": 1,
    "last_error": "",
    "silent_s": 0.1,
}
FOUND = Detections(
    48, 64, np.array([[1, 2, 30, 40]], np.float32), np.array([0.875], np.float32), np.array([2], np.int32), None
)


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch) -> Iterator[LivePage]:
    monkeypatch.setattr(live_page, "_WAIT_S", 0.2)
    served = LivePage("127.0.0.1:0", {"model": "m.onnx", "source": "camera0", "backend": "a GPU"}, ("lamp", "dark cat"))
    served.state = lambda: STATE
    yield served
    served.close()


def ask(page: LivePage, path: str, host: str = "") -> tuple[http.client.HTTPResponse, bytes]:
    port = int(page.url.rsplit(":", 1)[1].strip("/"))
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    connection.request("GET", path, headers={"Host": host} if host else {})
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer, body


def test_the_newest_picture_with_what_is_in_it(page: LivePage) -> None:
    assert not page.watched
    assert ask(page, "/frame.jpg")[0].status == 204  # none yet
    assert page.watched
    picture = np.zeros((48, 64, 3), np.uint8)
    picture[:, 32:] = 200
    page.show(np.zeros_like(picture), FOUND)
    page.show(picture, FOUND)
    answer, body = ask(page, "/frame.jpg?after=0")
    assert (answer.status, answer.headers["Content-Type"], answer.headers["X-Frame"]) == (200, "image/jpeg", "2")
    np.testing.assert_allclose(cv2.imdecode(np.frombuffer(body, np.uint8), 1), picture, atol=12)
    (found,) = json.loads(answer.headers["X-Detections"])
    assert (found["class"], found["score"]) == ("dark cat", 0.875)
    assert ask(page, "/frame.jpg?after=2")[0].status == 204
    for odd in ("x", "-1", "9" * 40, ""):
        assert ask(page, f"/frame.jpg?after={odd}")[0].status == 200


def test_a_request_waits_for_the_next_picture(page: LivePage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_page, "_WAIT_S", 20)
    answers: list[Any] = []
    thread = threading.Thread(target=lambda: answers.append(ask(page, "/frame.jpg")))
    thread.start()
    while not page.watched:
        time.sleep(0.001)
    page.show(np.zeros((8, 8, 3), np.uint8), Detections.none(8, 8))
    thread.join(120)
    assert answers[0][0].headers["X-Frame"] == "1"


def test_state_page_and_nothing_else(page: LivePage) -> None:
    answer, body = ask(page, "/state.json")
    assert json.loads(body) == {"model": "m.onnx", "source": "camera0", "backend": "a GPU", **STATE}
    answer, body = ask(page, "/")
    assert answer.headers["Content-Security-Policy"].startswith("default-src 'self'")
    assert b"wnlb live" in body
    assert b"http://" not in body
    assert b"https://" not in body
    assert ask(page, "/../pyproject.toml")[0].status == 404


def test_a_name_of_another_site_for_this_address_is_refused(page: LivePage) -> None:
    for host in ("evil.example", "evil.example:8080", "127.0.0.1.evil.example", " ", "[::1", "localhost.", "10.0.0.1"):
        assert ask(page, "/frame.jpg", host)[0].status == 403, host
    for host in ("localhost", "LocalHost:8080", "127.0.0.1:1", "[::1]:80", "127.9.9.9"):
        assert ask(page, "/state.json", host)[0].status == 200


@pytest.mark.parametrize("host", ["127.0.0.2", "localhost", "127.1"])
def test_every_name_of_the_loopback_is_one(host: str) -> None:
    page = LivePage(f"{host}:0", {}, ("a",))
    assert page.is_loopback
    page.close()


def test_what_was_drawn_for_somebody_long_ago_is_not_shown(page: LivePage, monkeypatch: pytest.MonkeyPatch) -> None:
    ask(page, "/frame.jpg")
    page.show(np.zeros((8, 8, 3), np.uint8), Detections.none(8, 8))
    assert ask(page, "/frame.jpg")[0].status == 200
    assert ask(page, "/frame.jpg?after=5000")[0].status == 200  # asked by a page that saw an earlier run
    monkeypatch.setattr(live_page, "_WATCHED_S", 0)
    assert ask(page, "/frame.jpg")[0].status == 204


def test_connections_are_limited(page: LivePage) -> None:
    port = int(page.url.rsplit(":", 1)[1].strip("/"))
    held = [socket.create_connection(("127.0.0.1", port)) for _ in range(40)]
    ended = []
    for connection in held[32:]:
        connection.settimeout(120)
        ended.append(connection.recv(1))
    assert ended == [b""] * 8
    for connection in held:
        connection.close()
    end = time.monotonic() + 120
    while True:  # until the others are noticed to have left
        try:
            assert ask(page, "/state.json")[0].status == 200
            break
        except (ConnectionError, http.client.HTTPException):
            assert time.monotonic() < end
            time.sleep(0.01)


def test_a_browser_that_leaves_or_talks_rubbish_disturbs_nobody(page: LivePage, capsys: Any) -> None:
    port = int(page.url.rsplit(":", 1)[1].strip("/"))
    for data in (b"", b"GET /frame.jpg HTTP/1.1\r\nHost: localhost\r\n\r\n", b"\x00\xff" * 50 + b"\r\n\r\n"):
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(data)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # resets
    assert ask(page, "/state.json")[0].status == 200
    assert capsys.readouterr().err == ""


def test_addresses(page: LivePage) -> None:
    for address in ("8080", "localhost", "localhost:", ":8080", "localhost:99999", "localhost:http"):
        with pytest.raises(WnlbError, match="expected HOST:PORT"):
            LivePage(address, {}, ("a",))
    taken = page.url.removeprefix("http://").strip("/")
    with pytest.raises(WnlbError, match=f"page at {taken} cannot be served: Address already in use"):
        LivePage(taken, {}, ("a",))
    with pytest.raises(WnlbError, match="cannot be served"):
        LivePage("no.such.host.invalid:0", {}, ("a",))
    everywhere = LivePage("0.0.0.0:0", {}, ("a",))
    assert not everywhere.is_loopback
    own = socket.gethostname()
    for host in (own, f"{own}.local:8080", "10.0.0.7:8080", "[fe80::1]"):
        assert ask(everywhere, "/state.json", host)[0].status == 200, host
    assert ask(everywhere, "/state.json", "evil.example")[0].status == 403
    everywhere.close()
    everywhere.close()


def test_in_a_browser(page: LivePage, tmp_path: Path) -> None:
    """Pictures, numbers and lists arrive; the state of the source and the end of the program are shown."""
    with open_page(page.url, tmp_path / "profile") as browser:
        browser.wait_for("document.getElementById('state').textContent === 'running'")
        page.show(np.full((48, 64, 3), 90, np.uint8), FOUND)
        browser.wait_for("document.getElementById('picture').naturalWidth === 64")
        assert browser.value("document.getElementById('found').innerText").split("\n")[:2] == ["dark cat", "0.88"]
        for name, text in {"fps": "9.5", "dropped": "8", "p50": "21", "p99": "44", "reconnects": "1"}.items():
            assert browser.value(f"document.getElementById('{name}').textContent") == text
        assert browser.value("document.getElementById('facts').textContent") == "m.onnx  ·  camera0  ·  a GPU"
        assert browser.value("document.getElementById('counted').hidden")
        zones = [
            {"name": "gate", "left": {"dark cat": 2}, "right": {"lamp": 1}},
            {"name": "<b>yard", "inside": {}, "entered": {}},
        ]
        page.state = lambda: {**STATE, "counts": {"seen": {"dark cat": 7, "lamp": 1}, "zones": zones}}
        page.show(np.full((48, 60, 3), 90, np.uint8), replace(FOUND, track_ids=np.array([31], np.int32)))
        browser.wait_for("document.getElementById('picture').naturalWidth === 60")
        browser.wait_for("!document.getElementById('counted').hidden")
        assert browser.value("document.getElementById('found').innerText").split("\n")[0] == "dark cat 31"
        assert browser.value("document.getElementById('seen').innerText").split() == "dark cat 7 lamp 1".split()
        told = browser.value("document.getElementById('zones').innerText").split()
        assert told == "gate left right dark cat 2 0 lamp 0 1 <b>yard inside entered".split()
        page.show(np.full((32, 48, 3), 90, np.uint8), Detections.none(32, 48))
        browser.wait_for("document.getElementById('picture').naturalWidth === 48")
        assert browser.value("document.getElementById('found').innerText") == "nothing"
        page.state = lambda: {**STATE, "state": "reconnecting", "last_error": "camera0 gives no more frames"}
        browser.wait_for("document.getElementById('banner').textContent.startsWith('camera0 gives no more frames')")
        for width, height, dark in ((1280, 800, False), (400, 900, True)):
            browser.screenshot(tmp_path / "page.png", width, height, dark)
            assert cv2.imread(str(tmp_path / "page.png")).shape[:2] == (height, width)
            assert browser.value("document.documentElement.scrollWidth <= innerWidth")
        page.close()
        browser.wait_for("document.getElementById('state').textContent === 'unreachable'")
