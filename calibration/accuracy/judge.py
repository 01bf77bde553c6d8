"""What a converted file costs: its AP against the FP32 file's, on labels or on what the FP32 file finds."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wnlb.calibration.accuracy.evaluate import (
    AGREEMENT_SCORE,
    Document,
    Evaluation,
    check_annotations,
    check_files,
    evaluate_pictures,
)
from wnlb.runtime.errors import WnlbError
from wnlb.runtime.files import atomic_path
from wnlb.runtime.pictures import read_picture
from wnlb.runtime.predictor import Predictor

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
        document: COCO annotations whose images ``picture_of`` reads.
        truth: ``"labels"`` or ``"reference"``, for reports.
    """

    def __init__(
        self, document: Document, picture_of: Callable[[dict[str, Any]], NDArray[np.uint8]], truth: str
    ) -> None:
        self.document, self.picture_of, self.truth = document, picture_of, truth

    @classmethod
    def on_labels(cls, document: Document, images: Path) -> Judge:
        """Raises WnlbError for broken annotations or missing pictures."""
        check_annotations(document)
        check_files(document, images)
        return cls(document, lambda image: read_picture(images / image["file_name"]), "labels")

    @classmethod
    def on_agreement(
        cls, reference: Predictor, pictures: dict[str, NDArray[np.uint8]], on_done: Progress = lambda: None
    ) -> Judge:
        """Of what ``reference`` finds on pictures (name to uint8 BGR). Raises WnlbError where that is nothing."""
        images = [
            {"id": i, "file_name": name, "height": picture.shape[0], "width": picture.shape[1]}
            for i, (name, picture) in enumerate(pictures.items(), 1)
        ]
        document: Document = {
            "images": images,
            "annotations": [],
            "categories": [{"id": i, "name": name} for i, name in enumerate(reference.contract.class_names, 1)],
        }
        found = evaluate_pictures(reference, document, lambda image: pictures[image["file_name"]], "truth", on_done)
        sure = [entry for entry in found.results if entry["score"] >= AGREEMENT_SCORE]
        if not sure:
            raise WnlbError(
                f"the reference finds nothing on {len(pictures)} pictures (score {AGREEMENT_SCORE} or more): give "
                "pictures of what the model knows, or labels with --annotations"
            )
        document["annotations"] = [
            {"id": i, "area": entry["bbox"][2] * entry["bbox"][3], **entry} for i, entry in enumerate(sure, 1)
        ]
        return cls(document, lambda image: pictures[image["file_name"]], "reference")

    def part(self, count: int | None) -> Judge:
        """On ``count`` of the pictures, evenly taken; all where it is None."""
        images = [self.document["images"][i] for i in evenly(len(self), count)]
        ids = {image["id"] for image in images}
        annotations = [entry for entry in self.document["annotations"] if entry["image_id"] in ids]
        document = {**self.document, "images": images, "annotations": annotations}
        return Judge(document, self.picture_of, self.truth)

    def __len__(self) -> int:
        return len(self.document["images"])

    def evaluate(self, path: Path, on_done: Progress = lambda: None) -> Evaluation:
        with Predictor(path) as predictor:
            return evaluate_pictures(predictor, self.document, self.picture_of, path.name, on_done)

    def measure(self, path: Path, on_done: Progress = lambda: None) -> Figure:
        """Raises WnlbError where there is no object to find."""
        overall = self.evaluate(path, on_done).overall
        if not overall.objects:
            raise WnlbError(
                f"the {overall.images} pictures have no labelled object; give more pictures or raise --trial-pictures"
            )
        return Figure(overall.box_ap, overall.mask_ap)


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
