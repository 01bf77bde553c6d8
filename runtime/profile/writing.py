"""The report, on the screen and in its folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from wnlb.runtime.errors import MissingDependency
from wnlb.runtime.files import atomic_path
from wnlb.runtime.profile.page import page
from wnlb.runtime.profile.report import Row, as_json, as_markdown, as_text


def tell(rows: list[Row], facts: dict[str, Any], folder: Path | None, as_program: bool) -> None:
    """Print the report, and write report.json, report.md and report.html into ``folder``, if there is one.

    Raises:
        WnlbError: they cannot be written.
    """
    report = json.dumps(as_json(rows, facts), indent=1) + "\n"
    texts = {"report.json": report, "report.md": as_markdown(rows, facts)}
    missing = ""
    if folder:
        try:
            texts["report.html"] = page(rows, facts)
        except MissingDependency as error:
            missing = f"; no report.html: {error}"
        for name, text in texts.items():
            with atomic_path(folder / name) as temporary:
                temporary.write_text(text)
    if as_program:
        print(report, end="")
        return
    print(as_text(rows, facts))
    if folder:
        print(f"\n{', '.join(texts)} are in {folder}/{missing}")
