"""``wnlb run``: a camera, stream or video in real time."""

from __future__ import annotations

import argparse
import contextlib
import re
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from wnlb.runtime.errors import WnlbError
from wnlb.runtime.feed import CameraMode, Feed, open_feed
from wnlb.runtime.live_page import LivePage
from wnlb.runtime.onnxruntime_backend import DEVICES
from wnlb.runtime.overlay import draw
from wnlb.runtime.predictor import Predictor
from wnlb.runtime.sinks import CocoSink, JsonLinesSink, PageSink, Sink, VideoSink, WindowSink
from wnlb.runtime.stream import Result, Stream, StreamState
from wnlb.runtime.table import table
from wnlb.runtime.window import has_display

DEFAULT_PAGE = "127.0.0.1:8080"
_DESCRIPTION = """\
Detect in real time. Capture, inference and output overlap; a frame is dropped when a newer one is there, so that what
you see is now. A camera that is unplugged, or a stream that breaks, is opened again until it is back.

  wnlb run model.engine 0 --serve 127.0.0.1:8080     # live page; camera 0
  wnlb run model.engine csi://0 --show               # a Jetson's camera connector, in a window
  wnlb run model.engine rtsp://camera/night --jsonl detections.jsonl --video night.mp4
  wnlb run model.onnx drive.mp4 --every-frame --video out.mp4

Without an output the overlays are shown: in a window, or without a display on a page at 127.0.0.1:8080.
Ctrl-C (or SIGTERM) ends it and closes all files. Latency is from the frame in memory to its masks.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = _DESCRIPTION
    parser.add_argument("model", type=Path, help="an .engine of 'wnlb build' or an .onnx of 'wnlb export'")
    parser.add_argument(
        "source", help="camera index, /dev/video0, csi://0, rtsp://..., video file, picture, folder, or glob (quoted)"
    )
    outputs = parser.add_argument_group("outputs, any number of them")
    outputs.add_argument("--serve", metavar="HOST:PORT", help="live page; 0.0.0.0:8080 lets the whole network watch")
    outputs.add_argument("--show", action="store_true", help="a window; q ends")
    outputs.add_argument("--video", type=Path, metavar="FILE.mp4", help="overlays as a video")
    outputs.add_argument("--jsonl", metavar="FILE", help="a line of JSON for each frame; - for standard output")
    outputs.add_argument("--coco", type=Path, metavar="FILE.json", help="COCO document, for sources with an end")
    parser.add_argument("--every-frame", action="store_true", help="drop no frame; for files")
    parser.add_argument(
        "--score-threshold", type=float, default=0.5, metavar="S", help="leave out detections below S (default: 0.5)"
    )
    parser.add_argument("--camera", metavar="WxH[@FPS]", help="what to ask the camera for, e.g. 1280x720@30")
    parser.add_argument("--device", choices=DEVICES, default="auto", help="for .onnx: default CUDA where it works")
    parser.add_argument("--threads", type=int, default=0, metavar="N", help="for .onnx: CPU threads (default: all)")
    parser.add_argument(
        "--trust", type=Path, metavar="ONNX", help="open an engine without manifest, built from this ONNX file of ours"
    )
    parser.add_argument("--quiet", action="store_true", help="no status line, no summary")


def run(arguments: argparse.Namespace) -> int:
    if arguments.threads < 0:
        raise WnlbError(f"threads is {arguments.threads}; expected 0 (one per core) or more")
    feed = open_feed(arguments.source, _camera_mode(arguments.camera))
    if feed.live and (arguments.every_frame or arguments.coco):
        option, instead = ("--coco", "use --jsonl") if arguments.coco else ("--every-frame", "leave it out")
        raise WnlbError(f"{option} is for sources with an end, {arguments.source} has none; {instead}")
    options = {"score_threshold": arguments.score_threshold, "device": arguments.device, "threads": arguments.threads}
    with (
        Predictor(arguments.model, trust=arguments.trust, **options) as predictor,
        Stream(predictor, feed, every_frame=arguments.every_frame) as stream,
        _ended_by_signals(stream),
        _Sinks(arguments, predictor, stream) as sinks,
        _Status(arguments.quiet, feed, stream) as status,
    ):
        for result in stream:
            wanted = any(sink.wants_overlay for sink in sinks.all)
            names = predictor.contract.class_names
            overlay = draw(result.pixels, result.detections, names) if wanted else None
            goes_on = [sink.add(result, overlay) for sink in sinks.all]
            status.tell(result)
            if not all(goes_on):
                break
        state = stream.state()
    if not arguments.quiet:
        out = sys.stderr if arguments.jsonl == "-" else sys.stdout
        print(summary(state, predictor.backend.description), file=out)
    return 0


def summary(state: StreamState, backend: str) -> str:
    """Counts and latency of a stream that ended."""
    words = [f"{state.done} frame{'s' * (state.done != 1)}", f"{state.dropped} dropped for newer ones"]
    if state.odd:
        words.append(f"{state.odd} were no pictures")
    if state.reconnects:
        words.append(f"reconnected {state.reconnects} time{'s' * (state.reconnects != 1)}")
    latency = [(name, f"{ms:.1f}") for name, ms in state.latency_ms.items()]
    return "\n".join([", ".join(words), backend, "", table(("frame to masks", "ms"), latency)])


class _Sinks:
    """The outputs that were asked for; closed whatever happens."""

    def __init__(self, arguments: argparse.Namespace, predictor: Predictor, stream: Stream) -> None:
        self.all: list[Sink] = []
        self._arguments, self._predictor, self._stream = arguments, predictor, stream

    def __enter__(self) -> _Sinks:
        with contextlib.ExitStack() as stack:
            for sink in self._made():
                self.all.append(sink)
                stack.callback(sink.close)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def _made(self) -> Iterator[Sink]:
        arguments, contract = self._arguments, self._predictor.contract
        serve, show = arguments.serve, arguments.show
        if not (serve or show or arguments.video or arguments.jsonl or arguments.coco):
            serve, show = (None, True) if has_display() else (DEFAULT_PAGE, False)
        if serve:
            facts = {"model": arguments.model.name, "backend": self._predictor.backend.description}
            page = LivePage(serve, {**facts, "source": self._stream.feed.name}, contract.class_names)
            reach = "on this machine only" if page.is_loopback else "for everybody who reaches this machine"
            print(f"live page at {page.url}, {reach}", file=sys.stderr, flush=True)
            yield PageSink(page, self._stream)
        if show:
            yield WindowSink(f"leave it out, or use --serve {DEFAULT_PAGE}")
        if arguments.video:
            yield VideoSink(arguments.video, self._stream.feed.fps or 25.0)
        if arguments.jsonl:
            yield JsonLinesSink(arguments.jsonl, contract)
        if arguments.coco:
            yield CocoSink(arguments.coco, contract)


class _Status:
    """A line on the terminal; lost and found cameras are told on any standard error."""

    def __init__(self, quiet: bool, feed: Feed, stream: Stream) -> None:
        self._stream = stream
        hidden = quiet or None  # None: where stderr is no terminal
        self._bar = tqdm(total=feed.frames or None, bar_format="{desc}", disable=hidden, file=sys.stderr, leave=False)
        self._next = 0.0
        stream.on_change = self._changed

    def __enter__(self) -> _Status:
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.close()

    def tell(self, result: Result) -> None:
        now = time.monotonic()
        if now < self._next or self._bar.disable:
            return
        self._next = now + 0.5
        state = self._stream.state()
        latency = " / ".join(f"{ms:.0f}" for ms in state.latency_ms.values())
        self._bar.set_description_str(
            f"{result.name}  {state.fps:.1f} fps  {latency} ms (p50 / p95 / p99)  "
            f"{state.dropped} dropped  {len(result.detections)} found"
        )

    def _changed(self, message: str) -> None:
        tqdm.write(f"wnlb run: {message}", file=sys.stderr)


@contextlib.contextmanager
def _ended_by_signals(stream: Stream) -> Iterator[None]:
    """Ctrl-C, or SIGTERM as systemd sends it, ends after the frame that is being written; a second one at once."""

    def stop(*_: object) -> None:
        if stream.stopped:
            raise KeyboardInterrupt
        stream.stop()

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _camera_mode(text: str | None) -> CameraMode:
    if text is None:
        return CameraMode()
    found = re.fullmatch(r"(\d+)x(\d+)(?:@(\d+))?", text)
    if not found:
        raise WnlbError(f"--camera is {text!r}; expected WIDTHxHEIGHT or WIDTHxHEIGHT@FPS, e.g. 1280x720@30")
    return CameraMode(int(found[1]), int(found[2]), int(found[3] or 0))
