"""Rows of a report, planted."""

from __future__ import annotations

from typing import Any

from wnlb.runtime.profile.measure import Samples
from wnlb.runtime.profile.report import Row

FACTS: dict[str, Any] = {
    "tool_version": "1.2.3",
    "created": "2030-01-01T00:00:00+00:00",
    "command": "wnlb profile a.onnx b.onnx --images 'dark & wet' -o report",
    "machine": {"processor": "Lamp <1>, 2 cores"},
    "plan": {},
    "frames": {"source": "dark & wet", "count": 16},
    "timeline": [],
    "over_current_events": None,
    "peaks": {"onnxruntime": {"flops_per_s": {"fp32": 1e11, "int8": 4e11}, "bytes_per_s": 2e10}},
}


def planted_row(name: str, ms: float, ap: float | None = None, **entries: Any) -> Row:
    """40 frames around ``ms``, with stages and a floor."""
    times = [ms + (i % 5) for i in range(40)]
    samples = Samples(
        [{"prepare": 1.0, "infer": time - 3, "paste": 2.0, "total": time} for time in times],
        [(float(i), i + 0.25, 4) for i in range(10)],
    )
    row = Row(name, "onnxruntime", "fp32", "standard", sha256="f" * 64, bytes=1 << 20, description="Runtime 9")
    row.take(samples, 0.0)
    row.stages = {"stem": ms / 4, "c2": ms / 4, "c2 block": ms / 2}
    row.floor = {stage: {"ms": 1.0, "flops": 1e8, "bytes": 1e6, "bound": "compute"} for stage in row.stages}
    if ap is not None:
        bins = {key: {"images": 8, "objects": 9, "box_ap": ap + 1, "mask_ap": ap} for key in ("0-0.015", "0.015-0.03")}
        row.accuracy = {"truth": "labels", "images": 16, "objects": 18, "box_ap": ap + 1, "mask_ap": ap}
        row.accuracy["by_darkness"] = bins
    for key, value in entries.items():
        setattr(row, key, value)
    return row
