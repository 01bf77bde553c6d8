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

from wnlb.runtime.errors import WnlbError
from wnlb.runtime.fill_hint import FillHint
from wnlb.runtime.live.feed import CameraMode, Feed, open_feed
from wnlb.runtime.live.night_watch import NightWatch
from wnlb.runtime.live.outputs import Sinks, add_output_arguments, check_outputs
from wnlb.runtime.live.status import Status, summary
from wnlb.runtime.live.stream import Result, Stream
from wnlb.runtime.live.watchdog import Watchdog
from wnlb.runtime.onnxruntime_backend import DEVICES
from wnlb.runtime.overlay import draw
from wnlb.runtime.predictor import Predictor
from wnlb.runtime.served_model import model_of
from wnlb.runtime.source import PICTURES_FPS
from wnlb.runtime.tracking.arguments import (
    add_tracking_arguments,
    check_tracking_arguments,
    make_tracks,
    predicted_score,
)
from wnlb.runtime.tracking.tracks import Tracks

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
    add_output_arguments(parser)
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
    check_outputs(arguments)
    score = predicted_score(arguments)
    options = {"score_threshold": score, "device": arguments.device, "threads": arguments.threads}
    status = Status(arguments.quiet, feed)
    with (
        Predictor(arguments.model, trust=arguments.trust, **options) as predictor,
        Stream(predictor, feed, every_frame=arguments.every_frame, on_change=status.changed) as stream,
        _ended_by_signals(stream),
        Sinks(arguments, predictor, stream) as sinks,
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
    stream: Stream, sinks: Sinks, status: Status, predictor: Predictor, tracks: Tracks | None, watchdog: Watchdog
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
