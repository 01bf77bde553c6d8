"""Pictures that EXIF turns, in the frame of their labels; files by Pillow, turned by Pillow."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image as PillowImage
from PIL import ImageOps

from wnlb.calibration.labels.labels import Image, Labels
from wnlb.calibration.labels.pictures import LabelledPictures, as_stored, orientation
from wnlb.runtime.errors import PictureError, WnlbError

WIDE = np.zeros((24, 40, 3), np.uint8)
WIDE[:6, :10] = 255
WIDE[:6, 30:] = 128
SQUARE = np.ascontiguousarray(WIDE[:, :24])
FORMATS = {"a.jpg": "JPEG", "a.png": "PNG", "a.webp": "WEBP", "a.tif": "TIFF"}


def write(path: Path, pixels: np.ndarray, turn: int | None) -> np.ndarray:
    """A grey picture with an EXIF orientation; how it is seen."""
    picture = PillowImage.fromarray(pixels)
    exif = PillowImage.Exif()
    if turn is not None:
        exif[0x0112] = turn
    options = {"quality": 95} if path.suffix == ".jpg" else {"lossless": True} if path.suffix == ".webp" else {}
    picture.save(path, FORMATS.get(f"a{path.suffix}"), exif=exif, **options)
    with PillowImage.open(path) as stored:
        return np.asarray(ImageOps.exif_transpose(stored).convert("RGB"))


def labels_for(*images: tuple[str, tuple[int, int]]) -> Labels:
    return Labels(tuple(Image(i, name, *size) for i, (name, size) in enumerate(images, 1)), (), ())


def close(one: np.ndarray, other: np.ndarray) -> bool:
    return one.shape == other.shape and bool(np.abs(one.astype(int) - other).mean() < 3)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("turn", range(1, 9))
def test_orientations_are_read_and_undone(tmp_path: Path, name: str, turn: int) -> None:
    seen = write(tmp_path / name, WIDE, turn)
    assert orientation(tmp_path / name) == turn
    assert close(as_stored(seen, turn), WIDE)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("turn", [5, 6, 7, 8])
def test_the_size_in_the_labels_tells_their_frame(tmp_path: Path, name: str, turn: int) -> None:
    seen = write(tmp_path / name, WIDE, turn)
    for size, expected in ((WIDE.shape[:2], WIDE), (seen.shape[:2], seen)):
        labels = labels_for((name, size))
        pictures = LabelledPictures(labels, tmp_path)
        assert close(pictures(labels.images[0]), expected)
        assert pictures.notes == ()


@pytest.mark.parametrize(("pixels", "turn"), [(SQUARE, 6), (SQUARE, 3), (WIDE, 3), (WIDE, 2), (WIDE, 4)])
def test_where_the_size_does_not_tell_they_are_read_as_stored(tmp_path: Path, pixels: np.ndarray, turn: int) -> None:
    write(tmp_path / "a.png", pixels, turn)
    labels = labels_for(("a.png", pixels.shape[:2]))
    pictures = LabelledPictures(labels, tmp_path)
    assert close(pictures(labels.images[0]), pixels)
    (note,) = pictures.notes
    assert note.startswith("1 picture(s) with an EXIF orientation")
    assert "a.png" in note
    assert "not turned" in note


def test_and_as_the_others_of_their_set_where_these_tell(tmp_path: Path) -> None:
    seen = write(tmp_path / "square.png", SQUARE, 6)
    write(tmp_path / "plain.png", WIDE, None)
    turned = write(tmp_path / "wide.png", WIDE, 8)
    for size, expected in ((turned.shape[:2], seen), (WIDE.shape[:2], SQUARE)):
        labels = labels_for(("plain.png", WIDE.shape[:2]), ("square.png", (24, 24)), ("wide.png", size))
        pictures = LabelledPictures(labels, tmp_path)
        assert close(pictures(labels.images[1]), expected)
        assert len(pictures.notes) == 1


def test_other_sizes_are_refused_and_missing_files_told(tmp_path: Path) -> None:
    write(tmp_path / "a.png", WIDE, None)
    labels = labels_for(("a.png", (24, 41)), ("sub\\b.png", (24, 40)), ("x" * 300, (1, 1)))
    pictures = LabelledPictures(labels, tmp_path)
    with pytest.raises(PictureError, match=r"a\.png is 40x24; its annotations say 41x24"):
        pictures(labels.images[0])
    with pytest.raises(WnlbError, match=r"2 of 3 pictures are not in .*; the first: sub/b\.png"):
        pictures.check_all_there()
    (tmp_path / "sub").mkdir()
    cv2.imwrite(str(tmp_path / "sub" / "b.png"), WIDE)
    assert close(LabelledPictures(labels, tmp_path)(labels.images[1]), WIDE)


def test_a_film_behind_a_picture_does_not_turn_it(tmp_path: Path) -> None:
    """Telephones put a film, with EXIF data of its own, after the picture."""
    write(tmp_path / "plain.jpg", WIDE, None)
    write(tmp_path / "turned.jpg", WIDE, 6)
    plain = (tmp_path / "plain.jpg").read_bytes()
    both = tmp_path / "both.jpg"
    both.write_bytes(plain + (tmp_path / "turned.jpg").read_bytes())
    assert orientation(both) == 1
    for data in (b"", b"II*\0", b"MM\0*\xff\xff\xff\xff", plain[:20], b"Exif\0\0II*\0\x08\0\0\0\xff\xff"):
        both.write_bytes(data)
        assert orientation(both) == 1
