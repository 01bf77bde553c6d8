"""Daylight sets, rendered dark."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from wnlb.calibration.labels.labels import Image, Labels
from wnlb.calibration.labels.pictures import LabelledPictures
from wnlb.calibration.scenes.camera import Camera, expose
from wnlb.calibration.scenes.writing import Progress, cameras_of, in_order, refuse_others, write_json, write_png
from wnlb.runtime.darkness import linear_from_srgb
from wnlb.runtime.errors import PictureError, WnlbError
from wnlb.runtime.files import make_folder


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

    Raises:
        WnlbError: an argument makes no sense, or a folder cannot be written or holds other pictures.
    """
    if seed < 0:
        raise WnlbError(f"seed is {seed}; expected a whole number from 0 up")
    names = _targets(labels)
    cameras = cameras_of(darkness, bits, len(labels.images), "pictures")
    for level in darkness:
        refuse_others(output / f"{level:g}" / "images", names)
    for level in darkness:
        make_folder(output / f"{level:g}" / "images")
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


def _targets(labels: Labels) -> set[str]:
    """What the pictures become: PNGs, each one of its own, inside the output folder."""
    seen = set()
    for image in labels.images:
        path = _plain_path(image)
        if not path.name or path.is_absolute() or ".." in path.parts:
            raise WnlbError(f"file name {image.file_name!r} of the labels leaves its folder; expected a name inside it")
        name = path.with_suffix(".png").as_posix()
        if name in seen:
            raise WnlbError(f"two pictures of the labels would become {name}; rename one of them")
        seen.add(name)
    return seen


def _plain_path(image: Image) -> Path:
    """The name of a picture as a path, also where Windows wrote it."""
    return Path(image.file_name.replace("\\", "/"))


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
