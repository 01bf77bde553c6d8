"""evidence.md: what was found, for people."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from evidence.cells import attention_table, conformance_table, engines_table, exactness_table, network_table
from evidence.summary import Rows, best_of
from wnlb.runtime.table import human_bytes, markdown_table


def page_of(record: dict[str, Any]) -> str:
    machine = record["machine"]
    gpu = machine["gpu"]
    lines = [f"# What {gpu['name'] if gpu else 'no GPU'} shows", ""]
    if record["rehearsal"]:
        lines += ["**A rehearsal on the CPU: no figure here is a measurement of anything.**", ""]
    if gpu:
        lines.append(
            f"- {gpu['name']}, SM {gpu['compute_capability']}, {human_bytes(gpu['memory_bytes'])}, driver "
            f"{gpu['driver'] or 'unknown'} for CUDA {gpu['cuda']}"
        )
        lines += [f"- {name}: {value:g}" for name, value in gpu.items() if isinstance(value, float)]
    lines += [f"- {machine['processor']}, Python {machine['python']}"]
    lines += ["- " + ", ".join(f"{name} {version}" for name, version in machine["versions"].items())]
    lines += [f"- commit {record['commit'] or 'unknown'}, {record['created']}", ""]
    states = [
        (s["title"], s["state"], s["seconds"], s["limit_seconds"], s["reason"]) for s in record["stages"].values()
    ]
    lines += [*markdown_table(("stage", "state", "s", "of at most", "reason"), states), ""]
    for name, stage in record["stages"].items():
        lines += [f"## {stage['title']}", ""]
        facts = {key: value for key, value in stage["facts"].items() if not isinstance(value, (dict, list))}
        lines += [f"- {key}: {value}" for key, value in facts.items()]
        table = _TABLES[name](stage["rows"], stage["facts"]) + _refused(stage["rows"])
        lines += ["", *(table or ["Nothing was measured."]), ""]
    return "\n".join(lines) + "\n"


def _tiles(rows: Rows) -> list[str]:
    cells = []
    for row in rows:
        best = best_of(row.get("peers", {}), ours=True)
        if best:
            cells.append((row["size"], row["level"], row["n"], row["d"], best[0], f"{best[1]['ms']:.3f}"))
    return markdown_table(("input", "level", "N", "d", "fastest", "ms"), cells) if cells else []


def _any(rows: Rows) -> list[str]:
    return [f"- {', '.join(f'{k}: {v}' for k, v in row.items() if not isinstance(v, (dict, list)))}" for row in rows]


def _refused(rows: Rows) -> list[str]:
    reasons: dict[str, int] = {}
    for row in rows:
        for reason in [row.get("refused"), *(peer.get("refused") for peer in row.get("peers", {}).values())]:
            if reason:
                reasons[reason] = reasons.get(reason, 0) + 1
    return ["", *(f"- not measured, {count} times: {reason}" for reason, count in reasons.items())] if reasons else []


_TABLES: dict[str, Callable[[Rows, dict[str, Any]], list[str]]] = {
    "exact": lambda rows, facts: exactness_table(rows),
    "fast": lambda rows, facts: attention_table(rows, facts.get("peak_tflops", {})),
    "plugin": lambda rows, facts: conformance_table(rows),
    "network": lambda rows, facts: network_table(rows),
    "memory": lambda rows, facts: _any(rows),
    "engines": lambda rows, facts: engines_table(rows),
    "tiles": lambda rows, facts: _tiles(rows),
}
