"""The Triton server that nvidia-pytriton brings, on repositories that ``wnlb triton`` wrote, as they are.

Used by the tests and by ``bench_triton.py``. It has the python backend alone; ``triton_stand_in.py`` stands in for
onnxruntime's. ``prepare_triton`` in ``environment.sh`` installs it.
"""

from __future__ import annotations

import os
import random
import shutil
import socket
import subprocess
import sys
import sysconfig
import time
import urllib.request
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from wnlb.runtime.serving import probe
from wnlb.runtime.serving.starting import CONTAINER, Start

ROOT = Path(__file__).parents[1]
ENVIRONMENT = ROOT / ".venv-triton"
SITE = ENVIRONMENT / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
STUB = "triton_python_backend_stub"


def missing() -> str:
    """What of a server is not here; "" where all is."""
    if not (ENVIRONMENT / ".installed").is_file():
        return f"{ENVIRONMENT} is not there: ./scripts/test makes it where pip has nvidia-pytriton"
    server = SITE / "pytriton" / "tritonserver"
    stub = server / "python_backend_stubs" / f"{sys.version_info.major}.{sys.version_info.minor}" / STUB
    for path in (server / "bin" / "tritonserver", stub):
        if not path.is_file():
            return f"{path} is not there"
    library = f"libpython{sys.version_info.major}.{sys.version_info.minor}.so.1.0"
    found = subprocess.run(["ldd", stub], env=_environment(), capture_output=True, text=True).stdout
    return f"{library} is not on the loader's path" if f"{library} => not found" in found else ""


@dataclass(frozen=True)
class RealTriton:
    """A server that runs; ``process`` is the probe that started it and watches it."""

    process: subprocess.Popen[bytes]
    notices: socket.socket  # where the probe tells systemd what it sees
    ports: tuple[int, int, int]  # HTTP, gRPC, metrics
    gates: Path  # while a file of a model's name is in this folder, that model of the stand-in waits
    shared: str  # prefix of its files in /dev/shm
    log: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.ports[0]}"

    def address(self, name: str) -> str:
        return f"triton://127.0.0.1:{self.ports[1]}/{name}"

    def told(self, word: str) -> str:
        """The next of the probe's notices that holds a word; raises TimeoutError after a while."""
        while word not in (notice := self.notices.recv(4096).decode()):
            pass
        return notice

    def close_gate(self, name: str) -> None:
        """Requests of this model wait inside from now on."""
        (self.gates / name).touch()

    def open_gate(self, name: str) -> None:
        (self.gates / name).unlink()

    def wait_until(self, name: str, pending: int) -> None:
        """Until a request is inside the closed gate and so many wait in the queue."""
        metric = f'nv_inference_pending_request_count{{model="{name}",version="1"}} {pending}\n'
        for _ in range(2400):
            with urllib.request.urlopen(f"http://127.0.0.1:{self.ports[2]}/metrics", timeout=120) as answer:
                if (self.gates / f"{name}.inside").exists() and metric in answer.read().decode():
                    return
            time.sleep(0.05)
        raise TimeoutError(f"{name} has not {pending} requests waiting")

    def stubs(self) -> list[psutil.Process]:
        """The processes of its models."""
        below = psutil.Process(self.process.pid).children(recursive=True)
        return [process for process in below if process.name().startswith(STUB[:15])]

    def leaks(self) -> list[Path]:
        return [path for path in Path("/dev/shm").iterdir() if path.name.startswith(self.shared)]


@contextmanager
def started(
    repository: Path, folder: Path, watched: str, every_s: float = 0.3, exit_s: int = 20
) -> Iterator[RealTriton]:
    """Start the server by its own probe, as systemd does, and wait until the watched model answered.

    Args:
        folder: an empty one for what the server needs beside it.
        every_s: from one probe to the next.
        exit_s: what the server has for its end; one that was not done by then exits with 1.
    """
    backends, gates, shared = folder / "backends", folder / "gates", f"wnlb_{uuid.uuid4().hex[:8]}_"
    _lay_out(backends)
    gates.mkdir()
    command = [
        *_server(repository, backends, ports := (free_port(), free_port(), free_port()), exit_s),
        f"--backend-config=python,shm-region-prefix-name={shared}",
    ]
    watching = [
        sys.executable,
        probe.__file__,
        f"--url=http://127.0.0.1:{ports[0]}",
        f"--watch={every_s}",
        watched,
        "--",
    ]
    with ExitStack() as stack:
        notices = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
        notices.bind(str(folder / "notify"))
        notices.settimeout(180)
        environment = _environment() | {"NOTIFY_SOCKET": str(folder / "notify"), "WNLB_GATES": str(gates)}
        log = folder / "server.log"
        told = stack.enter_context(open(log, "wb"))
        process = subprocess.Popen([*watching, *command], env=environment, stdout=told, stderr=told)
        server = RealTriton(process, notices, ports, gates, shared, log)
        stack.callback(_end, server)
        try:
            server.told("READY=1")
        except TimeoutError as error:
            raise AssertionError(log.read_text()) from error
        yield server


def _end(server: RealTriton) -> None:
    """Whatever a test left."""
    processes = [server.process, *psutil.Process(server.process.pid).children(recursive=True)] if _runs(server) else []
    for process in processes:
        process.kill()
    server.process.wait(120)
    for path in server.leaks():
        path.unlink()


def _runs(server: RealTriton) -> bool:
    return server.process.poll() is None


def _server(repository: Path, backends: Path, ports: Sequence[int], exit_s: int) -> list[str]:
    """The words that the repository's container runs, but for places, ports and patience."""
    program, _, *words = Start(CONTAINER, gpu=False, python=False).server()
    words = [f"--exit-timeout-secs={exit_s}" if "exit-timeout" in word else word for word in words]
    kinds = ("http", "grpc", "metrics")
    words += [f"--{kind}-port={port}" for kind, port in zip(kinds, ports, strict=True)]
    words += [f"--{kind}-address=127.0.0.1" for kind in kinds]
    binary = SITE / "pytriton" / "tritonserver" / "bin" / program
    return [str(binary), f"--model-repository={repository}", f"--backend-directory={backends}", *words]


def _lay_out(backends: Path) -> None:
    server = SITE / "pytriton" / "tritonserver"
    shutil.copytree(server / "backends" / "python", backends / "python", ignore=shutil.ignore_patterns("__pycache__"))
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    shutil.copy(server / "python_backend_stubs" / version / STUB, backends / "python")
    (backends / "onnxruntime").mkdir()
    shutil.copy(Path(__file__).with_name("triton_stand_in.py"), backends / "onnxruntime" / "model.py")


def _environment() -> dict[str, str]:
    """The stub runs Python isolated: it finds its packages through the first python on PATH."""
    libraries = [str(SITE / "nvidia_pytriton.libs"), sysconfig.get_config_var("LIBDIR") or ""]
    path = f"{ENVIRONMENT / 'bin'}{os.pathsep}{os.environ['PATH']}"
    kept = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    return {**kept, "PATH": path, "LD_LIBRARY_PATH": os.pathsep.join(libraries)}


def free_port() -> int:
    """One below those that Linux hands out by itself: nobody gets it before it is used."""
    handed_out = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    while True:
        port = random.SystemRandom().randrange(min(10_000, handed_out - 1), handed_out)
        with socket.socket() as tried, suppress(OSError):
            tried.bind(("127.0.0.1", port))
            return port
