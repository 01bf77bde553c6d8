"""Classes of a model and categories of a set, matched by name: ids differ from set to set (LIS counts from 0)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from wnlb.calibration.labels.labels import Category, Id, Labels
from wnlb.runtime.errors import WnlbError

# What Pascal VOC calls COCO's classes; LIS's annotations may use either.
_VOC_NAMES = {
    "aeroplane": "airplane",
    "diningtable": "dining table",
    "motorbike": "motorcycle",
    "pottedplant": "potted plant",
    "sofa": "couch",
    "tvmonitor": "tv",
}


def plain_name(name: str) -> str:
    """What names of one class have in common, whatever their case, blanks or origin (COCO, Pascal VOC)."""
    name = " ".join(name.lower().split())
    return _VOC_NAMES.get(name, name)


def one_category_a_name(labels: Labels) -> Labels:
    """The set with one category for each plain name: ``Car`` and ``car`` are one class to a model.

    The first that has objects stays; where others have some too, a note says so.
    """
    used = {annotation.category_id for annotation in labels.annotations}
    groups: dict[str, list[Category]] = {}
    for category in labels.categories:
        groups.setdefault(plain_name(category.name), []).append(category)
    stays: dict[Id, Category] = {}
    notes = []
    for group in groups.values():
        with_objects = [category for category in group if category.id in used]
        stays |= dict.fromkeys((category.id for category in group), (with_objects or group)[0])
        if len(with_objects) > 1:
            names = " and ".join(f"{category.name!r} (id {category.id})" for category in with_objects)
            notes.append(f"categories {names} are one class to a model and were scored as one")
    annotations = tuple(replace(a, category_id=stays[a.category_id].id) for a in labels.annotations)
    categories = tuple(category for category in labels.categories if stays[category.id] is category)
    return replace(labels, categories=categories, annotations=annotations, notes=(*labels.notes, *notes))


def category_ids(class_names: Sequence[str], labels: Labels) -> list[Id | None]:
    """The category id of each class of a model; None for one that the set lacks.

    Raises:
        WnlbError: the set has objects of a category that the model does not know.
    """
    by_name = {plain_name(category.name): category.id for category in labels.categories}
    used = {annotation.category_id for annotation in labels.annotations}
    known = [plain_name(name) for name in class_names]
    unknown = sorted(name for name, identifier in by_name.items() if identifier in used and name not in known)
    if unknown:
        raise WnlbError(
            f"the model does not know {len(unknown)} of {len(by_name)} categories ({', '.join(unknown[:5])}); it knows "
            f"{', '.join(class_names[:10])}: export it with --classes, names as in the annotations"
        )
    return [by_name.get(name) for name in known]
