"""What one picture may cost, and what is left when a run fails."""

import errno
import json
import os

import cv2
import numpy as np
import pytest

from wnlb.runtime import files as runtime_files
from wnlb.runtime import predict_command
from wnlb.runtime.errors import WnlbError
from wnlb.runtime.live.video_file import VideoFile

SIZE = (32, 48)


def picture(path, value: int = 255, size=SIZE):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(path.suffix, np.full((*size, 3), value, np.uint8))[1].tobytes())
    return path


def video(path, frames: int = 4, fps: float = 10):
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), fps, SIZE[::-1])
    for number in range(frames):
        writer.write(np.full((*SIZE, 3), 5 * number, np.uint8))
    writer.release()
    return path


def images(output) -> list[str]:
    return [image["file_name"] for image in json.loads((output / "detections.json").read_text())["images"]]


def files(folder) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("size", [(8, 65501), (8, 65535), (8, 70000), (65536, 8)])
def test_a_picture_that_jpeg_cannot_hold_gets_a_png(wnlb_here, planted_model_path, tmp_path, size):
    for name, shape in (("a.jpg", SIZE), ("wide.bmp", size), ("z.jpg", SIZE)):
        picture(tmp_path / "night" / name, 200, shape)
    ran = wnlb_here("predict", planted_model_path, tmp_path / "night", "-o", tmp_path / "out")
    assert (ran.code, ran.err) == (0, "")
    assert images(tmp_path / "out") == ["a.jpg", "wide.bmp", "z.jpg"]
    assert files(tmp_path / "out") == ["a.jpg", "detections.json", "wide.bmp.png", "z.jpg"]
    assert cv2.imread(str(tmp_path / "out" / "wide.bmp.png")).shape == (*size, 3)


def test_jpeg_is_kept_as_far_as_it_reaches(wnlb_here, planted_model_path, tmp_path):
    picture(tmp_path / "wide.bmp", 200, (8, predict_command.JPEG_SIDE))
    assert wnlb_here("predict", planted_model_path, tmp_path / "wide.bmp", "-o", tmp_path / "out").code == 0
    assert files(tmp_path / "out") == ["detections.json", "wide.bmp.jpg"]


def test_overlays_of_pictures_with_like_names_stay_apart(wnlb_here, planted_model_path, tmp_path):
    """``a.bmp`` becomes a JPEG, whose first choice of a name is another picture's."""
    for value, name in enumerate(["a.bmp", "a.bmp.jpg", "a.jpg", "a.png", "a.tif", "ä ö.bmp", "%s\n.png"]):
        picture(tmp_path / "night" / name, 30 * value)
    ran = wnlb_here("predict", planted_model_path, tmp_path / "night", "-o", tmp_path / "out", "--score-threshold", "1")
    assert ran.code == 0
    written = {
        name: round(float(cv2.imdecode(np.fromfile(tmp_path / "out" / name, np.uint8), 1).mean()) / 30)
        for name in files(tmp_path / "out")
        if not name.endswith(".json")
    }
    assert written == {
        "%s\n.png": 6, "a.bmp.jpg": 1, "a.bmp.jpg.jpg": 0, "a.jpg": 2, "a.png": 3, "a.tif.jpg": 4, "ä ö.bmp.jpg": 5,
    }  # fmt: skip


def test_an_overlay_that_cannot_be_written_costs_its_picture_alone(wnlb_here, planted_model_path, tmp_path):
    """A folder stands where the overlay should be; a name is too long once it has a suffix."""
    long = "x" * 251 + ".bmp"  # 255 characters, the most there can be
    for name in ("a.png", "b.png", long, "z.png"):
        picture(tmp_path / "night" / name)
    (tmp_path / "out" / "b.png").mkdir(parents=True)
    ran = wnlb_here("predict", planted_model_path, tmp_path / "night", "-o", tmp_path / "out")
    assert ran.code == 3
    assert images(tmp_path / "out") == ["a.png", "z.png"]
    assert "2 frames, 2 could not be written" in ran.out
    told = ran.err.splitlines()
    assert [("b.png is a folder" in line, "too long" in line) for line in told] == [(True, False), (False, True)]
    assert files(tmp_path / "out") == ["a.png", "detections.json", "z.png"]


def test_the_longest_name_that_needs_no_suffix_is_written(wnlb_here, planted_model_path, tmp_path):
    name = "x" * 251 + ".png"
    picture(tmp_path / name)
    assert wnlb_here("predict", planted_model_path, tmp_path / name, "-o", tmp_path / "out").code == 0
    assert files(tmp_path / "out") == ["detections.json", name]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_a_full_disk_ends_with_one_line_and_no_half_file(wnlb_here, planted_model_path, tmp_path, monkeypatch, code):
    for name in ("a.png", "b.png", "c.png"):
        picture(tmp_path / "night" / name)
    replace, done = os.replace, []

    def full(source, target):
        done.append(target)
        if len(done) == 2:
            raise OSError(code, os.strerror(code))
        replace(source, target)

    monkeypatch.setattr(runtime_files.os, "replace", full)
    ran = wnlb_here("predict", planted_model_path, tmp_path / "night", "-o", tmp_path / "out", "--quiet")
    assert os.strerror(code) in ran.refused()
    assert files(tmp_path / "out") == ["a.png"]


def test_a_picture_that_cannot_be_prepared_does_not_cost_its_batch(
    wnlb_here, planted_model_path, tmp_path, monkeypatch
):
    for name, size in (("a.png", SIZE), ("b.png", (31, 48)), ("c.png", SIZE)):
        picture(tmp_path / "night" / name, 255, size)
    predict_batch = predict_command.Predictor.predict_batch

    def picky(self, frames):
        if any(frame.shape[0] == 31 for frame in frames):
            raise cv2.error("too odd")
        return predict_batch(self, frames)

    monkeypatch.setattr(predict_command.Predictor, "predict_batch", picky)
    ran = wnlb_here("predict", planted_model_path, tmp_path / "night", "-o", tmp_path / "out", "--quiet")
    assert (ran.code, ran.err.count("\n")) == (3, 1)
    assert "b.png cannot be prepared: too odd" in ran.err
    assert images(tmp_path / "out") == ["a.png", "c.png"]


@pytest.mark.parametrize("error", [cv2.error("no such line"), MemoryError("no memory")])
def test_an_overlay_that_cannot_be_drawn_costs_its_picture_alone(
    wnlb_here, planted_model_path, tmp_path, monkeypatch, error
):
    for name, size in (("a.png", SIZE), ("b.png", (31, 48)), ("c.png", SIZE)):
        picture(tmp_path / "night" / name, 255, size)
    draw = predict_command.draw_on

    def picky(pixels, *what):
        if pixels.shape[0] == 31:
            raise error
        return draw(pixels, *what)

    monkeypatch.setattr(predict_command, "draw_on", picky)
    ran = wnlb_here("predict", planted_model_path, tmp_path / "night", "-o", tmp_path / "out", "--quiet")
    assert (ran.code, ran.err) == (3, f"wnlb predict: overlay of picture b.png cannot be drawn: {error}\n")
    assert images(tmp_path / "out") == ["a.png", "c.png"]


# 66.667 and 200/3 need 66,667 ticks a second of MPEG-4's at most 65,535.
@pytest.mark.parametrize("fps", [66.667, 29.97, 23.976, 59.94, 1000 / 15, 1000 / 3, 0.1, 240, 119.88])
def test_a_video_of_any_rate_gives_one_of_that_rate(wnlb_here, planted_model_path, tmp_path, monkeypatch, fps):
    capture = cv2.VideoCapture

    class Stating:
        """A container that states this rate, which OpenCV's own writer may not be able to state."""

        def __init__(self, *where):
            self._capture = capture(*where)

        def get(self, what):
            return fps if what == cv2.CAP_PROP_FPS else self._capture.get(what)

        def __getattr__(self, name):
            return getattr(self._capture, name)

    monkeypatch.setattr(cv2, "VideoCapture", Stating)
    source = video(tmp_path / "drive.avi", 7)
    ran = wnlb_here("predict", planted_model_path, source, "-o", tmp_path / "out", "--quiet")
    monkeypatch.undo()
    assert (ran.code, ran.err) == (0, "")
    written = cv2.VideoCapture(str(tmp_path / "out" / "drive.mp4"))
    assert written.get(cv2.CAP_PROP_FRAME_COUNT) == 7
    assert written.get(cv2.CAP_PROP_FPS) == pytest.approx(fps, abs=0.0051)
    assert len(images(tmp_path / "out")) == 7


@pytest.mark.parametrize("after", [0, 2])
def test_a_video_that_fails_leaves_nothing(wnlb_here, planted_model_path, tmp_path, monkeypatch, after):
    write, done = VideoFile.write, []

    def failing(self, frame):
        done.append(0)
        if len(done) > after:
            raise WnlbError("the encoder fell out")
        write(self, frame)

    monkeypatch.setattr(VideoFile, "write", failing)
    ran = wnlb_here("predict", planted_model_path, video(tmp_path / "drive.avi"), "-o", tmp_path / "out", "--quiet")
    assert "the encoder fell out" in ran.refused()
    assert list((tmp_path / "out").iterdir()) == []


def test_a_video_that_is_not_whole_in_the_end_leaves_no_detections(
    wnlb_here, planted_model_path, tmp_path, monkeypatch
):
    write = cv2.VideoWriter.write

    class Losing:
        def __init__(self, *how):
            self._writer, self._left = writer(*how), 2

        def write(self, frame):
            if self._left:
                write(self._writer, frame)
            self._left = max(self._left - 1, 0)

        def __getattr__(self, name):
            return getattr(self._writer, name)

    source = video(tmp_path / "drive.avi")
    writer, fourcc = cv2.VideoWriter, cv2.VideoWriter.fourcc
    Losing.fourcc = staticmethod(fourcc)
    monkeypatch.setattr(cv2, "VideoWriter", Losing)
    ran = wnlb_here("predict", planted_model_path, source, "-o", tmp_path / "out", "--quiet")
    assert "2 of 4 frames" in ran.refused()
    assert list((tmp_path / "out").iterdir()) == []


def test_a_video_that_ends_too_soon_is_told(wnlb_here, planted_model_path, tmp_path):
    source = video(tmp_path / "drive.avi", 40)
    data = source.read_bytes()
    source.write_bytes(data[: len(data) // 2])
    ran = wnlb_here("predict", planted_model_path, source, "-o", tmp_path / "out", "--quiet")
    assert ran.code == 0
    done = len(images(tmp_path / "out"))
    assert ran.err == f"wnlb predict: video drive ended after {done} of the 40 frames that its file states\n"
    assert 0 < done < 40


def test_a_video_whose_name_is_not_utf8_is_refused(wnlb, planted_model_path, tmp_path):
    """OpenCV 5.0 ends the process by a segmentation fault there."""
    source = tmp_path / "drive.avi"
    video(source)
    odd = os.path.join(os.fsencode(tmp_path), b"dr\xffve.avi")
    os.rename(source, odd)
    said = wnlb("predict", planted_model_path, os.fsdecode(odd), "-o", tmp_path / "out").refused()
    assert "dr\\xffve.avi has a name that is not UTF-8" in said
    said = wnlb("run", planted_model_path, os.fsdecode(odd), "--jsonl", "-").refused()
    assert "not UTF-8" in said


def test_pictures_whose_names_are_not_utf8_are_read(wnlb, planted_model_path, tmp_path):
    picture(tmp_path / "night" / "a.png")
    os.rename(tmp_path / "night" / "a.png", os.path.join(os.fsencode(tmp_path / "night"), b"n\xe4ht.png"))
    ran = wnlb("predict", planted_model_path, tmp_path / "night", "-o", tmp_path / "out")
    assert (ran.code, ran.err) == (0, "")
    assert os.fsencode(images(tmp_path / "out")[0]) == b"n\xe4ht.png"
    assert b"n\xe4ht.png" in os.listdir(os.fsencode(tmp_path / "out"))


def test_12_bits_in_16_bit_files_are_told_or_set(wnlb_here, planted_model_path, tmp_path):
    """The planted score is the mean brightness: 2048 of 4095 is a half, of 65535 a thirty-second."""
    (tmp_path / "a.png").write_bytes(cv2.imencode(".png", np.full(SIZE, 2048, np.uint16))[1].tobytes())
    words = ("predict", planted_model_path, tmp_path / "a.png", "--score-threshold", "0", "--quiet", "-o")
    told = wnlb_here(*words, tmp_path / "told")
    assert (told.code, told.err.count("\n"), "--bits 12" in told.err) == (0, 1, True)
    twelve, sixteen = (wnlb_here(*words, tmp_path / bits, "--bits", bits) for bits in ("12", "16"))
    assert (twelve.code, twelve.err, sixteen.code, sixteen.err) == (0, "", 0, "")
    best = {
        name: max(
            entry["score"] for entry in json.loads((tmp_path / name / "detections.json").read_text())["annotations"]
        )
        for name in ("told", "12", "16")
    }
    assert best == {
        "12": pytest.approx(128 / 255, abs=1e-3),
        **dict.fromkeys(("told", "16"), pytest.approx(8 / 255, abs=1e-3)),
    }
    assert "bits are 20; expected 8 to 16" in wnlb_here(*words, tmp_path / "20", "--bits", "20").refused()


def test_what_is_left_out_is_told_in_one_line_and_is_no_failure(wnlb_here, planted_model_path, tmp_path):
    picture(tmp_path / "night" / "a.png")
    for name in ("1.heic", "2.heic", "3.nef"):
        (tmp_path / "night" / name).write_bytes(b"what a camera wrote")
    ran = wnlb_here("predict", planted_model_path, tmp_path / "night", "-o", tmp_path / "out", "--quiet")
    assert ran.code == 0
    assert ran.err.startswith(f"wnlb predict: folder {tmp_path / 'night'}: left out 2 .heic, 1 .nef;")
    assert ran.err.count("\n") == 1
