"""What a source opens to."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest

from wnlb.runtime.errors import PictureError, WnlbError
from wnlb.runtime.live import feed as feeds
from wnlb.runtime.live.feed import CameraMode, as_bgr, csi_pipeline, file_pipeline, open_feed, rtsp_pipeline


class Camera:
    """Stands for cv2.VideoCapture."""

    made: list[Camera] = []  # noqa: RUF012
    opens, most = True, 1e6

    def __init__(self, where: Any, api: int, options: list[int]) -> None:
        self.where, self.api, self.options = where, api, options
        self.properties: dict[int, float] = {}
        self.released = False
        self.made.append(self)

    def isOpened(self) -> bool:
        return self.opens

    def set(self, key: int, value: float) -> None:
        self.properties[key] = value

    def get(self, key: int) -> float:
        return min(self.properties.get(key, 0), self.most)

    def release(self) -> None:
        self.released = True


@pytest.fixture
def camera(monkeypatch: pytest.MonkeyPatch) -> type[Camera]:
    monkeypatch.setattr(Camera, "made", [])
    monkeypatch.setattr(Camera, "opens", True)
    monkeypatch.setattr(feeds.cv2, "VideoCapture", Camera)
    return Camera


@pytest.fixture
def jetson(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feeds, "jetson_model", lambda: "NVIDIA Jetson Orin Nano")
    monkeypatch.setattr(feeds, "has_gstreamer", lambda: True)


def test_cameras_are_asked_for_their_mode(camera: type[Camera], monkeypatch: pytest.MonkeyPatch) -> None:
    feed = open_feed("2", CameraMode(1280, 720, 30))
    assert (feed.name, feed.live, feed.fps, camera.made) == ("camera2", True, 0, [])  # opened by the stream
    feed.open()
    assert (camera.made[0].where, camera.made[0].api) == (2, cv2.CAP_V4L2)
    assert camera.made[0].properties == {
        cv2.CAP_PROP_FRAME_WIDTH: 1280,
        cv2.CAP_PROP_FRAME_HEIGHT: 720,
        cv2.CAP_PROP_FPS: 30,
        cv2.CAP_PROP_FOURCC: cv2.VideoWriter.fourcc(*"MJPG"),
    }
    monkeypatch.setattr(Path, "is_char_device", lambda path: True)
    feed = open_feed("/dev/v4l/by-id/night")
    feed.open()
    assert (feed.name, camera.made[1].where) == ("night", "/dev/v4l/by-id/night")
    assert camera.made[1].properties == {}
    assert feed.frame_name(7) == "night_000007"


def test_a_mode_that_a_camera_lacks_is_refused(camera: type[Camera], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Camera, "most", 640)
    with pytest.raises(PictureError, match=r"camera 0 gives 640x640@30, not 1280x720@30; choose one of its modes"):
        open_feed("0", CameraMode(1280, 720, 30)).open()
    assert camera.made[0].released
    for source in ("rtsp://camera/night", __file__):
        with pytest.raises(WnlbError, match="a mode can be asked of cameras only"):
            open_feed(source, CameraMode(1280, 720))


def test_network_cameras_have_a_limit_to_answer_and_keep_their_password(camera: type[Camera]) -> None:
    feed = open_feed("RTSP://me:secret@camera:554/night?channel=1")
    assert (feed.name, feed.live) == ("camera_554_night", True)
    feed.open()
    assert camera.made[0].where == "RTSP://me:secret@camera:554/night?channel=1"
    assert camera.made[0].options == [
        cv2.CAP_PROP_OPEN_TIMEOUT_MSEC,
        5000,
        cv2.CAP_PROP_READ_TIMEOUT_MSEC,
        5000,
    ]
    camera.opens = False
    with pytest.raises(PictureError, match=r"^RTSP://camera:554/night cannot be opened"):
        feed.open()
    assert camera.made[-1].released


def test_a_jetson_decodes_in_hardware(
    camera: type[Camera], jetson: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_feed("rtsp://camera/night").open()
    assert (camera.made[0].where, camera.made[0].api) == (rtsp_pipeline("rtsp://camera/night"), cv2.CAP_GSTREAMER)
    feed = open_feed("csi://1", CameraMode(1280, 720, 60))
    feed.open()
    assert (feed.name, feed.live) == ("csi1", True)
    assert camera.made[1].where == csi_pipeline(1, CameraMode(1280, 720, 60))
    drive = tmp_path / 'dr"ive.mp4'
    drive.write_bytes(b"")
    monkeypatch.setattr(feeds, "open_source", lambda source: SimpleNamespace(release=int, fps=9, __len__=int))
    monkeypatch.setattr(feeds, "len", lambda opened: 7, raising=False)
    feed = open_feed(str(drive))
    feed.open()
    assert (feed.live, feed.fps, feed.frames) == (False, 9, 7)
    assert (camera.made[2].where, camera.made[2].api) == (file_pipeline(drive), cv2.CAP_GSTREAMER)
    camera.opens = False  # a codec that the hardware lacks: OpenCV's own are tried
    with pytest.raises(PictureError):
        feed.open()
    assert camera.made[-1].where == str(drive)
    with pytest.raises(PictureError, match="the number of a sensor"):
        open_feed("csi://front")


def test_pipelines() -> None:
    csi = csi_pipeline(0, CameraMode())
    assert csi.startswith(
        "nvarguscamerasrc sensor-id=0 ! video/x-raw(memory:NVMM),width=1920,height=1080,framerate=30/1 !"
    )
    rtsp = rtsp_pipeline('rtsp://a/b"c\\d')
    assert rtsp.startswith(
        r'rtspsrc location="rtsp://a/b\"c\\d" latency=100 ! application/x-rtp,media=video ! parsebin'
    )
    assert "nvv4l2decoder" in rtsp
    file = file_pipeline(Path('/a b/"c".mp4'))
    assert file.startswith(r'filesrc location="/a b/\"c\".mp4" ! parsebin ! nvv4l2decoder ! nvvidconv')
    assert file.endswith("appsink drop=false max-buffers=4 sync=false")
    for pipeline in (csi, rtsp):
        assert pipeline.endswith("video/x-raw,format=BGR ! appsink drop=true max-buffers=1 sync=false")


def test_csi_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feeds, "jetson_model", lambda: "")
    monkeypatch.setattr(feeds, "has_gstreamer", lambda: False)
    with pytest.raises(WnlbError, match="this machine is no Jetson"):
        open_feed("csi://0")
    monkeypatch.setattr(feeds, "jetson_model", lambda: "NVIDIA Jetson Orin Nano")
    with pytest.raises(WnlbError, match="this OpenCV has no GStreamer"):
        open_feed("csi://0")


def test_files(tmp_path: Path) -> None:
    writer = cv2.VideoWriter(str(tmp_path / "drive.mp4"), cv2.VideoWriter.fourcc(*"mp4v"), 12, (64, 48))
    for _ in range(5):
        writer.write(np.zeros((48, 64, 3), np.uint8))
    writer.release()
    feed = open_feed(str(tmp_path / "drive.mp4"))
    assert (feed.name, feed.live, feed.fps, feed.frames) == ("drive", False, 12, 5)
    capture = feed.open()
    assert [capture.read()[0] for _ in range(6)] == [True] * 5 + [False]
    for name in ("b.png", "a.png"):
        cv2.imwrite(str(tmp_path / name), np.full((4, 4, 3), 7, np.uint8))
    (tmp_path / "c.png").write_bytes(b"broken")
    feed = open_feed(str(tmp_path))
    assert (feed.live, feed.fps, feed.frames) == (False, 0, 3)
    assert [feed.frame_name(number) for number in range(3)] == ["a.png", "b.png", "c.png"]
    capture = feed.open()
    assert [capture.read()[1] is None for _ in range(2)] == [False, False]
    with pytest.raises(PictureError, match=r"c\.png is damaged"):
        capture.read()
    assert capture.read() == (False, None)
    for missing in ("no.mp4", "9"):
        with pytest.raises(PictureError, match=r"does not exist|cannot be opened"):
            open_feed(str(tmp_path / "no.mp4") if missing == "no.mp4" else missing).open()


def test_as_bgr() -> None:
    color = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    assert as_bgr(color) is color
    np.testing.assert_array_equal(as_bgr(color[..., :1]), np.repeat(color[..., :1], 3, 2))
    np.testing.assert_array_equal(as_bgr(color[..., 0]), np.repeat(color[..., :1], 3, 2))
    np.testing.assert_array_equal(as_bgr(color.astype(np.uint16) << 8), color)
    np.testing.assert_array_equal(as_bgr(np.concatenate([color, color[..., :1]], 2)), color)
    for odd in (None, 3, np.zeros(4, np.uint8), np.zeros((2, 2, 2), np.uint8), np.zeros((0, 4, 3), np.uint8)):
        assert as_bgr(odd) is None
    assert as_bgr(color.astype(np.float32)) is None
    assert as_bgr(np.zeros((1, 2, 2, 3), np.uint8)) is None
