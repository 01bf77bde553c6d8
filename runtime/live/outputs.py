"""The outputs of ``wnlb run``: what may be asked for, and the sinks that are made of it."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wnlb.runtime.errors import WnlbError
from wnlb.runtime.live.metrics import MetricsSink
from wnlb.runtime.live.page import LivePage
from wnlb.runtime.live.report_sink import ReportSink
from wnlb.runtime.live.sinks import CocoSink, JsonLinesSink, MotSink, PageSink, Sink, VideoSink, WindowSink
from wnlb.runtime.live.stream import Stream
from wnlb.runtime.predictor import Predictor

DEFAULT_PAGE = "127.0.0.1:8080"


def add_output_arguments(parser: argparse.ArgumentParser) -> None:
    outputs = parser.add_argument_group("outputs, any number of them")
    outputs.add_argument("--serve", metavar="HOST:PORT", help="live page; 0.0.0.0:8080 lets the whole network watch")
    outputs.add_argument("--show", action="store_true", help="a window; q ends")
    outputs.add_argument(
        "--video", type=Path, metavar="FILE.mp4", help="overlays as a video, at the speed of the source"
    )
    outputs.add_argument(
        "--jsonl", metavar="FILE", help="a line of JSON for each frame, added to the file; - for standard output"
    )
    outputs.add_argument("--coco", type=Path, metavar="FILE.json", help="COCO document, for sources with an end")
    outputs.add_argument(
        "--mot", type=Path, metavar="FILE.txt", help="tracks in MOTChallenge's format, for sources with an end"
    )
    outputs.add_argument(
        "--report",
        type=Path,
        metavar="FOLDER",
        help="what was seen when, how dark it was and how the machine kept up: FOLDER/report.html at the end; a "
        "camera's report that is there is continued",
    )
    outputs.add_argument(
        "--metrics", metavar="HOST:PORT", help="figures for Prometheus, e.g. 127.0.0.1:9090: frames, latency, darkness"
    )


def check_outputs(arguments: argparse.Namespace) -> None:
    """No output may be the source, the model or another output, nor a device."""
    model = arguments.model
    files = [model, model.with_name(model.name + ".json")] if isinstance(model, Path) else []
    taken = {path.resolve() for path in (Path(arguments.source), *files)}
    for option in ("video", "jsonl", "coco", "mot"):
        named = getattr(arguments, option)
        if not named or str(named) == "-":
            continue
        path = Path(named).resolve()
        if path in taken:
            raise WnlbError(f"--{option} {named} is the source, the model or another output; choose another file")
        if option != "jsonl" and path.exists() and not path.is_file():
            raise WnlbError(f"--{option} {named} is no file; choose another")
        taken.add(path)


class Sinks:
    """The outputs that were asked for; closed whatever happens."""

    def __init__(self, arguments: argparse.Namespace, predictor: Predictor, stream: Stream) -> None:
        self.all: list[Sink] = []
        self._arguments, self._predictor, self._stream = arguments, predictor, stream

    def __enter__(self) -> Sinks:
        with contextlib.ExitStack() as stack:
            for sink in self._made():
                self.all.append(sink)
                stack.push(lambda kind, error, trace, sink=sink: sink.close(kind is not None))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    def idle(self) -> bool:
        """While no result comes; False where the user wants to end."""
        return all(sink.idle() for sink in self.all if isinstance(sink, WindowSink))

    def _fps(self) -> float:
        """Of the file; pictures are shown for a second each."""
        feed = self._stream.feed
        return 1.0 if feed.picture_names else feed.fps

    def _made(self) -> Iterator[Sink]:
        arguments, contract = self._arguments, self._predictor.contract
        serve, show = arguments.serve, arguments.show
        files = (arguments.video, arguments.jsonl, arguments.coco, arguments.mot, arguments.report)
        if not any((serve, show, arguments.metrics, *files)):
            try:
                yield WindowSink("")
            except WnlbError:
                serve = DEFAULT_PAGE
        facts = {"source": self._stream.feed.name, "model": arguments.model.name}
        facts["backend"] = self._predictor.backend.description
        if serve:
            page = LivePage(serve, facts, contract.class_names)
            reach = "on this machine only" if page.is_loopback else "for everybody who reaches this machine"
            print(f"live page at {page.url}, {reach}", file=sys.stderr, flush=True)
            yield PageSink(page, self._stream)
        if arguments.metrics:
            metrics = MetricsSink(arguments.metrics, self._stream, contract, facts)
            print(f"metrics at {metrics.url}", file=sys.stderr, flush=True)
            yield metrics
        if show:
            yield WindowSink(f"leave it out, or use --serve {DEFAULT_PAGE}")
        if arguments.video:
            yield VideoSink(arguments.video, self._fps())
        if arguments.jsonl:
            yield JsonLinesSink(arguments.jsonl, contract)
        if arguments.coco:
            video = (self._stream.feed.name, self._fps()) if arguments.track else None
            yield CocoSink(arguments.coco, contract, video)
        if arguments.mot:
            yield MotSink(arguments.mot)
        if arguments.report:
            yield ReportSink(arguments.report, facts, contract.class_names, self._stream)
