"""Figures of a stream for Prometheus."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import metadata
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wnlb.runtime.contract import Contract
from wnlb.runtime.darkness import BIN_EDGES, luminance
from wnlb.runtime.errors import WnlbError
from wnlb.runtime.live.night_watch import is_beyond
from wnlb.runtime.live.page import host_and_port
from wnlb.runtime.live.stream import Result, Stream, StreamState

_SECONDS = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1, 2, 5)
# Of the counts of a stream, which Prometheus is told when it asks.
_COUNTS = {
    "captured": "frames that the source gave",
    "dropped": "frames that were dropped for newer ones",
    "odd": "frames that were no pictures",
    "unserved": "frames for which the model's server did not answer",
    "done": "frames that results were taken of",
    "reconnects": "times that a lost source came back",
}


class MetricsSink:
    """Serves ``/metrics``, in Prometheus' text format.

    Args:
        address: ``HOST:PORT``; port 0 takes a free one.
        facts: of the run, as labels of ``wnlb_info``.

    Raises:
        ModuleNotFoundError: prometheus_client is not installed.
        WnlbError: the address is none, or is in use.
    """

    wants_overlay = False

    def __init__(self, address: str, stream: Stream, contract: Contract, facts: dict[str, str]) -> None:
        import prometheus_client as client

        host, port = host_and_port(address)
        registry = client.CollectorRegistry()
        registry.register(_StreamCollector(stream))
        client.Info("wnlb", "what runs", registry=registry).info({**facts, "version": metadata.version("wnlb-deploy")})
        self._names, self._calibrated = contract.class_names, contract.calibrated_luminance
        self._latency = client.Histogram(
            "wnlb_latency_seconds", "from the frame in memory to its masks", buckets=_SECONDS, registry=registry
        )
        self._found = client.Counter("wnlb_detections", "detections by class", ["class_name"], registry=registry)
        for name in self._names:
            self._found.labels(name)
        self._luminance = client.Histogram(
            "wnlb_frame_luminance", "mean linear luminance, 0 to 1", buckets=BIN_EDGES[1:], registry=registry
        )
        self._beyond = None
        if self._calibrated:
            self._beyond = client.Counter(
                "wnlb_frames_beyond_calibration",
                "frames darker or brighter than INT8 was calibrated on",
                registry=registry,
            )
            bounds = client.Gauge(
                "wnlb_calibrated_luminance", "that INT8 was calibrated on", ["bound"], registry=registry
            )
            for bound, value in zip(("lowest", "highest"), self._calibrated, strict=True):
                bounds.labels(bound).set(value)
        try:
            self._server, self._thread = client.start_http_server(port, host, registry)
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or error
            raise WnlbError(
                f"metrics at {address} cannot be served: {reason}; choose another --metrics HOST:PORT"
            ) from error
        self.url = f"http://{host}:{self._server.server_port}/metrics"

    def add(self, result: Result, overlay: NDArray[np.uint8] | None) -> bool:
        self._latency.observe(result.latency_ms / 1e3)
        for label in result.detections.labels.tolist():
            self._found.labels(self._names[label - 1]).inc()
        value = luminance(result.pixels)
        self._luminance.observe(value)
        if self._calibrated and self._beyond and is_beyond(value, self._calibrated):
            self._beyond.inc()
        return True

    def close(self, failed: bool) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _StreamCollector:
    """The stream's own counts, taken when they are asked for: they grow also while no result comes."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream

    def collect(self) -> Iterator[Any]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        state: StreamState = self._stream.state()
        for name, told in _COUNTS.items():
            what = name if name == "reconnects" else f"frames_{name}"
            yield CounterMetricFamily(f"wnlb_{what}", told, value=getattr(state, name))
        yield GaugeMetricFamily("wnlb_up", "1 while the source gives frames", value=state.state == "running")
        yield GaugeMetricFamily("wnlb_silent_seconds", "since the newest frame", value=state.silent_s)
