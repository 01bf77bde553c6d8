"""Damage files as disks, downloads and editors do, and see that each is read, or refused in one line.

    python scripts/mutation_test.py                          # 12,000 damaged files, half an hour
    python scripts/mutation_test.py --only labels,onnx --count 500 --seed 7 --keep out/faults

Every damaged file is handed to the code that a command reads it with. Right is: it is read, or a WnlbError of one line.
A fault is anything else: another exception, an error of several lines, a process that dies or hangs, a file left
behind. Exit code 1 where there was one; the same seed gives the same files.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from counts import from_
from mutations.running import Fault, run_subject
from tqdm import tqdm

from wnlb.runtime.errors import WnlbError, exit_code
from wnlb.runtime.table import table


def run_all(names: list[str], count: int, seed: int, keep: Path | None) -> tuple[list[tuple[Any, ...]], list[Fault]]:
    """Every subject in a process of its own, for a reader may die. Rows of the table, and faults."""
    rows, faults = [], []
    for name in names:
        command = [sys.executable, __file__, "--one", name, "--count", str(count), "--seed", str(seed)]
        command += ["--keep", str(keep)] if keep else []
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, stderr=subprocess.DEVNULL)
        states = {"read": 0, "refused": 0, "fault": 0}
        assert process.stdout
        with tqdm(total=count, desc=name, disable=None, leave=False, file=sys.stderr) as bar:
            for line in process.stdout:
                entry = json.loads(line)
                states[entry["state"]] += 1
                bar.update()
                if entry["state"] == "fault":
                    faults.append(Fault(name, sum(states.values()) - 1, entry["what"]))
        if process.wait():
            states["fault"] += 1
            faults.append(Fault(name, sum(states.values()) - 1, f"the process ended with {process.returncode}"))
        rows.append((name, sum(states.values()), states["read"], states["refused"], states["fault"]))
    return rows, faults


def main() -> int:
    from mutations.subjects import SUBJECTS

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", metavar="KIND,...", help=", ".join(SUBJECTS))
    parser.add_argument(
        "--count", type=from_(1), default=2000, help="damaged files of each kind (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, metavar="DIR", help="where the files are kept that were not answered well")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        answers = os.fdopen(os.dup(1), "w")  # what libraries print goes elsewhere
        os.dup2(2, 1)
        for state, fault in run_subject(SUBJECTS[arguments.one], arguments.count, arguments.seed, arguments.keep):
            print(json.dumps({"state": state, "what": fault.what if fault else ""}), file=answers, flush=True)
        return 0
    found: list[Fault] = []
    code = exit_code(lambda: found.extend(_run(arguments, list(SUBJECTS))))
    return code or int(bool(found))


def _run(arguments: argparse.Namespace, known: list[str]) -> list[Fault]:
    names = arguments.only.split(",") if arguments.only else known
    unknown = [name for name in names if name not in known]
    if unknown:
        raise WnlbError(f"kind {unknown[0]!r} is not known; expected some of {', '.join(known)}")
    rows, faults = run_all(names, arguments.count, arguments.seed, arguments.keep)
    print(table(("kind", "files", "read", "refused", "faults"), rows))
    for fault in faults:
        print(f"{fault.subject} {fault.number}: {fault.what}")
    return faults


if __name__ == "__main__":
    sys.exit(main())
