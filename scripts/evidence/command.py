"""The command line of `scripts/gpu_evidence`."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

from evidence.checkout import ROOT, commit, mount

_CARRIED = ROOT / "out" / "gpu_pack"
_DESCRIPTION = """\
Measure on this GPU what the project promises on one: is the attention kernel right, how fast is it against PyTorch's
backends, does the plugin conform, how fast is the whole network against eager torchvision, does memory leak, what do
ONNX Runtime and TensorRT reach. Needs no network, installs nothing, changes no setting of the card.

  scripts/gpu_evidence -o out/evidence                 eight minutes; what is missing here is a row with the reason
  scripts/gpu_evidence --only exact,fast --minutes 3 -o out/evidence
  scripts/gpu_evidence --rehearse -o out/rehearsal     every step on the CPU, on tiny sizes: measures nothing
  scripts/gpu_evidence --pack out/gpu_pack             on a machine with a network: what to carry to one without

Where files are carried without their repository, or it stands elsewhere, WNLB_COMMIT=$(git rev-parse HEAD) names the
commit.
evidence.json and evidence.md are written anew after every stage, so a run that is cut off keeps what it has. To have
the figures in the READMEs, put evidence.json into plugins/evidence under the GPU's name, and run
scripts/gpu_evidence --tables.
"""


def main(words: list[str] | None = None) -> int:
    with tempfile.TemporaryDirectory() as folder:
        sys.path.insert(0, str(mount(Path(folder))))  # this checkout, whatever is installed
        from wnlb.runtime.errors import exit_code

        arguments = _parser().parse_args(words)
        return exit_code(lambda: _run(arguments))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scripts/gpu_evidence", description=_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = parser.add_argument_group("what to do").add_mutually_exclusive_group(required=True)
    what.add_argument("-o", "--output", type=Path, metavar="DIR", help="measure, and write evidence.json and .md there")
    what.add_argument("--pack", type=Path, metavar="DIR", help="make what has to be carried to a GPU machine")
    what.add_argument("--tables", action="store_true", help="write the READMEs' tables from plugins/evidence/*.json")
    measuring = parser.add_argument_group("measuring")
    measuring.add_argument("--minutes", type=float, default=8, help="for all stages together (default: %(default)s)")
    measuring.add_argument(
        "--only", default="", metavar="STAGE,...", help="exact, fast, plugin, network, memory, engines, tiles"
    )
    measuring.add_argument("--rehearse", action="store_true", help="on the CPU, on tiny sizes")
    measuring.add_argument(
        "--carried",
        type=Path,
        default=_CARRIED,
        metavar="DIR",
        help="what --pack made (default: out/gpu_pack)",
    )
    packing = parser.add_argument_group("packing")
    packing.add_argument(
        "--arch", default="90", metavar="A,...", help="compute capabilities (default: %(default)s, H100 and H200)"
    )
    packing.add_argument(
        "--tensorrt-root",
        default=os.environ.get("TensorRT_ROOT", ""),  # noqa: SIM112 - CMake calls it so
        metavar="DIR",
        help="TensorRT's headers, for the plugin's conformance program (default: $TensorRT_ROOT)",
    )
    packing.add_argument(
        "--python", default="3.12", metavar="X.Y", help="of the other machine, for wheels (default: %(default)s)"
    )
    packing.add_argument(
        "--wheels", default="pycocotools", metavar="NAME,...", help="packages it lacks (default: %(default)s)"
    )
    return parser


def _run(arguments: argparse.Namespace) -> None:
    _check(arguments)
    if arguments.tables:
        from evidence.tables import write_tables

        changed = write_tables()
        print(f"changed: {', '.join(changed)}" if changed else "all tables are as the evidence has them")
    elif arguments.pack:
        _pack(arguments)
    else:
        _measure(arguments)


def _check(arguments: argparse.Namespace) -> None:
    """Raise WnlbError for options that would not do what they say."""
    from wnlb.runtime.errors import WnlbError

    if not arguments.output and (arguments.rehearse or arguments.only):
        raise WnlbError("--rehearse and --only are for measuring; expected -o DIR with them")
    if not re.fullmatch(r"3\.\d+", arguments.python):
        raise WnlbError(f"--python {arguments.python} is no version; expected such as 3.12")
    if arguments.carried != _CARRIED and not arguments.carried.is_dir():
        what = "is no folder" if arguments.carried.exists() else "does not exist"
        raise WnlbError(f"--carried {arguments.carried} {what}; expected what 'scripts/gpu_evidence --pack DIR' made")


def _pack(arguments: argparse.Namespace) -> None:
    from evidence.pack import pack
    from wnlb.runtime.errors import WnlbError

    try:
        archs = [int(text) for text in arguments.arch.split(",")]
    except ValueError as error:
        raise WnlbError(
            f"--arch {arguments.arch} is no list of compute capabilities; expected such as 87,90"
        ) from error
    wheels = [name for name in arguments.wheels.split(",") if name]
    pack(arguments.pack, archs, arguments.tensorrt_root, arguments.python, wheels)


def _measure(arguments: argparse.Namespace) -> None:
    from evidence.machine import describe
    from evidence.runner import STAGES, measure
    from wnlb.runtime.errors import WnlbError
    from wnlb.runtime.files import make_folder

    names = [stage.name for stage in STAGES]
    chosen = arguments.only.split(",") if arguments.only else names
    unknown = [name for name in chosen if name not in names]
    if unknown:
        raise WnlbError(f"stage {unknown[0]!r} is not known; expected some of {', '.join(names)}")
    if not 0 < arguments.minutes <= 24 * 60:
        raise WnlbError(f"{arguments.minutes} minutes; expected more than 0, up to a day")
    make_folder(arguments.output)
    carried = arguments.carried.resolve()
    packed = _packed(carried)
    head = {
        "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "commit": os.environ.get("WNLB_COMMIT", "") or commit() or packed.get("commit", ""),
        "rehearsal": arguments.rehearse,
        "machine": describe(),
        "packed": packed,
    }
    if head["machine"]["gpu"] is None and not arguments.rehearse:
        raise WnlbError("there is no NVIDIA GPU that the driver lets us use; --rehearse runs every step without one")
    stages = [stage for stage in STAGES if stage.name in chosen]
    measure(stages, head, arguments.output.resolve(), 60 * arguments.minutes, carried)
    print(f"wrote {arguments.output / 'evidence.json'} and evidence.md")


def _packed(carried: Path) -> dict[str, Any]:
    try:
        found = json.loads((carried / "pack.json").read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
