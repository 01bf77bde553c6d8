"""What a converted file costs: its AP against the FP32 file's, on labels or on what the FP32 file finds."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wnlb.calibration.accuracy.classes import one_category_a_name
from wnlb.calibration.accuracy.evaluate import evaluate_pictures
from wnlb.calibration.accuracy.score import AGREEMENT_SCORE, Evaluation
from wnlb.calibration.labels.labels import Annotation, Category, Image, Labels, Segmentation
from wnlb.calibration.labels.pictures import LabelledPictures
from wnlb.calibration.labels.reader import read_labels
from wnlb.runtime.errors import WnlbError
from wnlb.runtime.files import atomic_path
from wnlb.runtime.predictor import AT_ONCE, Predictor

Progress = Callable[[], object]


@dataclass(frozen=True)
class Figure:
    """AP in percent."""

    box_ap: float
    mask_ap: float | None

    def drop(self, other: Figure) -> float:
        """How much lower ``other`` is, in the worse of both."""
        drops = [self.box_ap - other.box_ap]
        if self.mask_ap is not None and other.mask_ap is not None:
            drops.append(self.mask_ap - other.mask_ap)
        return max(drops)


class Judge:
    """Measures files on one set of pictures.

    With labels the figure is COCO's AP. Without them what a reference, the FP32 file, finds with a score of 0.5 or more
    is the truth: then the reference has about 100, and another file loses what it sees differently.

    Args:
        labels: the truth, without two categories of one name.
        picture_of: the picture of an image of ``labels``, uint8 BGR of its size.
        truth: ``"labels"`` or ``"reference"``, for reports.
        notes: what was odd about labels and pictures, a line each.
        sure: without labels, what the reference finds, as COCO results.
    """

    def __init__(
        self,
        labels: Labels,
        picture_of: Callable[[Image], NDArray[np.uint8]],
        truth: str,
        notes: Sequence[str] = (),
        sure: Sequence[dict[str, Any]] = (),
    ) -> None:
        self.labels, self.picture_of, self.truth = labels, picture_of, truth
        self.notes, self.sure = tuple(notes), tuple(sure)

    @classmethod
    def on_labels(cls, annotations: Path, images: Path, count: int | None = None) -> Judge:
        """Of a COCO label file; ``count`` pictures of it, evenly taken, or all.

        Raises WnlbError for broken annotations or missing pictures.
        """
        labels = one_category_a_name(read_labels(annotations))
        labels = labels.part([labels.images[i] for i in evenly(len(labels.images), count)])
        pictures = LabelledPictures(labels, images)
        pictures.check_all_there()
        notes = [*labels.notes, *pictures.notes]
        if all(annotation.crowd for annotation in labels.annotations):
            notes.append(f"the {len(labels.images)} pictures have no labelled object: there is no AP")
        return cls(labels, pictures, "labels", [f"annotations {annotations}: {note}" for note in notes])

    @classmethod
    def on_agreement(
        cls, reference: Predictor, pictures: dict[str, NDArray[np.uint8]], on_done: Progress = lambda: None
    ) -> Judge:
        """Of what ``reference`` finds on pictures (name to uint8 BGR). Raises WnlbError where that is nothing."""
        images = tuple(Image(i, name, *picture.shape[:2]) for i, (name, picture) in enumerate(pictures.items(), 1))
        names = enumerate(reference.contract.class_names, 1)
        labels = one_category_a_name(Labels(images, tuple(Category(i, name) for i, name in names), ()))

        def picture_of(image: Image) -> NDArray[np.uint8]:
            return pictures[image.file_name]

        found = evaluate_pictures(reference, labels, picture_of, "truth", on_done)
        sure = [entry for entry in found.results if entry["score"] >= AGREEMENT_SCORE]
        if not sure:
            raise WnlbError(
                f"the reference finds nothing on {len(pictures)} pictures (score {AGREEMENT_SCORE} or more): give "
                "pictures of what the model knows, or labels with --annotations"
            )
        annotations = tuple(_annotation(i, entry) for i, entry in enumerate(sure, 1))
        return cls(replace(labels, annotations=annotations), picture_of, "reference", sure=sure)

    def __len__(self) -> int:
        return len(self.labels.images)

    def evaluate(self, path: Path, on_done: Progress = lambda: None) -> Evaluation:
        with Predictor(path, at_once=AT_ONCE) as predictor:
            return evaluate_pictures(predictor, self.labels, self.picture_of, path.name, on_done)

    def measure(self, path: Path, on_done: Progress = lambda: None) -> Figure:
        """Raises WnlbError where there is no object to find."""
        overall = self.evaluate(path, on_done).overall
        if not overall.objects:
            raise WnlbError(
                f"the {overall.images} pictures have no labelled object; give more pictures or raise --trial-pictures"
            )
        return Figure(overall.box_ap, overall.mask_ap)


def _annotation(number: int, entry: dict[str, Any]) -> Annotation:
    """A detection as truth."""
    mask = Segmentation(entry["segmentation"], entry["segmentation"]) if "segmentation" in entry else None
    x, y, w, h = entry["bbox"]
    return Annotation(number, entry["image_id"], entry["category_id"], (x, y, w, h), w * h, False, mask)


def evenly(total: int, count: int | None) -> list[int]:
    """``count`` of ``total`` indices, evenly spaced; all where it is None or more."""
    return np.linspace(0, total - 1, min(count or total, total)).round().astype(int).tolist()


class Ledger:
    """Figures that were measured before, in a JSON file: an interrupted search goes on where it was."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            content: Any = json.loads(path.read_text())
            self._figures = {key: Figure(float(box), mask) for key, (box, mask) in content.items()}
        except (OSError, ValueError, AttributeError, TypeError, IndexError):
            self._figures = {}

    def get(self, key: str, measure: Callable[[], Figure]) -> Figure:
        """The figure under ``key``, measured and written down where it is not there yet."""
        if key not in self._figures:
            self._figures[key] = measure()
            content = {name: [figure.box_ap, figure.mask_ap] for name, figure in self._figures.items()}
            with atomic_path(self.path) as temporary:
                temporary.write_text(json.dumps(content))
        return self._figures[key]
