"""What stands in, in a rehearsal, for things that only a GPU machine has."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from evidence.checkout import ROOT

_CONFORMANCE = """\
#!/bin/sh
# Says what the conformance program says, of numbers that nobody measured.
echo "  d=32 e=32 N=96 type=1 tactic 1: error 1.0e-04"
echo "  d=32 e=32 N=96 type=0 tactic 1: error 1.0e-07"
echo "2 checks, 0 failed; 1 kernels"
"""
_SANITIZER = """\
#!/bin/sh
# compute-sanitizer --tool T --error-exitcode 9 PROGRAM ...
shift 4
"$@"
echo "========= ERROR SUMMARY: 0 errors"
"""


def stand_in_for_conformance(beside: Path) -> Path:
    """A folder with a program and a sanitizer that only speak like the real ones."""
    folder = beside.parent / ".rehearsed_plugin"
    folder.mkdir(exist_ok=True)
    for name, text in (("wnlb_conformance", _CONFORMANCE), ("compute-sanitizer", _SANITIZER)):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    return folder


def emulated_driver(beside: Path) -> dict[str, str]:
    """Environment of a process that finds the emulated CUDA driver of the tests. Raises OSError without g++."""
    folder = beside.parent / ".rehearsed_driver"
    folder.mkdir(exist_ok=True)
    source, library = ROOT / "tests" / "emulation" / "cuda.cpp", folder / "libcuda.so.1"
    options = ["-std=c++17", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1"]
    subprocess.run(["g++", *options, "-o", library, source, "-ldl"], check=True)
    path = os.pathsep.join(filter(None, [str(folder), os.environ.get("LD_LIBRARY_PATH", "")]))
    return {**os.environ, "LD_LIBRARY_PATH": path}
