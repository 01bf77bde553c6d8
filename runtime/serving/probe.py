#!/usr/bin/env python3
"""Whether a Triton server works: a real inference by each of its models, over HTTP.

  probe.py [--url http://127.0.0.1:8000] [--timeout 30] [MODEL ...]
  probe.py --watch 15 [MODEL ...] -- tritonserver --model-repository=/models

Triton itself calls a model ready whose Python process was killed. Exit code 0: all answered; 1: one line says what did
not. With --watch the command is started, and probed every 15 seconds from then on: after three failures in a row it is
ended, with exit code 1, for systemd or a container's restart policy to start it again. To systemd READY=1 is told after
the first success and WATCHDOG=1 after each.

Needs Python 3.8 and nothing else, so that it runs on a server and inside Triton's container.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
import zlib
from collections.abc import Sequence

URL = "http://127.0.0.1:8000"
TIMEOUT_S = 30.0
START_S = 900.0  # engines and large networks take minutes to load
FAILURES = 3
_GRACE_S = 10.0  # a server with a killed Python process takes its whole exit timeout otherwise
_BYTES = {"BOOL": 1, "UINT8": 1, "INT8": 1, "FP16": 2, "INT32": 4, "FP32": 4, "INT64": 8, "FP64": 8}
_HEADER = "Inference-Header-Content-Length"


class ProbeError(Exception):
    """What is wrong, in one line."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script; returns its exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    command = argv[argv.index("--") + 1 :] if "--" in argv else []
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="MODEL", help="default: all of the server")
    parser.add_argument("--url", default=URL, help=f"of Triton's HTTP port (default: {URL})")
    parser.add_argument("--timeout", type=float, default=TIMEOUT_S, metavar="S", help="for an answer (default: 30)")
    parser.add_argument("--watch", type=float, default=0.0, metavar="S", help="start COMMAND, probe every S seconds")
    parser.add_argument("--start", type=float, default=START_S, metavar="S", help="until the first (default: 900)")
    arguments = parser.parse_args(argv[: argv.index("--")] if "--" in argv else argv)
    if bool(command) != (arguments.watch > 0):
        parser.error("--watch SECONDS and -- COMMAND go together")
    if command:
        return watch(arguments.url, arguments.models, arguments.timeout, arguments.watch, arguments.start, command)
    try:
        asked = probe(arguments.url, arguments.models, arguments.timeout)
    except ProbeError as error:
        print(f"probe: {error}", file=sys.stderr)
        return 1
    print(f"probe: {', '.join(asked)} answered")
    return 0


def probe(url: str, models: Sequence[str] = (), timeout_s: float = TIMEOUT_S) -> list[str]:
    """Let each model make an inference; their names. Raises ProbeError for the first that cannot."""
    found = json.loads(_ask(f"{url}/v2/repository/index", timeout_s, b"{}"))
    states = {model["name"]: model.get("state", "") for model in found}
    reasons = {model["name"]: model.get("reason", "") for model in found}
    if not states:
        raise ProbeError(f"{url} has no models")
    for name in models or states:
        if states.get(name) != "READY":
            raise ProbeError(f"model {name} is not loaded: {reasons.get(name) or states.get(name) or 'unknown'}")
        _probe_model(f"{url}/v2/models/{urllib.parse.quote(name)}", name, timeout_s)
    return list(models or states)


def watch(
    url: str, models: Sequence[str], timeout_s: float, every_s: float, start_s: float, command: Sequence[str]
) -> int:
    """Run a server as long as it answers; its exit code, or 1 where it was ended because it does not."""
    server = subprocess.Popen(command)
    stopped = threading.Event()

    def stop(number: int, frame: object) -> None:
        stopped.set()
        server.send_signal(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    failed, answered, until = 0, False, time.monotonic() + start_s
    while server.poll() is None:
        if stopped.is_set():  # it answers what it has begun, and nothing else
            return server.wait()
        try:
            probe(url, models, timeout_s)
        except ProbeError as error:
            failed += 1
            _tell_systemd(f"STATUS={error}")
            if answered:
                print(f"probe: {error} (failure {failed} of {FAILURES})", file=sys.stderr, flush=True)
        else:
            _tell_systemd("STATUS=all models answered\nWATCHDOG=1" + ("" if answered else "\nREADY=1"))
            failed, answered = 0, True
        if (failed >= FAILURES if answered else time.monotonic() > until) and not stopped.is_set():
            _end(server)
            return 1
        # While it starts, more often: it is ready when it answers first.
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(every_s if answered else min(every_s, 1))
    return server.returncode


def _end(server: subprocess.Popen[bytes]) -> None:
    server.terminate()
    try:
        server.wait(_GRACE_S)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()


def _tell_systemd(message: str) -> None:
    """See sd_notify(3); does nothing where systemd does not listen."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as own, contextlib.suppress(OSError):
            own.setblocking(False)  # one that does not listen must not hold the probe up
            own.sendto(message.encode(), f"\0{address[1:]}" if address[0] == "@" else address)


def _probe_model(url: str, name: str, timeout_s: float) -> None:
    config = json.loads(_ask(f"{url}/config", timeout_s))
    inputs, body = [], b""
    for value in config["input"]:
        kind = value["data_type"].replace("TYPE_", "").replace("STRING", "BYTES")
        dims = [max(int(dim), 1) for dim in value["dims"]]
        dims = [1, *dims] if int(config.get("max_batch_size", 0)) else dims
        data = _picture() if kind == "BYTES" else bytes(_BYTES[kind] * math.prod(dims))
        size = {"binary_data_size": len(data)}
        inputs.append({"name": value["name"], "shape": dims, "datatype": kind, "parameters": size})
        body += data
    head = json.dumps({"inputs": inputs, "parameters": {"binary_data_output": True}}).encode()
    done = _done(url, timeout_s)
    try:
        answer = json.loads(_ask(f"{url}/infer", timeout_s, head + body, len(head)))
    except _Busy as error:
        _wait_for_progress(url, name, done, timeout_s, error)
        return
    for output in answer["outputs"]:
        if math.prod(output["shape"]) and not output["parameters"]["binary_data_size"]:
            raise ProbeError(f"model {name} answered an empty {output['name']}")


def _wait_for_progress(url: str, name: str, done: int, timeout_s: float, error: ProbeError) -> None:
    """A full queue is no failure where others are answered."""
    until = time.monotonic() + timeout_s
    while _done(url, timeout_s) <= done:
        if time.monotonic() > until:
            raise ProbeError(f"model {name} answers nobody: {error}") from error
        time.sleep(0.1)


def _done(url: str, timeout_s: float) -> int:
    """Requests that a model has answered."""
    found = json.loads(_ask(f"{url}/stats", timeout_s))["model_stats"]
    return sum(int(version["inference_stats"]["success"].get("count", 0)) for version in found)


class _Busy(ProbeError):
    """Too many requests wait."""


def _ask(url: str, timeout_s: float, body: bytes | None = None, head: int = 0) -> bytes:
    """The answer; of an inference its JSON. Raises ProbeError."""
    request = urllib.request.Request(url, body, {_HEADER: str(head)} if head else {})
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=timeout_s) as answer:
            length = answer.headers.get(_HEADER)
            text: bytes = answer.read()
            return text[: int(length)] if length else text
    except urllib.error.HTTPError as error:
        said = error.read(2000).decode(errors="replace")
        raise (_Busy if error.code == 503 else ProbeError)(f"{url} answered {error.code}: {said}") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise ProbeError(f"{url} does not answer: {reason}") from error


def _picture() -> bytes:
    """A black PNG of 64 x 64 pixels, as an element of a BYTES tensor: its length before it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 64, 64, 8, 0, 0, 0, 0)
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(bytes(64 * 65))), chunk(b"IEND", b"")]
    png = b"\x89PNG\r\n\x1a\n" + b"".join(parts)
    return struct.pack("<I", len(png)) + png


if __name__ == "__main__":
    sys.exit(main())
