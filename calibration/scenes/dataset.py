"""Data sets in COCO's format: night scenes, and daylight sets rendered dark."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from wnlb.calibration.scenes.camera import Camera, expose, linear_from_srgb
from wnlb.calibration.scenes.scene import make_scene
from wnlb.calibration.scenes.shapes import CLASSES
from wnlb.runtime.errors import PictureError, WnlbError
from wnlb.runtime.files import atomic_path, make_folder
from wnlb.runtime.pictures import read_picture

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
    for image, own in _in_order(work, range(count), workers):
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
    annotations: Path,
    images: Path,
    output: Path,
    darkness: Sequence[float],
    seed: int,
    *,
    bits: int = 8,
    workers: int = 0,
    on_done: Progress = lambda done: None,
) -> list[str]:
    """Render a daylight set dark at several levels: ``DARKNESS/images/`` and ``DARKNESS/annotations.json`` for each.

    Pictures are written as PNG, for JPEG would smooth the noise away; annotations are carried over.

    Returns:
        One line for each picture that could not be read; its entry is left out.
    """
    document = read_coco(annotations)
    if not darkness or seed < 0:
        raise WnlbError(f"{len(darkness)} darkness levels and seed {seed}; expected at least one, and a seed from 0 up")
    _check_targets([image["file_name"] for image in document["images"]], annotations)
    for level in darkness:
        make_folder(output / f"{level:g}" / "images")
    cameras = [Camera(level, bits=bits) for level in darkness]
    work = partial(_write_darkened_picture, images, output, seed, cameras)
    failures, kept = [], []
    for done, (image, failure) in enumerate(_in_order(work, list(enumerate(document["images"])), workers), 1):
        failures += [failure] if failure else []
        kept += [] if failure else [image]
        on_done(done)
    if not kept:
        raise PictureError(f"none of {len(failures)} pictures can be read; the first: {failures[0]}")
    ids = {image["id"] for image in kept}
    for level in darkness:
        own = {
            **document,
            "images": [{**image, "darkness": level} for image in kept],
            "annotations": [entry for entry in document["annotations"] if entry["image_id"] in ids],
        }
        write_json(output / f"{level:g}" / "annotations.json", own)
    return failures


def read_coco(path: Path) -> dict[str, Any]:
    """A COCO annotation file, checked as far as every user of it relies on.

    Raises:
        WnlbError: it is not JSON, has no images, or an annotation points to an image or a category that is not there.
    """
    try:
        document = json.loads(path.read_text())
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise WnlbError(f"annotations {path} cannot be read as JSON: {error}") from error
    lists = ("images", "annotations", "categories")
    if not isinstance(document, dict) or not all(isinstance(document.get(name), list) for name in lists):
        raise WnlbError(f"annotations {path} are not COCO's: expected lists images, annotations and categories")
    if not document["images"]:
        raise WnlbError(f"annotations {path} list no images")
    try:
        known = {"image_id": {image["id"] for image in document["images"]}}
        known["category_id"] = {category["id"] for category in document["categories"]}
        for entry in document["annotations"]:
            for name, ids in known.items():
                if entry[name] not in ids:
                    where = f"annotations {path}: annotation {entry['id']}"
                    raise WnlbError(f"{where} has the {name} {entry[name]}, which the file does not list")
    except (KeyError, TypeError) as error:
        raise WnlbError(f"annotations {path} lack an entry: {error}") from error
    return document


def write_json(path: Path, content: Any) -> None:
    """Whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content))


def _check_targets(names: Sequence[str], annotations: Path) -> None:
    """Each picture becomes a PNG of its own, inside the output folder."""
    targets = [Path(name).with_suffix(".png") for name in names]
    outside = next((path for path in targets if path.is_absolute() or ".." in path.parts), None)
    if outside is not None:
        raise WnlbError(f"annotations {annotations}: file name {outside} leaves its folder; expected a name inside it")
    if len(set(targets)) < len(targets):
        twice = next(path for path in targets if targets.count(path) > 1)
        raise WnlbError(f"annotations {annotations}: two pictures would become {twice}; rename one of them")


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
    folder: Path, output: Path, seed: int, cameras: Sequence[Camera], numbered: tuple[int, dict[str, Any]]
) -> tuple[dict[str, Any], str]:
    index, image = numbered
    try:
        picture = read_picture(folder / image["file_name"])
    except PictureError as error:
        return image, str(error)
    light = linear_from_srgb(np.ascontiguousarray(picture[..., ::-1]))
    name = Path(image["file_name"]).with_suffix(".png")
    for level, camera in enumerate(cameras):
        path = output / f"{camera.electrons_at_white:g}" / "images" / name
        make_folder(path.parent)
        write_png(path, expose(light, camera, np.random.default_rng([seed, index, level])))
    return {**image, "file_name": name.as_posix()}, ""


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


def _in_order(work: Callable[[Any], Any], items: Sequence[Any] | range, workers: int) -> Iterator[Any]:
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
