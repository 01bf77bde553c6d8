"""Addresses of a web server on this machine: files end, streams do not."""

from __future__ import annotations

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import cv2
import numpy as np
import pytest
from scripted_stream import Answering, until

from wnlb.runtime.errors import PictureError
from wnlb.runtime.live import stream as streams
from wnlb.runtime.live.feed import content_of, open_feed
from wnlb.runtime.live.stream import Stream

FRAMES = 12
JPEG = cv2.imencode(".jpg", np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8))[1].tobytes()
MULTIPART = "multipart/x-mixed-replace; boundary=b"
PART = b"--b\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % len(JPEG) + JPEG + b"\r\n"
SECRET = "Basic " + base64.b64encode(b"me:se/cret").decode()


def film(folder, name: str, code: str) -> bytes:
    path = folder / name
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*code), 50, (64, 48))
    for number in range(FRAMES):
        writer.write(np.full((48, 64, 3), 10 * number, np.uint8))
    writer.release()
    return path.read_bytes()


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Address of a server, and the count of requests by path. A path is its body, kind, and whether it has a length."""
    folder = tmp_path_factory.mktemp("site")
    pages = {
        "/drive.mp4": (film(folder, "drive.mp4", "mp4v"), "video/mp4", True),
        "/drive.avi": (film(folder, "drive.avi", "MJPG"), "application/octet-stream", True),
        "/drive.mkv": (film(folder, "drive.mkv", "mp4v"), "video/x-matroska", False),
        "/drive.mjpg": (JPEG * FRAMES, "video/x-motion-jpeg", True),
        "/endless.mjpg": (JPEG * FRAMES, "video/x-motion-jpeg", False),
        "/camera": (PART * FRAMES, MULTIPART, False),
        "/long": (PART * FRAMES, MULTIPART, True),  # as some cameras do, to please a proxy
        "/private.mjpg": (JPEG * FRAMES, "video/x-motion-jpeg", True),
        "/list.m3u8": (b"#EXTM3U\n", "video/mpegurl", True),
    }
    asked: dict[str, int] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            path = self.path.partition("?")[0]
            asked[path] = asked.get(path, 0) + 1
            if path not in pages or (path == "/private.mjpg" and self.headers.get("Authorization") != SECRET):
                self.send_response(401 if path in pages else 404)
                self.send_header("WWW-Authenticate", 'Basic realm="camera"')
                self.end_headers()
                return
            body, kind, with_length = pages[path]
            self.send_response(200)
            self.send_header("Content-Type", kind)
            if with_length:
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *what):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()


@pytest.mark.parametrize(
    ("path", "frames", "fps"),
    [("/drive.mp4", 12, 50), ("/drive.avi", 12, 50), ("/drive.mkv", 12, 50), ("/drive.mjpg?token=1", 0, 25)],
)
def test_a_file_is_played_once(site, path, frames, fps):
    address, asked = site
    feed = open_feed(address + path)
    assert (feed.live, feed.frames, feed.fps) == (False, frames, fps)
    with Stream(Answering(), feed, every_frame=True) as stream:
        assert len(list(stream)) == FRAMES
        before = dict(asked)
        assert stream.state().reconnects == 0
        assert stream.state().state == "ended"
    assert asked == before


@pytest.mark.parametrize("path", ["/camera", "/long", "/endless.mjpg"])
def test_a_stream_that_ends_is_opened_again(site, path, monkeypatch):
    monkeypatch.setattr(streams, "BACK_OFF", (0.01,))
    feed = open_feed(site[0] + path)
    assert (feed.live, feed.frames) == (True, 0)
    with Stream(Answering(), feed) as stream:
        thread = threading.Thread(target=lambda: list(stream))
        thread.start()
        until(lambda: stream.state().reconnects >= 2)
    thread.join()


def test_a_file_behind_a_password(site):
    address = site[0].replace("http://", "http://me:se%2Fcret@")
    feed = open_feed(address + "/private.mjpg")
    assert not feed.live
    assert "cret" not in feed.name


def test_what_a_server_says(site):
    address = site[0]
    assert content_of(f"{address}/drive.mjpg") == ("video/x-motion-jpeg", FRAMES * len(JPEG))
    assert content_of(f"{address}/camera")[1] == 0
    assert content_of(f"{address}/missing") == ("", 0)
    assert content_of("http://127.0.0.1:9/nobody") == ("", 0)
    assert content_of("http://[bad/") == ("", 0)


def test_a_list_of_pieces_is_no_file(site):
    with pytest.raises(PictureError, match="cannot be opened"):  # this one is empty, and OpenCV refuses it
        open_feed(f"{site[0]}/list.m3u8")


@pytest.mark.parametrize("path", ["/missing.mp4", "/private.mjpg"])
def test_an_address_with_nothing_behind_it_is_refused(site, path):
    with pytest.raises(PictureError, match="cannot be opened"):
        open_feed(site[0] + path)


def test_run_plays_a_file_once(wnlb, planted_model_path, site, tmp_path):
    words = ("--every-frame", "--coco", tmp_path / "a.json", "--video", tmp_path / "a.mp4", "--quiet")
    ran = wnlb("run", planted_model_path, f"{site[0]}/drive.mp4", *words)
    assert (ran.code, ran.out, ran.err) == (0, "", "")
    assert len(json.loads((tmp_path / "a.json").read_text())["images"]) == FRAMES
    written = cv2.VideoCapture(str(tmp_path / "a.mp4"))
    assert (written.get(cv2.CAP_PROP_FRAME_COUNT), written.get(cv2.CAP_PROP_FPS)) == (FRAMES, 50)
