"""What the tables say of the rows of evidence: best of ours, best of the others, ratios."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

Rows = list[dict[str, Any]]


def best_of(peers: dict[str, dict[str, Any]], ours: bool) -> tuple[str, dict[str, Any]] | None:
    """The fastest of our kernels, or of the others, that was measured and right."""
    timed = {k: v for k, v in peers.items() if "ms" in v and k.startswith("ours ") == ours and _is_right(v["error"])}
    return min(timed.items(), key=lambda item: item[1]["ms"]) if timed else None


def attention_rows(rows: Rows) -> Iterator[dict[str, Any]]:
    """A row for each shape and type at which both sides were measured; FlexAttention joins the others of its shape."""
    merged: dict[tuple[Any, ...], dict[str, dict[str, Any]]] = {}
    for row in rows:
        shape = tuple(row[key] for key in ("dtype", "size", "level", "batch", "d", "n"))
        merged.setdefault(shape, {}).update(row.get("peers", {}))
    for shape, peers in merged.items():
        ours, other = best_of(peers, True), best_of(peers, False)
        if ours and other:
            named = dict(zip(("dtype", "size", "level", "batch", "d", "n"), shape, strict=True))
            yield {
                **named,
                "tile": ours[0],
                "ours_ms": ours[1]["ms"],
                "tflops": ours[1]["tflops"],
                "error": ours[1]["error"],
                "bytes": ours[1]["bytes"],
                "peer": other[0],
                "peer_ms": other[1]["ms"],
                "peer_error": other[1]["error"],
                "peer_bytes": other[1]["bytes"],
                "ratio": other[1]["ms"] / ours[1]["ms"],
            }


def exact_rows(rows: Rows) -> list[tuple[Any, ...]]:
    """Source, type, how many runs were right, of how many, the largest relative error and PyTorch's."""
    found: dict[tuple[str, str], Rows] = {}
    for row in rows:
        if "right" in row:
            found.setdefault((row["source"], row["dtype"]), []).append(row)
    return [
        (
            source,
            dtype,
            sum(row["right"] for row in group),
            len(group),
            _largest(group, "rms_error"),
            _largest(group, "pytorch_rms_error"),
        )
        for (source, dtype), group in found.items()
    ]


def network_rows(rows: Rows) -> Iterator[dict[str, Any]]:
    """Measured rows with ``ratio``: the best eager form of the same case over this one; 0 for eager forms."""
    measured = [row for row in rows if "p50_ms" in row]
    for row in measured:
        same = ("model", "size", "compiled", "detections")
        eager = [r["p50_ms"] for r in measured if all(r[k] == row[k] for k in same) and is_eager(r)]
        yield {**row, "ratio": min(eager) / row["p50_ms"] if eager and not is_eager(row) else 0.0}


def is_eager(row: dict[str, Any]) -> bool:
    return row["variant"].startswith(("eager", "compiled"))


def _is_right(error: Any) -> bool:
    """Not NaN, which stands as text, and no larger than bfloat16's rounding explains."""
    return isinstance(error, float) and error < 1e-2


def _largest(rows: Rows, key: str) -> str:
    values = [row[key] for row in rows if row["spread"] < 10]  # of logits of 1e4 it is the luck of ties
    if any(isinstance(value, str) for value in values):
        return "nan"
    return f"{max(values):.1e}" if values else "-"
