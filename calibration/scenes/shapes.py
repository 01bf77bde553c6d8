"""The eight classes of the LIS data set as drawings: polygons, discs and strokes in a unit square.

x runs right and y down, from 0 to 1 over the object's bounding box; ``aspect`` is its width over its height. Every
drawing takes a random generator, so that no two objects of a class are alike.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

CLASSES = ("bicycle", "chair", "dining table", "bottle", "motorcycle", "car", "tv", "bus")
Point = tuple[float, float]


@dataclass(frozen=True)
class Part:
    """One piece of a drawing: a filled polygon, a disc, or a stroke.

    ``paint`` names its surface: body, second, dark, glass, metal, lamp (shines) or screen (shines).
    """

    kind: str  # polygon, disc, stroke
    points: tuple[Point, ...]
    paint: str
    size: float = 0.0  # radius of a disc, width of a stroke, in heights of the object


@dataclass(frozen=True)
class Drawing:
    """The parts of one object, back to front, and its width over its height."""

    aspect: float
    parts: tuple[Part, ...]
    stands: bool = True  # on the ground, or on a piece of furniture


def draw_object(name: str, rng: np.random.Generator) -> Drawing:
    """A new drawing of a class."""
    return _DRAWINGS[name](rng)


def polygon(paint: str, *points: Point) -> Part:
    return Part("polygon", points, paint)


def box(paint: str, left: float, top: float, right: float, bottom: float) -> Part:
    return polygon(paint, (left, top), (right, top), (right, bottom), (left, bottom))


def disc(paint: str, x: float, y: float, radius: float) -> Part:
    return Part("disc", ((x, y),), paint, radius)


def stroke(paint: str, width: float, *points: Point) -> Part:
    return Part("stroke", points, paint, width)


def _wheel(x: float, y: float, radius: float, hub: float, tyre: str = "dark", rim: str = "metal") -> list[Part]:
    return [disc(tyre, x, y, radius), disc(rim, x, y, radius * hub)]


def _bicycle(rng: np.random.Generator) -> Drawing:
    aspect, r = rng.uniform(1.55, 1.75), rng.uniform(0.29, 0.33)
    y, left, right = 1 - r, r / aspect, 1 - r / aspect
    crank = (0.47 + rng.uniform(-0.02, 0.02), y + 0.02)
    seat, head = (0.36 + rng.uniform(-0.03, 0.03), 0.28), (0.7 + rng.uniform(-0.02, 0.03), 0.24)
    frame = rng.uniform(0.045, 0.06)
    parts = [*_wheel(left, y, r, 0.84, rim="second"), *_wheel(right, y, r, 0.84, rim="second")]
    for x in (left, right):
        for angle in np.arange(3) * np.pi / 3 + rng.uniform(0, 1):
            dx, dy = r * np.cos(angle) / aspect, r * np.sin(angle)
            parts.append(stroke("metal", 0.012, (x - dx, y - dy), (x + dx, y + dy)))
    parts += [
        stroke("body", frame, (left, y), seat, head, crank, (left, y)),
        stroke("body", frame, seat, crank),
        stroke("body", frame, (right, y), head, (head[0] - 0.01, 0.1)),
        stroke("dark", 0.05, (head[0] - 0.07, 0.06), (head[0] + 0.04, 0.1)),
        stroke("dark", 0.07, (seat[0] - 0.06, 0.2), (seat[0] + 0.05, 0.2)),
        stroke("dark", 0.04, seat, (seat[0], 0.2)),
        disc("dark", *crank, 0.07),
    ]
    return Drawing(aspect, tuple(parts))


def _motorcycle(rng: np.random.Generator) -> Drawing:
    aspect, r = rng.uniform(1.55, 1.8), rng.uniform(0.24, 0.28)
    y, left, right = 1 - r, r / aspect, 1 - r / aspect
    lift = rng.uniform(-0.03, 0.03)
    parts = [
        *_wheel(left, y, r, 0.5),
        *_wheel(right, y, r, 0.5),
        stroke("metal", 0.07, (right, y), (0.74, 0.22)),
        polygon("dark", (left, y - 0.05), (0.3, 0.52), (0.62, 0.5), (0.66, 0.86), (0.36, 0.9)),
        polygon("metal", (0.38, 0.66), (0.6, 0.62), (0.62, 0.86), (0.42, 0.88)),
        polygon("body", (0.42, 0.36 + lift), (0.68, 0.26 + lift), (0.74, 0.44), (0.5, 0.56)),
        polygon("second", (0.06, 0.38), (0.16, 0.3), (0.44, 0.36 + lift), (0.5, 0.5), (0.2, 0.5)),
        stroke("metal", 0.06, (0.55, 0.88), (0.1, 0.84)),
        stroke("dark", 0.06, (0.74, 0.22), (0.66, 0.06)),
        disc("lamp" if rng.random() < 0.4 else "glass", 0.79, 0.27, 0.08),
    ]
    return Drawing(aspect, tuple(parts))


def _car(rng: np.random.Generator) -> Drawing:
    return _car_from_the_side(rng) if rng.random() < 0.7 else _car_from_the_front(rng)


def _car_from_the_side(rng: np.random.Generator) -> Drawing:
    aspect, r = rng.uniform(2.1, 2.7), rng.uniform(0.19, 0.23)
    hood, roof = rng.uniform(0.42, 0.5), rng.uniform(0.0, 0.04)
    back, front = rng.uniform(0.04, 0.2), rng.uniform(0.64, 0.74)
    a, b = back + rng.uniform(0.06, 0.12), front - rng.uniform(0.1, 0.16)
    lit = "lamp" if rng.random() < 0.5 else "glass"
    parts = [
        polygon(
            "body", (0, 0.52), (back, hood), (a, roof), (b, roof), (front, hood), (0.97, 0.54), (1, 0.84), (0, 0.84)
        ),
        polygon(
            "glass",
            (back + 0.04, hood),
            (a + 0.02, roof + 0.07),
            ((a + b) / 2 - 0.01, roof + 0.07),
            ((a + b) / 2 - 0.01, hood),
        ),
        polygon(
            "glass",
            ((a + b) / 2 + 0.01, hood),
            ((a + b) / 2 + 0.01, roof + 0.07),
            (b - 0.01, roof + 0.07),
            (front - 0.04, hood),
        ),
        stroke("second", 0.025, (0.02, 0.66), (0.98, 0.68)),
        box(lit, 0.94, 0.56, 0.995, 0.66),
        box("second", 0.0, 0.55, 0.04, 0.65),
        *_wheel(0.2, 1 - r, r, 0.6),
        *_wheel(0.8, 1 - r, r, 0.6),
    ]
    return Drawing(aspect, tuple(parts))


def _car_from_the_front(rng: np.random.Generator) -> Drawing:
    aspect = rng.uniform(1.15, 1.4)
    lit = "lamp" if rng.random() < 0.6 else "glass"
    shoulder = rng.uniform(0.36, 0.44)
    parts = [
        box("dark", 0.05, 0.75, 0.22, 1.0),
        box("dark", 0.78, 0.75, 0.95, 1.0),
        polygon(
            "body",
            (0.2, 0.02),
            (0.8, 0.02),
            (0.92, shoulder),
            (1, 0.5),
            (1, 0.88),
            (0, 0.88),
            (0, 0.5),
            (0.08, shoulder),
        ),
        polygon("glass", (0.24, 0.07), (0.76, 0.07), (0.85, shoulder - 0.02), (0.15, shoulder - 0.02)),
        box("dark", 0.3, 0.58, 0.7, 0.72),
        disc(lit, 0.16, 0.6, 0.075),
        disc(lit, 0.84, 0.6, 0.075),
        box("metal", 0.38, 0.76, 0.62, 0.83),
    ]
    return Drawing(aspect, tuple(parts))


def _bus(rng: np.random.Generator) -> Drawing:
    glass = "screen" if rng.random() < 0.5 else "glass"
    if rng.random() < 0.3:
        lit = "lamp" if rng.random() < 0.6 else "glass"
        parts = [
            box("dark", 0.08, 0.85, 0.26, 1.0),
            box("dark", 0.74, 0.85, 0.92, 1.0),
            box("body", 0.0, 0.0, 1.0, 0.93),
            box("lamp", 0.2, 0.03, 0.8, 0.12),
            box(glass, 0.07, 0.17, 0.93, 0.55),
            box("second", 0.0, 0.62, 1.0, 0.7),
            disc(lit, 0.14, 0.8, 0.05),
            disc(lit, 0.86, 0.8, 0.05),
        ]
        return Drawing(rng.uniform(0.78, 0.95), tuple(parts))
    aspect, r, count = rng.uniform(2.4, 3.2), rng.uniform(0.12, 0.15), int(rng.integers(5, 8))
    parts = [box("body", 0.0, 0.02, 1.0, 0.9), box("second", 0.0, 0.6, 1.0, 0.7)]
    width = 0.84 / count
    parts += [box(glass, 0.03 + i * width, 0.14, 0.03 + (i + 0.86) * width, 0.48) for i in range(count)]
    parts += [box(glass, 0.9, 0.14, 0.985, 0.84), *_wheel(0.18, 1 - r, r, 0.55), *_wheel(0.76, 1 - r, r, 0.55)]
    return Drawing(aspect, tuple(parts))


def _tv(rng: np.random.Generator) -> Drawing:
    edge = rng.uniform(0.03, 0.06)
    bottom = rng.uniform(0.84, 0.9)
    screen = "screen" if rng.random() < 0.55 else "glass"
    parts = [
        polygon("dark", (0.44, bottom), (0.56, bottom), (0.58, 0.97), (0.42, 0.97)),
        box("dark", 0.28, 0.96, 0.72, 1.0),
        box("dark", 0.0, 0.0, 1.0, bottom),
        box(screen, edge, edge * 1.6, 1 - edge, bottom - edge * 1.8),
    ]
    return Drawing(rng.uniform(1.35, 1.75), tuple(parts), stands=False)


def _bottle(rng: np.random.Generator) -> Drawing:
    neck, shoulder = rng.uniform(0.3, 0.4), rng.uniform(0.22, 0.34)
    side = rng.uniform(0.32, 0.38)
    parts = [
        polygon(
            "body",
            (side, 0.05),
            (1 - side, 0.05),
            (1 - side, shoulder),
            (1, neck + 0.08),
            (1, 0.98),
            (0.94, 1),
            (0.06, 1),
            (0, 0.98),
            (0, neck + 0.08),
            (side, shoulder),
        ),
        box("second", 0.0, neck + 0.2, 1.0, neck + 0.45),
        box("metal", side - 0.04, 0.0, 1.04 - side, 0.07),
    ]
    return Drawing(rng.uniform(0.28, 0.4), tuple(parts), stands=False)


def _chair(rng: np.random.Generator) -> Drawing:
    seat, back = rng.uniform(0.48, 0.54), rng.uniform(0.72, 0.84)
    leg = rng.uniform(0.035, 0.05)
    parts = [
        stroke("second", leg, (0.78, seat), (0.8, 0.94)),
        stroke("second", leg, (0.3, seat), (0.28, 0.94)),
        polygon("body", (0.16, 0.0), (back, 0.03), (back + 0.02, seat - 0.06), (0.14, seat - 0.04)),
        polygon("second", (0.1, seat - 0.03), (0.84, seat - 0.05), (1.0, seat + 0.07), (0.04, seat + 0.1)),
        stroke("second", leg, (0.07, seat + 0.07), (0.04, 0.99)),
        stroke("second", leg, (0.95, seat + 0.05), (0.97, 0.99)),
    ]
    if rng.random() < 0.5:  # slats instead of a whole back
        parts += [box("dark", 0.2, y, back - 0.02, y + 0.05) for y in (0.12, 0.26)]
    return Drawing(rng.uniform(0.52, 0.66), tuple(parts))


def _dining_table(rng: np.random.Generator) -> Drawing:
    depth, top = rng.uniform(0.18, 0.3), rng.uniform(0.1, 0.16)
    leg, inset = rng.uniform(0.06, 0.09), rng.uniform(0.1, 0.18)
    parts = [
        stroke("second", leg, (0.2, depth), (0.2, 0.86)),
        stroke("second", leg, (0.8, depth), (0.8, 0.86)),
        polygon("body", (inset, 0.0), (1 - inset, 0.0), (1.0, depth), (0.0, depth)),
        box("second", 0.0, depth, 1.0, depth + top),
        stroke("second", leg, (0.05, depth + top), (0.06, 0.98)),
        stroke("second", leg, (0.95, depth + top), (0.94, 0.98)),
    ]
    return Drawing(rng.uniform(1.6, 2.2), tuple(parts))


_DRAWINGS: dict[str, Callable[[np.random.Generator], Drawing]] = dict(
    zip(CLASSES, (_bicycle, _chair, _dining_table, _bottle, _motorcycle, _car, _tv, _bus), strict=True)
)
