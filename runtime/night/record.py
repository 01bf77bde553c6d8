"""What a camera saw in hours, in a few megabytes: counts over time, and the sharpest picture of each object."""

from __future__ import annotations

import json
import os
from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wnlb.runtime.darkness import luminance
from wnlb.runtime.detections import Detections
from wnlb.runtime.errors import WnlbError
from wnlb.runtime.files import atomic_path
from wnlb.runtime.night.bins import Bins
from wnlb.runtime.night.checked import moment, number, text, whole
from wnlb.runtime.night.shot import Shot, jpeg_of, sharpness
from wnlb.runtime.night.spell import Spell
from wnlb.runtime.sensors import Reading

FILE = "record.json"
FORMAT = 1
SPELLS = 480
MOST_TRACKS = 4000  # remembered; the shortest of a class are forgotten first
MOST_SHOTS = 240  # pictures of tracks; the same
_IN_VIEW_S = 60.0  # after it was last seen
_SPANS = 8  # of time, in each of which every class has a picture where nothing is tracked


@dataclass
class Track:
    """One object over time."""

    label: int  # what it was taken for most, as in ``Tracks``
    first_s: float  # since the record began
    last_s: float
    frames: int = 0
    score: float = 0.0  # the best
    shot: Shot | None = None
    votes: dict[int, float] = field(default_factory=dict)  # by label: the sum of its scores

    def see(self, label: int, score: float, at_s: float) -> None:
        """In one more frame."""
        self.last_s, self.frames, self.score = at_s, self.frames + 1, max(self.score, score)
        self.votes[label] = self.votes.get(label, 0.0) + score
        self.label = max(self.votes, key=self.votes.__getitem__)


class Record:
    """Grows with what was seen, not with the time.

    Args:
        facts: what the record is of: source, model, backend.
        class_names: label 1 is the first.
        began: of the first run; moments are seconds since then.
    """

    def __init__(self, facts: dict[str, str], class_names: tuple[str, ...], began: datetime) -> None:
        self.facts, self.class_names, self.began = facts, class_names, began
        self.ended_s = 0.0
        self.runs = 1
        self.spells: Bins[Spell] = Bins(SPELLS, 1.0, Spell, Spell.absorb)
        self.shots: Bins[dict[int, Shot]] = Bins(_SPANS, 4.0, dict, _keep_sharper)  # by label, of what is in no track
        self.tracks: dict[str, Track] = {}  # by run and identity
        self.tracks_seen = 0

    def add(self, at_s: float, frame_bgr: NDArray[np.uint8], detections: Detections, latency_ms: float) -> None:
        """One frame.

        Args:
            at_s: when it was captured, seconds since the record began.
            frame_bgr: uint8 ``[h, w, 3]``, the size that ``detections`` have.
            latency_ms: from the frame in memory to its masks.
        """
        self.ended_s = max(self.ended_s, at_s)
        spell = self.spells.at(at_s)
        spell.add_frame(Counter(detections.labels.tolist()), latency_ms, luminance(frame_bgr))
        spans = self.shots.at(at_s)
        for i, label in enumerate(detections.labels.tolist()):
            if detections.track_ids is not None and detections.track_ids[i]:
                track = self._track(int(detections.track_ids[i]), label, at_s)
                track.see(label, float(detections.scores[i]), at_s)
                track.shot = _sharper(track.shot, at_s, frame_bgr, detections, i)
            elif detections.track_ids is None and (shot := _sharper(spans.get(label), at_s, frame_bgr, detections, i)):
                spans[label] = shot
        self._forget(at_s)

    def add_reading(self, at_s: float, reading: Reading) -> None:
        """What the sensors told."""
        self.spells.at(at_s).add_reading(reading)

    def add_losses(self, at_s: float, dropped: int, reconnects: int) -> None:
        """Since the last call: frames for which there was no time, and how often the source was lost and found."""
        spell = self.spells.at(at_s)
        spell.dropped += dropped
        spell.reconnects += reconnects

    def moment(self, seconds: float) -> datetime:
        """On the clock."""
        return self.began + timedelta(seconds=seconds)

    def write(self, folder: Path) -> None:
        """``record.json`` in a folder, whole or not at all, a power cut included. Raises WnlbError."""
        with atomic_path(folder / FILE) as temporary, open(temporary, "w") as file:
            file.write(json.dumps(self.as_json()))
            file.flush()
            os.fsync(file.fileno())

    def as_json(self) -> dict[str, Any]:
        spells = [[start, spell.as_json()] for start, spell in self.spells]
        spans = [[start, {str(label): shot.as_json() for label, shot in shots.items()}] for start, shots in self.shots]
        tracks = {
            key: {**vars(track), "shot": track.shot.as_json() if track.shot else None}
            for key, track in self.tracks.items()
        }
        return {
            "format": FORMAT,
            "facts": self.facts,
            "class_names": list(self.class_names),
            "began": self.began.isoformat(timespec="milliseconds"),
            "ended_s": self.ended_s,
            "runs": self.runs,
            "spells": {"seconds": self.spells.seconds, "bins": spells},
            "shots": {"seconds": self.shots.seconds, "bins": spans},
            "tracks": tracks,
            "tracks_seen": self.tracks_seen,
        }

    @classmethod
    def read(cls, folder: Path) -> Record:
        """What ``write`` wrote. Raises WnlbError for anything else."""
        path = folder / FILE
        try:
            values = json.loads(path.read_text())
        except OSError as error:
            raise WnlbError(f"{path} cannot be read: {error.strerror}") from error
        except (ValueError, RecursionError) as error:
            raise WnlbError(f"{path} is no record of 'wnlb run --report': {error}") from error
        try:
            return cls._from_json(values)
        except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
            told = f"{type(error).__name__}: {error}"
            raise WnlbError(f"{path} is no record of 'wnlb run --report' of this version ({told})") from error

    @classmethod
    def _from_json(cls, values: dict[str, Any]) -> Record:
        if values["format"] != FORMAT:
            raise ValueError(f"format is {values['format']!r}, expected {FORMAT}")
        facts = {text(key): text(value) for key, value in values["facts"].items()}
        record = cls(facts, tuple(map(text, values["class_names"])), moment(values["began"]))
        classes = len(record.class_names)
        record.ended_s, record.runs = number(values["ended_s"]), whole(values["runs"], 1)
        record.spells.seconds = number(values["spells"]["seconds"], 1)
        for start, spell in values["spells"]["bins"]:
            record.spells.at(number(start)).absorb(Spell.from_json(spell, classes))
        record.shots.seconds = number(values["shots"]["seconds"], 1)
        for start, shots in values["shots"]["bins"]:
            found = {whole(int(label), 1, classes): Shot.from_json(shot, classes) for label, shot in shots.items()}
            record.shots.at(number(start)).update(found)
        for key, track in values["tracks"].items():
            record.tracks[key] = Track(
                whole(track["label"], 1, classes),
                number(track["first_s"]),
                number(track["last_s"]),
                whole(track["frames"]),
                number(track["score"], most=1),
                Shot.from_json(track["shot"], classes) if track["shot"] else None,
                _votes(track, classes),
            )
        record.tracks_seen = whole(values["tracks_seen"], len(record.tracks))
        return record

    def _track(self, identity: int, label: int, at_s: float) -> Track:
        key = f"{self.runs}.{identity}"
        if key not in self.tracks:
            self.tracks_seen += 1
            self.tracks[key] = Track(label, at_s, at_s)
        return self.tracks[key]

    def tracks_in_turn(self) -> list[tuple[str, Track]]:
        """The longest in view of each class, then the second of each, ...: the many cars hide nothing."""
        places: Counter[int] = Counter()
        ordered = []
        for key, track in sorted(self.tracks.items(), key=lambda item: -item[1].frames):
            ordered.append((places[track.label], key, track))
            places[track.label] += 1
        return [(key, track) for _, key, track in sorted(ordered, key=lambda entry: entry[0])]

    def _forget(self, at_s: float) -> None:
        """Now and then, so that it costs nothing; nobody who is still in view, who would be counted again."""
        shots = sum(track.shot is not None for track in self.tracks.values())
        if len(self.tracks) <= 1.25 * MOST_TRACKS and shots <= 1.25 * MOST_SHOTS:
            return
        ranked = sorted(self.tracks_in_turn(), key=lambda item: item[1].last_s < at_s - _IN_VIEW_S)
        for _, track in ranked[MOST_SHOTS:]:
            track.shot = None
        self.tracks = dict(ranked[:MOST_TRACKS])


def _votes(track: dict[str, Any], classes: int) -> dict[int, float]:
    """Of a track as it was written; an older record has its first label alone, which counts for all of its frames."""
    given = track.get("votes", {track["label"]: track["frames"] * track["score"]})
    return {whole(int(label), 1, classes): number(votes) for label, votes in given.items()}


def _sharper(shot: Shot | None, at_s: float, frame: NDArray[np.uint8], detections: Detections, i: int) -> Shot | None:
    """The shot, or one of the i-th detection where that is sharper."""
    found = sharpness(frame, detections.boxes[i])
    if found <= (shot.sharpness if shot else 0.0):
        return shot
    label, score = int(detections.labels[i]), float(detections.scores[i])
    return Shot(at_s, label, score, found, jpeg_of(frame, detections.boxes[i]))


def _keep_sharper(shots: dict[int, Shot], later: dict[int, Shot]) -> None:
    for label, shot in later.items():
        if label not in shots or shot.sharpness > shots[label].sharpness:
            shots[label] = shot
