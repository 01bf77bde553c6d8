"""Detections that keep their identity from frame to frame.

A Kalman filter foretells where each object will be; boxes are grown a little and assigned to objects by their overlap,
sure detections first, then the weak ones to objects that are left. That holds an object which gets dark, blurred or
half hidden. It is ByteTrack's two rounds (Zhang et al., ECCV 2022) with buffered IoU (Yang et al., "Hard to track
objects with irregular motions and similar appearances?", WACV 2023): C-BIoU of roboflow's ``trackers`` (Apache-2.0),
loaded only when a tracker is made. runtime/README.md tells what it was chosen against.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from wnlb.runtime.detections import Detections
from wnlb.runtime.errors import MissingDependency, WnlbError

LOW_SCORE = 0.1  # below it nothing is handed to the tracker: ByteTrack's figure
SHOWN_SCORE = 0.5  # weaker ones hold an identity and are not shown: in the dark most of them are wrong


class Tracker(Protocol):
    """Gives detections their identities."""

    def update(self, detections: Detections, at_s: float) -> Detections:
        """The same rows with ``track_ids``; 0 for what belongs to no track.

        Args:
            detections: of the next frame, weak ones too, from ``LOW_SCORE`` up: they carry an object through the dark.
            at_s: when the frame was captured, seconds of any clock that grows; frames may be missing between.
        """
        ...


@dataclass(frozen=True)
class TrackerOptions:
    """What decides whether two detections are one object."""

    fps: float = 25.0  # of the source; the frame time that the filter's noise is meant for
    begin_score: float = 0.7  # detections from here up begin tracks
    sure_score: float = 0.6  # from here up they are assigned first
    lost_s: float = 1.0  # seconds that an object may be out of sight and come back as the same

    def __post_init__(self) -> None:
        if not 0 < self.fps < math.inf:
            raise WnlbError(f"tracking at {self.fps} frames a second; expected a number above 0")
        if not LOW_SCORE <= self.sure_score <= self.begin_score <= 1:
            raise WnlbError(
                f"tracks begin with a score of {self.begin_score} and go on with one of {self.sure_score}; "
                f"expected {LOW_SCORE} to 1, the first no less than the second"
            )
        if not 0 <= self.lost_s < math.inf:
            raise WnlbError(f"tracks are kept for {self.lost_s} s; expected 0 or more")


class BufferedIouTracker:
    """C-BIoU by the ``trackers`` library, told real times.

    An object is a track from its second detection in a row; of the first frame, at once. Whatever its class: a car that
    is a bus for one frame stays one object. Where the time does not grow, as of a clock that was set back, a new video
    begins.

    Raises MissingDependency where the library is not installed.
    """

    def __init__(self, options: TrackerOptions | None = None) -> None:
        self.options = options or TrackerOptions()
        try:
            import supervision
            from trackers import CBIoUTracker
        except ImportError as error:
            raise MissingDependency(
                f"tracking needs {error.name or 'trackers'}, which is not installed: pip install 'wnlb-deploy[track]'"
            ) from error
        self._boxes_of: Any = supervision.Detections
        self._make: Any = CBIoUTracker
        self._given = 0  # identities of trackers before this one
        self._begin()

    def _begin(self) -> None:
        options = self.options
        self._tracker = self._make(
            lost_track_buffer=round(30 * options.lost_s),  # in thirtieths of a second, whatever the rate
            frame_rate=options.fps,
            track_activation_threshold=options.begin_score,
            high_conf_det_threshold=options.sure_score,
        )
        self._last_s, self._most = -math.inf, 0

    def update(self, detections: Detections, at_s: float) -> Detections:
        """See ``Tracker``."""
        if at_s <= self._last_s:
            self._given += self._most
            self._begin()
        self._last_s = at_s
        rows = np.flatnonzero(detections.scores >= LOW_SCORE)
        given = self._boxes_of(
            xyxy=detections.boxes[rows].astype(np.float64),
            confidence=detections.scores[rows].astype(np.float64),
            data={"row": rows},
        )
        found = self._tracker.update(given, timestamp=at_s)
        track_ids = np.zeros(len(detections), np.int32)
        if len(found):  # in another order, from 0 up, -1 of no track
            own = np.asarray(found.tracker_id) + 1
            self._most = max(self._most, int(own.max()))
            track_ids[found.data["row"]] = np.where(own > 0, own + self._given, 0)
        return replace(detections, track_ids=track_ids)
