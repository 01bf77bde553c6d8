"""``wnlb run``: a camera, stream or video in real time."""

from __future__ import annotations

import argparse
import contextlib
import re
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from wnlb.runtime.errors import WnlbError
from wnlb.runtime.fill_hint import FillHint
from wnlb.runtime.live.feed import CameraMode, Feed, open_feed
from wnlb.runtime.live.metrics import MetricsSink
from wnlb.runtime.live.night_watch import NightWatch
from wnlb.runtime.live.page import LivePage
from wnlb.runtime.live.report_sink import ReportSink
from wnlb.runtime.live.sinks import CocoSink, JsonLinesSink, MotSink, PageSink, Sink, VideoSink, WindowSink
from wnlb.runtime.live.stream import Result, Stream, StreamState
from wnlb.runtime.live.watchdog import Watchdog
from wnlb.runtime.onnxruntime_backend import DEVICES
from wnlb.runtime.overlay import draw
from wnlb.runtime.predictor import Predictor
from wnlb.runtime.served_model import model_of
from wnlb.runtime.source import PICTURES_FPS
from wnlb.runtime.table import table
from wnlb.runtime.tracking.arguments import (
    add_tracking_arguments,
    check_tracking_arguments,
    make_tracks,
    predicted_score,
)
from wnlb.runtime.tracking.tracks import Tracks

DEFAULT_PAGE = "127.0.0.1:8080"
_DESCRIPTION = """\
Detect in real time. Capture, inference and output overlap; a frame is dropped when a newer one is there, so that what
you see is now. A camera that is unplugged, or a stream that breaks, is opened again until it is back; so is a server
of the model that does not answer.

  wnlb run model.engine 0 --serve 127.0.0.1:8080     # live page; camera 0
  wnlb run model.engine csi://0 --show               # a Jetson's camera connector, in a window
  wnlb run model.engine rtsp://camera/night --jsonl detections.jsonl --video night.mp4
  wnlb run model.onnx drive.mp4 --every-frame --video out.mp4
  wnlb run triton://server:8001/model rtsp://camera/night --jsonl detections.jsonl    # of 'wnlb triton'
  wnlb run model.engine 0 --serve 127.0.0.1:8080 --track --zone 'gate=0,200 640,200'
  wnlb run model.engine 0 --report night/            # in the morning: night/report.html

Without an output the overlays are shown: in a window, or without a display on a page at 127.0.0.1:8080.
Ctrl-C (or SIGTERM, SIGHUP) ends it and closes all files. Latency is from the frame in memory to its masks.
Exit code 3: pictures of a folder could not be read.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = _DESCRIPTION
    parser.add_argument(
        "model",
        type=model_of,
        help="an .engine of 'wnlb build', an .onnx of 'export', or triton://HOST:8001/MODEL of 'triton'",
    )
    parser.add_argument(
        "source", help="camera index, /dev/video0, csi://0, rtsp://..., video file, picture, folder, or glob (quoted)"
    )
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
    parser.add_argument("--every-frame", action="store_true", help="drop no frame; for files")
    parser.add_argument(
        "--score-threshold", type=float, default=0.5, metavar="S", help="leave out detections below S (default: 0.5)"
    )
    parser.add_argument("--camera", metavar="WxH[@FPS]", help="what to ask the camera for, e.g. 1280x720@30")
    parser.add_argument(
        "--bits",
        type=int,
        default=0,
        metavar="N",
        help="that values of 16-bit pictures and frames have, e.g. 12 (default: found out)",
    )
    parser.add_argument("--device", choices=DEVICES, default="auto", help="for .onnx: default CUDA where it works")
    parser.add_argument("--threads", type=int, default=0, metavar="N", help="for .onnx: CPU threads (default: all)")
    parser.add_argument(
        "--trust", type=Path, metavar="ONNX", help="open an engine without manifest, built from this ONNX file of ours"
    )
    parser.add_argument("--quiet", action="store_true", help="no status line, no summary")
    add_tracking_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    zones = check_tracking_arguments(arguments)
    if arguments.mot and not arguments.track:
        raise WnlbError("--mot writes tracks; add --track")
    bits = [arguments.bits] if arguments.bits else []
    feed = open_feed(arguments.source, _camera_mode(arguments.camera), *bits)
    ends = {"--coco": arguments.coco, "--mot": arguments.mot, "--every-frame": arguments.every_frame}
    if feed.live and any(ends.values()):
        option = next(name for name, asked in ends.items() if asked)
        instead = "leave it out" if option == "--every-frame" else "use --jsonl"
        raise WnlbError(f"{option} is for sources with an end, {feed.name} has none; {instead}")
    _check_outputs(arguments)
    score = predicted_score(arguments)
    options = {"score_threshold": score, "device": arguments.device, "threads": arguments.threads}
    status = _Status(arguments.quiet, feed)
    with (
        Predictor(arguments.model, trust=arguments.trust, **options) as predictor,
        Stream(predictor, feed, every_frame=arguments.every_frame, on_change=status.changed) as stream,
        _ended_by_signals(stream),
        _Sinks(arguments, predictor, stream) as sinks,
        status,
        Watchdog() as watchdog,
    ):
        tracks = make_tracks(arguments, zones, predictor.contract.class_names, feed.fps)
        _work(stream, sinks, status, predictor, tracks, watchdog)
        state = stream.state()
    if not arguments.quiet:
        out = sys.stderr if arguments.jsonl == "-" else sys.stdout
        print(summary(state, predictor.backend.description), file=out)
        if tracks:
            print(f"\n{tracks.summary()}", file=out)
    if feed.fps and state.captured < feed.frames and state.state == "ended":
        told = f"{feed.name} ended after {state.captured} of the {feed.frames} frames that its file states"
        print(f"wnlb run: {told}", file=sys.stderr)
    return 3 if feed.picture_names and state.odd else 0


def _work(
    stream: Stream, sinks: _Sinks, status: _Status, predictor: Predictor, tracks: Tracks | None, watchdog: Watchdog
) -> None:
    """Give every result to every sink, until the source or the user ends."""
    fill_hint, night_watch = FillHint(predictor.geometry), NightWatch(predictor.contract.calibrated_luminance)
    for result in stream.results(idle_s=0.5):
        if result is None:
            status.tell(stream)
            if not sinks.idle():
                return
            continue
        if hint := fill_hint.about(*result.pixels.shape[:2]):
            status.changed(hint)
        if warning := night_watch.about(result.pixels, result.captured_at):
            status.changed(warning)
        result = _tracked(result, stream.feed, tracks) if tracks else result
        wanted = any(sink.wants_overlay for sink in sinks.all)
        overlay = draw(result.pixels, result.detections, predictor.contract.class_names) if wanted else None
        if tracks and overlay is not None:
            tracks.draw(overlay, result.detections)
        goes_on = [sink.add(result, overlay) for sink in sinks.all]
        status.tell(stream, result)
        watchdog.frame(time.monotonic())
        if not all(goes_on):
            return


def _tracked(result: Result, feed: Feed, tracks: Tracks) -> Result:
    """The result with identities. A file's frames have the times of its rate, a camera's those of their capture."""
    fps = PICTURES_FPS if feed.picture_names else feed.fps
    found = tracks.update(result.detections, result.number / fps if fps else result.captured_at)
    return replace(result, detections=found, counts=tracks.counts())


def _check_outputs(arguments: argparse.Namespace) -> None:
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


def summary(state: StreamState, backend: str) -> str:
    """Counts and latency of a stream that ended."""
    words = [f"{state.done} frame{'s' * (state.done != 1)}", f"{state.dropped} dropped for newer ones"]
    if state.odd:
        words.append(f"{state.odd} were no pictures")
    if state.unserved:
        words.append(f"{state.unserved} without an answer of the model's server")
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


class _Status:
    """A line on the terminal; lost and found cameras are told on any standard error."""

    def __init__(self, quiet: bool, feed: Feed) -> None:
        hidden = quiet or None  # None: where stderr is no terminal
        self._name = feed.name
        self._bar = tqdm(total=feed.frames or None, bar_format="{desc}", disable=hidden, file=sys.stderr, leave=False)
        self._next = 0.0

    def __enter__(self) -> _Status:
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.close()

    def tell(self, stream: Stream, result: Result | None = None) -> None:
        now = time.monotonic()
        if now < self._next or self._bar.disable:
            return
        self._next = now + 0.5
        state = stream.state()
        if state.state == "reconnecting":
            self._bar.set_description_str(f"{self._name} is lost for {state.silent_s:.0f} s: {state.last_error}")
            return
        if state.state == "unserved":
            self._bar.set_description_str(state.last_error)
            return
        latency = " / ".join(f"{ms:.0f}" for ms in state.latency_ms.values())
        found = f"  {len(result.detections)} found" if result else ""
        self._bar.set_description_str(
            f"{result.name if result else self._name}  {state.fps:.1f} fps  {latency} ms (p50 / p95 / p99)  "
            f"{state.dropped} dropped{found}"
        )

    def changed(self, message: str) -> None:
        tqdm.write(f"wnlb run: {message}", file=sys.stderr)


@contextlib.contextmanager
def _ended_by_signals(stream: Stream) -> Iterator[None]:
    """Ctrl-C, SIGTERM of systemd and SIGHUP of a lost terminal end after the frame that is being written.

    A second one ends at once.
    """

    def stop(*_: object) -> None:
        if stream.stopped:
            raise KeyboardInterrupt
        stream.stop()

    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as nohup sets it
        numbers.append(signal.SIGHUP)
    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _camera_mode(text: str | None) -> CameraMode | None:
    if text is None:
        return None
    found = re.fullmatch(r"(\d+)x(\d+)(?:@(\d+))?", text)
    if not found:
        raise WnlbError(f"--camera is {text!r}; expected WIDTHxHEIGHT or WIDTHxHEIGHT@FPS, e.g. 1280x720@30")
    return CameraMode(int(found[1]), int(found[2]), int(found[3] or 0))
