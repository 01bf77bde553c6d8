"""Frames to detections, a few frames ahead: reading and inference overlap, and a bad picture costs itself alone."""

from __future__ import annotations

import functools
from collections.abc import Callable, Generator, Iterable

import cv2

from wnlb.runtime.detections import Detections
from wnlb.runtime.errors import PictureError
from wnlb.runtime.overlap import abreast, ahead
from wnlb.runtime.predictor import Predictor
from wnlb.runtime.source import Frame

Found = tuple[Frame, Detections | None]  # None where there is no picture


def detected(
    frames: Iterable[Frame],
    predictor: Predictor,
    size: int,
    *,
    is_video: bool = False,
    on_run: Callable[[dict[str, float], int], object] = lambda times_ms, frames: None,
) -> Generator[list[Found], None, None]:
    """The same frames in the same order, as they are done; those of one run of the model together.

    Close it where it is left early (``contextlib.closing``): threads work for it.

    Args:
        size: frames of a run, at most; one of ``predictor.contract.batches``.
        is_video: a frame that cannot be prepared is an error of the source, not of one picture.
        on_run: told ``Predictor.times_ms`` and the number of frames after each run, by the thread that ran it.

    Raises:
        PictureError: of ``frames``; or ``is_video``.
        WnlbError: the model cannot be run.
    """

    def run(predictor: Predictor, batch: list[Frame]) -> list[Found]:
        pictures = [frame.pixels for frame in batch if frame.pixels is not None]
        if not pictures:
            return [(frame, None) for frame in batch]
        try:
            found = iter(predictor.predict_batch(pictures))
        except (PictureError, cv2.error) as error:  # of one size of picture: it must not cost its neighbours
            if len(batch) > 1:
                return [found for frame in batch for found in run(predictor, [frame])]
            if is_video:
                raise
            return [(Frame(batch[0].name, None, f"picture {batch[0].name} cannot be prepared: {error}"), None)]
        on_run(predictor.times_ms, len(pictures))
        return [(frame, None if frame.pixels is None else next(found)) for frame in batch]

    works = [functools.partial(run, one) for one in predictor.abreast()]
    return ahead(abreast(ahead(_batches(frames, size)), works))


def _batches(frames: Iterable[Frame], size: int) -> Generator[list[Frame], None, None]:
    """``size`` frames at a time, and those between them that could not be read."""
    batch: list[Frame] = []
    for frame in frames:
        batch.append(frame)
        pictures = sum(one.pixels is not None for one in batch)
        if pictures in (0, size):  # what stands before the first is known at once
            yield batch
            batch = []
    if batch:
        yield batch
