"""What a model is called: a file, or an address of one on a server."""

from __future__ import annotations

import math
import urllib.parse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wnlb.runtime.errors import WnlbError

SCHEME = "triton"
PORT = 8001  # of Triton's gRPC
TIMEOUT_S = 60.0
_EXPECTED = f"expected {SCHEME}://HOST:{PORT}/MODEL, or with ?timeout=SECONDS"


@dataclass(frozen=True)
class ServedModel:
    """A model of a Triton Inference Server, ``triton://host:8001/model``; where names of files do, its own does too."""

    host: str
    port: int
    name: str
    timeout_s: float = TIMEOUT_S  # for one answer, waiting in the server's queue included

    def __str__(self) -> str:
        timeout = "" if self.timeout_s == TIMEOUT_S else f"?timeout={self.timeout_s:g}"
        return f"{SCHEME}://{self.target}/{self.name}{timeout}"

    @property
    def target(self) -> str:
        """``"host:8001"``, as gRPC takes it."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @classmethod
    def parsed(cls, address: str) -> ServedModel:
        """Raises WnlbError for text that is no such address."""
        try:
            parts = urllib.parse.urlsplit(address)
            host, port = parts.hostname, parts.port or PORT
            options = urllib.parse.parse_qs(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
            (text,) = options.pop("timeout", [f"{TIMEOUT_S}"])
            timeout_s = float(text)
        except ValueError as error:
            raise WnlbError(f"model address {address} cannot be read ({error}); {_EXPECTED}") from error
        name = urllib.parse.unquote(parts.path.removeprefix("/"))
        if not host or not name or "/" in name or options or parts.fragment or parts.username is not None:
            raise WnlbError(f"model address {address} cannot be read; {_EXPECTED}")
        if not (math.isfinite(timeout_s) and timeout_s > 0):
            raise WnlbError(f"model address {address} has the timeout {text}; expected seconds above 0")
        return cls(host, port, name, timeout_s)


Model = Path | ServedModel


def model_of(text: str) -> Model:
    """A path, or of ``triton://...`` the model there. Raises WnlbError for an address that cannot be read."""
    return ServedModel.parsed(text) if text.startswith(f"{SCHEME}://") else Path(text)


def options_for(model: Model, device: str, threads: int) -> dict[str, Any]:
    """``open_backend``'s options for a model, where these are meant for ``.onnx`` files: others have their own."""
    is_onnx = isinstance(model, Path) and model.suffix != ".engine"
    return {"device": device, "threads": threads} if is_onnx else {}


def file_of(text: str) -> Path:
    """A path, of a command that needs the file itself. Raises WnlbError for an address of a server."""
    if text.startswith(f"{SCHEME}://"):
        raise WnlbError(f"model {text} is on a server; expected its file")
    return Path(text)
