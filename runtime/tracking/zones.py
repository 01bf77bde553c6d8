"""Areas and lines of the frame, and what goes through them."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from wnlb.runtime.errors import WnlbError

Point = tuple[float, float]
BACK_S = 1.0  # as long as a lost track is kept
_LARGEST = 100_000  # pixels; no camera has more
_NUMBER = r"-?\d+(?:\.\d+)?"


@dataclass(frozen=True)
class Zone:
    """A polygon (three corners or more) or a line (two points), in pixels of the frame."""

    name: str
    corners: tuple[Point, ...]

    @property
    def is_line(self) -> bool:
        return len(self.corners) == 2

    @property
    def points(self) -> NDArray[np.int32]:
        """Rounded to pixels, ``[corners, 2]``."""
        return np.rint(np.array(self.corners)).astype(np.int32)

    def is_beside(self, height: int, width: int) -> bool:
        """Whether it lies beside frames of that size, where no object can stand."""
        (left, top), (right, bottom) = np.min(self.corners, 0), np.max(self.corners, 0)
        return bool(right < 0 or bottom < 0 or left > width or top > height)

    def holds(self, point: Point) -> bool:
        """Whether a polygon has the point inside or on its edge."""
        return cv2.pointPolygonTest(np.array(self.corners, np.float32), point, False) >= 0

    def crossed(self, before: Point, now: Point) -> str:
        """Where a way from one point to the other leads over a line: "left" or "right" of it; "" where it does not.

        Left and right as somebody has them who goes from the line's first point to its second.
        """
        first, second = self.corners
        old, new = _side(first, second, before), _side(first, second, now)
        if (old > 0) == (new > 0):  # a point on the line is on its left, so that nobody crosses it twice
            return ""
        if (_side(before, now, first) > 0) == (_side(before, now, second) > 0):
            return ""
        return "right" if new > 0 else "left"


def _side(a: Point, b: Point, p: Point) -> float:
    """Above 0 where p is right of the way from a to b, as seen on the frame, whose y grows downwards."""
    return (b[0] - a[0]) * (p[1] - a[1]) - (b[1] - a[1]) * (p[0] - a[0])


def parse_zones(texts: Iterable[str]) -> tuple[Zone, ...]:
    """Zones as ``--zone`` has them: ``"0,200 320,200"`` (a line), ``"gate=10,10 90,10 50,80"`` (a polygon).

    Points may lie beside the frame, left of it and above it too; an area may name its first corner again at its end.

    Raises WnlbError: it is written in another way; its points are no pixels but shares of the frame; edges cross.
    """
    zones: list[Zone] = []
    for text in texts:
        name, equals, rest = text.rpartition("=")
        points = [re.fullmatch(rf"({_NUMBER}),({_NUMBER})", word) for word in rest.split()]
        corners = tuple((float(found[1]), float(found[2])) for found in points if found)
        corners = corners[:-1] if len(corners) > 3 and corners[0] == corners[-1] else corners
        reach = max((abs(value) for corner in corners for value in corner), default=0)
        apart = len(set(corners)) == len(corners) and reach <= _LARGEST
        if None in points or len(corners) < 2 or not apart or (equals and not name.strip()):
            raise WnlbError(
                f"--zone is {text!r}; expected [NAME=]X,Y X,Y ... in pixels, all different: two points for a line, "
                "three or more for an area, e.g. 'gate=0,200 320,200'"
            )
        if reach <= 1:
            raise WnlbError(f"--zone is {text!r}, less than a pixel; expected pixels of the frame, not shares of it")
        if not _is_simple(corners):
            raise WnlbError(f"--zone is {text!r}, whose edges cross; expected corners in their order around the area")
        kind = "line" if len(corners) == 2 else "zone"
        zones.append(Zone(name.strip() or f"{kind} {len(zones) + 1}", corners))
    names = [zone.name for zone in zones]
    if len(set(names)) < len(names):
        raise WnlbError(f"--zone names {names} are not all different")
    return tuple(zones)


def _is_simple(corners: Sequence[Point]) -> bool:
    """Whether no two edges of a polygon cross, and it has an extent; so of every line."""
    edges = list(zip(corners, [*corners[1:], corners[0]], strict=True))
    if len(corners) > 2 and all(_side(*edges[0], corner) == 0 for corner in corners):
        return False
    apart = [(a, b) for i, a in enumerate(edges) for b in edges[i + 2 :]]
    return not any(_side(*a, b[0]) * _side(*a, b[1]) < 0 > _side(*b, a[0]) * _side(*b, a[1]) for a, b in apart)


@dataclass
class ZoneCounts:
    """How many went through one zone, by class. Whoever is there when its track begins has not come in.

    A box trembles: who leaves an area comes in anew only after ``BACK_S`` outside, and who goes back over a line within
    that time has not crossed it.
    """

    zone: Zone
    inside: Counter[str] = field(default_factory=Counter)  # of a polygon: in this frame
    entered: Counter[str] = field(default_factory=Counter)
    left: Counter[str] = field(default_factory=Counter)  # of a line: to its left
    right: Counter[str] = field(default_factory=Counter)
    _last: dict[int, tuple[float, str, str]] = field(default_factory=dict)  # of a track: when inside, or how it crossed

    def begin_frame(self) -> None:
        self.inside.clear()

    def add(self, track: int, name: str, before: Point | None, now: Point, at_s: float) -> None:
        """One object of this frame: identity, class, where it was when last seen (None: it is new) and is, seconds."""
        last_s, last_side, last_name = self._last.get(track, (-math.inf, "", ""))
        if self.zone.is_line:
            side = self.zone.crossed(before, now) if before else ""
            if side and last_side not in ("", side) and at_s - last_s <= BACK_S:
                getattr(self, last_side)[last_name] -= 1
                del self._last[track]
            elif side:
                getattr(self, side)[name] += 1
                self._last[track] = (at_s, side, name)
        elif self.zone.holds(now):
            self.inside[name] += 1
            self.entered[name] += before is not None and not self.zone.holds(before) and at_s - last_s > BACK_S
            self._last[track] = (at_s, "", "")

    def forget(self, track: int) -> None:
        """A track that is gone."""
        self._last.pop(track, None)

    def facts(self) -> dict[str, Any]:
        """For JSON, without classes of which there are none."""
        kept = ("left", "right") if self.zone.is_line else ("inside", "entered")
        return {"name": self.zone.name, **{key: dict(+getattr(self, key)) for key in kept}}
