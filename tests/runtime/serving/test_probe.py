"""The probe, against servers that fail in all the ways that a real one does only now and then."""

from __future__ import annotations

import json
import socket
import struct
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from wnlb.runtime.serving import probe

CONFIG = {
    "max_batch_size": 4,
    "input": [
        {"name": "image", "data_type": "TYPE_UINT8", "dims": ["64", "96", "3"]},
        {"name": "picture", "data_type": "TYPE_STRING", "dims": [1]},
        {"name": "content", "data_type": "TYPE_INT32", "dims": [-1, 2]},
    ],
}


class Told:
    """What the server says, and what it was asked."""

    def __init__(self) -> None:
        self.states = [{"name": "night", "version": "1", "state": "READY"}]
        self.answer: tuple[int, dict[str, Any]] = (200, {"outputs": [_output([1, 100], 400), _output([1, 0, 4], 0)]})
        self.done = iter([5])  # requests answered, at each look; the last stays
        self.asked: list[tuple[dict[str, str], bytes]] = []
        self._last = 0

    def count(self) -> int:
        self._last = next(self.done, self._last)
        return self._last


def _output(shape: list[int], size: int) -> dict[str, Any]:
    return {"name": "scores", "datatype": "FP32", "shape": shape, "parameters": {"binary_data_size": size}}


@pytest.fixture
def server() -> Iterator[tuple[str, Told]]:
    told = Told()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            statistics = {"model_stats": [{"inference_stats": {"success": {"count": told.count()}}}]}
            self._say(200, CONFIG if self.path.endswith("/config") else statistics)

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.path == "/v2/repository/index":
                self._say(200, told.states)
                return
            told.asked.append((dict(self.headers), body))
            self._say(*told.answer)

        def _say(self, code: int, value: Any) -> None:
            text = json.dumps(value).encode()
            self.send_response(code)
            self.send_header("Inference-Header-Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text + b"\x00\xff behind it")

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{http.server_port}", told
        http.shutdown()
        thread.join()


def test_a_real_inference(server: tuple[str, Told]) -> None:
    url, told = server
    assert probe.probe(url) == ["night"]
    ((headers, body),) = told.asked
    length = int(next(value for key, value in headers.items() if key.lower() == "inference-header-content-length"))
    inputs = json.loads(body[:length])["inputs"]
    assert [(value["name"], value["shape"], value["datatype"]) for value in inputs] == [
        ("image", [1, 64, 96, 3], "UINT8"),
        ("picture", [1, 1], "BYTES"),
        ("content", [1, 1, 2], "INT32"),
    ]
    sizes = [value["parameters"]["binary_data_size"] for value in inputs]
    assert sum(sizes) == len(body) - length
    assert (sizes[0], sizes[2]) == (64 * 96 * 3, 8)
    picture = body[length + sizes[0] :][: sizes[1]]
    assert struct.unpack("<I", picture[:4])[0] == len(picture) - 4
    decoded = cv2.imdecode(np.frombuffer(picture[4:], np.uint8), cv2.IMREAD_COLOR)
    assert decoded.shape == (64, 64, 3)
    assert not decoded.any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answer": (500, {"error": "Stub process 'night_0_0' is not healthy"})}, "answered 500: .*not healthy"),
        ({"answer": (200, {"outputs": [_output([1, 100], 0)]})}, "night answered an empty scores"),
        ({"answer": (503, {"error": "Exceeds maximum queue size"})}, "night answers nobody: .*queue size"),
        ({"states": [{"name": "night", "state": "UNAVAILABLE", "reason": "no plan"}]}, "night is not loaded: no plan"),
        ({"states": [{"name": "night"}]}, "night is not loaded: unknown"),
        ({"states": []}, "has no models"),
    ],
)
def test_what_is_wrong(server: tuple[str, Told], change: dict[str, Any], message: str) -> None:
    url, told = server
    for name, value in change.items():
        setattr(told, name, value)
    with pytest.raises(probe.ProbeError, match=message):
        probe.probe(url, timeout_s=1 if "nobody" in message else 60)


def test_a_busy_server_that_answers_others_works(server: tuple[str, Told]) -> None:
    url, told = server
    told.answer, told.done = (503, {"error": "Exceeds maximum queue size"}), iter([5, 5, 6])
    assert probe.probe(url, timeout_s=120) == ["night"]


def test_models_that_are_named(server: tuple[str, Told], capsys: pytest.CaptureFixture[str]) -> None:
    url, told = server
    told.states.append({"name": "day", "version": "1", "state": "UNAVAILABLE", "reason": ""})
    assert probe.main(["--url", url, "night"]) == 0
    assert capsys.readouterr().out == "probe: night answered\n"
    assert probe.main(["--url", url]) == 1
    assert capsys.readouterr().err == "probe: model day is not loaded: UNAVAILABLE\n"


@pytest.fixture
def restored_signals() -> Iterator[None]:
    import signal

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("restored_signals")
def test_the_end_of_a_server_is_its_own(server: tuple[str, Told]) -> None:
    command = [sys.executable, "-c", "raise SystemExit(7)"]
    assert probe.main(["--url", server[0], "--watch", "0.1", "--", *command]) == 7


@pytest.mark.usefixtures("restored_signals")
@pytest.mark.parametrize("answered", [False, True])
def test_a_server_that_does_not_answer_is_ended(
    server: tuple[str, Told],
    answered: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Before its first answer after a while, afterwards after three failures; systemd is told of each."""
    url, told = server
    notices = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    notices.bind(str(tmp_path / "notify"))
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    if answered:
        _fail_after(told, 2)
    else:
        told.answer = (500, {"error": "loading"})
    command = [sys.executable, "-c", "import signal; signal.pause()"]
    assert probe.main(["--url", url, "--watch", "0.01", "--start", "0.2", "--", *command]) == 1
    notices.setblocking(False)
    heard = [*iter(lambda: _heard(notices), "")]
    notices.close()
    good = "STATUS=all models answered\nWATCHDOG=1"
    assert [each for each in heard if each.startswith(good)] == ([f"{good}\nREADY=1", good] if answered else [])
    assert all(each.startswith(good) or "answered 500" in each for each in heard)
    assert capsys.readouterr().err.count("failure") == (3 if answered else 0)


def _fail_after(told: Told, count: int) -> None:
    good, bad = told.answer, (500, {"error": "Stub process is not healthy"})

    class Turning(Told):
        @property
        def answer(self) -> tuple[int, dict[str, Any]]:  # type: ignore[override]
            return good if len(self.asked) <= count else bad

        @answer.setter
        def answer(self, value: Any) -> None:
            pass

    told.__class__ = Turning


def _heard(notices: socket.socket) -> str:
    try:
        return notices.recv(4096).decode()
    except BlockingIOError:
        return ""


def test_nobody_there(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        assert probe.main(["--url", f"http://127.0.0.1:{bound.getsockname()[1]}"]) == 1
    assert "does not answer: " in capsys.readouterr().err


def test_watching_needs_a_command() -> None:
    for words in (["--watch", "1"], ["--", "true"]):
        with pytest.raises(SystemExit, match="2"):
            probe.main(words)
