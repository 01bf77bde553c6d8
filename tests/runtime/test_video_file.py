import cv2
import numpy as np
import pytest

from wnlb.runtime.errors import WnlbError
from wnlb.runtime.video_file import VideoFile


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


@pytest.mark.parametrize(("name", "message"), [("no/night.mp4", "does not exist"), ("night.what", "cannot be written")])
def test_what_cannot_be_written(tmp_path, name, message):
    video = VideoFile(tmp_path / name, 10)
    with pytest.raises(WnlbError, match=message):
        video.write(np.zeros((48, 64, 3), np.uint8))
    video.close()
    assert list(tmp_path.iterdir()) == []
