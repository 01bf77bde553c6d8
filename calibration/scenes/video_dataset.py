"""Night videos as a data set in COCO-VID's form: frames, and annotations with identities."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from wnlb.calibration.scenes.camera import Camera
from wnlb.calibration.scenes.video import NightVideo
from wnlb.calibration.scenes.writing import (
    Progress,
    cameras_of,
    in_order,
    mask_entry,
    refuse_others,
    write_labels,
    write_png,
)
from wnlb.runtime.files import make_folder
from wnlb.runtime.live.video_file import VideoFile

Entries = tuple[list[dict[str, Any]], list[dict[str, Any]]]


def write_videos(
    output: Path,
    count: int,
    frames: int,
    fps: float,
    height: int,
    width: int,
    darkness: Sequence[float],
    seed: int,
    *,
    bits: int = 8,
    workers: int = 0,
    on_done: Progress = lambda done: None,
) -> None:
    """Write ``images/VIDEO/FRAME.png``, ``videos/VIDEO.mp4`` and ``annotations.json``.

    Video i is taken at ``darkness[i % len(darkness)]`` photo-electrons at white, about which the exposure goes up and
    down; each image's entry says its own. ``videos``, ``video_id``, ``frame_id`` (from 0), ``track_id`` and
    ``instance_id`` are as in COCO-VID and TAO; an identity is one of the whole set. MPEG-4 smooths the noise: the
    pictures are what to measure on.

    Args:
        frames: of each video; ``fps``: of them a second.
        workers: processes; 0 for one per core.
        on_done: called with the number of videos written so far.

    Raises:
        WnlbError: an argument makes no sense, or the folder cannot be written or holds other files.
    """
    cameras = cameras_of(darkness, bits, count, "videos")
    NightVideo(seed, 0, frames, fps, height, width, cameras[0])  # before the first folder
    refuse_others(output / "images", {_frame_name(i, number) for i in range(count) for number in range(frames)})
    refuse_others(output / "videos", {f"{_name(i)}.mp4" for i in range(count)})
    for i in range(count):
        make_folder(output / "images" / _name(i))
    make_folder(output / "videos")
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    work = partial(_write_video, output, frames, fps, height, width, seed, cameras)
    for done, (own_images, own) in enumerate(in_order(work, range(count), workers), 1):
        images += own_images
        annotations += own
        on_done(done)
    _number(images, annotations)
    size = {"width": width, "height": height, "fps": fps}
    videos = [
        {"id": i + 1, "name": _name(i), **size, "darkness": cameras[i % len(cameras)].electrons_at_white}
        for i in range(count)
    ]
    lists = {"videos": videos, "images": images, "annotations": annotations}
    write_labels(output / "annotations.json", "night videos", seed, darkness, **lists)


def _name(index: int) -> str:
    return f"{index:06d}"


def _frame_name(index: int, number: int) -> str:
    return f"{_name(index)}/{number:06d}.png"


def _write_video(
    output: Path, frames: int, fps: float, height: int, width: int, seed: int, cameras: Sequence[Camera], index: int
) -> Entries:
    """Its images and annotations; identities are numbers of this video."""
    video = NightVideo(seed, index, frames, fps, height, width, cameras[index % len(cameras)])
    film = VideoFile(output / "videos" / f"{_name(index)}.mp4", fps)
    images, annotations = [], []
    for number in range(frames):
        frame = video.frame(number)
        name = _frame_name(index, number)
        write_png(output / "images" / name, frame.picture)
        shown = frame.picture if frame.picture.dtype == np.uint8 else (frame.picture >> 8).astype(np.uint8)
        film.write(np.ascontiguousarray(shown[..., ::-1]))
        image = {"video_id": index + 1, "frame_id": number, "file_name": name, "width": width, "height": height}
        images.append({**image, "darkness": round(frame.electrons_at_white, 3)})
        for item in frame.objects:
            entry = {"image": number, "category_id": item.label, "iscrowd": 0, "track": item.drawn}
            annotations.append({**entry, **mask_entry(item.mask)})
    film.close()
    return images, [{**entry, "video_id": index + 1} for entry in annotations]


def _number(images: list[dict[str, Any]], annotations: list[dict[str, Any]]) -> None:
    """Ids of the whole set, in place of those of each video."""
    for i, image in enumerate(images, 1):
        image["id"] = i
    of_image = {(image["video_id"], image["frame_id"]): image["id"] for image in images}
    tracks: dict[tuple[int, int], int] = {}
    for i, entry in enumerate(annotations, 1):
        track = tracks.setdefault((entry["video_id"], entry.pop("track")), len(tracks) + 1)
        image_id = of_image[entry["video_id"], entry.pop("image")]
        entry |= {"id": i, "image_id": image_id, "track_id": track, "instance_id": track}
