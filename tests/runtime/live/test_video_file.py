import cv2
import numpy as np
import pytest

from wnlb.runtime.errors import WnlbError
from wnlb.runtime.live.video_file import VideoFile


def frames(path) -> list[np.ndarray]:
    capture, read = cv2.VideoCapture(str(path)), []
    while (frame := capture.read())[0]:
        read.append(frame[1])
    return read


def test_it_appears_when_it_is_closed(tmp_path):
    video = VideoFile(tmp_path / "night.mp4", 10)
    for number in range(5):
        video.write(np.full((48, 64, 3), 40 * number, np.uint8))
    assert not (tmp_path / "night.mp4").exists()
    video.close()
    video.close()
    assert [path.name for path in tmp_path.iterdir()] == ["night.mp4"]
    means = [frame.mean() for frame in frames(tmp_path / "night.mp4")]
    assert means == pytest.approx([0, 40, 80, 120, 160], abs=4)


def test_a_size_that_changes_is_fitted(tmp_path):
    video = VideoFile(tmp_path / "night.mp4", 10)
    for shape in ((48, 64), (96, 64), (10, 200)):
        video.write(np.full((*shape, 3), 200, np.uint8))
    video.close()
    read = frames(tmp_path / "night.mp4")
    assert {frame.shape for frame in read} == {(48, 64, 3)}
    assert read[0].mean() > 190
    assert read[1][:, :28].mean() > 180  # half as wide
    assert read[1][:, 40:].mean() < 20


def test_without_frames_there_is_no_file(tmp_path):
    VideoFile(tmp_path / "night.mp4", 10).close()
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_written(tmp_path):
    video = VideoFile(tmp_path / "no" / "night.mp4", 10)
    with pytest.raises(WnlbError, match="does not exist"):
        video.write(np.zeros((48, 64, 3), np.uint8))
    video.close()
    for name in ("night.png", "night.gif", "night"):
        with pytest.raises(WnlbError, match=r"expected \.mp4, \.mov, \.mkv, \.avi"):
            VideoFile(tmp_path / name, 10)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("stated", "written"), [(90000, 240), (float("nan"), 25), (0.001, 1), (29.97, 29.97)])
def test_speeds_of_broken_containers(tmp_path, stated, written):
    video = VideoFile(tmp_path / "night.mp4", stated)
    video.write(np.zeros((48, 64, 3), np.uint8))
    video.close()
    assert cv2.VideoCapture(str(tmp_path / "night.mp4")).get(cv2.CAP_PROP_FPS) == pytest.approx(written, rel=0.01)


# Above 65.535 frames a second, OpenCV's ticks of a thousandth of a frame are more than MPEG-4's 65,535 a second.
@pytest.mark.parametrize(
    ("stated", "written"),
    [
        (66.667, 66.67),
        (200 / 3, 66.67),
        (1000 / 3, 333.33),
        (655.36, 655.4),
        (65.5354, 65.535),
        (23.976, 23.976),
        (60000 / 1001, 59.94),
        (0.1, 0.1),
        (240, 240),
        (1000, 1000),
        (0, 25),
        (-1, 25),
        (float("inf"), 25),
    ],
)
@pytest.mark.parametrize("suffix", [".mp4", ".avi", ".mkv"])
def test_every_rate_is_written_as_near_as_mpeg4_holds_it(tmp_path, stated, written, suffix):
    video = VideoFile(tmp_path / f"night{suffix}", stated)
    for number in range(12):
        video.write(np.full((48, 64, 3), 20 * number, np.uint8))
    video.close()
    read = cv2.VideoCapture(str(video.path))
    assert read.get(cv2.CAP_PROP_FPS) == pytest.approx(written, abs=1e-3)
    assert read.get(cv2.CAP_PROP_FRAME_COUNT) == 12
    assert len(frames(video.path)) == 12
    if 0 < stated < 1001:  # 11 intervals, within one of them
        assert abs(11 / read.get(cv2.CAP_PROP_FPS) - 11 / stated) < 1 / stated


def test_what_is_discarded_leaves_nothing(tmp_path):
    video = VideoFile(tmp_path / "night.mp4", 10)
    video.discard()
    video.write(np.zeros((48, 64, 3), np.uint8))
    video.discard()
    video.close()
    assert list(tmp_path.iterdir()) == []


def test_a_size_that_mpeg4_cannot_hold_is_refused_by_name(tmp_path):
    video = VideoFile(tmp_path / "night.mp4", 10)
    with pytest.raises(WnlbError, match="8192x16 at 10 frames a second"):
        video.write(np.zeros((16, 8192, 3), np.uint8))
    assert list(tmp_path.iterdir()) == []
