"""Masks and scores of tracks that are steady over time: each is averaged with those before it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from wnlb.runtime.detections import MASK_THRESHOLD, Detections, Mask
from wnlb.runtime.errors import WnlbError
from wnlb.runtime.tracking.tracker import Tracker

_FORGOTTEN = 10  # half-lives, after which a thousandth is left of what was seen
_NOTHING = 0.01  # of a pixel's past that had it inside


class SmoothedTracker:
    """A tracker whose tracks have averaged scores and masks; boxes, labels and what belongs to no track stay as found.

    The average is exponential and looks back alone: average += (1 - 0.5^(dt / half-life)) * (found - average), dt being
    the time since the track was last seen. What lies a half-life back counts half, however many frames are between.

    A mask is averaged in the pixels of the frame, as it was pasted, whichever form the model's masks have, and is where
    the average is above 0.5. The past is moved and scaled with the object before (bilinearly), as a line fitted to its
    boxes tells, not as the newest box lies: that trembles, and most of what flickers in a mask is its box. With a
    half-life below the time of a frame, what was found outweighs all of the past, and masks stay as found.

    Raises WnlbError where the half-life is not above 0.
    """

    def __init__(self, tracker: Tracker, half_life_s: float) -> None:
        if not 0 < half_life_s < math.inf:
            raise WnlbError(f"tracks are smoothed over {half_life_s} s; expected a number above 0, e.g. 0.2")
        self._tracker, self._half_life_s = tracker, half_life_s
        self._past: dict[int, _Past] = {}

    def update(self, detections: Detections, at_s: float) -> Detections:
        """See ``Tracker``. Rows are in the order of the averaged scores."""
        found = self._tracker.update(detections, at_s)
        oldest = at_s - _FORGOTTEN * self._half_life_s
        self._past = {track: past for track, past in self._past.items() if oldest <= past.at_s < at_s}
        scores, masks = found.scores.copy(), None if found.masks is None else list(found.masks)
        for i, track in enumerate([] if found.track_ids is None else found.track_ids.tolist()):
            if not track:
                continue
            past = self._past.setdefault(track, _Past(at_s))
            elapsed = at_s - past.at_s
            left = 0.5 ** (elapsed / self._half_life_s) if past.path.weight else 0.0
            past.at_s = at_s
            before, now = past.path.add(found.boxes[i], elapsed, left)
            past.score = scores[i] = left * past.score + (1 - left) * float(found.scores[i])
            if masks is not None:
                past.inside = past.inside.moved(before, now).mixed(masks[i], left, found.height, found.width)
                masks[i] = past.inside.as_mask()
        smoothed = replace(found, scores=scores, masks=None if masks is None else tuple(masks))
        return smoothed.at(np.argsort(-scores, kind="stable"))


@dataclass(frozen=True, eq=False)
class _Inside:
    """How much of the past had a pixel inside; outside of ``share`` none."""

    x: int  # of its left upper corner in the frame
    y: int
    share: NDArray[np.float32]  # [h, w], 0 to 1

    @classmethod
    def nowhere(cls) -> _Inside:
        return cls(0, 0, np.zeros((0, 0), np.float32))

    def moved(self, before: NDArray[np.float64], now: NDArray[np.float64]) -> _Inside:
        """What lay in the box ``before`` (x1 y1 x2 y2) brought to ``now``."""
        if not self.share.size:
            return self
        scale = np.maximum(now[2:] - now[:2], 1) / np.maximum(before[2:] - before[:2], 1)
        size = np.array(self.share.shape[::-1])
        first = (np.array([self.x, self.y]) - before[:2]) * scale + now[:2]  # where its corner comes to lie
        corner = np.floor(first)
        width, height = np.ceil(first + size * scale - corner).astype(int).tolist()
        # The centre of pixel i of the result, corner + i + 0.5, is that of (corner + i + 0.5 - first) / scale before.
        offset = (corner + 0.5 - first) / scale - 0.5
        matrix = np.array([[1 / scale[0], 0, offset[0]], [0, 1 / scale[1], offset[1]]])
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        share = np.asarray(cv2.warpAffine(self.share, matrix, (width, height), flags=flags), np.float32)
        return _Inside(int(corner[0]), int(corner[1]), share)

    def mixed(self, mask: Mask, left: float, height: int, width: int) -> _Inside:
        """With ``left`` of itself and the rest of a mask, where one of them is something, inside the frame."""
        h, w = mask.pixels.shape
        rows, columns = self.share.shape
        x, y = max(min(self.x, mask.x), 0), max(min(self.y, mask.y), 0)
        right, bottom = min(max(self.x + columns, mask.x + w), width), min(max(self.y + rows, mask.y + h), height)
        share = np.zeros((max(bottom - y, 0), max(right - x, 0)), np.float32)
        ends = max(bottom - self.y, 0), max(right - self.x, 0)
        own = self.share[max(y - self.y, 0) : ends[0], max(x - self.x, 0) : ends[1]]
        top, start = max(self.y - y, 0), max(self.x - x, 0)
        share[top : top + len(own), start : start + own.shape[1]] = np.float32(left) * own
        share[mask.y - y : mask.y - y + h, mask.x - x : mask.x - x + w] += np.float32(1 - left) * mask.pixels
        something = share > _NOTHING
        in_rows, in_columns = (np.flatnonzero(something.any(axis)) for axis in (1, 0))
        if not len(in_rows):
            return _Inside.nowhere()
        top, end, start, stop = in_rows[0], in_rows[-1] + 1, in_columns[0], in_columns[-1] + 1
        return _Inside(x + int(start), y + int(top), share[top:end, start:stop])

    def as_mask(self) -> Mask:
        return Mask(self.x, self.y, self.share > MASK_THRESHOLD)


class _Path:
    """The straight line over time that fits a track's boxes best, those of the past weighing less (least squares)."""

    def __init__(self) -> None:
        # Sums of weight * t^k, and of weight * t^k * box, of all that was added, t being the time from now.
        self.weight = self._t = self._tt = 0.0
        self._box, self._t_box = np.zeros(4), np.zeros(4)

    def add(
        self, box: NDArray[np.float32], elapsed: float, left: float
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """A box ``[4]`` and the seconds since the last, which weighs ``left`` now: the line's boxes then and now."""
        self._tt = left * (self._tt - 2 * elapsed * self._t + elapsed**2 * self.weight)
        self._t = left * (self._t - elapsed * self.weight)
        self._t_box = left * (self._t_box - elapsed * self._box)
        self.weight, self._box = left * self.weight + 1, left * self._box + box
        mean, spread = self._t / self.weight, self._tt - self._t**2 / self.weight
        speed = (self._t_box - mean * self._box) / spread if spread > 1e-9 else np.zeros(4)
        now = self._box / self.weight - mean * speed
        return now - elapsed * speed, now


class _Past:
    """What is remembered of a track."""

    def __init__(self, at_s: float) -> None:
        self.at_s, self.score = at_s, 0.0
        self.path, self.inside = _Path(), _Inside.nowhere()
