"""What a worker does: it opens the model once and turns blocks of pictures into Parquet."""

from __future__ import annotations

import contextlib
import itertools
import resource
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import cv2
import numpy as np

from wnlb.runtime.coco import coco_results
from wnlb.runtime.darkness import luminance
from wnlb.runtime.detecting import detected
from wnlb.runtime.detections import Detections
from wnlb.runtime.errors import PictureError, PictureWarning
from wnlb.runtime.fill_hint import FillHint
from wnlb.runtime.labelling.inputs import Block, Input, open_remote, read_remote
from wnlb.runtime.labelling.shards import table_bytes
from wnlb.runtime.pictures import decode_picture, read_picture
from wnlb.runtime.predictor import Predictor
from wnlb.runtime.served_model import model_of, options_for
from wnlb.runtime.source import Frame, VideoSource

# Rows below it are kept by no format. Those between it and --min-score tell what a person should look at, and let
# --min-score be changed afterwards.
LOWEST_SCORE = 0.05


@dataclass(frozen=True)
class Options:
    """How a worker opens the model and reads pictures."""

    model: str
    device: str = "auto"
    threads: int = 0
    trust: Path | None = None
    bits: int = 0  # see ``read_picture``
    otherwise: int = 0
    remote: str = ""  # the address whose file system holds the pictures; "": files


@dataclass(frozen=True)
class Facts:
    """What one worker tells of the model before the work begins."""

    contract: str  # JSON
    description: str  # of the backend
    seconds: float  # that a picture takes
    memory: int  # bytes of such a worker
    hint: str  # that pictures leave the input empty; "" where they do not


@dataclass(frozen=True)
class Labelled:
    """A block that is done."""

    block: Block
    data: bytes  # a Parquet file, see ``shards``
    rows: int
    notes: tuple[str, ...] = field(default=())  # what a user should know of these pictures


class Labeller:
    """One open model.

    Raises:
        WnlbError: the model cannot be opened.
    """

    def __init__(self, options: Options) -> None:
        if options.threads:
            cv2.setNumThreads(options.threads)
        model = model_of(options.model)
        own = options_for(model, options.device, options.threads)
        self._predictor = Predictor(model, score_threshold=LOWEST_SCORE, trust=options.trust, **own)
        self._reader = _Reader(options)

    def facts(self, first: Input) -> Facts:
        """Of this worker, on a picture such as it will get; on a black one where that cannot be read."""
        contract = self._predictor.contract
        frames = list(itertools.islice(self._reader.frames(Block(0, (first,), 0, 1)), 1))
        pixels = frames[0].pixels if frames else None
        picture = np.zeros((contract.height, contract.width, 3), np.uint8) if pixels is None else pixels
        for _ in range(2):  # the first run is slower
            started = time.perf_counter()
            self._predictor.predict_batch([picture] * contract.batches[-1])
            seconds = (time.perf_counter() - started) / contract.batches[-1]
        hint = FillHint(self._predictor.geometry).about(*picture.shape[:2])
        memory = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return Facts(contract.to_json(), self._predictor.backend.description, seconds, memory, hint)

    def label(self, block: Block, on_picture: Callable[[], object] = lambda: None) -> Labelled:
        """Detections of a block's pictures; one that cannot be read is a row with the reason.

        Raises:
            WnlbError: the model cannot be run, or a storage does not answer.
        """
        names = self._predictor.contract.class_names
        rows: list[dict[str, Any]] = []
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", PictureWarning)
            runs = detected(self._reader.frames(block), self._predictor, self._predictor.contract.batches[-1])
            with contextlib.closing(runs):
                for frame, detections in itertools.chain.from_iterable(runs):
                    rows.append(row_of(frame, detections, names))
                    on_picture()
        told = [str(warning.message) for warning in caught if issubclass(warning.category, PictureWarning)]
        return Labelled(block, table_bytes(rows), len(rows), tuple(dict.fromkeys(told)))

    def close(self) -> None:
        self._reader.close()
        self._predictor.close()

    def __enter__(self) -> Labeller:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def row_of(frame: Frame, detections: Detections | None, class_names: tuple[str, ...]) -> dict[str, Any]:
    """One row of a shard."""
    if frame.pixels is None or detections is None:
        return {"name": frame.name, "error": frame.error, "objects": []}
    objects = []
    for entry in coco_results(detections, 0):
        mask = entry.get("segmentation")
        kept = {key: entry[key] for key in ("category_id", "score", "bbox", "area")}
        objects.append({**kept, "category": class_names[entry["category_id"] - 1], "rle": mask and mask["counts"]})
    size = {"height": detections.height, "width": detections.width}
    return {"name": frame.name, **size, "luminance": luminance(frame.pixels), "objects": objects}


class _Reader:
    """The frames of blocks. A video stays open, for the next block of a worker lies behind the last."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._system = open_remote(options.remote)[0] if options.remote else None
        self._video: tuple[str, VideoSource] | None = None

    def frames(self, block: Block) -> Iterator[Frame]:
        if block.inputs[0].frames is not None:
            yield from self._of_video(block)
            return
        for one in block.inputs:
            try:
                yield Frame(one.name, self._picture(one.path))
            except PictureError as error:
                yield Frame(one.name, None, str(error))

    def _picture(self, path: str) -> Any:
        how = self._options.bits, self._options.otherwise
        return decode_picture(read_remote(self._system, path), path, *how) if self._system else read_picture(path, *how)

    def _of_video(self, block: Block) -> Iterator[Frame]:
        one, first = block.inputs[0], block.first
        try:
            video = self._opened(one.path, first)
        except PictureError as error:
            yield Frame(f"{one.name}_{first:06d}", None, str(error))
            return
        for frame in video.between(first, block.stop):
            yield Frame(f"{one.name}_{video.position - 1:06d}", frame.pixels)
        if not video.position:
            yield Frame(f"{one.name}_{0:06d}", None, f"video {one.path} holds no frame that can be decoded")

    def _opened(self, path: str, first: int) -> VideoSource:
        if self._video is None or self._video[0] != path or self._video[1].position > first:
            self.close()
            self._video = (path, VideoSource(path))
        return self._video[1]

    def close(self) -> None:
        if self._video:
            self._video[1].release()
        self._video = None
