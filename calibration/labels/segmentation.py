"""Masks of a label file: polygons and run-length codes, in every form in which they are met.

pycocotools trusts what it gets: runs that do not fill the picture, a code that breaks off and a polygon that leaves the
picture by millions of pixels give it wrong masks, or memory that is not its own. Here they are found before.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from wnlb.calibration.labels.fields import Entry, number, numbers, shown
from wnlb.calibration.labels.labels import Box, Image, Segmentation

_CHARACTERS = 7  # of one run in a compressed code: 35 bits


def read_segmentation(entry: Entry, image: Image, box: Box | None) -> Segmentation | None:
    """The mask of an annotation; None where it has none.

    Args:
        box: of the annotation, where it has one: it tells what four numbers mean.

    Raises:
        WnlbError: it is no mask of this image.
    """
    value = entry.fields.get("segmentation")
    if isinstance(value, dict) and value:
        return _run_lengths(entry, value, image)
    if value is None or value in ([], {}, ""):  # how tools write that there is none
        return None
    if not isinstance(value, list):
        raise entry.wrong("segmentation", "polygons or a run-length encoded mask")
    if not any(value) and all(isinstance(part, list) for part in value):  # [[]]
        return None
    return _polygons(entry, value, image, box)


def rle_of(polygons: list[list[float]], image: Image) -> dict[str, Any]:
    """COCO's compressed code of polygons ``[x1, y1, x2, y2, ...]`` of three points or more, in pixels of the image."""
    from pycocotools import mask as coco_mask

    return _as_text(coco_mask.merge(coco_mask.frPyObjects(polygons, image.height, image.width)))


def _polygons(entry: Entry, value: list[Any], image: Image, box: Box | None) -> Segmentation:
    parts = [_polygon(entry, part) for part in _parts(entry, value)]
    areas = [part for part in parts if len(part) >= 6]
    if not areas and len(parts) == 1 and (corners := _box_corners(parts[0], box)):
        entry.note("segmentation of four numbers, read as its box")
        areas = [corners]
    if not areas:
        raise entry.refused(
            f"segmentation {shown(value)} has a polygon of fewer than three points; expected x1 y1 x2 y2 x3 y3 ..."
        )
    if len(areas) < len(parts):
        entry.note("polygon of fewer than three points beside others, left out")
    for part in areas:
        check_reach(entry, "segmentation", min(part[::2]), min(part[1::2]), max(part[::2]), max(part[1::2]), image)
    rle = rle_of(areas, image)
    return Segmentation(areas, rle)


def _parts(entry: Entry, value: list[Any]) -> list[Any]:
    """The polygons of a segmentation that may be a single one: ``[x, y, ...]`` or ``[[x, y], [x, y], ...]``."""
    if not any(isinstance(part, list) for part in value):
        if len(value) > 4:  # a box is told apart below
            entry.note("flat polygon read as a polygon")
        return [value]
    if len(value) >= 3 and all(_is_point(part) for part in value):
        return [value]
    return [part for part in value if part != []]


def _polygon(entry: Entry, part: Any) -> list[float]:
    """One polygon as numbers in turn."""
    if isinstance(part, list) and part and all(_is_point(point) for point in part):
        entry.note("polygon of points [x, y] read as a polygon")
        part = [value for point in part for value in point]
    found = numbers(part)
    if found is None:
        raise entry.refused(f"segmentation has the polygon {shown(part)}; expected finite numbers x1 y1 x2 y2 ...")
    if any(isinstance(item, str) for item in part):
        entry.note("segmentation holds numbers written as texts")
    if len(found) % 2:
        raise entry.refused(f"segmentation has a polygon of {len(found)} numbers; expected x y for each point")
    return found


def _is_point(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and numbers(value) is not None


def _box_corners(part: list[float], box: Box | None) -> list[float] | None:
    """The rectangle that four numbers mean: the annotation's box, by x y width height (so pycocotools) or corners."""
    if box is None:
        return None
    x, y, w, h = box
    ways = ((x, y, w, h), (x, y, x + w, y + h))
    if len(part) != 4 or not any(np.allclose(part, way, rtol=0, atol=1) for way in ways):
        return None
    return [x, y, x + w, y, x + w, y + h, x, y + h]


def check_reach(entry: Entry, field: str, x1: float, y1: float, x2: float, y2: float, image: Image) -> None:
    """Refuse what lies beyond an image's own size around it; note what leaves the image by more than a pixel."""
    h, w = image.height, image.width
    if x1 < -w or y1 < -h or x2 > 2 * w or y2 > 2 * h:
        reach = f"({x1:g}, {y1:g}) to ({x2:g}, {y2:g})"
        raise entry.refused(f"{field} reaches from {reach}, far outside of its {w}x{h} image; expected its pixels")
    if x1 < -1 or y1 < -1 or x2 > w + 1 or y2 > h + 1:
        entry.note(f"{field} leaves its image by more than a pixel")


def _run_lengths(entry: Entry, value: dict[str, Any], image: Image) -> Segmentation:
    from pycocotools import mask as coco_mask

    size, counts = [image.height, image.width], value.get("counts")
    if numbers(value.get("size")) != size:
        given = shown(value["size"]) if "size" in value else "no size"
        raise entry.refused(f"segmentation is a mask of {given}; its image is {size} (height, width)")
    if not isinstance(counts, (list, str)):
        raise entry.refused(
            f"segmentation has the counts {shown(counts)}; expected a list of runs, or their code as a text"
        )
    runs = _decoded(counts) if isinstance(counts, str) else _whole_runs(counts)
    pixels = image.height * image.width
    if runs is None or runs.min(initial=0) < 0:
        raise entry.refused(
            f"segmentation has the counts {shown(counts)}, no run lengths; expected COCO's, of 0 or more pixels each"
        )
    if runs.sum() != pixels:
        covered = int(runs.sum())
        raise entry.refused(
            f"segmentation has runs of {covered} pixels together; expected {pixels}, for they fill the {size} image"
        )
    if isinstance(counts, str):
        rle = {"size": size, "counts": counts}
    else:
        rle = _as_text(coco_mask.frPyObjects({"size": size, "counts": runs.tolist()}, *size))
    return Segmentation({**value, "size": size, "counts": counts}, rle)


def _whole_runs(counts: list[Any]) -> NDArray[np.int64] | None:
    found = [number(item) for item in counts]
    if any(item is None or item != int(item) or abs(item) >= 2**31 for item in found):
        return None
    return np.array(found, np.int64)


def _decoded(code: str) -> NDArray[np.int64] | None:
    """Run lengths of COCO's compressed code; None where it is none.

    Five bits a character, 48 added, the lowest first; 32 says that the run goes on in the next character, 16 of the
    last one is the sign. From the fourth run on, it is the difference to the run two before (maskApi.c, rleFrString).
    """
    values = np.frombuffer(code.encode("utf-8", "surrogatepass"), np.uint8).astype(np.int64) - 48
    if not len(values) or values.min() < 0 or values.max() > 63:
        return None
    ends = np.flatnonzero(values < 32)
    if not len(ends) or ends[-1] != len(values) - 1:
        return None
    starts = np.concatenate([[0], ends[:-1] + 1])
    if (ends - starts).max() >= _CHARACTERS:
        return None
    lengths = ends - starts + 1
    shifts = 5 * (np.arange(len(values)) - np.repeat(starts, lengths))
    runs = np.add.reduceat((values & 31) << shifts, starts)
    runs -= (values[ends] >> 4 & 1) << (5 * lengths)
    for first in (1, 2):
        runs[first::2] = np.cumsum(runs[first::2])
    return runs


def _as_text(rle: dict[str, Any]) -> dict[str, Any]:
    return {"size": list(rle["size"]), "counts": rle["counts"].decode("ascii")}
