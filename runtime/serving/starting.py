"""How the server of a repository is started, and started again: a docker line, a systemd unit, a compose file."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

from wnlb.runtime.errors import WnlbError

CONTAINER = "26.05"  # its ONNX Runtime is 1.24.4
MATRIX = "https://docs.nvidia.com/deeplearning/frameworks/support-matrix/"
UNIT, COMPOSE, PROBE, DOCKERFILE = "wnlb-triton.service", "compose.yaml", "probe.py", "Dockerfile"
_NAME = "wnlb-triton"
_MODELS = "/models"  # where the container sees the repository
_PORTS = (8000, 8001, 8002)  # HTTP, gRPC, metrics
_EXIT_S = 20  # for requests that are being computed when the server is stopped
_EVERY_S = 15  # between probes


@dataclass(frozen=True)
class Start:
    """What starting a repository depends on. Raises WnlbError for a container or an address that is none."""

    container: str  # tag of nvcr.io/nvidia/tritonserver, "26.05"
    gpu: bool
    python: bool  # whether a model is of ``--variant full``
    plugin: str = ""  # file name of the plugin library in the repository
    packages: tuple[str, ...] = ()  # of Python, that run the models of ``--variant full``
    listen: str = "127.0.0.1"  # address that the ports are bound to

    def __post_init__(self) -> None:
        parts = self.container.split(".")
        if len(parts) != 2 or not all(part.isdecimal() and len(part) == 2 for part in parts):
            raise WnlbError(f"--container is {self.container!r}; expected year and month, e.g. {CONTAINER}")
        if not self.listen or set(self.listen) - set("0123456789abcdefABCDEF.:"):
            raise WnlbError(f"--listen is {self.listen!r}; expected an IP address, e.g. 127.0.0.1 or 0.0.0.0")

    @property
    def image(self) -> str:
        """Of the container; for ``--variant full`` the one that the Dockerfile makes."""
        return f"{_NAME}:{self.container}" if self.python else f"nvcr.io/nvidia/tritonserver:{self.container}-py3"

    @property
    def url(self) -> str:
        """Of the HTTP port, as this machine reaches it."""
        host = "127.0.0.1" if self.listen in ("0.0.0.0", "::") else self.listen
        return f"http://[{host}]:8000" if ":" in host else f"http://{host}:8000"

    def server(self) -> list[str]:
        """The command inside the container."""
        words = ["tritonserver", f"--model-repository={_MODELS}", "--disable-auto-complete-config"]
        words += [f"--exit-timeout-secs={_EXIT_S}"]
        if self.plugin and not self.python:
            words.append(f"--backend-config=tensorrt,plugins={_MODELS}/{self.plugin}")
        return words

    def docker(self, repository: Path) -> list[str]:
        """The command that starts the container."""
        words = ["docker", "run", "--rm", f"--name={_NAME}", *(["--gpus=all"] if self.gpu else [])]
        words += [f"--stop-timeout={_EXIT_S + 10}", *(["--shm-size=256m"] if self.python else [])]
        words += [f"--publish={self._published(port)}" for port in _PORTS]
        return [*words, f"--volume={repository.resolve()}:{_MODELS}:ro", self.image, *self.server()]

    def unit(self, repository: Path) -> str:
        """A systemd unit: the probe starts the container, and tells systemd each time that all models answered."""
        folder = repository.resolve()
        probe = [f"{folder}/{PROBE}", f"--url={self.url}", f"--watch={_EVERY_S}", "--"]
        command = " ".join(map(_unit_word, ["/usr/bin/python3", *probe, *self.docker(repository)]))
        return f"""\
[Unit]
Description=Triton Inference Server of {str(folder).replace("%", "%%")}
After=docker.service network-online.target
Wants=docker.service network-online.target
StartLimitIntervalSec=0

[Service]
Type=notify
ExecStartPre=-/usr/bin/docker rm --force {_NAME}
ExecStart={command}
ExecStopPost=-/usr/bin/docker rm --force {_NAME}
# The probe ends a server that does not answer; systemd ends a probe that hangs.
WatchdogSec=180
TimeoutStartSec=1000
TimeoutStopSec={_EXIT_S + 20}
Restart=always
RestartSec=5

[Install]
WantedBy=multi-user.target
"""

    def compose(self) -> str:
        """For docker compose, beside the models: ends and starts again a server that does not answer."""
        command = ["python3", f"{_MODELS}/{PROBE}", f"--watch={_EVERY_S}", "--", *self.server()]
        ports = "\n".join(f'      - "{self._published(port)}"' for port in _PORTS)
        build = f"    build: {{context: ., dockerfile: {DOCKERFILE}}}\n" if self.python else ""
        gpu = "    gpus: all\n" if self.gpu else ""
        shared = "    shm_size: 256m\n" if self.python else ""
        return f"""\
services:
  triton:
    image: {self.image}
{build}    command: [{", ".join(f'"{word}"' for word in command)}]
    ports:
{ports}
    volumes: [".:{_MODELS}:ro"]
{gpu}{shared}    restart: always
    stop_grace_period: {_EXIT_S + 10}s
    healthcheck:
      test: ["CMD", "python3", "{_MODELS}/{PROBE}"]
      interval: 60s
      timeout: 60s
      retries: 3
      start_period: 900s
"""

    def dockerfile(self) -> str:
        """The container with this package in it, for ``--variant full``; its wheel lies beside the file."""
        plugin = f"ENV WNLB_PLUGIN_LIBRARY={_MODELS}/{self.plugin}\n" if self.plugin else ""
        return f"""\
FROM nvcr.io/nvidia/tritonserver:{self.container}-py3
# NumPy below 2: with it Triton's python backend gave empty tensors without an error (2.51).
RUN pip install --no-cache-dir --break-system-packages 'numpy<2' 'opencv-python-headless<4.12' pycocotools tqdm \\
    {" ".join(self.packages)}
COPY wnlb_deploy-*.whl /tmp/
RUN pip install --no-cache-dir --break-system-packages --no-deps /tmp/wnlb_deploy-*.whl
{plugin}"""

    def _published(self, port: int) -> str:
        host = f"[{self.listen}]" if ":" in self.listen else self.listen
        return f"{host}:{port}:{port}"


def as_line(words: list[str]) -> str:
    """A command as one types it."""
    return shlex.join(words)


def _unit_word(word: str) -> str:
    """As systemd.service(5) quotes it."""
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{escaped}"' if any(character in " '\"\\;" for character in word) else escaped
