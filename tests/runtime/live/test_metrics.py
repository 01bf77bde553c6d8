"""What Prometheus is told, read back by its own parser."""

from __future__ import annotations

import json
import socket
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from wnlb.runtime.cli import main
from wnlb.runtime.contract import Contract
from wnlb.runtime.darkness import luminance
from wnlb.runtime.detections import Detections
from wnlb.runtime.errors import WnlbError
from wnlb.runtime.live import outputs
from wnlb.runtime.live.metrics import MetricsSink
from wnlb.runtime.live.stream import Result, StreamState


class Counting:
    """A stream that stands still."""

    def state(self) -> StreamState:
        return StreamState("running", 9, 3, 1, 2, 5, 2.0, {}, 4, "", 0.25)


def result(value: int, latency_ms: float, *labels: int) -> Result:
    count = len(labels)
    boxes = np.tile(np.array([[1, 2, 3, 4]], np.float32), (count, 1))
    found = Detections(8, 12, boxes, np.full(count, 0.9, np.float32), np.array(labels, np.int32), None)
    return Result(0, "camera_000000", np.full((8, 12, 3), value, np.uint8), found, 10.0, 10 + latency_ms / 1e3, {})


def told(url: str) -> dict[str, float]:
    """Samples by ``name{label values}``."""
    with urllib.request.urlopen(url, timeout=120) as answer:
        text = answer.read().decode()
    return {
        f"{sample.name}{{{','.join(sample.labels.values())}}}": sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_every_figure(make_contract: Callable[..., Contract]) -> None:
    contract = make_contract(precision="int8+fp16", calibrated_luminance=(0.01, 0.1))
    facts = {"model": "m.onnx", "backend": "CPU", "source": "camera0"}
    sink = MetricsSink("127.0.0.1:0", Counting(), contract, facts)  # type: ignore[arg-type]
    try:
        for one in (result(0, 8, 2, 2, 1), result(60, 40, 2), result(255, 4000)):
            assert sink.add(one, None)
        found = told(sink.url)
    finally:
        sink.close(False)
    assert {name: found[f"wnlb_{name}{{}}"] for name in ("up", "silent_seconds", "reconnects_total")} == {
        "up": 1,
        "silent_seconds": 0.25,
        "reconnects_total": 4,
    }
    counts = {
        name: found[f"wnlb_frames_{name}_total{{}}"] for name in ("captured", "dropped", "odd", "unserved", "done")
    }
    assert counts == {"captured": 9, "dropped": 3, "odd": 1, "unserved": 2, "done": 5}
    assert (found["wnlb_detections_total{lamp}"], found["wnlb_detections_total{dark cat}"]) == (1, 3)
    assert found["wnlb_latency_seconds_sum{}"] == pytest.approx(4.048)
    buckets = [
        found[f"wnlb_latency_seconds_bucket{{{bound}}}"] for bound in ("0.005", "0.01", "0.05", "2.0", "5.0", "+Inf")
    ]
    assert buckets == [0, 1, 2, 2, 3, 3]
    assert [found[f"wnlb_frame_luminance_bucket{{{bound}}}"] for bound in ("0.015", "0.06", "0.12", "1.0")] == [
        1,
        2,
        2,
        3,
    ]
    assert found["wnlb_frame_luminance_sum{}"] == pytest.approx(1 + luminance(np.full((1, 1, 3), 60, np.uint8)))
    assert found["wnlb_frames_beyond_calibration_total{}"] == 2
    assert (found["wnlb_calibrated_luminance{lowest}"], found["wnlb_calibrated_luminance{highest}"]) == (0.01, 0.1)
    (info,) = (name for name in found if name.startswith("wnlb_info{"))
    assert set(facts.values()) < set(info[10:-1].split(","))
    with pytest.raises(urllib.error.URLError):  # closed
        told(sink.url)


def test_a_model_without_calibration_has_no_such_figures(make_contract: Callable[..., Contract]) -> None:
    sink = MetricsSink("127.0.0.1:0", Counting(), make_contract(), {})  # type: ignore[arg-type]
    try:
        assert not [name for name in told(sink.url) if "calibrat" in name]
        taken = sink.url.split("/")[2]
        with pytest.raises(WnlbError, match="choose another --metrics HOST:PORT"):
            MetricsSink(taken, Counting(), make_contract(), {})  # type: ignore[arg-type]
    finally:
        sink.close(False)
    with pytest.raises(WnlbError, match="expected HOST:PORT"):
        MetricsSink("9090", Counting(), make_contract(), {})  # type: ignore[arg-type]


def test_a_run_tells_prometheus_and_systemd_of_every_frame(
    planted_model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    writer = cv2.VideoWriter(str(tmp_path / "drive.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 10, (48, 32))
    for number in range(5):
        writer.write(np.full((32, 48, 3), 50 * number, np.uint8))
    writer.release()
    close, found = MetricsSink.close, {}

    def look_first(self: MetricsSink, failed: bool) -> None:
        found.update(told(self.url))
        close(self, failed)

    monkeypatch.setattr(outputs.MetricsSink, "close", look_first)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(120)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        monkeypatch.setenv("WATCHDOG_USEC", "4")  # a sign of life with every frame
        monkeypatch.delenv("WATCHDOG_PID", raising=False)
        words = ["--every-frame", "--metrics", "127.0.0.1:0", "--score-threshold", "0.3", "--quiet"]
        assert main(["run", str(planted_model_path), str(tmp_path / "drive.avi"), *words, "--jsonl", "-"]) == 0
        heard = [systemd.recv(100).decode() for _ in range(6)]
    assert heard == ["READY=1", *["WATCHDOG=1"] * 4, "STOPPING=1"]
    printed = capsys.readouterr()
    assert printed.err.startswith("metrics at http://127.0.0.1:")
    lines: list[dict[str, Any]] = [json.loads(line) for line in printed.out.splitlines()]
    for name in ("lamp", "dark cat"):
        count = sum(one["class"] == name for line in lines for one in line["detections"])
        assert found[f"wnlb_detections_total{{{name}}}"] == count > 0
    assert found["wnlb_frames_captured_total{}"] == found["wnlb_latency_seconds_count{}"] == 5
    assert found["wnlb_latency_seconds_sum{}"] == pytest.approx(
        sum(line["latency_ms"] for line in lines) / 1e3, abs=1e-4
    )
