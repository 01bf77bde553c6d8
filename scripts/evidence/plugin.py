"""The plugin's conformance program with numbers: with kernels of this GPU, portable ones, under compute-sanitizer."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evidence.pack import build_plugin
from evidence.rehearsal import stand_in_for_conformance
from evidence.stage import NO_TIME, Context, first_line
from wnlb.runtime.engine.driver import find_gpu
from wnlb.runtime.errors import MissingDependency, WnlbError

PROGRAM = "wnlb_conformance"
LIBRARIES = {"kernels of this GPU": "libwnlb_plugins.so", "portable kernels alone": "libwnlb_plugins_ptx.so"}
TOOLS = ("memcheck", "racecheck")
_SANITIZERS = ("compute-sanitizer", "/usr/local/cuda/bin/compute-sanitizer")


def run(context: Context) -> None:
    folder = stand_in_for_conformance(context.output) if context.rehearse else _made(context)
    program = folder / PROGRAM
    for what, library in LIBRARIES.items():
        _one(context, what, "", [program, folder / library])
    sanitizer = next(filter(None, (shutil.which(str(name)) for name in (folder / _SANITIZERS[0], *_SANITIZERS))), "")
    for tool in TOOLS:
        if not sanitizer:
            context.add(library="kernels of this GPU", tool=tool, refused="compute-sanitizer is not installed")
            continue
        command = [sanitizer, "--tool", tool, "--error-exitcode", "9", program]
        _one(context, "kernels of this GPU", tool, [*command, folder / "libwnlb_plugins.so", "--small"])
    wrong = [row for row in context.rows if "refused" in row or row["failed"] or row["exit_code"]]
    if len(wrong) == len(context.rows):
        raise WnlbError(f"nothing passed; the first: {wrong[0].get('refused') or wrong[0]['last_line']}")


def _made(context: Context) -> Path:
    """The folder of program and libraries: carried, or built here, as on a Jetson.

    Raises MissingDependency where they are not carried and cannot be built.
    """
    carried = context.carried / "plugin"
    if (carried / PROGRAM).exists():
        (carried / PROGRAM).chmod(0o755)
        return carried
    here = context.output.parent / "plugin"
    try:
        build_plugin(context.carried, find_gpu().arch, here, os.environ.get("TensorRT_ROOT", ""))  # noqa: SIM112
    except WnlbError as error:
        raise MissingDependency(f"{PROGRAM} is not carried (--pack) and cannot be built here: {error}") from error
    return here


def _one(context: Context, library: str, tool: str, command: Sequence[str | Path]) -> None:
    left = context.left()
    if left <= 0:
        context.add(library=library, tool=tool, refused=NO_TIME)
        return
    try:
        ran = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=left)
    except subprocess.TimeoutExpired:
        context.add(library=library, tool=tool, refused=f"not done after {left:.0f} s")
    except OSError as error:
        context.add(library=library, tool=tool, refused=first_line(error))
    else:
        context.add(library=library, tool=tool, exit_code=ran.returncode, **_read(ran.stdout + ran.stderr))


def _read(output: str) -> dict[str, Any]:
    """What the program says: checks, failures, kernels, the largest error of each type; the sanitizer's last line."""
    lines = output.strip().splitlines()
    found: dict[str, Any] = {"checks": 0, "failed": None, "kernels": 0, "last_line": lines[-1][:200] if lines else ""}
    summary = re.search(r"^(\d+) checks, (\d+) failed; (\d+) kernels(.*)$", output, re.MULTILINE)
    if summary:
        found |= {"checks": int(summary[1]), "failed": int(summary[2]), "kernels": int(summary[3])}
        if "nothing was launched" in summary[4]:
            found["refused"] = f"nothing was launched{summary[4].partition('nothing was launched')[2]}"
    errors: dict[str, float] = {}
    for kind, error in re.findall(r"type=(\d+) tactic \d+: error (\S+)", output):
        name = {"0": "float32", "1": "float16", "7": "bfloat16"}.get(kind, kind)  # nvinfer1::DataType
        errors[name] = max(errors.get(name, 0.0), float(error))
    found["runs"] = len(re.findall(r"tactic \d+: error", output))
    found["largest_error"] = errors
    found["complaints"] = [line.strip()[:200] for line in lines if line.startswith("FAILED")][:10]
    return found
