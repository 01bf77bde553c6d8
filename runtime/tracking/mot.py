"""Tracks in the text format of MOTChallenge, which TrackEval and others read."""

from __future__ import annotations

from wnlb.runtime.detections import Detections


class MotLines:
    """A line for each detection of a track: ``frame,id,left,top,width,height,score,-1,-1,-1``, frames from 1 up.

    Classes and masks are not in this format.
    """

    def __init__(self) -> None:
        self._lines: list[str] = []

    def add(self, number: int, detections: Detections) -> None:
        """Those of frame ``number``, from 0."""
        if detections.track_ids is None:
            return
        boxes, tracks = detections.boxes.tolist(), detections.track_ids.tolist()
        for track, (x1, y1, x2, y2), score in zip(tracks, boxes, detections.scores.tolist(), strict=True):
            if track:
                place = f"{x1:.2f},{y1:.2f},{x2 - x1:.2f},{y2 - y1:.2f}"
                self._lines.append(f"{number + 1},{track},{place},{score:.5f},-1,-1,-1\n")

    def to_text(self) -> str:
        return "".join(self._lines)
