"""What is to be labelled: pictures and videos, sorted by name, and the blocks that they are cut into."""

from __future__ import annotations

import itertools
import os
import posixpath
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from wnlb.runtime.errors import PictureError, WnlbError
from wnlb.runtime.pictures import PICTURE_SUFFIXES
from wnlb.runtime.source import PictureSource, VideoSource, files_of, listed_path, listed_pictures
from wnlb.runtime.text_file import read_json

VIDEO_SUFFIXES = frozenset(".mp4 .avi .mov .mkv .webm .m4v .mpg .mpeg .ts .wmv".split())


@dataclass(frozen=True)
class Input:
    """One picture or video."""

    name: str  # of the picture, from the folder that all have in common; of a video without its suffix
    path: str  # of the file, absolute; or inside the file system of ``open_remote``
    frames: int | None = (
        None  # of a video, as its container states, else counted (0: none can be decoded); None: a picture
    )


@dataclass(frozen=True)
class Block:
    """A piece of the work that is done, and written, whole or not at all."""

    number: int  # from 0 up, in the order of the names
    inputs: tuple[Input, ...]  # pictures; or one video
    first: int = 0  # frame of the video
    stop: int | None = None  # the frame behind the last; None: to the end of the video, whatever its container states

    @property
    def pictures(self) -> int:
        """How many pictures or frames it holds, as far as containers tell the truth."""
        frames = self.inputs[0].frames
        if frames is None:
            return len(self.inputs)
        return max((frames if self.stop is None else self.stop) - self.first, 0)

    def parts(self) -> list[Block]:
        """Each picture or frame by itself."""
        if self.inputs[0].frames is None:
            return [replace(self, inputs=(one,)) for one in self.inputs]
        bounds = range(self.first, self.first + max(self.pictures, 1))
        parts = [replace(self, first=frame, stop=frame + 1) for frame in bounds]
        return [*parts[:-1], replace(parts[-1], stop=self.stop)]


def blocks_of(inputs: list[Input], size: int) -> Iterator[Block]:
    """Blocks of up to ``size`` pictures, or of frames of one video; the same from the same inputs."""
    number, pictures = 0, list[Input]()
    for one in [*inputs, None]:
        if pictures and (one is None or one.frames is not None or len(pictures) == size):
            yield Block(number, tuple(pictures))
            number, pictures = number + 1, []
        if one is None:
            return
        if one.frames is None:
            pictures.append(one)
            continue
        for first in range(0, max(one.frames, 1), size):
            stop = first + size
            yield Block(number, (one,), first, stop if stop < one.frames else None)
            number += 1


def find_inputs(source: str, images: Path | None = None) -> list[Input]:
    """The pictures and videos of a source, sorted by name, each once.

    Args:
        source: folder of pictures, glob pattern, picture, video, list (``.txt``), COCO file (``.json``), or an address
            that fsspec opens: ``s3://bucket/night/*.jpg``, ``zip://*.png::night.zip``.
        images: folder that the names of a list or COCO file start from; None: its own, or ``images`` in that.

    Raises:
        WnlbError: there is nothing there, or two of them would have one name.
    """
    suffix = Path(source).suffix.lower()
    if images and suffix not in (".txt", ".json"):
        raise WnlbError(f"--images is for a list or a COCO file; {source} is neither, leave it out")
    if source.isdecimal() and not Path(source).exists():
        raise WnlbError(f"source {source} is a camera, which has no end; use 'wnlb run' with --jsonl")
    if not source:
        raise PictureError("source is empty; expected a folder, glob, list, COCO file, video or address")
    if "://" in source:
        return _unique([Input(name, path) for name, path in _remote(source)], source)
    if suffix == ".json" and Path(source).is_file():
        return _unique([Input(name, os.path.abspath(path)) for name, path in _of_coco(Path(source), images)], source)
    listed = suffix == ".txt" and Path(source).is_file()
    paths = listed_pictures(Path(source), images) if listed else files_of(source)
    alone = len(paths) == 1 and not listed
    found = []
    for name, path in PictureSource(paths).paths.items():
        is_video = path.suffix.lower() in VIDEO_SUFFIXES or (alone and path.suffix.lower() not in PICTURE_SUFFIXES)
        found.append(_video(name, path, alone) if is_video else Input(name, os.path.abspath(path)))
    return _unique(found, source)


def _video(name: str, path: Path, alone: bool) -> Input:
    frames = 0
    try:
        video = VideoSource(str(path))
        frames = len(video) or video.count_left()
        video.release()
    except PictureError:  # of many it becomes a row with the reason
        if alone:
            raise
    return Input(str(PurePosixPath(name).with_suffix("")), os.path.abspath(path), frames)


def _unique(inputs: list[Input], source: str) -> list[Input]:
    """Sorted by name. Raises WnlbError for none at all, a name twice, and one that is no text."""
    if not inputs:
        raise PictureError(f"source {source} holds no pictures; expected {', '.join(sorted(PICTURE_SUFFIXES))}")
    inputs = sorted(inputs, key=lambda one: one.name)
    for one, after in itertools.pairwise([*inputs, None]):
        if after and one and one.name == after.name:
            raise WnlbError(f"{one.path} and {after.path} would both be labelled as {one.name}; rename one of them")
        if one and (shown := one.name.encode(errors="backslashreplace").decode()) != one.name:
            raise WnlbError(f"picture {shown} has a name that is not UTF-8, which no label file can hold; rename it")
    return inputs


def _of_coco(path: Path, images: Path | None) -> Iterator[tuple[str, Path]]:
    document = read_json(path, "COCO file")
    listed = document.get("images") if isinstance(document, dict) else None
    if not isinstance(listed, list) or not listed:
        raise WnlbError(f"COCO file {path} lists no images; expected an object with a list 'images'")
    names: dict[str, None] = {}
    for entry in listed:
        name = entry.get("file_name") if isinstance(entry, dict) else None
        if not isinstance(name, str) or not name:
            raise WnlbError(f"COCO file {path}: the file_name of an image is {name!r}; expected text")
        names[name] = None
    first = next(iter(names))
    folders = [images] if images else [path.parent, path.parent / "images"]
    folder = next((folder for folder in folders if listed_path(folder, first).is_file()), None)
    if folder is None:
        looked = " or ".join(map(str, folders))
        raise WnlbError(f"COCO file {path}: {first} is not in {looked}; name the folder of its pictures with --images")
    for name in names:
        yield name, listed_path(folder, name)


def open_remote(address: str) -> tuple[Any, str]:
    """The file system of an address that fsspec opens, and the path in it. Raises WnlbError where it does not."""
    import fsspec.core

    try:
        return fsspec.core.url_to_fs(address)
    except (ValueError, ImportError, OSError) as error:  # an unknown scheme; a package that a scheme needs
        raise WnlbError(f"source {address} cannot be opened: {error}") from error


def _remote(address: str) -> Iterator[tuple[str, str]]:
    """Name and path of each picture; of a folder, not of those in it."""
    system, path = open_remote(address)
    try:
        if any(sign in path for sign in "*?["):
            paths = [name for name, found in system.glob(path, detail=True).items() if found["type"] == "file"]
        elif system.isdir(path):
            paths = [found for found in system.find(path, maxdepth=1) if _suffix(found) in PICTURE_SUFFIXES]
        else:
            paths = [path] if system.exists(path) else []
    except Exception as error:  # of whatever storage it is
        raise WnlbError(f"source {address} cannot be listed: {_told(error)}") from error
    if any(_suffix(found) in VIDEO_SUFFIXES for found in paths):
        raise WnlbError(f"source {address} holds videos, which are read from files alone; copy them to this machine")
    common = posixpath.commonpath([posixpath.dirname(found) for found in paths]) if paths else ""
    for found in paths:
        yield posixpath.relpath(found, common or "."), found


def read_remote(system: Any, path: str) -> bytes:
    """The bytes of a file. Raises PictureError where it is not there, WnlbError where the storage does not answer."""
    try:
        return system.cat_file(path)
    except (FileNotFoundError, IsADirectoryError, PermissionError, KeyError) as error:
        raise PictureError(f"picture {path} cannot be read: {_told(error)}") from error
    except Exception as error:  # a million rows of one broken network would be no labels
        raise WnlbError(f"picture {path} cannot be read: {_told(error)}; start again to do the rest") from error


def _suffix(path: str) -> str:
    return PurePosixPath(path).suffix.lower()


def _told(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error).partition("\n")[0] or type(error).__name__
