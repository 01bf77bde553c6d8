"""Night scenes: objects of eight classes under lamps, with exact masks, the same from the same seed on every machine.

A scene is drawn in surface colours, lit (ambient light, lamps that fall off with distance, lights that shine of
themselves), and handed to a camera. Drawing uses OpenCV's integer rasteriser and lighting only +, -, *, / and square
roots, which IEEE 754 fixes to the last bit.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from wnlb.calibration.scenes.shapes import CLASSES, Drawing, Part, draw_object
from wnlb.runtime.darkness import linear_from_srgb
from wnlb.runtime.errors import WnlbError

MAX_SIDE = 8192  # pixels
_SHIFT = 4  # fractional bits of OpenCV's drawing coordinates
_MIN_VISIBLE = 0.3  # an object that is hidden further than this is not drawn
_MIN_PIXELS = 90
Bgr = tuple[int, int, int]


@dataclass(frozen=True, eq=False)
class SceneObject:
    """One object: its class, and the pixels of it that can be seen."""

    label: int  # 1..8, index into CLASSES from 1
    mask: NDArray[np.bool_]  # [H, W]
    drawn: int  # place in the order of drawing, from 0


@dataclass(frozen=True, eq=False)
class Scene:
    """Linear light of a scene and what stands in it."""

    light: NDArray[np.float32]  # [H, W, 3] RGB; 1 is white under full light
    clean: NDArray[np.uint8]  # [H, W, 3] RGB sRGB, the same scene evenly lit and without noise
    objects: tuple[SceneObject, ...]  # far to near


def make_scene(seed: int, index: int, height: int = 320, width: int = 320) -> Scene:
    """Scene number ``index`` of the series ``seed``.

    Args:
        seed, index: whole numbers from 0 up; scenes of one series are independent of one another.
        height, width: pixels, from 64 to ``MAX_SIDE``.
    """
    check_scene(seed, index, height, width)
    rng = np.random.default_rng([seed, index])
    canvas = Canvas(rng, height, width)
    canvas.draw_background()
    canvas.draw_objects()
    return canvas.finish()


def check_scene(seed: int, index: int, height: int, width: int) -> None:
    """Raise WnlbError for numbers of which no scene can be made."""
    if not (min(height, width) >= 64 and max(height, width) <= MAX_SIDE) or min(seed, index) < 0:
        raise WnlbError(
            f"scene {index} of seed {seed} at {height}x{width}; expected sizes from 64 to {MAX_SIDE} and numbers from 0"
        )


class Canvas:
    """Surface colours, emitted light and masks of a scene while it is drawn."""

    def __init__(self, rng: np.random.Generator, height: int, width: int) -> None:
        self.rng, self.height, self.width = rng, height, width
        self.surface = np.zeros((height, width, 3), np.uint8)  # sRGB RGB
        self.emission = np.zeros((height, width, 3), np.uint8)  # sRGB RGB, times _EMISSION in linear light
        self.indoors = rng.random() < 0.45
        self.horizon = round(height * rng.uniform(0.3, 0.5))
        self.lamps: list[tuple[float, float, float, NDArray[np.float32]]] = []  # x, y, reach, colour
        self.masks: list[tuple[int, NDArray[np.uint8], int]] = []  # label, mask, whole area

    # Background

    def draw_background(self) -> None:
        rng, h, w = self.rng, self.height, self.width
        self._textured(0, self.horizon, self.grey(40, 150) if self.indoors else self.grey(12, 50))
        self._textured(self.horizon, h, self.grey(50, 130))
        if self.indoors:
            for _ in range(int(rng.integers(1, 4))):  # pictures, doors, shelves
                x, y = rng.uniform(0, w), rng.uniform(0, self.horizon * 0.8)
                self.box(x, y, x + rng.uniform(0.06, 0.25) * w, y + rng.uniform(0.1, 0.3) * h, self._color(30, 190))
        else:
            self._draw_houses()
        for _ in range(int(rng.integers(2, 7))):
            self._draw_clutter()
        for _ in range(int(rng.integers(1, 4))):
            self._draw_lamp()

    def _draw_houses(self) -> None:
        rng, h, w = self.rng, self.height, self.width
        x = -rng.uniform(0, 0.1) * w
        while x < w:
            width, top = rng.uniform(0.15, 0.35) * w, self.horizon - rng.uniform(0.12, 0.42) * h
            self.box(x, top, x + width, self.horizon + 2, self.grey(35, 110))
            columns, step = int(rng.integers(2, 5)), rng.uniform(0.05, 0.08) * h
            for y in np.arange(top + step * 0.4, self.horizon - step * 0.6, step).tolist():
                for i in range(columns):
                    left = x + (i + 0.25) * width / columns
                    lit = rng.random() < 0.18
                    color = self.warm() if lit else self.grey(15, 45)
                    self.box(left, y, left + width / columns * 0.5, y + step * 0.55, color, emits=lit)
            x += width + rng.uniform(0, 0.06) * w

    def _draw_clutter(self) -> None:
        """Poles, crates, panels and bushes: things of none of the classes."""
        rng, h, w = self.rng, self.height, self.width
        x, foot = rng.uniform(0, w), self.horizon + rng.uniform(0, 0.45) * h
        kind = int(rng.integers(4))
        if kind == 0:
            self.box(x, foot - rng.uniform(0.25, 0.6) * h, x + rng.uniform(0.01, 0.025) * w, foot, self.grey(40, 120))
        elif kind == 1:
            side = rng.uniform(0.05, 0.13) * h
            self.box(x, foot - side, x + side * rng.uniform(0.8, 1.6), foot, self._color(40, 160))
            self.box(x, foot - side, x + side * 0.8, foot - side * 0.85, self._color(40, 160))
        elif kind == 2:
            for _ in range(6):
                radius = rng.uniform(0.02, 0.05) * h
                self.disc(x + rng.uniform(-0.06, 0.06) * w, foot - radius, radius, self._color(25, 90))
        else:
            slant = rng.uniform(-0.1, 0.1) * w
            points = [
                (x, foot),
                (x + slant, foot - 0.25 * h),
                (x + slant + 0.08 * w, foot - 0.25 * h),
                (x + 0.1 * w, foot),
            ]
            self._fill(np.array(points), self._color(40, 150))

    def _draw_lamp(self) -> None:
        """A street lamp or a ceiling lamp: a small disc that shines, and the light that it gives."""
        rng, h, w = self.rng, self.height, self.width
        x, y = rng.uniform(0.05, 0.95) * w, rng.uniform(0.03, 0.3) * h
        if not self.indoors:
            self.box(x - 0.004 * w, y, x + 0.004 * w, self.horizon + rng.uniform(0, 0.2) * h, self.grey(30, 60))
        color = self.warm()
        self.disc(x, y, rng.uniform(0.008, 0.022) * h, color, emits=True)
        tint = linear_from_srgb(np.array(color, np.uint8))
        self.lamps.append(
            (x, y + 0.1 * h, float(rng.uniform(0.15, 0.45) * h), tint * np.float32(rng.uniform(0.5, 1.3)))
        )

    # Objects

    def draw_objects(self) -> None:
        rng, h = self.rng, self.height
        feet = np.sort(self.horizon + rng.uniform(0.02, 1.0, int(rng.integers(2, 8))) * (h * 0.98 - self.horizon))
        for foot in feet:
            name = CLASSES[int(rng.integers(len(CLASSES)))]
            self._draw_object(name, float(foot), draw_object(name, rng))

    def _draw_object(self, name: str, foot: float, drawing: Drawing) -> None:
        rng, h, w = self.rng, self.height, self.width
        nearness = (foot - self.horizon) / (h - self.horizon)
        size = HEIGHTS[name] * h * (0.35 + 0.65 * nearness) * rng.uniform(0.8, 1.25)
        size = min(size, 0.9 * h, 0.95 * w / drawing.aspect)
        width = size * drawing.aspect
        x = rng.uniform(-0.15 * width, w - 0.85 * width)
        if not drawing.stands:
            foot = self._put_on_furniture(x, foot, width, h)
        angle = rng.uniform(-0.06, 0.06)
        matrix = np.array([[width, -angle * size, x + angle * size], [angle * width * 0.3, size, foot - size]])
        if rng.random() < 0.5:
            matrix[0] = [-width, angle * size, x + width - angle * size]
        self.shadow(x, foot, width, size)
        paints = self.paints()
        mask = np.zeros((h, w), np.uint8)
        for part in drawing.parts:
            self.draw_part(part, matrix, size, paints, mask)
        self.shade(mask)
        self.masks.append((CLASSES.index(name) + 1, mask, int(np.count_nonzero(mask))))

    def _put_on_furniture(self, x: float, foot: float, width: float, h: int) -> float:
        """A shelf or block below a thing that does not stand on the ground."""
        lift = self.rng.uniform(0.05, 0.16) * h
        self.box(x - 0.15 * width, foot - lift, x + 1.15 * width, foot, self.grey(40, 120))
        return foot - lift

    def draw_part(
        self, part: Part, matrix: NDArray, size: float, paints: dict[str, Bgr], mask: NDArray[np.uint8]
    ) -> None:
        points = np.array(part.points) @ matrix[:, :2].T + matrix[:, 2]
        emits = part.paint in ("lamp", "screen")
        targets: list[tuple[NDArray[np.uint8], Bgr | int]] = [(self.surface, paints[part.paint]), (mask, 255)]
        targets.append((self.emission, paints[part.paint] if emits else (0, 0, 0)))
        for target, color in targets:
            if part.kind == "polygon":
                cv2.fillPoly(target, [_fixed(points)], color, cv2.LINE_8, _SHIFT)
            elif part.kind == "disc":
                cv2.circle(
                    target,
                    _fixed(points)[0].tolist(),
                    round(part.size * size * 2**_SHIFT),
                    color,
                    -1,
                    cv2.LINE_8,
                    _SHIFT,
                )
            else:
                thickness = max(round(part.size * size), 1)
                cv2.polylines(target, [_fixed(points)], False, color, thickness, cv2.LINE_8, _SHIFT)

    def shade(self, mask: NDArray[np.uint8]) -> None:
        """Darker towards the ground and to one side, and a little grain: what a flat drawing lacks."""
        rows, columns = np.nonzero(mask)
        if len(rows) == 0:
            return
        top, left = int(np.min(rows)), int(np.min(columns))
        down = (rows - top) / max(int(np.max(rows)) - top, 1)
        across = (columns - left) / max(int(np.max(columns)) - left, 1)
        if self.rng.random() < 0.5:
            across = 1 - across
        factor = 1.1 - 0.35 * down - 0.2 * across + self.rng.integers(-12, 13, len(rows)) / 256
        self.surface[rows, columns] = np.clip(self.surface[rows, columns] * factor[:, None], 0, 255).astype(np.uint8)

    def shadow(self, x: float, foot: float, width: float, size: float) -> None:
        shadow = np.zeros((self.height, self.width), np.uint8)
        center = _fixed(np.array([[x + width / 2, foot]]))[0].tolist()
        axes = [round(width * 0.56 * 2**_SHIFT), round(size * 0.07 * 2**_SHIFT)]
        cv2.ellipse(shadow, center, axes, 0, 0, 360, 255, -1, cv2.LINE_8, _SHIFT)
        covered = shadow > 0
        self.surface[covered] = self.surface[covered] // 3

    # Light

    def finish(self) -> Scene:
        """Remove what is hidden too far, light the scene, and give the masks of what can be seen."""
        return self.lit_by(self.ambient())

    def ambient(self) -> NDArray[np.float32]:
        """Light that comes from everywhere, RGB ``[3]``."""
        strength = np.float32(self.rng.uniform(0.12, 0.5))
        return strength * np.array([1 - self.rng.uniform(0, 0.25), 0.95, 1], np.float32)

    def lit_by(self, ambient: NDArray[np.float32]) -> Scene:
        """The scene under this ambient light and the lamps."""
        emitted = linear_from_srgb(self.emission) * np.float32(1.5)
        light = linear_from_srgb(self.surface) * self._illumination(ambient) + emitted
        clean = np.maximum(self.surface, self.emission)
        return Scene(light, clean, tuple(self._visible_objects()))

    def _illumination(self, ambient: NDArray[np.float32]) -> NDArray[np.float32]:
        """Ambient light, and lamps of which each falls off as 1 / (1 + (distance / reach)^2)^2."""
        total = np.broadcast_to(ambient, (self.height, self.width, 3)).copy()
        y = np.arange(self.height, dtype=np.float32)[:, None]
        x = np.arange(self.width, dtype=np.float32)[None, :]
        for lamp_x, lamp_y, reach, color in self.lamps:
            squared = ((x - np.float32(lamp_x)) ** 2 + (y - np.float32(lamp_y)) ** 2) / np.float32(reach**2)
            total += (1 / (1 + squared) ** 2)[:, :, None] * color
        return total

    def _visible_objects(self) -> list[SceneObject]:
        """Near objects hide far ones; what is left of those that can still be told. Label 0 hides and is no object."""
        covered = np.zeros((self.height, self.width), bool)
        found = []
        for drawn, (label, mask, area) in reversed([*enumerate(self.masks)]):
            whole = mask > 0
            seen = whole & ~covered
            covered |= whole
            count = np.count_nonzero(seen)
            if label and count >= max(_MIN_PIXELS, _MIN_VISIBLE * area):
                found.append(SceneObject(label, seen, drawn))
        return found[::-1]

    # Paint

    def paints(self) -> dict[str, Bgr]:
        body = self._color(50, 235)
        second = self._color(30, 200)
        screen = self.warm() if self.rng.random() < 0.3 else self._color(90, 255)
        return {
            "body": body,
            "second": second,
            "dark": self.grey(12, 45),
            "glass": self.grey(18, 70),
            "metal": self.grey(110, 210),
            "lamp": self.warm(),
            "screen": screen,
        }

    def grey(self, low: int, high: int) -> Bgr:
        value = int(self.rng.integers(low, high))
        r, g, b = (int(v) for v in np.clip(value + self.rng.integers(-14, 15, 3), 0, 255))
        return r, g, b

    def _color(self, low: int, high: int) -> Bgr:
        r, g, b = (int(v) for v in self.rng.integers(low, high, 3))
        return r, g, b

    def warm(self) -> Bgr:
        return 255, int(self.rng.integers(190, 250)), int(self.rng.integers(110, 230))

    def _textured(self, top: int, bottom: int, color: Bgr) -> None:
        """A band of a surface with coarse and fine unevenness."""
        rows = max(bottom - top, 1)
        coarse = self.rng.integers(100, 141, (rows // 24 + 2, self.width // 24 + 2), dtype=np.uint8)
        smooth = cv2.resize(coarse, (self.width, rows), interpolation=cv2.INTER_LINEAR_EXACT)
        fine = self.rng.integers(-7, 8, (rows, self.width))
        uneven = smooth.astype(np.int64) - 120 + fine
        self.surface[top : top + rows] = np.clip(np.array(color) + uneven[:, :, None], 0, 255)

    def box(self, left: float, top: float, right: float, bottom: float, color: Bgr, emits: bool = False) -> None:
        self._fill(np.array([(left, top), (right, top), (right, bottom), (left, bottom)]), color, emits)

    def _fill(self, points: NDArray, color: Bgr, emits: bool = False) -> None:
        cv2.fillPoly(self.surface, [_fixed(points)], color, cv2.LINE_8, _SHIFT)
        cv2.fillPoly(self.emission, [_fixed(points)], color if emits else (0, 0, 0), cv2.LINE_8, _SHIFT)

    def disc(self, x: float, y: float, radius: float, color: Bgr, emits: bool = False) -> None:
        center, size = _fixed(np.array([[x, y]]))[0].tolist(), max(round(radius * 2**_SHIFT), 1)
        cv2.circle(self.surface, center, size, color, -1, cv2.LINE_8, _SHIFT)
        cv2.circle(self.emission, center, size, color if emits else (0, 0, 0), -1, cv2.LINE_8, _SHIFT)


# Heights of nearby objects, in heights of the picture.
HEIGHTS = {
    "bicycle": 0.34,
    "chair": 0.36,
    "dining table": 0.3,
    "bottle": 0.24,
    "motorcycle": 0.36,
    "car": 0.32,
    "tv": 0.3,
    "bus": 0.5,
}


def _fixed(points: NDArray) -> NDArray[np.int32]:
    """Pixels to OpenCV's fixed-point coordinates."""
    return np.rint(points * 2**_SHIFT).astype(np.int32)
