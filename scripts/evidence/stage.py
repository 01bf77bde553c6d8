"""What a stage is handed, and the process that it runs in.

    python -m evidence.stage MODULE --output FILE --deadline SECONDS_SINCE_1970 [--carried DIR] [--rehearse]

``FILE`` is written anew with every row: what a stage had measured when it was cut off is kept.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import os
import sys
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wnlb.runtime.errors import MissingDependency, WnlbError
from wnlb.runtime.files import atomic_path

NO_TIME = "no time was left"


@dataclass
class Context:
    """One run of one stage."""

    output: Path
    deadline: float  # time.time() from which on nothing new should be begun
    carried: Path  # what --pack made; may not exist
    rehearse: bool = False  # every step on the CPU, on tiny sizes
    rows: list[dict[str, Any]] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    state: str = "cut off"  # until the stage says otherwise
    reason: str = ""

    @property
    def device(self) -> str:
        """PyTorch's name of what is measured."""
        return "cpu" if self.rehearse else "cuda"

    def left(self) -> float:
        """Seconds."""
        return self.deadline - time.time()

    def add(self, **row: Any) -> None:
        """One thing that was measured, or ``refused`` with the reason."""
        self.rows.append(row)
        self.write()

    def fact(self, name: str, value: Any) -> None:
        self.facts[name] = value
        self.write()

    def write(self) -> None:
        record = {"state": self.state, "reason": self.reason, "facts": self.facts, "rows": self.rows}
        with atomic_path(self.output) as temporary:
            temporary.write_text(json.dumps(_plain(record), indent=1))


def _plain(value: Any) -> Any:
    """JSON has no NaN and no infinity: they become text, and show."""
    if isinstance(value, dict):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def needs_gpu(context: Context) -> int:
    """Compute capability times ten of the GPU that PyTorch uses; of a rehearsal that of an H100.

    Raises MissingDependency where PyTorch or the GPU is missing.
    """
    try:
        import torch
    except ImportError as error:
        raise MissingDependency("PyTorch is not installed") from error
    if context.rehearse:
        return 90
    if not torch.cuda.is_available():
        raise MissingDependency(f"PyTorch {torch.__version__} sees no GPU")
    major, minor = torch.cuda.get_device_capability()
    torch.ones(1, device="cuda")  # makes the context, which is then current in this thread
    return 10 * major + minor


def first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:200]}" if text else type(error).__name__


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("module")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--deadline", type=float, required=True)
    parser.add_argument("--carried", type=Path, required=True)
    parser.add_argument("--rehearse", action="store_true")
    arguments = parser.parse_args()
    context = Context(arguments.output, arguments.deadline, arguments.carried, arguments.rehearse)
    context.write()
    try:
        importlib.import_module(arguments.module).run(context)
        context.state = "done"
    except MissingDependency as error:
        context.state, context.reason = "missing", str(error)
    except (Exception, KeyboardInterrupt) as error:
        context.state = "failed"
        context.reason = str(error) if isinstance(error, WnlbError) else first_line(error)
        traceback.print_exc()
    context.write()
    return 0


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # not waiting for compilers that still run, nor for a driver that fails to close
