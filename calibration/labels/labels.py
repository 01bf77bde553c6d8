"""What a COCO label file says, checked: plain objects that the rest of the toolkit trusts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

Id = int | str  # as the file has it; what belongs together is equal
Box = tuple[float, float, float, float]  # x y width height, pixels of the image


@dataclass(frozen=True)
class Image:
    """One picture of the set. ``extra``: what else the file says of it, carried over where it is written."""

    id: Id
    file_name: str
    height: int  # pixels
    width: int
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Category:
    """One class; ``name`` without blanks around it."""

    id: Id
    name: str
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Segmentation:
    """A mask: as COCO's files hold it, and run-length encoded, ``{"size": [height, width], "counts": str}``."""

    coco: list[list[float]] | dict[str, Any]
    rle: dict[str, Any]


@dataclass(frozen=True)
class Annotation:
    """One object, or a crowd of them, which counts neither as found nor as missed."""

    id: int  # from 1 up, no two alike
    image_id: Id
    category_id: Id
    bbox: Box
    area: float  # pixels; it decides whether an object is small, medium or large
    crowd: bool = False
    segmentation: Segmentation | None = None
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Labels:
    """A set of labelled pictures.

    ``notes``: one line for each kind of oddity that was read all the same. ``extra``: what else the file holds.
    """

    images: tuple[Image, ...]
    categories: tuple[Category, ...]
    annotations: tuple[Annotation, ...]
    notes: tuple[str, ...] = ()
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def has_masks(self) -> bool:
        """Whether every object has one. With some of them missing a mask AP would be wrong, not lower."""
        return all(annotation.segmentation is not None for annotation in self.annotations)

    def part(self, images: Sequence[Image]) -> Labels:
        """The set of these images alone."""
        ids = {image.id for image in images}
        annotations = tuple(annotation for annotation in self.annotations if annotation.image_id in ids)
        return replace(self, images=tuple(images), annotations=annotations)

    def document(self) -> dict[str, Any]:
        """As a COCO file holds it."""
        return {
            **self.extra,
            "images": [
                {**i.extra, "id": i.id, "file_name": i.file_name, "height": i.height, "width": i.width}
                for i in self.images
            ],
            "categories": [{**c.extra, "id": c.id, "name": c.name} for c in self.categories],
            "annotations": [_entry(annotation) for annotation in self.annotations],
        }


def _entry(annotation: Annotation) -> dict[str, Any]:
    entry = {
        **annotation.extra,
        "id": annotation.id,
        "image_id": annotation.image_id,
        "category_id": annotation.category_id,
        "bbox": list(annotation.bbox),
        "area": annotation.area,
        "iscrowd": int(annotation.crowd),
    }
    return entry if annotation.segmentation is None else {**entry, "segmentation": annotation.segmentation.coco}
