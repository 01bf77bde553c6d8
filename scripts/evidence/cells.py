"""Tables of rows of evidence, for evidence.md and for the READMEs alike; [] where nothing was measured."""

from __future__ import annotations

from typing import Any

from evidence.summary import Rows, attention_rows, exact_rows, network_rows
from wnlb.runtime.table import human_bytes, markdown_table


def attention_table(rows: Rows, peaks: dict[str, float]) -> list[str]:
    """``peaks``: TFLOP/s of matrix products by type, from the same run."""
    cells = [
        (
            row["dtype"],
            row["size"],
            row["level"],
            row["batch"],
            row["n"],
            row["d"],
            f"{row['ours_ms']:.3f}",
            f"{row['tflops']:.0f}",
            f"{row['tflops'] / peaks[row['dtype']]:.0%}" if row["dtype"] in peaks else "-",
            human_bytes(row["bytes"]),
            f"{row['peer']}, {row['peer_ms']:.3f}",
            f"**{row['ratio']:.2f}**",
        )
        for row in attention_rows(rows)
    ]
    header = (
        "type",
        "input",
        "level",
        "batch",
        "N",
        "d",
        "ms",
        "TFLOP/s",
        "of the peak",
        "memory",
        "best other, ms",
        "times faster",
    )
    return markdown_table(header, cells) if cells else []


def exactness_table(rows: Rows) -> list[str]:
    header = ("kernels", "type", "runs right", "of", "largest error", "PyTorch's")
    cells = exact_rows(rows)
    return markdown_table(header, cells) if cells else []


def conformance_table(rows: Rows) -> list[str]:
    cells = [
        (
            row["library"],
            row.get("tool") or "-",
            row.get("refused") or f"{row['checks']} checks, {row['failed']} failed",
        )
        for row in rows
    ]
    return markdown_table(("library", "under", "conformance"), cells) if cells else []


def network_table(rows: Rows) -> list[str]:
    cells = [
        (
            row["model"],
            row["size"],
            row["detections"],
            row["variant"],
            f"{row['p50_ms']:.2f}",
            f"{row['p99_ms']:.2f}",
            human_bytes(row["bytes"]),
            f"{row['again']} of {row['expected']}",
            f"**{row['ratio']:.2f}**" if row["ratio"] else "-",
        )
        for row in network_rows(rows)
    ]
    header = ("model", "input", "detections", "variant", "p50 ms", "p99 ms", "memory", "found again", "best eager / it")
    return markdown_table(header, cells) if cells else []


def engines_table(rows: Rows) -> list[str]:
    cells: list[tuple[Any, ...]] = []
    for row in rows:
        whole = row.get("parts", {}).get("total", {})
        times = [f"{whole[name]:.2f}" if name in whole else None for name in ("p50", "p99")]
        cells.append((row["name"], row.get("backend"), *times, row.get("failure") or "-"))
    return markdown_table(("file", "backend", "p50 ms", "p99 ms", "not measured because"), cells) if cells else []
