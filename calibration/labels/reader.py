"""The one reader of COCO label files, for every command that takes ``--annotations``."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from wnlb.calibration.labels.fields import Entry, Notes, identity, number, shown
from wnlb.calibration.labels.labels import Annotation, Box, Category, Id, Image, Labels, Segmentation
from wnlb.calibration.labels.segmentation import check_reach, read_segmentation
from wnlb.runtime.errors import WnlbError
from wnlb.runtime.text_file import read_text

_LISTS = ("images", "annotations", "categories")
_LONGEST = 1 << 20  # pixels of a side, and of an image below: OpenCV's own limits
_PIXELS = 1 << 30
_SAME_BOX = 0.5  # IoU below which a box is not that of its mask


@dataclass(frozen=True)
class _Listed:
    """What an annotation may point to: an id of the file -> the id of the entry that stands for it."""

    images: dict[Id, Id]
    categories: dict[Id, Id]
    by_id: dict[Id, Image]


def read_labels(path: Path) -> Labels:
    """A COCO label file, every field checked.

    What can be read in one way alone is read so and noted (``Labels.notes``): flat polygons, sizes such as 320.0, ids
    that repeat, images listed twice. Annotations without a mask, a box or an area get what their other fields tell.

    Raises:
        WnlbError: the file is no COCO data set, or one of its fields cannot be what it should.
    """
    document, notes = _document(path), Notes()
    entries = {name: list(_entries(path, name, document[name], notes)) for name in _LISTS}
    images, image_ids = _images(entries["images"])
    categories, category_ids = _categories(entries["categories"])
    listed = _Listed(image_ids, category_ids, {image.id: image for image in images})
    annotations = _numbered(entries["annotations"], [_annotation(e, listed) for e in entries["annotations"]], notes)
    _refuse_fractions(path, annotations)
    _refuse_corners(path, annotations)
    _note_missing_masks(entries["annotations"], annotations, notes)
    annotations = _once(entries["annotations"], annotations, image_ids)
    extra = {key: value for key, value in document.items() if key not in _LISTS}
    return Labels(tuple(images), tuple(categories), tuple(annotations), notes.lines(), extra)


def _document(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(read_text(path, "annotations"), object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:
        reason = str(error) or type(error).__name__
        raise WnlbError(f"annotations {path} cannot be read as JSON: {reason}; expected COCO's labels") from error
    expected = f"expected an object with the lists {', '.join(_LISTS)}"
    if isinstance(document, list):
        raise WnlbError(f"annotations {path} are not COCO's labels: a list, as COCO's results are; {expected}")
    for name in _LISTS:
        if not isinstance(document, dict) or not isinstance(document.get(name), list):
            raise WnlbError(f"annotations {path} are not COCO's labels: no list {name}; {expected}")
    if not document["images"]:
        raise WnlbError(f"annotations {path} list no images; expected one or more")
    return document


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        where = f" (id {shown(found['id'])})" if "id" in found else ""
        raise ValueError(f"an object{where} has the key {shown(twice)} twice")
    return found


def _entries(path: Path, name: str, values: list[Any], notes: Notes) -> Iterable[Entry]:
    noun = {"images": "image", "annotations": "annotation", "categories": "category"}[name]
    for i, value in enumerate(values, 1):
        if not isinstance(value, dict):
            raise WnlbError(f"annotations {path}: {noun} {i} is {shown(value)}; expected an object with an id")
        yield Entry(path, noun, i, value, notes)


def _images(entries: list[Entry]) -> tuple[list[Image], dict[Id, Id]]:
    """The images, each once, and the ids that they are known by."""
    by_id: dict[Id, Image] = {}
    by_name: dict[str, Image] = {}
    stands_for: dict[Id, Id] = {}
    for entry in entries:
        image = _image(entry)
        name = str(PurePosixPath(image.file_name.replace("\\", "/")))
        first = by_id.get(stands_for.get(image.id, image.id)) or by_name.get(name)
        if first is None:
            by_id[image.id] = by_name[name] = image
        elif by_name.get(name) is not first:
            raise entry.refused(
                f"its id is that of {shown(first.file_name)}, its file {shown(image.file_name)}; expected different ids"
            )
        elif (image.height, image.width) != (first.height, first.width):
            sizes = f"{image.width}x{image.height} here and {first.width}x{first.height} before"
            raise entry.refused(f"{shown(name)} is listed twice, as {sizes}; expected one size")
        else:
            entry.note("listed twice, read as one")
        stands_for[image.id] = (first or image).id
    return list(by_id.values()), stands_for


def _image(entry: Entry) -> Image:
    read = ("id", "file_name", "height", "width")
    identifier, name = entry.identity("id"), entry.text("file_name")
    height, width = (entry.size(side, _LONGEST) for side in ("height", "width"))
    if height * width > _PIXELS:
        raise entry.refused(f"height and width are {height} and {width}; expected no more than {_PIXELS} pixels")
    return Image(identifier, name, height, width, entry.extra(*read))


def _categories(entries: list[Entry]) -> tuple[list[Category], dict[Id, Id]]:
    found: dict[Id, Category] = {}
    for entry in entries:
        category = Category(entry.identity("id"), entry.text("name"), entry.extra("id", "name"))
        first = found.setdefault(category.id, category)
        if first.name != category.name:
            raise entry.refused(
                f"its id is that of {shown(first.name)}, its name {shown(category.name)}; expected an id for each"
            )
        if first is not category:
            entry.note("listed twice, read as one")
    return list(found.values()), {identifier: identifier for identifier in found}


def _annotation(entry: Entry, listed: _Listed) -> Annotation:
    """One annotation; its id is given later."""
    image = listed.by_id[entry.reference("image_id", listed.images, "images")]
    category = entry.reference("category_id", listed.categories, "categories")
    given, crowd = _box(entry, image), _crowd(entry)
    mask = read_segmentation(entry, image, given)
    box = _checked_box(entry, given, mask, crowd)
    read = ("id", "image_id", "category_id", "bbox", "area", "iscrowd", "segmentation")
    return Annotation(0, image.id, category, box, _area(entry, image, box, mask), crowd, mask, entry.extra(*read))


def _box(entry: Entry, image: Image) -> Box | None:
    """As the file has it; None where it has none."""
    if entry.fields.get("bbox") in (None, []):
        return None
    numbers = entry.numbers("bbox")
    if numbers is None or len(numbers) != 4:
        raise entry.wrong("bbox", "four finite numbers: x y width height")
    x, y, w, h = numbers
    if w < 0 or h < 0:
        raise entry.wrong("bbox", "x y width height, none of the last two below 0")
    if x >= image.width or y >= image.height or (w and x + w <= 0) or (h and y + h <= 0):
        raise entry.wrong("bbox", f"a part of its {image.width}x{image.height} image")
    check_reach(entry, "bbox", x, y, x + w, y + h, image)
    return x, y, w, h


def _checked_box(entry: Entry, given: Box | None, mask: Segmentation | None, crowd: bool) -> Box:
    """The box that was given, or that of the mask."""
    own = _box_of(mask) if mask else None
    if given is None or (own and not (given[2] and given[3])):
        if own is None:
            raise entry.wrong("bbox", "four numbers, x y width height, where there is no mask to take it from")
        entry.note("no bbox, that of its mask was taken")
        return own
    if not (given[2] and given[3]):
        entry.note("bbox without width or height: nothing can be found there")
    elif mask and own is None:
        entry.note("segmentation without a pixel: no mask can be found there")
    elif own and not crowd and _overlap(given, own) < _SAME_BOX:
        entry.note("bbox is not that of its mask (IoU below 0.5; COCO's is x y width height)")
    return given


def _box_of(mask: Segmentation) -> Box | None:
    """The box around a mask; None where it has no pixel."""
    from pycocotools import mask as coco_mask

    x, y, w, h = (float(v) for v in coco_mask.toBbox(mask.rle))
    return (x, y, w, h) if w and h else None


def _overlap(first: Box, second: Box) -> float:
    """IoU of two boxes that are grown by a pixel each way: a thin object's mask may be a pixel off."""
    grown = [np.array([x - 1, y - 1, x + w + 1, y + h + 1]) for x, y, w, h in (first, second)]
    sides = np.minimum(grown[0][2:], grown[1][2:]) - np.maximum(grown[0][:2], grown[1][:2])
    both = float(np.prod(np.maximum(sides, 0)))
    return both / (sum(float(np.prod(box[2:] - box[:2])) for box in grown) - both)


def _area(entry: Entry, image: Image, box: Box, mask: Segmentation | None) -> float:
    """As the file has it; where that is no area in its image, the mask's, or the box's.

    pycocotools leaves out objects of more than 10^10 pixels.
    """
    from pycocotools import mask as coco_mask

    given = entry.fields.get("area")
    area = number(given)
    own = float(coco_mask.area(mask.rle)) if mask else box[2] * box[3]
    most = max(own, image.height * image.width)
    if area is not None and (0 < area <= most or area == own == 0):
        return area
    what = "no area" if given is None else "area is no number above 0, or more than its image has"
    entry.note(f"{what}: that of its {'mask' if mask else 'bbox'} was taken")
    return own


def _crowd(entry: Entry) -> bool:
    value = entry.fields.get("iscrowd")
    if value is None:
        return False
    if number(value) not in (0, 1) and not isinstance(value, bool):
        raise entry.wrong("iscrowd", "0 or 1")
    if isinstance(value, (str, bool)):
        entry.note("iscrowd is not written as 0 or 1")
    return bool(value) if isinstance(value, bool) else number(value) == 1


def _numbered(entries: list[Entry], annotations: list[Annotation], notes: Notes) -> list[Annotation]:
    """With the file's ids where no two are alike (from 1 up: pycocotools takes 0 for none), else numbered anew."""
    kept: dict[Id, Entry] = {}
    for entry in entries:
        own = identity(entry.fields.get("id"))
        if not isinstance(own, int) or own < 1 or own in kept:
            why = "repeats" if own in kept else "is no whole number above 0"
            notes.say(f"the id of {entry.place} {why}: all annotations were numbered anew")
            return [replace(annotation, id=i) for i, annotation in enumerate(annotations, 1)]
        kept[own] = entry
    return [replace(annotation, id=int(own)) for annotation, own in zip(annotations, kept, strict=True)]


def _once(entries: list[Entry], annotations: list[Annotation], image_ids: dict[Id, Id]) -> list[Annotation]:
    """Of a picture that is listed under several ids, an object that two of them have counts once."""
    several = {stays for identifier, stays in image_ids.items() if identifier != stays}
    seen: dict[str, Id | None] = {}
    kept = []
    for entry, annotation in zip(entries, annotations, strict=True):
        if annotation.image_id in several:
            rle = annotation.segmentation.rle if annotation.segmentation else None
            key = repr((annotation.image_id, annotation.category_id, annotation.bbox, rle))
            own = identity(entry.fields["image_id"])
            if seen.setdefault(key, own) != own:
                entry.note("the same object as under the other id of its image, counted once")
                continue
        kept.append(annotation)
    return kept


def _refuse_fractions(path: Path, annotations: list[Annotation]) -> None:
    """Boxes from 0 to 1 would be read as objects of less than a pixel, and nothing would be found."""
    boxes = np.array([annotation.bbox for annotation in annotations]).reshape(-1, 4)
    if len(boxes) and (boxes[:, :2] + boxes[:, 2:]).max() <= 1 and (boxes % 1).any():
        raise WnlbError(
            f"annotations {path}: every bbox lies within the first pixel, as fractions of the image do; expected pixels"
        )


def _refuse_corners(path: Path, annotations: list[Annotation]) -> None:
    """Boxes that are corners would be read as sizes, and hardly any would be found."""
    differ = False
    for annotation in annotations:
        own = _box_of(annotation.segmentation) if annotation.segmentation and not annotation.crowd else None
        if own:
            x, y, right, low = annotation.bbox
            if _overlap((x, y, max(right - x, 0), max(low - y, 0)), own) < _SAME_BOX:
                return
            differ |= _overlap(annotation.bbox, own) < _SAME_BOX
    if differ:
        raise WnlbError(
            f"annotations {path}: every bbox is x1 y1 x2 y2, as the masks show; expected COCO's x y width height: "
            "convert them, or leave them out, and those of the masks are taken"
        )


def _note_missing_masks(entries: list[Entry], annotations: list[Annotation], notes: Notes) -> None:
    without = [e for e, annotation in zip(entries, annotations, strict=True) if annotation.segmentation is None]
    if without and len(without) == len(annotations):
        notes.say("no annotation has a segmentation: box AP alone, no mask AP")
    elif without:
        number = f"{len(without)} of {len(annotations)} annotations have no segmentation"
        notes.say(f"{number} (the first: {without[0].place}): box AP alone, no mask AP")
