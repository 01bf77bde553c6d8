import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from wnlb.calibration.precision.selection import (
    coverage_table,
    hashes_of,
    measure,
    open_pictures,
    pixel_hash,
    read_hashes,
    select_pictures,
    write_manifest,
)
from wnlb.calibration.scenes.camera import DARKNESS_LEVELS
from wnlb.runtime.contract import Contract
from wnlb.runtime.errors import WnlbError


def write(folder: Path, name: str, level: int, noise: float = 0.0, seed: int = 0) -> Path:
    """A grey gradient around ``level`` with noise."""
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng([seed, level])
    picture = np.linspace(0.5, 1.5, 64)[None, :, None] * level + noise * rng.normal(size=(48, 64, 3))
    cv2.imwrite(str(folder / name), np.clip(picture, 0, 255).astype(np.uint8))
    return folder / name


@pytest.fixture(scope="module")
def night(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """96 dark pictures and 4 very dark, noisy ones."""
    folder = tmp_path_factory.mktemp("night")
    for i in range(96):
        write(folder, f"dark_{i:03}.png", 40 + i % 16, 3, i)
    for i in range(4):
        write(folder, f"black_{i}.png", 8, 12, i)
    return folder


def test_the_rare_very_dark_ones_are_chosen(night: Path) -> None:
    selection = select_pictures(str(night), 32)
    assert len(selection.chosen) == 32
    assert sum(picture.name.startswith("black") for picture in selection.chosen) >= 1
    assert len({picture.luminance for picture in selection.chosen}) == 32
    bins = {row[0]: row[2] for row in coverage_table(selection)}
    assert sum(bins.values()) == 32
    dark = sorted(picture.luminance for picture in selection.chosen)
    seen = sorted(picture.luminance for picture in selection.seen)
    np.testing.assert_allclose(np.quantile(dark, [0.25, 0.5, 0.75]), np.quantile(seen, [0.25, 0.5, 0.75]), rtol=0.1)


@pytest.mark.parametrize("count", [3, 8])
def test_few_pictures_are_spread(night: Path, count: int) -> None:
    chosen = select_pictures(str(night), count).chosen
    seen = sorted(picture.luminance for picture in select_pictures(str(night), 1).seen)
    ranks = sorted(seen.index(picture.luminance) for picture in chosen)
    assert ranks[0] < 40
    assert ranks[-1] > 60


def test_same_seed_same_choice(night: Path) -> None:
    first, again, other = (select_pictures(str(night), 16, seed) for seed in (1, 1, 2))
    assert first.chosen == again.chosen
    assert first.sha256() == again.sha256()
    assert first.chosen != other.chosen


def test_statistics_of_known_pictures() -> None:
    white = measure("w", np.full((20, 30, 3), 255, np.uint8))
    assert white.luminance == pytest.approx(1.0)
    assert white.noise == white.contrast == 0
    assert white.bright
    rng = np.random.default_rng(0)
    for sigma in (2.0, 8.0):
        grey = np.clip(128 + sigma * rng.normal(size=(400, 400)), 0, 255).astype(np.uint8)
        noisy = measure("n", cv2.cvtColor(grey, cv2.COLOR_GRAY2BGR))
        assert noisy.noise == pytest.approx(sigma, rel=0.05)
        assert noisy.contrast == pytest.approx(2 * 1.645 * sigma, rel=0.1)
    assert measure("one pixel", np.zeros((1, 1, 3), np.uint8)).luminance == 0


def test_warnings(tmp_path: Path, night: Path) -> None:
    few = select_pictures(str(night), 10).warnings()
    assert len(few) == 1
    assert "only 10 calibration pictures; 64 or more" in few[0]
    for i in range(70):
        write(tmp_path / "mixed", f"{i:03}.png", 200 if i % 2 else 30, 2, i)
    bright = select_pictures(str(tmp_path / "mixed"), 70).warnings()
    assert len(bright) == 1
    assert "35 of 70 calibration pictures are bright" in bright[0]
    assert select_pictures(str(night), 90).warnings() == []


def test_duplicates_and_bad_files(tmp_path: Path) -> None:
    first = write(tmp_path / "set", "a.png", 30, 2)
    (tmp_path / "set" / "b.png").write_bytes(first.read_bytes())
    cv2.imwrite(str(tmp_path / "set" / "c.bmp"), cv2.imread(str(first)))  # the same pixels in another format
    (tmp_path / "set" / "d.png").write_bytes(b"no picture")
    selection = select_pictures(str(tmp_path / "set"))
    assert [picture.name for picture in selection.chosen] == ["a.png"]
    assert len(selection.failures) == 1
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "d.png").write_bytes(b"no picture")
    with pytest.raises(WnlbError, match=r"none of 1 pictures in .* can be read"):
        select_pictures(str(tmp_path / "bad"))
    with pytest.raises(WnlbError, match="expected at least 1"):
        select_pictures(str(tmp_path / "set"), 0)


def test_an_evaluation_set_that_overlaps_is_refused(tmp_path: Path, night: Path) -> None:
    selection = select_pictures(str(night), 100)
    write(tmp_path / "eval", "new.png", 99, 2)
    selection.check_apart(hashes_of(str(tmp_path / "eval")))
    cv2.imwrite(str(tmp_path / "eval" / "renamed.bmp"), cv2.imread(str(night / "dark_005.png")))
    with pytest.raises(WnlbError, match=r"1 of the calibration pictures are in the evaluation set .*dark_005"):
        selection.check_apart(hashes_of(str(tmp_path / "eval")))


def test_lists_videos_and_scenes(tmp_path: Path, night: Path) -> None:
    (tmp_path / "list.txt").write_text(f"# night\n{night / 'dark_001.png'}\n\n{night / 'dark_002.png'}\n")
    assert [p.name for p in select_pictures(str(tmp_path / "list.txt")).chosen] == ["dark_001.png", "dark_002.png"]
    windows = f'\ufeff"{night.name}\\dark_001.png"\r\n{night / "dark_002.png"}\r\n\r\n'
    (night.parent / "windows.txt").write_bytes(windows.encode("utf-16-le"))
    chosen = select_pictures(str(night.parent / "windows.txt")).chosen
    assert [picture.name for picture in chosen] == ["dark_001.png", "dark_002.png"]
    (tmp_path / "empty.txt").write_text("# nothing\n")
    for name, message in (("empty.txt", "is empty"), ("missing.txt", "cannot be read")):
        with pytest.raises(WnlbError, match=message):
            open_pictures(str(tmp_path / name))
    writer = cv2.VideoWriter(str(tmp_path / "v.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 25, (64, 48))
    for i in range(12):
        writer.write(np.full((48, 64, 3), 10 * i, np.uint8))
    writer.release()
    video = select_pictures(str(tmp_path / "v.avi"), 4)
    again = dict(video.frames())
    assert list(again) == [picture.name for picture in video.chosen]
    assert [pixel_hash(pixels) for pixels in again.values()] == [picture.sha256 for picture in video.chosen]
    scenes = open_pictures("scenes:7")
    scenes.count = len(DARKNESS_LEVELS)
    first, second = ([frame.pixels for frame in scenes] for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    assert first[0].mean() > first[-1].mean()


def test_the_frames_are_those_that_were_measured(night: Path) -> None:
    selection = select_pictures(str(night), 9)
    frames = dict(selection.frames())
    assert [pixel_hash(pixels) for pixels in frames.values()] == [picture.sha256 for picture in selection.chosen]
    assert list(dict(selection.frames([0, 4]))) == [selection.chosen[0].name, selection.chosen[4].name]


def test_manifest(tmp_path: Path, night: Path, make_contract: Callable[..., Contract]) -> None:
    selection = select_pictures(str(night), 5)
    contract = make_contract(interpolation="nearest")
    write_manifest(selection, contract, tmp_path / "manifest.json")
    content = json.loads((tmp_path / "manifest.json").read_text())
    assert content["preparation"]["interpolation"] == "nearest"
    assert content["preparation"]["height"] == 64
    assert content["preparation"]["framework"] == "torchvision"
    assert content["preparation"]["scale"] is None
    assert content["seen"] == 100
    assert [picture["name"] for picture in content["pictures"]] == [picture.name for picture in selection.chosen]
    assert read_hashes(tmp_path / "manifest.json") == {p.sha256: p.name for p in selection.chosen}
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(WnlbError, match="calibration manifest"):
        read_hashes(tmp_path / "manifest.json")
