"""``wnlb predict``: detect on pictures, folders, globs, videos or a camera."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import sys
import time
from collections import Counter
from collections.abc import Collection, Generator, Iterator
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from wnlb.runtime.coco import CocoDocument
from wnlb.runtime.detecting import detected
from wnlb.runtime.detections import Detections
from wnlb.runtime.errors import PictureError, WnlbError
from wnlb.runtime.files import atomic_path, ends_all, make_folder
from wnlb.runtime.fill_hint import FillHint
from wnlb.runtime.live.video_file import VideoFile
from wnlb.runtime.live.window import Window
from wnlb.runtime.onnxruntime_backend import DEVICES
from wnlb.runtime.overlay import draw_on
from wnlb.runtime.predictor import AT_ONCE, Predictor
from wnlb.runtime.served_model import model_of
from wnlb.runtime.source import PICTURES_FPS, Frame, Source, open_source
from wnlb.runtime.table import table
from wnlb.runtime.tracking.arguments import (
    add_tracking_arguments,
    check_tracking_arguments,
    make_tracks,
    predicted_score,
)
from wnlb.runtime.tracking.mot import MotLines
from wnlb.runtime.tracking.tracks import Tracks

STAGES = ("read", "prepare", "infer", "paste", "write")
JPEG_SIDE = 65500  # of libjpeg; the format itself ends at 65535
JPEG_QUALITY = 90  # of overlays, for people: a third smaller than OpenCV's 95, and a fifth faster
_DESCRIPTION = """\
Detect on pictures and write what was found: one overlay for each picture (a video for a video or camera) and
detections.json, in COCO's format with run-length encoded masks.

  wnlb predict model.onnx night.jpg -o out/
  wnlb predict model.onnx 'night/**/*.png' -o out/ --score-threshold 0.3
  wnlb predict model.onnx drive.mp4 -o out/
  wnlb predict model.onnx 0 -o out/ --show         # camera 0, until Ctrl-C or q
  wnlb predict model.onnx drive.mp4 -o out/ --track --zone 'gate=0,200 320,200'

With --track what is one object has one number, in the overlay, in detections.json (COCO-VID) and in tracks.txt
(MOTChallenge); pictures of a folder are taken as frames, 25 a second. --zone counts who comes into an area or
crosses a line.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = _DESCRIPTION
    parser.add_argument(
        "model",
        type=model_of,
        help="an .onnx of 'wnlb export', an .engine of 'build', or triton://HOST:8001/MODEL of 'triton'",
    )
    parser.add_argument("source", help="picture, folder, glob pattern (quoted), video file, or camera index")
    parser.add_argument("-o", "--output", type=Path, default=Path("out"), help="folder for the results (default: out)")
    parser.add_argument(
        "--score-threshold", type=float, default=0.5, metavar="S", help="leave out detections below S (default: 0.5)"
    )
    parser.add_argument("--device", choices=DEVICES, default="auto", help="default: CUDA where it works, else the CPU")
    parser.add_argument("--threads", type=int, default=0, metavar="N", help="CPU threads (default: one per core)")
    parser.add_argument(
        "--trust", type=Path, metavar="ONNX", help="open an engine without manifest, built from this ONNX file of ours"
    )
    parser.add_argument(
        "--bits",
        type=int,
        default=0,
        metavar="N",
        help="that values of 16-bit pictures have, e.g. 12 (default: found out)",
    )
    parser.add_argument("--show", action="store_true", help="also show each overlay in a window; q ends")
    parser.add_argument("--quiet", action="store_true", help="no progress bar, no summary")
    add_tracking_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    zones = check_tracking_arguments(arguments)
    window = Window("leave it out and look at the written overlays") if arguments.show else None
    source = open_source(arguments.source, arguments.bits)
    output: Path = arguments.output
    _prepare_output(output, source)
    score = predicted_score(arguments)
    options = {"score_threshold": score, "device": arguments.device, "threads": arguments.threads}
    options["at_once"] = AT_ONCE if source.paths else 1  # a camera's frames are wanted at once
    with Predictor(arguments.model, trust=arguments.trust, **options) as predictor:
        tracks = make_tracks(arguments, zones, predictor.contract.class_names, source.fps)
        session = _Session(predictor, source, output, window, tracks)
        hidden = arguments.quiet or None  # None: where stderr is no terminal
        bar = tqdm(total=len(source) or None, unit="frame", disable=hidden, file=sys.stderr, leave=False)
        with bar:
            try:
                with contextlib.closing(session.frames()) as names:
                    for name in names:
                        bar.set_postfix_str(name, refresh=False)
                        bar.update()
                        if session.stopped:
                            break
            except KeyboardInterrupt:
                if not source.is_video:
                    session.abandon()
                    raise
            except BaseException:
                session.abandon()
                raise
            session.finish()
        if not session.frame_sizes and session.failures:
            raise PictureError(session.failures[0] if len(source) == 1 else session.all_failed())
        if not arguments.quiet:
            print(session.summary(output))
    for line in [*session.failures, *session.remarks()]:
        print(f"wnlb predict: {line}", file=sys.stderr)
    return 3 if session.failures else 0


class _Session:
    """One run over a source: predicts, writes, and keeps account."""

    def __init__(
        self, predictor: Predictor, source: Source, output: Path, window: Window | None, tracks: Tracks | None
    ) -> None:
        self.predictor, self.source, self.output, self.window = predictor, source, output, window
        self.tracks, self.mot = tracks, MotLines()
        video = (next(iter(source.paths), "camera"), source.fps or PICTURES_FPS) if tracks else None
        self.document = CocoDocument(predictor.contract.class_names, video)
        self.failures: list[str] = []
        self.unwritten = 0  # of the failures
        self.frame_sizes: list[tuple[int, int]] = []
        self.found: Counter[str] = Counter()
        self.times_ms: dict[str, list[float]] = {stage: [] for stage in STAGES}
        self.stopped = False  # by q in the window
        self._ended = False  # by the end of the source
        self._started = time.perf_counter()
        self._video: VideoFile | None = None
        self._hint = FillHint(predictor.geometry)

    def frames(self) -> Generator[str, None, None]:
        """Work through the source; yields the name of each frame when it is done. Close it where it is left early.

        Reading, inference and writing overlap.
        """
        batches = self.predictor.contract.batches
        size = batches[0] if self.source.is_video and not self.source.paths else batches[-1]  # from a camera as few
        runs = detected(
            self._timed_reads(), self.predictor, size, is_video=self.source.is_video, on_run=self._timed_run
        )
        with contextlib.closing(runs):
            for frame, detections in itertools.chain.from_iterable(runs):
                if frame.pixels is None or detections is None:
                    self.failures.append(frame.error)
                else:
                    found = self.tracks.update(detections, frame.at_s) if self.tracks else detections
                    self._write_timed(frame.name, frame.pixels, found)
                yield frame.name
        self._ended = True

    def _timed_reads(self) -> Iterator[Frame]:
        frames = iter(self.source)
        while True:
            started = time.perf_counter()
            frame = next(frames, None)
            if frame is None:
                return
            self.times_ms["read"].append(1e3 * (time.perf_counter() - started))
            yield frame

    def _timed_run(self, times_ms: dict[str, float], frames: int) -> None:
        for stage, ms in times_ms.items():
            self.times_ms[stage].extend([ms / frames] * frames)

    def _write_timed(self, name: str, pixels: NDArray[np.uint8], detections: Detections) -> None:
        if hint := self._hint.about(*pixels.shape[:2]):
            tqdm.write(f"wnlb predict: {hint}", file=sys.stderr)
        started = time.perf_counter()
        self._write(name, pixels, detections)
        self.times_ms["write"].append(1e3 * (time.perf_counter() - started))

    def _write(self, name: str, overlay: NDArray[np.uint8], detections: Detections) -> None:
        """``overlay``: the frame, which nobody reads any more, before it is drawn on."""
        names = self.predictor.contract.class_names
        try:
            draw_on(overlay, detections, names)
            if self.tracks:
                self.tracks.draw(overlay, detections)
            self._write_overlay(name, overlay)
        except (WnlbError, cv2.error, MemoryError) as error:
            if self.source.is_video or (isinstance(error, WnlbError) and ends_all(error)):
                raise
            told = isinstance(error, WnlbError)
            self.failures.append(str(error) if told else f"overlay of picture {name} cannot be drawn: {error}")
            self.unwritten += 1
            return
        self.mot.add(len(self.frame_sizes), detections)
        self.document.add(name, detections)
        self.frame_sizes.append((detections.height, detections.width))
        self.found.update(names[label - 1] for label in detections.labels.tolist())
        if self.window:
            self.stopped = self.window.show(overlay, wait=not self.source.is_video)

    def _write_overlay(self, name: str, overlay: NDArray[np.uint8]) -> None:
        if not self.source.is_video:
            _write_picture(self.output, name, overlay, self.source.paths)
            return
        if self._video is None:
            self._video = VideoFile(self.output / f"{name.rpartition('_')[0]}.mp4", self.source.fps)
        self._video.write(overlay)

    def finish(self) -> None:
        """Close the video and write detections.json, unless nothing could be read."""
        if self._video is not None:
            self._video.close()
        if self.window:
            self.window.close()
        if self.frame_sizes or not self.failures:
            with atomic_path(self.output / "detections.json") as temporary:
                temporary.write_text(self.document.to_json())
            if self.tracks:
                with atomic_path(self.output / "tracks.txt") as temporary:
                    temporary.write_text(self.mot.to_text())

    def abandon(self) -> None:
        """After an error: no half video, no half detections.json."""
        if self._video is not None:
            self._video.discard()
        if self.window:
            self.window.close()

    def all_failed(self) -> str:
        """One line for a source of which nothing came out."""
        what = "read and written" if self.unwritten else "read"
        return f"none of {len(self.failures)} pictures can be {what}; the first: {self.failures[0]}"

    def remarks(self) -> list[str]:
        """A video that ended before its end, though not by the user."""
        stated, done = len(self.source), len(self.frame_sizes)
        if not self.source.is_video or done >= stated or not self._ended:
            return []
        return [f"video {next(iter(self.source.paths))} ended after {done} of the {stated} frames that its file states"]

    def summary(self, output: Path) -> str:
        """Counts, and the time of each stage."""
        frames = len(self.frame_sizes)
        classes = ", ".join(f"{name} {count}" for name, count in self.found.most_common()) or "none"
        stages = {stage: self.times_ms[stage] for stage in STAGES if self.times_ms[stage]}
        rows = [
            (stage, f"{np.median(times):.1f}", f"{np.mean(times):.1f}", f"{np.max(times):.1f}")
            for stage, times in stages.items()
        ]
        whole = (
            1e3 * (time.perf_counter() - self._started) / max(frames, 1)
        )  # less than the stages together: they overlap
        counts = {"read": len(self.failures) - self.unwritten, "written": self.unwritten}
        told = [self.tracks.summary(), ""] if self.tracks else []
        written = "overlays, detections.json and tracks.txt" if self.tracks else "overlays and detections.json"
        failed = "".join(f", {count} could not be {what}" for what, count in counts.items() if count)
        return "\n".join(
            [
                f"{frames} frame{'s' * (frames != 1)}{failed}; detections: {classes}",
                self.predictor.backend.description,
                "",
                *told,
                table(("stage", "median ms", "mean ms", "max ms"), [*rows, ("whole frame", "", f"{whole:.1f}", "")]),
                "",
                f"{written} are in {output}/",
            ]
        )


def _prepare_output(output: Path, source: Source) -> None:
    """Make the folder; refuse one that the overlays would overwrite the pictures in."""
    read_from = {path.resolve().parent for path in source.paths.values()}
    written_to = {(output / name).parent.resolve() for name in source.paths}
    if read_from & written_to:
        raise WnlbError(f"output {output} is the folder of the pictures, which would be overwritten; choose another")
    make_folder(output)


def _write_picture(output: Path, name: str, picture: NDArray[np.uint8], names: Collection[str]) -> None:
    """As JPEG, or as PNG where the original was one or JPEG cannot hold it.

    Args:
        name: of the picture; its overlay has the same, with the suffix added where it is of neither format.
        names: of all pictures; none of the others' overlays is overwritten.

    Raises:
        WnlbError: it cannot be encoded or written.
    """
    own = Path(name).suffix.lower()
    jpeg = own != ".png" and max(picture.shape[:2]) <= JPEG_SIDE
    suffix = ".jpg" if jpeg else ".png"
    if own not in ((".jpg", ".jpeg") if jpeg else (".png",)):
        name += suffix
        while name in names:
            name += suffix
    path = output / name
    try:
        encoded, data = cv2.imencode(suffix, picture, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY] if jpeg else [])
    except cv2.error:
        encoded = False
    if not encoded:
        size = f"{picture.shape[1]}x{picture.shape[0]}"
        raise WnlbError(f"overlay {path} of {size} cannot be encoded as {suffix}; make the picture smaller")
    make_folder(path.parent)
    with atomic_path(path) as temporary:
        temporary.write_bytes(data.tobytes())
