"""How well identities hold over a video: HOTA, IDF1 and MOTA of boxes and masks, by darkness.

HOTA: Luiten et al., "HOTA: a higher order metric for evaluating multi-object tracking", IJCV 2021. IDF1: Ristani et
al., ECCV workshops 2016. MOTA: Bernardin, Stiefelhagen, 2008. All by the ``trackers`` library, whose figures are
TrackEval's (a test holds that), with an IoU of 0.5 for the latter two. Each class of each video is a sequence; they
are put together detection by detection, so that a class counts by its objects (TrackEval's "det averaged").
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeGuard

import numpy as np

from wnlb.calibration.labels.labels import Id, Image, Labels
from wnlb.runtime.darkness import darkness_bin
from wnlb.runtime.detections import Detections
from wnlb.runtime.errors import WnlbError
from wnlb.runtime.tracking.tracker import SHOWN_SCORE, BufferedIouTracker, Tracker, TrackerOptions

_Frame = tuple[np.ndarray, np.ndarray, np.ndarray]  # true ids, found ids, IoU [true, found]


@dataclass(frozen=True)
class TrackFigures:
    """In percent, but for the switches: how often a true object went on under another identity."""

    hota: float  # the geometric mean of the next two, over 19 thresholds of IoU
    det_a: float  # detection
    ass_a: float  # association: what was found of an object bears one identity, and that identity nothing else
    idf1: float
    mota: float  # may be negative
    id_switches: int


@dataclass(frozen=True)
class TrackAccuracy:
    """Figures of some videos; ``mask`` is None without masks."""

    videos: int
    tracks: int  # true ones
    box: TrackFigures
    mask: TrackFigures | None


@dataclass(frozen=True)
class TrackEvaluation:
    """One model on one set of videos."""

    model: str
    overall: TrackAccuracy
    by_darkness: dict[str, TrackAccuracy]  # bin -> accuracy, darkest first; empty bins are left out


class VideoTracks:
    """Tracks detections that come video by video and frame by frame, as ``labels`` has its images.

    Args:
        labels: see ``by_video``.
        make: a new tracker for a video of so many frames a second.
    """

    def __init__(self, labels: Labels, make: Callable[[float], Tracker] | None = None) -> None:
        self._fps = {video["id"]: float(video["fps"]) for video in labels.extra["videos"]}
        self._make = make or (lambda fps: BufferedIouTracker(TrackerOptions(fps)))
        self._tracker: Tracker | None = None
        self.light: defaultdict[Id, list[float]] = defaultdict(list)  # of each video's frames: mean linear luminance

    def update(self, image: Image, light: float, detections: Detections) -> Detections:
        """The detections of the next image with their identities, which are of its video alone."""
        video = image.extra["video_id"]
        if video not in self.light or self._tracker is None:
            self._tracker = self._make(self._fps[video])
        self.light[video].append(light)
        return self._tracker.update(detections, image.extra["frame_id"] / self._fps[video])


def by_video(labels: Labels) -> Labels:
    """The set with its images video by video, in the order of their frames; of ``videos`` those that have a rate.

    Raises:
        WnlbError: it is no COCO-VID set: no videos with a rate, or images or objects that do not say whose they are.
    """
    entries = labels.extra.get("videos")
    entries = [one for one in entries if isinstance(one, dict)] if isinstance(entries, list) else []
    videos = {one["id"]: one for one in entries if _is_id(one.get("id")) and _is_rate(one.get("fps"))}
    expected = "expected COCO-VID as of 'wnlb scenes --video'"
    if not videos:
        raise WnlbError(f"annotations have no videos with an id and frames a second (fps); {expected}")
    places: dict[tuple[Id, int], Image] = {}
    for image in labels.images:
        video, number = image.extra.get("video_id"), image.extra.get("frame_id")
        if not _is_id(video) or video not in videos or not _is_number(number):
            raise WnlbError(f"image {image.file_name} has no video_id of the set or no whole frame_id; {expected}")
        if (other := places.setdefault((video, number), image)) is not image:
            raise WnlbError(f"images {other.file_name} and {image.file_name} are one frame of one video; {expected}")
    for entry in labels.annotations:
        if not entry.crowd and _track_of(entry.extra) is None:
            raise WnlbError(f"annotation {entry.id} has neither track_id nor instance_id, a whole number; {expected}")
    order = {video: i for i, video in enumerate(videos)}
    images = sorted(labels.images, key=lambda image: (order[image.extra["video_id"]], image.extra["frame_id"]))
    return replace(labels, images=tuple(images), extra={**labels.extra, "videos": [*videos.values()]})


def _is_id(value: Any) -> TypeGuard[Id]:
    return isinstance(value, (int, str))


def _is_rate(value: Any) -> bool:
    return isinstance(value, (int, float)) and 1e-3 <= value <= 1e6


def _is_number(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and abs(value) < 2**53


def _track_of(extra: dict[str, Any]) -> int | None:
    found = extra.get("track_id", extra.get("instance_id"))
    return found if _is_number(found) else None


def score_tracks(
    labels: Labels, results: Sequence[dict[str, Any]], light: dict[Id, list[float]], name: str
) -> TrackEvaluation:
    """Score tracked results.

    Args:
        labels: of ``by_video``; crowds are left out.
        results: COCO results with the ids of ``labels``; those with a ``track_id``, a number of their video, count
            where ``predict`` and ``run`` show them: from ``SHOWN_SCORE`` up.
        light: of each video, ``VideoTracks.light``; a video is as dark as its frames are on average.
        name: of the model.
    """
    kept = [entry for entry in results if "track_id" in entry and entry["score"] >= SHOWN_SCORE]
    masks = labels.has_masks and all("segmentation" in entry for entry in results)
    kinds = ("bbox", "segmentation") if masks else ("bbox",)
    sequences = {kind: _sequences(labels, kept, kind) for kind in kinds}
    figures = {kind: {key: _Sums.of(frames) for key, frames in sequences[kind].items()} for kind in kinds}
    truth = {
        (i.extra["video_id"], _track_of(a.extra))
        for i, a in _pairs(labels)  # an identity may be one of the set or of its video
    }

    def accuracy(videos: set[Id]) -> TrackAccuracy:
        found = [_Sums.figures([s for (video, _), s in figures[kind].items() if video in videos]) for kind in kinds]
        tracks = sum(video in videos for video, _ in truth)
        return TrackAccuracy(len(videos), tracks, found[0], found[1] if masks else None)

    bins: defaultdict[str, set[Id]] = defaultdict(set)
    for video, values in light.items():
        bins[darkness_bin(float(np.mean(values)))].add(video)
    ordered = sorted(bins, key=lambda key: float(key.partition("-")[0]))
    return TrackEvaluation(name, accuracy(set(light)), {key: accuracy(bins[key]) for key in ordered})


def _pairs(labels: Labels) -> list[tuple[Image, Any]]:
    images = {image.id: image for image in labels.images}
    return [(images[a.image_id], a) for a in labels.annotations if not a.crowd]


def _sequences(labels: Labels, results: Sequence[dict[str, Any]], kind: str) -> dict[tuple[Id, Id], list[_Frame]]:
    """The frames of each video and class, in order; ``kind`` is what overlaps: "bbox" or "segmentation"."""
    from pycocotools import mask as coco_mask

    true: defaultdict[tuple[Id, Id], list[tuple[int, Any]]] = defaultdict(list)
    for image, a in _pairs(labels):
        shape = list(a.bbox) if kind == "bbox" else a.segmentation.rle
        true[image.id, a.category_id].append((_track_of(a.extra) or 0, shape))
    found: defaultdict[tuple[Id, Id], list[tuple[int, Any]]] = defaultdict(list)
    for entry in results:
        found[entry["image_id"], entry["category_id"]].append((entry["track_id"], entry[kind]))
    classes: defaultdict[Id, set[Id]] = defaultdict(set)
    video_of = {image.id: image.extra["video_id"] for image in labels.images}
    for image_id, category in (*true, *found):
        classes[video_of[image_id]].add(category)
    sequences: defaultdict[tuple[Id, Id], list[_Frame]] = defaultdict(list)
    for image in labels.images:
        video = image.extra["video_id"]
        for category in classes[video]:
            here, there = true[image.id, category], found[image.id, category]
            shapes = [shape for _, shape in there], [shape for _, shape in here]
            overlap = coco_mask.iou(*shapes, [0] * len(here)) if here and there else np.zeros((len(there), len(here)))
            ids = (np.array([i for i, _ in rows], np.int64) for rows in (here, there))
            sequences[video, category].append((*ids, np.asarray(overlap, np.float64).T))
    return sequences


class _Sums:
    """What the three metrics count of one sequence."""

    def __init__(self, hota: Any, identity: Any, clear: Any) -> None:
        self._all = (hota, identity, clear)

    @classmethod
    def of(cls, frames: Sequence[_Frame]) -> _Sums:
        from trackers import eval as metrics

        true, found, overlap = (list(column) for column in zip(*frames, strict=True))
        return cls(
            metrics.compute_hota_metrics(true, found, overlap),
            metrics.compute_identity_metrics(true, found, overlap),
            metrics.compute_clear_metrics(true, found, overlap),
        )

    @staticmethod
    def figures(sums: Sequence[_Sums]) -> TrackFigures:
        from trackers import eval as metrics

        hota = metrics.aggregate_hota_metrics([each._all[0] for each in sums])
        identity = metrics.aggregate_identity_metrics([each._all[1] for each in sums])
        clear = metrics.aggregate_clear_metrics([each._all[2] for each in sums])
        parts = (hota["HOTA"], hota["DetA"], hota["AssA"], identity["IDF1"], clear["MOTA"])
        whole, detection, association, idf1, mota = (float(100 * part) for part in parts)
        return TrackFigures(whole, detection, association, idf1, mota, int(clear["IDSW"]))
