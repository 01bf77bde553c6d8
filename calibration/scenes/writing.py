"""What all data sets in COCO's format are written with: pictures, masks, the label file, processes."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from wnlb.calibration.scenes.camera import Camera
from wnlb.calibration.scenes.shapes import CLASSES
from wnlb.runtime.errors import WnlbError
from wnlb.runtime.files import atomic_path

Progress = Callable[[int], None]


def cameras_of(darkness: Sequence[float], bits: int, count: int, what: str) -> list[Camera]:
    """One for each level of darkness; number i of ``count`` scenes or videos is taken by the i-th, around and around.

    Raises:
        WnlbError: there is no level, or nothing to be taken.
    """
    if count < 1 or not darkness:
        raise WnlbError(f"{count} {what} at {len(darkness)} darkness levels; expected at least one of each")
    return [Camera(level, bits=bits) for level in darkness]


def refuse_others(folder: Path, names: Collection[str]) -> None:
    """Raise WnlbError where a folder holds files that are not of a set: who reads it would take them for the set's.

    Args:
        names: of the files that may be there, from ``folder`` on.
    """
    there = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    others = sorted(name for name in there if name not in names and not name.rpartition("/")[2].startswith("."))
    if others:
        raise WnlbError(
            f"folder {folder} holds {len(others)} file(s) of something else (the first: {others[0]}); choose another "
            "output, or delete it"
        )


def write_labels(path: Path, description: str, seed: int, darkness: Sequence[float], **lists: Any) -> None:
    """The label file of a made set: ``images``, ``annotations`` and what else is given, with the eight classes."""
    info = {"description": description, "seed": seed, "darkness": list(darkness)}
    categories = [{"id": i, "name": name} for i, name in enumerate(CLASSES, 1)]
    write_json(path, {"info": info, **lists, "categories": categories})


def write_json(path: Path, content: Any) -> None:
    """Whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content))


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
