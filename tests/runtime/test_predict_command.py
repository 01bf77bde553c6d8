import errno
import json
import shutil
import time

import cv2
import numpy as np
import pytest
from pycocotools.coco import COCO

from wnlb.runtime import cli, predict_command, source
from wnlb.runtime.errors import WnlbError
from wnlb.runtime.predictor import Predictor

SIZE = (32, 48)  # of the pictures: half of the planted model's input


def picture(path, value: int = 51):
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full((*SIZE, 3), value, np.uint8))
    return path


def video(path, frames: int, code: str = "MJPG"):
    """Frame n has the value 20 n."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*code), 10, SIZE[::-1])
    for number in range(frames):
        writer.write(np.full((*SIZE, 3), 20 * number, np.uint8))
    writer.release()
    return path


def truncated(path):
    """The first half of a picture of noise."""
    noise = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), np.uint8)
    data = cv2.imencode(path.suffix, noise)[1].tobytes()
    path.write_bytes(data[: len(data) // 2])
    return path


def written(output) -> dict:
    return json.loads((output / "detections.json").read_text())


def files(folder) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def night(tmp_path):
    """A folder of three pictures in three formats, and in their midst a truncated one."""
    for number, name in enumerate(["a.png", "c.jpg", "d.bmp"], 1):
        picture(tmp_path / "night" / name, 51 * number)
    truncated(tmp_path / "night" / "b.jpg")
    return tmp_path / "night"


def test_a_folder_with_a_bad_picture(wnlb, planted_model_path, night, tmp_path):
    """Two batches, the second half full; the bad picture does not shift what belongs to the others."""
    output = tmp_path / "new" / "out"
    ran = wnlb("predict", planted_model_path, night, "-o", output, "--score-threshold", "0.25", "--device", "cpu")
    assert ran.code == 3
    assert ran.err.startswith("wnlb predict: picture ")
    assert str(night / "b.jpg") in ran.err
    assert ran.err.count("\n") == 1
    assert "3 frames, 1 could not be read; detections: lamp 2, dark cat 1" in ran.out
    assert files(output) == ["a.png", "c.jpg", "d.bmp.jpg", "detections.json"]
    document = written(output)
    assert [image["file_name"] for image in document["images"]] == ["a.png", "c.jpg", "d.bmp"]
    # The lamp's score is the brightness of the picture, the dark cat's half of it.
    found = [(a["image_id"], a["category_id"], a["score"]) for a in document["annotations"]]
    assert found == [(2, 1, 0.4), (3, 1, 0.6), (3, 2, 0.3)]
    assert document["annotations"][0]["bbox"] == [4, 8, 16, 16]  # half of 8 16 40 48, as x y w h
    overlay = cv2.imread(str(output / "c.jpg"))
    assert overlay.shape == (*SIZE, 3)
    assert np.abs(overlay[:6].astype(int) - 102).max() < 60  # above the box
    assert np.abs(overlay[9:23, 5:19].astype(int) - 102).max() > 30


# pycocotools 2.0.11 answers NumPy 2's new argument of __array__ with a warning.
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_detections_json_of_a_real_model(wnlb, brief_model_path, tmp_path):
    cv2.imwrite(str(tmp_path / "noise.png"), np.random.default_rng(0).integers(0, 256, (90, 140, 3), np.uint8))
    ran = wnlb("predict", brief_model_path, tmp_path / "noise.png", "-o", tmp_path / "out", "--score-threshold", "0.1")
    assert (ran.code, ran.err) == (0, "")
    data = COCO(tmp_path / "out" / "detections.json")
    assert len(data.cats) == 8
    with Predictor(brief_model_path, score_threshold=0.1) as predictor:
        expected = predictor(cv2.imread(str(tmp_path / "noise.png")))
    assert len(data.anns) == len(expected) > 0
    for annotation, full in zip(data.anns.values(), expected.full_masks(), strict=True):
        np.testing.assert_array_equal(data.annToMask(annotation), full)


def test_a_video_gives_a_video_of_as_many_frames(wnlb, planted_model_path, tmp_path):
    source = video(tmp_path / "drive.avi", 11)
    ran = wnlb("predict", planted_model_path, source, "-o", tmp_path / "out", "--score-threshold", "0", "--quiet")
    assert (ran.code, ran.out, ran.err) == (0, "", "")
    assert files(tmp_path / "out") == ["detections.json", "drive.mp4"]
    document = written(tmp_path / "out")
    assert [image["file_name"] for image in document["images"]] == [f"drive_{n:06d}" for n in range(11)]
    scores = [a["score"] for a in document["annotations"] if a["category_id"] == 1]
    assert [round(score * 255 / 20) for score in scores] == list(range(11))  # in order, none twice
    capture = cv2.VideoCapture(str(tmp_path / "out" / "drive.mp4"))
    assert capture.get(cv2.CAP_PROP_FPS) == 10
    frames = []
    while (read := capture.read())[0]:
        frames.append(read[1])
    assert len(frames) == 11
    assert {frame.shape for frame in frames} == {(*SIZE, 3)}


def test_a_glob_over_folders_keeps_pictures_of_one_name_apart(wnlb, planted_model_path, tmp_path):
    for value, folder in ((51, "exdark"), (102, "lis")):
        picture(tmp_path / "night" / folder / "1.png", value)
    ran = wnlb("predict", planted_model_path, "night/**/*.png", "-o", "out", "--quiet", cwd=tmp_path)
    assert (ran.code, ran.err) == (0, "")
    assert files(tmp_path / "out") == ["detections.json", "exdark/1.png", "lis/1.png"]
    assert [image["file_name"] for image in written(tmp_path / "out")["images"]] == ["exdark/1.png", "lis/1.png"]


def test_a_model_without_masks(wnlb, planted_model, make_contract, tmp_path):
    model = planted_model(tmp_path / "boxes.onnx", make_contract(masks="none"))
    source = picture(tmp_path / "a.png", 255)
    assert wnlb("predict", model, source, "-o", tmp_path / "out").code == 0
    (annotation,) = [a for a in written(tmp_path / "out")["annotations"] if a["category_id"] == 1]
    assert "segmentation" not in annotation
    assert annotation["area"] == 256


def test_replaces_what_an_earlier_run_wrote(wnlb, planted_model_path, tmp_path):
    output = tmp_path / "out"
    for value in (255, 0):
        ran = wnlb("predict", planted_model_path, picture(tmp_path / "a.png", value), "-o", output)
        assert ran.code == 0
    assert written(output)["annotations"] == []
    assert "1 frame; detections: none" in ran.out
    assert not cv2.imread(str(output / "a.png")).any()


@pytest.mark.parametrize("name", ["bad.jpg", "bad.png", "bad.bmp", "bad.tiff", "bad.jp2"])
def test_a_single_bad_picture_is_one_line(wnlb, planted_model_path, tmp_path, name):
    """Also where OpenCV would have its own say on stderr."""
    line = wnlb("predict", planted_model_path, truncated(tmp_path / name), "-o", tmp_path / "out").refused()
    assert str(tmp_path / name) in line


def test_pictures_that_are_all_bad_are_one_line(wnlb, planted_model_path, tmp_path):
    for name in ("a.jpg", "b.jpg"):
        truncated(tmp_path / name)
    line = wnlb("predict", planted_model_path, tmp_path, "-o", tmp_path / "out").refused()
    assert "none of 2 pictures can be read" in line
    assert str(tmp_path / "a.jpg") in line


@pytest.mark.parametrize(
    ("source", "output"),
    [
        ("night", "night"),
        ("night/", "./night/../night"),
        ("night/a.png", "night"),
        ("night/*.png", "night"),
        ("nigh?/*.png", "night"),
        ("night/**/*.png", "night"),
        ("night/**/*.png", "night/sub"),
        ("night/sub/**/*.png", "night/sub"),
        ("night", "link"),
        ("night/drive.mp4", "night"),
    ],
)
def test_pictures_are_never_overwritten(wnlb, planted_model_path, tmp_path, source, output):
    picture(tmp_path / "night" / "a.png")
    picture(tmp_path / "night" / "sub" / "a.png")
    video(tmp_path / "night" / "drive.mp4", 3, "mp4v")
    (tmp_path / "link").symlink_to("night")
    before = {path: path.read_bytes() for path in (tmp_path / "night").rglob("*.*")}
    ran = wnlb("predict", planted_model_path, source, "-o", output, cwd=tmp_path)
    assert "would be overwritten" in ran.refused()
    assert {path: path.read_bytes() for path in (tmp_path / "night").rglob("*.*")} == before


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["missing.onnx", "a.png"], "missing.onnx does not exist"),
        (["night", "a.png"], "night is a folder"),
        (["a.png", "a.png"], "expected .onnx"),
        (["no_contract.onnx", "a.png"], "has no wnlb contract"),
        (["truncated.onnx", "a.png"], "cannot be opened by ONNX Runtime"),
        (["zero.onnx", "a.png"], "by ONNX Runtime: it is empty (0 bytes); copy or export it again"),
        (["planted.onnx", "missing.png"], "missing.png does not exist"),
        (["planted.onnx", "night"], "holds no pictures"),
        (["planted.onnx", "97"], "camera 97 cannot be opened"),
        (["planted.onnx", "garbage.mp4"], "garbage.mp4 cannot be opened"),
        (["planted.onnx", "headless.avi"], "holds no frame"),
        (["planted.onnx", "a.png", "--show"], "DISPLAY is not set"),
        (["planted.onnx", "a.png", "--score-threshold", "1.5"], "score threshold is 1.5"),
        (["planted.onnx", "a.png", "--threads", "-1"], "threads is -1"),
        (["planted.onnx", "a.png", "-o", "planted.onnx/deep"], "planted.onnx is a file; choose another"),
        (["planted.onnx", "a.png", "-o", "/proc/out"], "cannot be made"),  # not even by root
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_one_line(wnlb, planted_model_path, planted_model, tmp_path, words, said):
    picture(tmp_path / "a.png")
    (tmp_path / "night").mkdir()
    shutil.copy(planted_model_path, tmp_path / "planted.onnx")
    (tmp_path / "truncated.onnx").write_bytes(planted_model_path.read_bytes()[:300])
    (tmp_path / "zero.onnx").write_bytes(b"")
    (tmp_path / "garbage.mp4").write_bytes(np.random.default_rng(0).bytes(2000))
    data = video(tmp_path / "whole.avi", 5).read_bytes()
    (tmp_path / "headless.avi").write_bytes(data[: data.index(b"movi") + 4])
    planted_model(tmp_path / "no_contract.onnx", producer="someone")
    assert said in wnlb("predict", *words, cwd=tmp_path).refused()


@pytest.mark.parametrize("frames", [0, 2, 4])
def test_an_interrupted_video_keeps_what_was_done(planted_model_path, tmp_path, monkeypatch, capsys, frames):
    """Ctrl-C ends a camera: the frames before it are in both files."""
    predict_batch = Predictor.predict_batch

    def interrupted(self, batch):
        if batch[0][0, 0, 0] > 20 * frames - 10:  # of this frame or a later one
            raise KeyboardInterrupt
        return predict_batch(self, batch)

    monkeypatch.setattr(Predictor, "predict_batch", interrupted)
    source, output = video(tmp_path / "drive.avi", 7), tmp_path / "out"
    assert cli.main(["predict", str(planted_model_path), str(source), "-o", str(output)]) == 0
    said = capsys.readouterr()
    assert f"{frames} frames; detections" in said.out
    assert "nan" not in said.out
    assert said.err == ""
    assert len(written(output)["images"]) == frames
    if frames:
        assert len([*iter_frames(output / "drive.mp4")]) == frames


def iter_frames(path):
    capture = cv2.VideoCapture(str(path))
    while (read := capture.read())[0]:
        yield read[1]


def test_pictures_do_not_pile_up(wnlb_here, planted_model_path, tmp_path, monkeypatch):
    """Reading goes ahead of writing by eight batches at most, two of them in inference; it ends where writing does."""
    for number in range(40):
        picture(tmp_path / "night" / f"{number:02d}.bmp")
    read_picture, draw, read, ahead = source.read_picture, predict_command.draw_on, [], []

    def counted(*what):
        read.append(what)
        return read_picture(*what)

    def slow(*what):
        time.sleep(0.01)
        ahead.append(len(read) - len(ahead))
        if len(ahead) == 20:
            raise WnlbError("full") from OSError(errno.ENOSPC, "full")
        return draw(*what)

    monkeypatch.setattr(source, "read_picture", counted)
    monkeypatch.setattr(predict_command, "draw_on", slow)
    assert "full" in wnlb_here("predict", planted_model_path, tmp_path / "night", "-o", tmp_path / "out").refused()
    assert 2 < max(ahead) <= 16
    assert len(read) <= 36
    assert len(files(tmp_path / "out")) == 19


def test_interrupted_pictures_are_an_interruption(planted_model_path, night, tmp_path, monkeypatch, capsys):
    def interrupted(self, batch):
        raise KeyboardInterrupt

    monkeypatch.setattr(Predictor, "predict_batch", interrupted)
    assert cli.main(["predict", str(planted_model_path), str(night), "-o", str(tmp_path / "out")]) == 130
    assert capsys.readouterr().err == "wnlb predict: interrupted\n"
