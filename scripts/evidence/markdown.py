"""evidence.md: what was found, for people."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from evidence.summary import attention_rows, best_of, exact_rows, network_rows
from wnlb.runtime.table import human_bytes, markdown_table

Rows = list[dict[str, Any]]


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
        table = _TABLES[name](stage["rows"]) if stage["rows"] else ["Nothing was measured."]
        lines += ["", *table, ""]
    return "\n".join(lines) + "\n"


def _exact(rows: Rows) -> list[str]:
    header = ("kernels", "type", "right", "of", "largest error", "PyTorch's")
    return markdown_table(header, exact_rows(rows)) + _refused(rows)


def _fast(rows: Rows) -> list[str]:
    header = ("type", "input", "level", "batch", "N", "d", "ours ms", "TFLOP/s", "best other", "ms", "times faster")
    cells = []
    for row in attention_rows(rows):
        cells.append(
            (
                row["dtype"],
                row["size"],
                row["level"],
                row["batch"],
                row["n"],
                row["d"],
                _ms(row["ours_ms"]),
                row["tflops"],
                row["peer"],
                _ms(row["peer_ms"]),
                f"{row['ratio']:.2f}",
            )
        )
    return (markdown_table(header, cells) if cells else []) + _refused(rows)


def _plugin(rows: Rows) -> list[str]:
    cells = [
        (
            row["library"],
            row.get("tool") or "-",
            row.get("checks", 0),
            row.get("failed"),
            row.get("runs", 0),
            row.get("refused") or row.get("last_line", ""),
        )
        for row in rows
    ]
    return markdown_table(("library", "under", "checks", "failed", "runs", "it says"), cells)


def _network(rows: Rows) -> list[str]:
    header = ("model", "input", "detections", "variant", "p50 ms", "p99 ms", "memory", "found again", "best eager / it")
    cells = []
    for row in network_rows(rows):
        ratio = f"{row['ratio']:.2f}" if row["ratio"] else "-"
        cells.append(
            (
                row["model"],
                row["size"],
                row["detections"],
                row["variant"],
                _ms(row["p50_ms"]),
                _ms(row["p99_ms"]),
                human_bytes(row["bytes"]),
                f"{row['again']} of {row['expected']}",
                ratio,
            )
        )
    return (markdown_table(header, cells) if cells else []) + _refused(rows)


def _tiles(rows: Rows) -> list[str]:
    cells = []
    for row in rows:
        best = best_of(row.get("peers", {}), ours=True)
        if best:
            cells.append((row["size"], row["level"], row["n"], row["d"], best[0], _ms(best[1]["ms"])))
    return (markdown_table(("input", "level", "N", "d", "fastest", "ms"), cells) if cells else []) + _refused(rows)


def _any(rows: Rows) -> list[str]:
    return [f"- {', '.join(f'{k}: {v}' for k, v in row.items() if not isinstance(v, (dict, list)))}" for row in rows]


def _refused(rows: Rows) -> list[str]:
    reasons: dict[str, int] = {}
    for row in rows:
        for reason in [row.get("refused"), *(peer.get("refused") for peer in row.get("peers", {}).values())]:
            if reason:
                reasons[reason] = reasons.get(reason, 0) + 1
    return ["", *(f"- not measured, {count} times: {reason}" for reason, count in reasons.items())]


def _ms(value: float) -> str:
    return f"{value:.3f}"


_TABLES: dict[str, Callable[[Rows], list[str]]] = {
    "exact": _exact,
    "fast": _fast,
    "plugin": _plugin,
    "network": _network,
    "memory": _any,
    "engines": _any,
    "tiles": _tiles,
}
