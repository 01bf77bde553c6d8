"""Data sets in COCO's format: night scenes, and daylight sets rendered dark."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from wnlb.calibration.labels.labels import Image, Labels
from wnlb.calibration.labels.pictures import LabelledPictures
from wnlb.calibration.scenes.camera import Camera, expose
from wnlb.calibration.scenes.scene import make_scene
from wnlb.calibration.scenes.shapes import CLASSES
from wnlb.runtime.darkness import linear_from_srgb
from wnlb.runtime.errors import PictureError, WnlbError
from wnlb.runtime.files import atomic_path, make_folder

Progress = Callable[[int], None]


def write_scenes(
    output: Path,
    count: int,
    height: int,
    width: int,
    darkness: Sequence[float],
    seed: int,
    *,
    bits: int = 8,
    workers: int = 0,
    on_done: Progress = lambda done: None,
) -> None:
    """Write ``images/``, ``clean/`` (the same scenes evenly lit, without noise) and ``annotations.json``.

    Scene i is taken at ``darkness[i % len(darkness)]`` photo-electrons at white, which its entry in the file also says.

    Args:
        workers: processes; 0 for one per core.
        on_done: called with the number of scenes written so far.

    Raises:
        WnlbError: an argument makes no sense, or the folder cannot be written.
    """
    if count < 1 or not darkness:
        raise WnlbError(f"{count} scenes at {len(darkness)} darkness levels; expected at least one of each")
    for name in ("images", "clean"):
        make_folder(output / name)
    cameras = [Camera(level, bits=bits) for level in darkness]
    work = partial(_write_scene, output, height, width, seed, cameras)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image, own in in_order(work, range(count), workers):
        images.append(image)
        annotations += [{"id": len(annotations) + i, **entry} for i, entry in enumerate(own, 1)]
        on_done(len(images))
    categories = [{"id": i, "name": name} for i, name in enumerate(CLASSES, 1)]
    info = {"description": "night scenes", "seed": seed, "darkness": list(darkness)}
    write_json(
        output / "annotations.json",
        {"info": info, "images": images, "categories": categories, "annotations": annotations},
    )


def write_darkened(
    labels: Labels,
    picture_of: LabelledPictures,
    output: Path,
    darkness: Sequence[float],
    seed: int,
    *,
    bits: int = 8,
    workers: int = 0,
    on_done: Progress = lambda done: None,
) -> list[str]:
    """Render a daylight set dark at several levels: ``DARKNESS/images/`` and ``DARKNESS/annotations.json`` for each.

    Pictures are written as PNG, for JPEG would smooth the noise away; labels are carried over.

    Args:
        picture_of: of ``labels``.

    Returns:
        One line for each picture that could not be read or is of another size than its labels; its entry is left out.
    """
    if not darkness or seed < 0:
        raise WnlbError(f"{len(darkness)} darkness levels and seed {seed}; expected at least one, and a seed from 0 up")
    _check_targets(labels)
    for level in darkness:
        make_folder(output / f"{level:g}" / "images")
    cameras = [Camera(level, bits=bits) for level in darkness]
    work = partial(_write_darkened_picture, picture_of, output, seed, cameras)
    failures, kept = [], []
    for done, (image, failure) in enumerate(in_order(work, list(enumerate(labels.images)), workers), 1):
        failures += [failure] if failure else []
        kept += [] if failure else [image]
        on_done(done)
    if not kept:
        raise PictureError(f"none of {len(failures)} pictures can be read; the first: {failures[0]}")
    for level in darkness:
        images = [replace(image, extra={**image.extra, "darkness": level}) for image in kept]
        write_json(output / f"{level:g}" / "annotations.json", labels.part(images).document())
    return failures


def write_json(path: Path, content: Any) -> None:
    """Whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content))


def _check_targets(labels: Labels) -> None:
    """Each picture becomes a PNG of its own, inside the output folder."""
    seen = set()
    for image in labels.images:
        path = _plain_path(image)
        if not path.name or path.is_absolute() or ".." in path.parts:
            raise WnlbError(f"file name {image.file_name!r} of the labels leaves its folder; expected a name inside it")
        if path.with_suffix(".png") in seen:
            raise WnlbError(f"two pictures of the labels would become {path.with_suffix('.png')}; rename one of them")
        seen.add(path.with_suffix(".png"))


def _plain_path(image: Image) -> Path:
    """The name of a picture as a path, also where Windows wrote it."""
    return Path(image.file_name.replace("\\", "/"))


def _write_scene(
    output: Path, height: int, width: int, seed: int, cameras: Sequence[Camera], index: int
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    camera = cameras[index % len(cameras)]
    scene = make_scene(seed, index, height, width)
    name = f"{index:06d}.png"
    write_png(output / "images" / name, expose(scene.light, camera, np.random.default_rng([seed, index, 1])))
    write_png(output / "clean" / name, scene.clean)
    image = {
        "id": index + 1,
        "file_name": name,
        "width": width,
        "height": height,
        "darkness": camera.electrons_at_white,
    }
    entries = [
        {"image_id": index + 1, "category_id": o.label, "iscrowd": 0, **mask_entry(o.mask)} for o in scene.objects
    ]
    return image, entries


def _write_darkened_picture(
    picture_of: LabelledPictures, output: Path, seed: int, cameras: Sequence[Camera], numbered: tuple[int, Image]
) -> tuple[Image, str]:
    index, image = numbered
    try:
        picture = picture_of(image)
    except PictureError as error:
        return image, str(error)
    light = linear_from_srgb(np.ascontiguousarray(picture[..., ::-1]))
    name = _plain_path(image).with_suffix(".png")
    for level, camera in enumerate(cameras):
        path = output / f"{camera.electrons_at_white:g}" / "images" / name
        make_folder(path.parent)
        write_png(path, expose(light, camera, np.random.default_rng([seed, index, level])))
    return replace(image, file_name=name.as_posix()), ""


def mask_entry(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """``segmentation`` (compressed RLE), ``area`` and ``bbox`` of a bool mask ``[H, W]`` with at least one pixel."""
    from pycocotools import mask as coco_mask

    rle = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    box = [float(v) for v in coco_mask.toBbox(rle)]
    return {
        "segmentation": {"size": rle["size"], "counts": rle["counts"].decode("ascii")},
        "area": int(coco_mask.area(rle)),
        "bbox": box,
    }


def in_order(work: Callable[[Any], Any], items: Sequence[Any] | range, workers: int) -> Iterator[Any]:
    """``map`` over processes, or in this one where there is only one."""
    if workers < 0:
        raise WnlbError(f"{workers} workers; expected 0 (one per core) or more")
    workers = workers or os.cpu_count() or 1
    if workers == 1 or len(items) < 8:
        yield from map(work, items)
        return
    with ProcessPoolExecutor(workers) as pool:
        yield from pool.map(work, items, chunksize=4)


def write_png(path: Path, picture_rgb: NDArray) -> None:
    """Write RGB ``[H, W, 3]``, uint8 or uint16, whole or not at all."""
    encoded, data = cv2.imencode(".png", np.ascontiguousarray(picture_rgb[..., ::-1]))
    if not encoded:
        raise WnlbError(f"picture {path} cannot be encoded as PNG")
    with atomic_path(path) as temporary:
        temporary.write_bytes(data.tobytes())
