"""Cameras, streams, videos and pictures to run on: what to open, and how OpenCV opens it."""

from __future__ import annotations

import base64
import contextlib
import http.client
import math
import urllib.parse
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from wnlb.runtime.depth import check_bits
from wnlb.runtime.errors import PictureError, WnlbError
from wnlb.runtime.files import name_for_opencv
from wnlb.runtime.machine import jetson_model
from wnlb.runtime.source import LAST_CAMERA, PictureSource, open_source

TIMEOUT_MS = 5000  # for a network camera to answer
_STREAMS = (
    "rtsp",
    "rtsps",
    "rtmp",
    "http",
    "https",
    "udp",
    "tcp",
    "srt",
)  # schemes; without an end, like cameras; but for files of http
MOST_FRAMES = 1e9  # a year at 30 a second: what states more knows nothing
_LISTS = (".m3u8", ".m3u", ".mpd", ".sdp")  # of pieces of a stream; short files themselves


class Capture(Protocol):
    """``cv2.VideoCapture``, as far as it is used."""

    def read(self) -> tuple[bool, Any]:
        """Whether there was a frame, and the frame."""
        ...

    def release(self) -> None: ...


@dataclass(frozen=True)
class Feed:
    """Something that frames come from."""

    name: str
    open: Callable[[], Capture]  # raises PictureError where it cannot be opened
    live: bool  # has no end: where it fails it is opened again
    fps: float = 0.0  # of a video file, played at this speed; 0: frames come when they come, or all are wanted
    frames: int = 0  # 0: not known
    picture_names: tuple[str, ...] = ()  # of a folder of pictures
    bits: int = 0  # that values of 16-bit frames have; 0: all

    def frame_name(self, number: int) -> str:
        return self.picture_names[number] if self.picture_names else f"{self.name}_{number:06d}"


@dataclass(frozen=True)
class CameraMode:
    """What to ask a camera for; 0 for its own choice."""

    width: int = 0
    height: int = 0
    fps: int = 0


def open_feed(source: str, mode: CameraMode | None = None, bits: int = 0) -> Feed:
    """The feed of a source. A camera is opened later, by the stream.

    Args:
        source: camera index, ``/dev/video0``, ``csi://0`` (a Jetson's camera connector), ``rtsp://...`` or another
            address, video file, picture, folder, or glob pattern of pictures.
        mode: for cameras and ``csi://``.
        bits: that values of 16-bit pictures have; 0: found out (``open_source``). Of 16-bit frames: 16.

    An address of a file (``http://server/drive.mp4``) is played once; other addresses have no end.

    Raises:
        PictureError: there is no such file, or nothing at an address of http.
        WnlbError: this machine or its OpenCV cannot open such a source.
    """
    scheme, address = source.partition("://")[0].lower(), source.partition("://")[2]
    if address and scheme not in ("csi", *_STREAMS):
        expected = f"expected {', '.join(_STREAMS)} or csi, or the path of a file"
        raise PictureError(f"source {without_password(source)} is an address of {scheme}; {expected}")
    jetson = jetson_model()
    hardware = bool(jetson) and has_gstreamer()
    path = Path(source)
    index = int(source) if source.isdecimal() and not path.exists() else None
    if mode and (scheme in _STREAMS or (scheme != "csi" and index is None and not path.is_char_device())):
        raise WnlbError(f"a mode can be asked of cameras only; {without_password(source)} is none, leave --camera out")
    mode = mode or CameraMode()
    if scheme == "csi":
        if not hardware:
            reason = "this OpenCV has no GStreamer" if jetson else "this machine is no Jetson"
            raise WnlbError(f"{source} needs a Jetson and its OpenCV with GStreamer; {reason}")
        if not address.isdecimal():
            raise PictureError(f"source is {source}; expected csi:// and the number of a sensor, csi://0")
        pipeline = csi_pipeline(int(address), mode)
        return Feed(f"csi{address}", lambda: _opened(source, pipeline, cv2.CAP_GSTREAMER), live=True)
    if scheme in _STREAMS:
        name = without_password(source).partition("://")[2].replace("/", "_").replace(":", "_")
        limits = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, TIMEOUT_MS, cv2.CAP_PROP_READ_TIMEOUT_MSEC, TIMEOUT_MS]
        if hardware and scheme.startswith("rtsp"):
            return Feed(name, lambda: _opened(source, rtsp_pipeline(source), cv2.CAP_GSTREAMER, limits), live=True)

        def opened_stream() -> cv2.VideoCapture:
            return _opened(source, source, cv2.CAP_FFMPEG, limits)

        if scheme.startswith("http") and (file := _finite(source, opened_stream)):
            return replace(file, name=name, bits=bits)
        return Feed(name, opened_stream, live=True, bits=bits)
    if index is not None and index > LAST_CAMERA:
        raise PictureError(f"camera {source} is not there; expected an index from 0 to {LAST_CAMERA}")
    if index is not None or path.is_char_device():
        name = f"camera{index}" if index is not None else path.name
        return Feed(name, lambda: _camera(source if index is None else index, mode), live=True, bits=check_bits(bits))
    opened = open_source(source)
    if isinstance(opened, PictureSource):
        pictures = PictureSource([*opened.paths.values()], bits)
        names = tuple(pictures.paths)
        return Feed(path.stem, lambda: _Pictures(pictures), live=False, frames=len(names), picture_names=names)
    opened.release()
    return Feed(path.stem, lambda: _video(path, hardware), live=False, fps=opened.fps, frames=len(opened))


def csi_pipeline(sensor: int, mode: CameraMode) -> str:
    """GStreamer's pipeline for a camera at a Jetson's CSI connector."""
    size = f"width={mode.width or 1920},height={mode.height or 1080},framerate={mode.fps or 30}/1"
    return f"nvarguscamerasrc sensor-id={sensor} ! video/x-raw(memory:NVMM),{size} ! {_FROM_NVMM}"


def rtsp_pipeline(url: str) -> str:
    """GStreamer's pipeline for a network camera, H.264 or H.265, decoded by a Jetson's hardware."""
    source = f"rtspsrc location={_quoted(url)} latency=100 ! application/x-rtp,media=video"
    return f"{source} ! parsebin ! nvv4l2decoder ! {_FROM_NVMM}"


def file_pipeline(path: Path) -> str:
    """GStreamer's pipeline for a video file, decoded by a Jetson's hardware; every frame, as fast as it is read."""
    source = f"filesrc location={_quoted(str(path))} ! parsebin ! nvv4l2decoder ! {_FROM_NVMM}"
    return source.replace("drop=true max-buffers=1", "drop=false max-buffers=4")


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


_FROM_NVMM = (
    "nvvidconv ! video/x-raw,format=BGRx ! videoconvert ! video/x-raw,format=BGR "
    "! appsink drop=true max-buffers=1 sync=false"
)


def has_gstreamer() -> bool:
    """Whether this OpenCV can run GStreamer's pipelines."""
    line = next((line for line in cv2.getBuildInformation().splitlines() if "GStreamer:" in line), "")
    return "YES" in line


def as_bgr(pixels: Any, bits: int = 0) -> NDArray[np.uint8] | None:
    """What a camera gave as uint8 BGR ``[h, w, 3]``; None for what is no picture.

    Args:
        bits: that values of 16-bit frames have, of which the upper 8 are kept; 0: 16.
    """
    if not isinstance(pixels, np.ndarray) or pixels.size == 0 or pixels.ndim not in (2, 3):
        return None
    if pixels.dtype == np.uint16:
        pixels = np.minimum(pixels >> ((bits or 16) - 8), 255).astype(np.uint8)
    if pixels.dtype != np.uint8:
        return None
    channels = 1 if pixels.ndim == 2 else pixels.shape[2]
    if channels == 3:
        return pixels
    if channels not in (1, 4):
        return None
    code = cv2.COLOR_GRAY2BGR if channels == 1 else cv2.COLOR_BGRA2BGR
    return np.asarray(cv2.cvtColor(pixels, code), np.uint8)


class _Pictures:
    """Pictures as a capture; ``read`` raises PictureError for one that cannot be read."""

    def __init__(self, source: PictureSource) -> None:
        self._frames = iter(source)

    def read(self) -> tuple[bool, Any]:
        frame = next(self._frames, None)
        if frame and frame.pixels is None:
            raise PictureError(frame.error)
        return frame is not None, frame.pixels if frame else None

    def release(self) -> None:
        pass


def _finite(address: str, opened: Callable[[], cv2.VideoCapture]) -> Feed | None:
    """The feed of a file at an address; None for a stream, which has no end.

    A file states how many frames it holds, as MP4 does, or its server how many bytes, but for a list of pieces, which
    grows while a stream goes on.
    """
    capture = opened()
    frames, fps = (float(capture.get(key)) for key in (cv2.CAP_PROP_FRAME_COUNT, cv2.CAP_PROP_FPS))
    capture.release()
    kind, length = content_of(address)
    if kind.startswith("multipart/") or not (0 < frames < MOST_FRAMES or (length and _is_film(address, kind))):
        return None
    known = int(frames) if 0 < frames < MOST_FRAMES else 0
    return Feed("", opened, live=False, fps=fps if 0 < fps < math.inf else 25.0, frames=known)


def _is_film(address: str, kind: str) -> bool:
    path = urllib.parse.urlsplit(address).path.lower()
    return not path.endswith(_LISTS) and kind.startswith(("video/", "image/", "application/octet-stream"))


def content_of(address: str) -> tuple[str, int]:
    """Kind and length in bytes of what a web server has at an address; empty and 0 where it does not say."""
    try:
        parts = urllib.parse.urlsplit(address)
        bare = urllib.parse.urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], fragment=""))
        request = urllib.request.Request(bare)
        if parts.username:
            words = ":".join(urllib.parse.unquote(word or "") for word in (parts.username, parts.password))
            request.add_header("Authorization", f"Basic {base64.b64encode(words.encode()).decode()}")
        with urllib.request.urlopen(request, timeout=TIMEOUT_MS / 1e3) as answer:
            return answer.headers.get_content_type(), int(answer.headers.get("Content-Length") or 0)
    except (OSError, ValueError, http.client.HTTPException):
        return "", 0


def _video(path: Path, hardware: bool) -> Capture:
    """By the hardware where it can, else by OpenCV's own decoders."""
    if hardware:
        with contextlib.suppress(PictureError):
            return _opened(str(path), file_pipeline(path), cv2.CAP_GSTREAMER)
    return _opened(str(path), str(path))


def _camera(index: str | int, mode: CameraMode) -> Capture:
    capture = _opened(f"camera {index}", index, cv2.CAP_V4L2)
    wanted = {cv2.CAP_PROP_FRAME_WIDTH: mode.width, cv2.CAP_PROP_FRAME_HEIGHT: mode.height, cv2.CAP_PROP_FPS: mode.fps}
    if mode.width:  # uncompressed, most cameras give large pictures at a few frames a second
        capture.set(cv2.CAP_PROP_FOURCC, cv2.VideoWriter.fourcc(*"MJPG"))
    for key, value in wanted.items():
        if value:
            capture.set(key, value)
    got = [round(capture.get(key)) for key in wanted]
    if any(value and value != given for value, given in zip(wanted.values(), got, strict=True)):
        capture.release()
        width, height, fps = got
        raise PictureError(
            f"camera {index} gives {width}x{height}@{fps}, not {mode.width}x{mode.height}@{mode.fps or fps}; choose "
            "one of its modes (v4l2-ctl --list-formats-ext)"
        )
    return capture


def _opened(what: str, where: str | int, api: int = cv2.CAP_ANY, options: list[int] | None = None) -> cv2.VideoCapture:
    try:
        capture = cv2.VideoCapture(where if isinstance(where, int) else name_for_opencv(where), api, options or [])
    except cv2.error as error:
        raise PictureError(f"{without_password(what)} cannot be opened: {error.err}") from error
    if not capture.isOpened():
        capture.release()
        raise PictureError(
            f"{without_password(what)} cannot be opened; check that it is there and that this OpenCV can read it"
        )
    return capture


def without_password(source: str) -> str:
    """An address without user, password and query, to be shown."""
    scheme, separator, rest = source.partition("://")
    return f"{scheme}{separator}{rest.partition('?')[0].rpartition('@')[2]}" if separator else source
