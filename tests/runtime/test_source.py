from pathlib import Path

import cv2
import numpy as np
import pytest

from wnlb.runtime.errors import PictureError, PictureWarning
from wnlb.runtime.pictures import OTHER_SUFFIXES
from wnlb.runtime.source import PictureSource, open_source


def picture(path, value: int):
    """A constant picture; PNG, so that its value comes back exactly."""
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full((6, 8, 3), value, np.uint8))
    return path


def video(path, code: str, frames: int = 9):
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*code), 10, (64, 48))
    assert writer.isOpened()
    for number in range(frames):
        writer.write(np.full((48, 64, 3), 25 * number, np.uint8))
    writer.release()
    return path


def values(source) -> dict[str, int | None]:
    return {frame.name: None if frame.pixels is None else int(frame.pixels[0, 0, 0]) for frame in source}


def test_a_single_picture(tmp_path):
    source = open_source(str(picture(tmp_path / "night.png", 7)))
    assert (len(source), source.is_video) == (1, False)
    (frame,) = source
    assert (frame.name, frame.error) == ("night.png", "")
    np.testing.assert_array_equal(frame.pixels, np.full((6, 8, 3), 7, np.uint8))


def test_a_folder_gives_its_pictures_in_the_order_of_their_names(tmp_path):
    for value, name in enumerate(["b.png", "a.PNG", "c.bmp", "sub/d.png"]):
        picture(tmp_path / name, value)
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / "folder.png").mkdir()
    source = open_source(str(tmp_path))
    assert len(source) == 3
    assert list(values(source).items()) == [("a.PNG", 1), ("b.png", 0), ("c.bmp", 2)]


def test_a_bad_file_among_good_ones_is_a_frame_with_an_error(tmp_path):
    for name in ("a.png", "c.png"):
        picture(tmp_path / name, 9)
    (tmp_path / "b.png").write_bytes(b"")
    frames = list(open_source(str(tmp_path)))
    assert [frame.pixels is None for frame in frames] == [False, True, False]
    assert [bool(frame.error) for frame in frames] == [False, True, False]
    assert frames[1].name == "b.png"
    assert str(tmp_path / "b.png") in frames[1].error


def test_a_glob_gives_files_only_and_any_suffix(tmp_path):
    picture(tmp_path / "a.png", 1)
    picture(tmp_path / "b.png", 2).rename(tmp_path / "b.data")
    (tmp_path / "c").mkdir()
    assert values(open_source(f"{tmp_path}/*")) == {"a.png": 1, "b.data": 2}
    assert values(open_source(f"{tmp_path}/a.*")) == {"a.png": 1}


def test_pictures_of_one_name_in_two_folders_stay_apart(tmp_path, monkeypatch):
    picture(tmp_path / "night/lis/1.png", 1)
    picture(tmp_path / "night/exdark/1.png", 2)
    expected = {"exdark/1.png": 2, "lis/1.png": 1}
    assert values(open_source(f"{tmp_path}/**/*.png")) == expected
    monkeypatch.chdir(tmp_path)
    assert values(open_source("night/*/1.png")) == expected
    assert values(open_source("*/lis/*.png")) == {"1.png": 1}
    monkeypatch.chdir(tmp_path / "night/lis")
    assert values(open_source("*.png")) == values(open_source("./1.png")) == {"1.png": 1}


@pytest.mark.parametrize(("name", "code"), [("drive.mp4", "mp4v"), ("drive.avi", "MJPG")])
def test_a_video_gives_every_frame_in_order(tmp_path, name, code):
    source = open_source(str(video(tmp_path / name, code)))
    assert (len(source), source.is_video, source.fps) == (9, True, 10)
    frames = list(source)
    assert [frame.name for frame in frames] == [f"drive_{number:06d}" for number in range(9)]
    assert {frame.pixels.shape for frame in frames} == {(48, 64, 3)}
    # Constant frames: what these codecs lose is far less than half of the 25 levels between neighbours.
    assert [round(float(frame.pixels.mean()) / 25) for frame in frames] == list(range(9))


def test_a_video_without_a_readable_frame_is_refused(tmp_path):
    path = video(tmp_path / "drive.avi", "MJPG")
    data = path.read_bytes()
    path.write_bytes(data[: data.index(b"movi") + 4])  # the header alone, which states 9 frames
    with pytest.raises(PictureError, match="no frame"):
        list(open_source(str(path)))


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("missing.png", "missing.png does not exist"),
        ("missing/*.png", "does not exist"),
        ("empty", "holds no pictures"),
        ("notes.txt", "cannot be opened; it is cut short, damaged, or no video"),
        ("broken.mp4", "cannot be opened; it is cut short, damaged, or no video"),
        ("nothing.mp4", "cannot be opened; it is empty (0 bytes)"),
        ("97", "camera 97 cannot be opened; check that it is plugged in"),
    ],
)
def test_what_is_not_there_is_refused(tmp_path, monkeypatch, source, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("no video")
    (tmp_path / "nothing.mp4").write_bytes(b"")
    (tmp_path / "broken.mp4").write_bytes(video(tmp_path / "whole.mp4", "mp4v").read_bytes()[:-300])
    with pytest.raises(PictureError) as refused:
        open_source(source)
    assert said in str(refused.value)
    assert source.partition("*")[0] in str(refused.value)


def test_an_address_is_not_called_missing():
    with pytest.raises(PictureError, match=r"^source rtsp://\.\.\. is an address; 'wnlb run' opens") as refused:
        open_source("rtsp://me:secret@camera/night")
    assert "secret" not in str(refused.value)
    assert "\n" not in str(refused.value)


def test_formats_that_are_not_read_are_named_once_with_their_counts(tmp_path):
    for name in ("a.png", "b.JFIF.png"):
        picture(tmp_path / name, 1)
    cv2.imencode(".jpg", np.zeros((6, 8, 3), np.uint8))[1].tofile(tmp_path / "c.JFIF")
    for name in ("1.heic", "2.HEIC", "3.heif", "4.dng", "5.nef", "6.arw", "7.raw", "8.gif", "notes.txt"):
        (tmp_path / name).write_bytes(b"what a camera wrote")
    with pytest.warns(PictureWarning) as told:
        source = open_source(str(tmp_path))
    assert len(told) == 1
    said = "left out 1 .arw, 1 .dng, 1 .gif, 2 .heic, 1 .heif, 1 .nef, 1 .raw;"
    assert said in str(told[0].message)
    assert str(tmp_path) in str(told[0].message)
    assert values(source) == {"a.png": 1, "b.JFIF.png": 1, "c.JFIF": 0}


def test_a_folder_of_other_formats_alone_is_refused_with_their_counts(tmp_path):
    for name in ("1.heic", "2.heic"):
        (tmp_path / name).write_bytes(b"what a telephone wrote")
    with pytest.raises(PictureError, match=r"holds no pictures \(2 \.heic: save them as PNG or JPEG"):
        open_source(str(tmp_path))


def test_avif_is_read_where_this_opencv_can(tmp_path):
    try:
        encoded, data = cv2.imencode(".avif", np.full((32, 32, 3), 80, np.uint8))
    except cv2.error:
        encoded = False
    if not encoded:
        assert ".avif" in OTHER_SUFFIXES
        return
    data.tofile(tmp_path / "a.avif")
    assert values(open_source(str(tmp_path))) == {"a.avif": pytest.approx(80, abs=2)}


def test_a_folder_of_folders_says_how_to_go_into_them(tmp_path):
    picture(tmp_path / "night" / "a.png", 1)
    with pytest.raises(PictureError, match=r"holds no pictures; .*/\*\*/\*' goes into its folders"):
        open_source(str(tmp_path))


def test_links_that_lead_back_give_no_picture_twice(tmp_path):
    picture(tmp_path / "night" / "sub" / "a.png", 1)
    (tmp_path / "night" / "sub" / "back").symlink_to("../../night")
    (tmp_path / "night" / "self").symlink_to(".")
    (tmp_path / "beside").symlink_to("night/sub")  # a second way, but no loop
    assert values(open_source(f"{tmp_path}/night/**/*.png")) == {"a.png": 1}
    assert set(values(open_source(f"{tmp_path}/**/*.png"))) == {"beside/a.png", "night/sub/a.png"}


def test_a_very_deep_folder(tmp_path):
    deep = tmp_path.joinpath(*["d" * 40] * 60)
    picture(deep / "a.png", 7)
    picture(tmp_path / "b.png", 8)
    assert sorted(values(open_source(f"{tmp_path}/**/*.png")).values()) == [7, 8]


def test_paths_of_both_kinds_and_with_dots_have_names_inside_their_common_folder(tmp_path, monkeypatch):
    """As the lines of a list may be: relative, absolute, through the folder above."""
    monkeypatch.chdir(tmp_path)
    for value, name in enumerate(["lists/a.png", "night/b.png", "c.png"]):
        picture(tmp_path / name, value)
    source = PictureSource([Path("lists/a.png"), tmp_path / "night" / "b.png", Path("lists/../c.png"), Path("c.png")])
    assert values(source) == {"lists/a.png": 0, "night/b.png": 1, "c.png": 2}
