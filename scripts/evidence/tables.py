"""The GPU tables of the READMEs, written from plugins/evidence/*.json and from nothing else.

A table stands between ``<!-- evidence: NAME -->`` and ``<!-- end of evidence -->``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from evidence.cells import attention_table, conformance_table, engines_table, exactness_table, network_table
from evidence.checkout import ROOT
from evidence.runner import FORMAT
from wnlb.runtime.errors import WnlbError
from wnlb.runtime.files import atomic_path

EVIDENCE = ROOT / "plugins" / "evidence"
PAGES = ("README.md", "plugins/README.md", "runtime/README.md")
_BLOCK = re.compile(r"(<!-- evidence: (\w+) -->\n)(.*?)(<!-- end of evidence -->)", re.DOTALL)
NOTHING = "Not measured yet: no evidence of a GPU lies in [plugins/evidence](%s)."


def read_evidence(folder: Path = EVIDENCE) -> dict[str, dict[str, Any]]:
    """Name of each file to what it holds. Raises WnlbError for one that is damaged, rehearsed or of another format."""
    found = {}
    for path in sorted(folder.glob("*.json")):
        try:
            record = json.loads(path.read_text())
            ok = record["format"] == FORMAT and record["machine"]["gpu"] is not None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise WnlbError(f"{path} is no evidence; expected an evidence.json of scripts/gpu_evidence") from error
        if not ok:
            raise WnlbError(f"{path} is of another format or of no GPU; expected format {FORMAT}: measure again")
        if record["rehearsal"]:
            raise WnlbError(f"{path} is a rehearsal, which measures nothing; expected evidence of a GPU")
        found[path.stem] = record
    return found


def written(page: str, text: str, evidence: dict[str, dict[str, Any]]) -> str:
    """The text of a page with its tables as the evidence has them. Raises WnlbError for a table that nobody knows."""

    def replaced(match: re.Match[str]) -> str:
        if match[2] not in TABLES:
            raise WnlbError(f"{page} wants the table {match[2]!r}; expected one of {', '.join(TABLES)}")
        tables = {name: TABLES[match[2]](record) for name, record in evidence.items()}
        parts = [f"{_title(name, evidence[name])}\n\n" + "\n".join(lines) for name, lines in tables.items() if lines]
        link = (
            "plugins/evidence"
            if page == "README.md"
            else "evidence"
            if page.startswith("plugins")
            else "../plugins/evidence"
        )
        return f"{match[1]}\n{(chr(10) * 2).join(parts) if parts else NOTHING % link}\n\n{match[4]}"

    return _BLOCK.sub(replaced, text)


def write_tables() -> list[str]:
    """Bring every page up to date; the names of those that changed."""
    evidence, changed = read_evidence(), []
    for page in PAGES:
        before = (ROOT / page).read_text()
        after = written(page, before, evidence)
        if after != before:
            with atomic_path(ROOT / page) as temporary:
                temporary.write_text(after)
            changed.append(page)
    return changed


def _title(name: str, record: dict[str, Any]) -> str:
    gpu, versions = record["machine"]["gpu"], record["machine"]["versions"]
    torch = f", PyTorch {versions['torch']}" if "torch" in versions else ""
    when = f"{record['created'][:10]}, commit {record['commit'][:10] or 'unknown'}"
    return f"{gpu['name']}{torch}, {when} (`plugins/evidence/{name}.json`):"


def _rows(record: dict[str, Any], stage: str) -> list[dict[str, Any]]:
    return record["stages"].get(stage, {}).get("rows", [])


def _peaks(record: dict[str, Any]) -> dict[str, float]:
    return record["stages"].get("fast", {}).get("facts", {}).get("peak_tflops", {})


TABLES: dict[str, Callable[[dict[str, Any]], list[str]]] = {
    "attention": lambda record: attention_table(_rows(record, "fast"), _peaks(record)),
    "exactness": lambda record: exactness_table(_rows(record, "exact")),
    "conformance": lambda record: conformance_table(_rows(record, "plugin")),
    "network": lambda record: network_table(_rows(record, "network")),
    "engines": lambda record: engines_table(_rows(record, "engines")),
}
