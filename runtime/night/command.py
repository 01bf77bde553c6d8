"""``wnlb report``: the page of a night that was recorded."""

from __future__ import annotations

import argparse
from pathlib import Path

from wnlb.runtime.errors import WnlbError
from wnlb.runtime.files import atomic_path
from wnlb.runtime.night.page import PAGE, page
from wnlb.runtime.night.record import FILE, Record

_DESCRIPTION = """\
Write the page of what 'wnlb run --report FOLDER' recorded: for a night that ended in a power cut (the record is on the
disk each minute), or a camera's machine without matplotlib: copy the folder, and run this elsewhere.

  wnlb report night/
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = _DESCRIPTION
    parser.add_argument("folder", type=Path, help="that was given to --report")


def run(arguments: argparse.Namespace) -> int:
    if not (arguments.folder / FILE).is_file():
        raise WnlbError(f"{arguments.folder} holds no {FILE}; expected the folder of 'wnlb run --report FOLDER'")
    text = page(Record.read(arguments.folder))
    with atomic_path(arguments.folder / PAGE) as temporary:
        temporary.write_text(text)
    print(f"wrote {arguments.folder / PAGE}")
    return 0
