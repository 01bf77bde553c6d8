"""Night scenes as a data set in COCO's format."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from wnlb.calibration.scenes.camera import Camera, expose
from wnlb.calibration.scenes.scene import check_scene, make_scene
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
        WnlbError: an argument makes no sense, or the folder cannot be written or holds other pictures.
    """
    cameras = cameras_of(darkness, bits, count, "scenes")
    check_scene(seed, 0, height, width)
    folders = [output / name for name in ("images", "clean")]
    for folder in folders:
        refuse_others(folder, {_name(i) for i in range(count)})
    for folder in folders:
        make_folder(folder)
    work = partial(_write_scene, output, height, width, seed, cameras)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image, own in in_order(work, range(count), workers):
        images.append(image)
        annotations += [{"id": len(annotations) + i, **entry} for i, entry in enumerate(own, 1)]
        on_done(len(images))
    write_labels(output / "annotations.json", "night scenes", seed, darkness, images=images, annotations=annotations)


def _name(index: int) -> str:
    return f"{index:06d}.png"


def _write_scene(
    output: Path, height: int, width: int, seed: int, cameras: Sequence[Camera], index: int
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    camera = cameras[index % len(cameras)]
    scene = make_scene(seed, index, height, width)
    name = _name(index)
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
