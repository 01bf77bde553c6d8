"""Tracks of one video or camera while it runs: where they went, and what is counted."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from wnlb.runtime.detections import Detections
from wnlb.runtime.errors import WnlbError
from wnlb.runtime.overlay import track_color
from wnlb.runtime.tracking.tracker import SHOWN_SCORE, Tracker
from wnlb.runtime.tracking.zones import Point, Zone, ZoneCounts

TRAIL_S = 2.0  # seconds of the way that are drawn
_FORGOTTEN_S = 10.0  # after which the way of a track that is gone is no longer kept
_ZONE_COLOR = (255, 255, 255)
_FONT = cv2.FONT_HERSHEY_SIMPLEX


class Tracks:
    """Gives detections identities, and keeps account of them.

    An object is where its box stands: in the middle of its lower edge.

    Args:
        tracker: of this video alone.
        class_names: label 1 is the first.
        zones: what to count in.
        shown_score: weaker detections hold an identity, but are neither given out nor counted.
    """

    def __init__(
        self,
        tracker: Tracker,
        class_names: Sequence[str],
        zones: Sequence[Zone] = (),
        shown_score: float = SHOWN_SCORE,
    ) -> None:
        self._tracker, self._names, self._shown_score = tracker, class_names, shown_score
        self.zones = [ZoneCounts(zone) for zone in zones]
        self._ways: dict[int, deque[tuple[float, Point]]] = {}
        self._votes: dict[int, dict[int, float]] = {}  # of each track: for a label, the sum of its scores
        self._seen: Counter[str] = Counter()  # tracks that are no longer kept
        self._now = 0.0
        self._checked = False

    def update(self, detections: Detections, at_s: float) -> Detections:
        """Those of the next frame that belong to a track; arguments as of ``Tracker.update``.

        Raises WnlbError with the first frame where a zone lies beside it, and so would count nothing for ever.
        """
        if not self._checked:
            self._check_zones(detections.height, detections.width)
        found = self._tracker.update(detections, at_s).tracked().above(self._shown_score)
        self._now = at_s
        for counts in self.zones:
            counts.begin_frame()
        for i, track in enumerate(() if found.track_ids is None else found.track_ids.tolist()):
            votes, label = self._votes.setdefault(track, {}), int(found.labels[i])
            votes[label] = votes.get(label, 0.0) + float(found.scores[i])
            way = self._ways.setdefault(track, deque())
            now = ((float(found.boxes[i, 0]) + float(found.boxes[i, 2])) / 2, float(found.boxes[i, 3]))
            for counts in self.zones:
                counts.add(track, self._class_of(track), way[-1][1] if way else None, now, at_s)
            way.append((at_s, now))
        self._forget()
        return found

    def _check_zones(self, height: int, width: int) -> None:
        for zone in (counts.zone for counts in self.zones):
            if zone.is_beside(height, width):
                raise WnlbError(f"zone {zone.name} lies beside the frames, which are of {width}x{height} pixels")
        self._checked = True

    def _class_of(self, track: int) -> str:
        """What it was taken for most, by the sum of the scores."""
        return self._names[max(self._votes[track].items(), key=lambda vote: vote[1])[0] - 1]

    def _forget(self) -> None:
        for track, way in list(self._ways.items()):
            if not 0 <= self._now - way[-1][0] <= _FORGOTTEN_S:
                self._seen[self._class_of(track)] += 1
                del self._ways[track], self._votes[track]
                for counts in self.zones:
                    counts.forget(track)
                continue
            while len(way) > 1 and way[0][0] < self._now - TRAIL_S:
                way.popleft()

    def counts(self) -> dict[str, Any]:
        """For JSON: ``seen``, tracks by class since the beginning, and what each zone counted, by class."""
        seen = self._seen + Counter(self._class_of(track) for track in self._ways)
        return {"seen": dict(seen.most_common()), "zones": [counts.facts() for counts in self.zones]}

    def summary(self) -> str:
        """One line for each of what ``counts`` tells."""
        told = self.counts()
        lines = [f"objects: {_listed(told['seen'])}"]
        for zone in told["zones"]:
            parts = (f"{word} {_listed(found)}" for word, found in zone.items() if word not in ("name", "inside"))
            lines.append(f"{zone['name']}: {'; '.join(parts)}")
        return "\n".join(lines)

    def draw(self, overlay: NDArray[np.uint8], found: Detections) -> None:
        """Zones, with their counts, and the ways of what is in the frame, into a picture uint8 BGR ``[h, w, 3]``."""
        side = max(overlay.shape[:2])
        thickness, scale = max(round(side / 400), 1), max(side / 1400, 0.35)
        for counts in self.zones:
            _draw_zone(overlay, counts, thickness, scale)
        for track in () if found.track_ids is None else found.track_ids.tolist():
            points = np.rint([point for _, point in self._ways[track]]).astype(np.int32)
            cv2.polylines(overlay, [points], False, track_color(track), thickness + 1, cv2.LINE_AA)


def _listed(found: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in found.items()) or "none"


def _draw_zone(overlay: NDArray[np.uint8], counts: ZoneCounts, thickness: int, scale: float) -> None:
    points = counts.zone.points
    cv2.polylines(overlay, [points], not counts.zone.is_line, _ZONE_COLOR, thickness, cv2.LINE_AA)
    parts = (counts.left, counts.right) if counts.zone.is_line else (counts.inside, counts.entered)
    words = ("left", "right") if counts.zone.is_line else ("inside", "entered")
    text = ", ".join(f"{part.total()} {word}" for part, word in zip(parts, words, strict=True))
    x, y = (int(v) for v in points.min(0))
    place = (max(x, 2) + thickness, max(y - 4, 12))
    cv2.putText(overlay, f"{counts.zone.name}: {text}", place, _FONT, scale, (0, 0, 0), 3, cv2.LINE_AA)
    cv2.putText(overlay, f"{counts.zone.name}: {text}", place, _FONT, scale, _ZONE_COLOR, 1, cv2.LINE_AA)
