"""Night videos: the same pixels from the same seed, identities that move, hide and come back."""

import hashlib
import json
from collections import defaultdict
from pathlib import Path

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco_mask

from wnlb.calibration.labels.reader import read_labels
from wnlb.calibration.scenes.camera import Camera
from wnlb.calibration.scenes.video import NightVideo, VideoFrame
from wnlb.calibration.scenes.video_dataset import write_videos
from wnlb.runtime.cli import main
from wnlb.runtime.errors import WnlbError

FRAMES, FPS, SIZE = 16, 8.0, (96, 128)


def video(index: int, darkness: float = 300, seed: int = 7) -> NightVideo:
    return NightVideo(seed, index, FRAMES, FPS, *SIZE, Camera(darkness))


@pytest.fixture(scope="module")
def films() -> list[list[VideoFrame]]:
    return [[video(i).frame(n) for n in range(FRAMES)] for i in range(6)]


def test_same_seed_same_pixels() -> None:
    """Pinned: a change of this hash makes every figure of tracking incomparable with older ones."""
    frame = video(0).frame(5)
    whole = hashlib.sha256(frame.picture.tobytes())
    for item in frame.objects:
        whole.update(bytes([item.label, item.drawn]) + item.mask.tobytes())
    assert whole.hexdigest()[:16] == "97d1779bea77ff72"
    again = video(0).frame(5)
    assert np.array_equal(again.picture, frame.picture)
    assert not np.array_equal(video(1).frame(5).picture, frame.picture)
    assert not np.array_equal(video(0, seed=8).frame(5).picture, frame.picture)


def test_each_frame_has_noise_of_its_own(films: list[list[VideoFrame]]) -> None:
    """Noise of two frames is unlike where nothing moves: the high frequencies do not correlate."""
    residuals = []
    for frame in films[0][:2]:
        green = np.ascontiguousarray(frame.picture[..., 1])
        residuals.append((green.astype(np.float64) - cv2.medianBlur(green, 3)).ravel())
    assert abs(np.corrcoef(residuals)[0, 1]) < 0.25
    assert np.std(residuals[0]) > 1


def test_objects_keep_number_and_class_and_move(films: list[list[VideoFrame]]) -> None:
    moved = []
    for film in films:
        classes: dict[int, set[int]] = defaultdict(set)
        places: dict[int, list[float]] = defaultdict(list)
        for frame in film:
            numbers = [item.drawn for item in frame.objects]
            assert len(set(numbers)) == len(numbers)
            for item in frame.objects:
                classes[item.drawn].add(item.label)
                places[item.drawn].append(float(np.nonzero(item.mask)[1].mean()))
        assert all(len(labels) == 1 for labels in classes.values())
        moved += [np.ptp(row) for row in places.values() if len(row) > 4]
    assert np.median(moved) > 5
    assert max(moved) > 40


def test_objects_hide_one_another_and_come_back(films: list[list[VideoFrame]]) -> None:
    """Somewhere an object is away for some frames and seen again under its number; masks never overlap."""
    gaps = 0
    for film in films:
        seen: dict[int, list[int]] = defaultdict(list)
        for number, frame in enumerate(film):
            total = sum((item.mask.astype(int) for item in frame.objects), np.zeros(SIZE, int))
            assert total.max(initial=0) <= 1
            for item in frame.objects:
                seen[item.drawn].append(number)
        gaps += sum(int((np.diff(row) > 1).any()) for row in seen.values())
    assert gaps > 0


def test_the_exposure_changes_and_the_picture_with_it(films: list[list[VideoFrame]]) -> None:
    spread = [max(levels) / min(levels) for film in films if (levels := [f.electrons_at_white for f in film])]
    assert max(spread) > 1.5
    assert all(300 * 0.3 <= frame.electrons_at_white <= 600 for film in films for frame in film)


def test_sets_are_coco_vid_whatever_the_number_of_workers(tmp_path: Path) -> None:
    for workers in (1, 2):
        write_videos(tmp_path / str(workers), 8, 3, FPS, 64, 96, [300, 30], 5, workers=workers)
    pictures = sorted((tmp_path / "1" / "images").rglob("*.png"))
    assert len(pictures) == 24
    for path in [*pictures, tmp_path / "1" / "annotations.json"]:
        assert path.read_bytes() == (tmp_path / "2" / path.relative_to(tmp_path / "1")).read_bytes()
    document = json.loads((tmp_path / "1" / "annotations.json").read_text())
    assert [video["darkness"] for video in document["videos"]] == [300, 30] * 4
    assert [video["fps"] for video in document["videos"]] == [FPS] * 8
    images = {image["id"]: image for image in document["images"]}
    assert [image["frame_id"] for image in images.values()] == [0, 1, 2] * 8
    of_video: dict[int, set[int]] = defaultdict(set)
    for entry in document["annotations"]:
        assert entry["video_id"] == images[entry["image_id"]]["video_id"]
        assert entry["track_id"] == entry["instance_id"]
        of_video[entry["track_id"]].add(entry["video_id"])
    assert all(len(videos) == 1 for videos in of_video.values())  # an identity is one of the whole set
    made = NightVideo(5, 1, 3, FPS, 64, 96, Camera(30)).frame(2)
    image = next(i for i in images.values() if (i["video_id"], i["frame_id"]) == (2, 2))
    assert np.array_equal(cv2.imread(str(tmp_path / "1" / "images" / image["file_name"]))[..., ::-1], made.picture)
    entries = [entry for entry in document["annotations"] if entry["image_id"] == image["id"]]
    assert len(entries) == len(made.objects) > 0
    for entry, item in zip(entries, made.objects, strict=True):
        assert np.array_equal(coco_mask.decode(entry["segmentation"]).astype(bool), item.mask)
        assert entry["category_id"] == item.label
    labels = read_labels(tmp_path / "1" / "annotations.json")
    assert labels.notes == ()
    assert labels.annotations[0].extra["track_id"] == 1
    film = cv2.VideoCapture(str(tmp_path / "1" / "videos" / "000001.mp4"))
    assert (film.get(cv2.CAP_PROP_FRAME_COUNT), film.get(cv2.CAP_PROP_FPS)) == (3, FPS)


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["scenes", "--video", "-o", str(tmp_path / "new"), "--size", "64x96", "--frames", "2", "--count"]
    assert main([*words, "1"]) == 0
    assert "1 videos of 2 frames" in capsys.readouterr().out
    for wrong in (["0"], ["1", "--frames", "0"], ["1", "--fps", "0"], ["1", "--seed", "-1"], ["1", "--size", "9x9"]):
        assert main([*words[:2], "-o", str(tmp_path / "bad"), *words[4:], *wrong]) == 2
        assert "expected" in capsys.readouterr().err
    assert not (tmp_path / "bad").exists()
    with pytest.raises(WnlbError, match="expected"):
        NightVideo(0, 0, 1, 500, 64, 64, Camera())
