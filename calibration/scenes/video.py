"""Night videos with known identities: the drawings of ``scene`` that move, before a camera that moves, in the dark.

A world wider than the picture is drawn once; each frame shows a part of it, with the objects where they are then, the
light of their headlamps, blur of the open shutter, an exposure that follows no plan, and noise of its own. Frame n of a
video depends on the numbers given alone, and on +, -, *, / of them: the same pixels on every machine.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wnlb.calibration.scenes.camera import Camera, expose
from wnlb.calibration.scenes.scene import HEIGHTS, Bgr, Canvas, Scene, SceneObject, check_scene
from wnlb.calibration.scenes.shapes import CLASSES, Drawing, draw_object
from wnlb.runtime.darkness import linear_from_srgb
from wnlb.runtime.errors import WnlbError

VEHICLES = ("bicycle", "motorcycle", "car", "bus")
_PAN = 0.35  # of the picture's width that the camera turns over, at most
_SHUTTER = 0.5  # of the time of a frame
_EXPOSURES = 3  # moments that a frame's light is the mean of
_SERIES = 3  # keeps the numbers drawn apart from those of the scenes


@dataclass(frozen=True, eq=False)
class Actor:
    """One object: what it looks like, and its way through the world, in pixels and seconds."""

    name: str
    drawing: Drawing
    paints: dict[str, Bgr]
    size: float  # height at the middle of the video
    growth: float  # share that it grows a second, of an object that comes nearer
    left: float  # at the beginning
    speed: float  # to the right
    foot: float
    lift: float  # height of the furniture below it
    furniture: Bgr
    angle: float
    lamp: Bgr | None  # of headlamps
    blinks: bool  # as a turn signal: on for half of each second


@dataclass(frozen=True, eq=False)
class VideoFrame:
    """One frame, and what can be seen in it."""

    picture: NDArray[np.uint8 | np.uint16]  # [H, W, 3] RGB
    objects: tuple[SceneObject, ...]  # ``drawn`` is the number of the object in the video
    electrons_at_white: float  # exposure of this frame


class NightVideo:
    """Video number ``index`` of the series ``seed``.

    Args:
        seed, index: whole numbers from 0 up.
        frames: how many; ``fps``: of them a second.
        height, width: pixels, from 64 up.
        camera: its darkness is that in the middle; the exposure goes between half and twice of it.
    """

    def __init__(self, seed: int, index: int, frames: int, fps: float, height: int, width: int, camera: Camera) -> None:
        check_scene(seed, index, height, width)
        if frames < 1 or not 0.5 <= fps <= 240:
            raise WnlbError(
                f"video {index} of {frames} frames at {fps:g} a second; expected one frame or more, and 0.5 to 240 a "
                "second"
            )
        self.frames, self.fps, self.height, self.width, self._camera = frames, fps, height, width, camera
        self._numbers = (seed, index, _SERIES)
        rng = np.random.default_rng(self._numbers)
        self._duration = frames / fps
        self._world = Canvas(rng, height, width + 2 * round(_PAN * width))
        self._world.draw_background()
        self._ambient = self._world.ambient()
        self._pan = rng.uniform(-1, 1, 2)  # at the beginning and the end
        self._shake = rng.integers(-1, 2, (frames, 2))
        self._exposure = rng.uniform(0.5, 2, 2 + int(self._duration))  # at each second
        self._jump = int(rng.integers(0, 2 * frames))  # a sudden step, in half of the videos
        self._actors = sorted(self._cast(rng), key=lambda actor: actor.foot)  # far to near
        self._pole = self._pole_ahead(rng)

    def frame(self, number: int) -> VideoFrame:
        """Frame ``number``, from 0."""
        middle = number / self.fps
        half = _SHUTTER / self.fps / 2
        scenes = [self._scene(number, middle + half * step) for step in np.linspace(-1, 1, _EXPOSURES).tolist()]
        light = sum((scene.light for scene in scenes[1:]), scenes[0].light) / np.float32(_EXPOSURES)
        camera = self._camera.at(self._camera.electrons_at_white * self._gain(number))
        picture = expose(light, camera, np.random.default_rng([*self._numbers, number]))
        return VideoFrame(picture, scenes[_EXPOSURES // 2].objects, camera.electrons_at_white)

    def _gain(self, number: int) -> float:
        """Exposure against the middle one: between steps, and at once where the camera regulates."""
        second, part = divmod(number / self.fps, 1)
        before, after = self._exposure[int(second) : int(second) + 2]
        jump = 0.6 if number >= self._jump else 1.0
        return float(before + (after - before) * part) * jump

    # What there is

    def _cast(self, rng: np.random.Generator) -> list[Actor]:
        """Two vehicles at least; vehicles drive, and what stands in a room moves with the camera alone."""
        count = int(rng.integers(3, 7))
        names = [VEHICLES[int(i)] for i in rng.integers(0, len(VEHICLES), 2)]
        names += [CLASSES[int(i)] for i in rng.integers(0, len(CLASSES), count - 2)]
        return [self._actor(name, rng) for name in names]

    def _actor(self, name: str, rng: np.random.Generator) -> Actor:
        h, w = self.height, self.width
        drawing = draw_object(name, rng)
        horizon = self._world.horizon
        nearness = rng.uniform(0.1, 1.0)
        foot = horizon + nearness * (h * 0.98 - horizon)
        size = min(HEIGHTS[name] * h * (0.35 + 0.65 * nearness) * rng.uniform(0.8, 1.2), 0.6 * w / drawing.aspect)
        drives = name in VEHICLES
        speed = (w * rng.uniform(0.08, 0.4) * (1 if rng.random() < 0.5 else -1)) if drives else 0.0
        # Where it is at some moment of the video: in the picture that the camera has then.
        seen_at = rng.uniform(0.2, 0.8) * self._duration
        left = self._camera_left(seen_at) + rng.uniform(0.1, 0.9) * w - size * drawing.aspect / 2 - speed * seen_at
        return Actor(
            name=name,
            drawing=drawing,
            paints=self._world.paints(),
            size=size,
            growth=rng.uniform(-0.08, 0.08) if drives else 0.0,
            left=left,
            speed=speed,
            foot=foot,
            lift=0.0 if drawing.stands else rng.uniform(0.05, 0.16) * h,
            furniture=self._world.grey(40, 120),
            angle=rng.uniform(-0.04, 0.04),
            lamp=self._world.warm() if drives and rng.random() < 0.7 else None,
            blinks=rng.random() < 0.15,
        )

    def _pole_ahead(self, rng: np.random.Generator) -> tuple[float, float, Bgr] | None:
        """A pole nearer than everything, in half of the videos: place in the world, width, colour."""
        place, width = rng.uniform(0.25, 0.75) * self._world.width, rng.uniform(0.03, 0.08) * self.width
        return (place, width, self._world.grey(30, 90)) if rng.random() < 0.5 else None

    # What a moment looks like

    def _camera_left(self, at: float) -> float:
        """Left edge of the picture in the world: from one side to the other, gently at both ends."""
        part = min(max(at / self._duration, 0.0), 1.0)
        smooth = part * part * (3 - 2 * part)
        return float((1 + self._pan[0] + (self._pan[1] - self._pan[0]) * smooth) * _PAN * self.width)

    def _scene(self, number: int, at: float) -> Scene:
        world, (h, w) = self._world, (self.height, self.width)
        shake = self._shake[number]
        left = min(max(round(self._camera_left(at)) + int(shake[0]), 0), world.width - w)
        rows = np.clip(np.arange(h) - shake[1], 0, h - 1)
        canvas = Canvas(np.random.default_rng(self._numbers), h, w)  # whose numbers only grain is drawn from
        for mine, whole in ((canvas.surface, world.surface), (canvas.emission, world.emission)):
            mine[:] = whole[rows, left : left + w]
        canvas.lamps = [(x - left, y + int(shake[1]), reach, color) for x, y, reach, color in world.lamps]
        for place, actor in enumerate(self._actors):
            canvas.rng = np.random.default_rng([*self._numbers, place])
            self._draw(canvas, actor, at, left, int(shake[1]))
        if self._pole:
            x, width, color = self._pole
            canvas.box(x - left, 0, x - left + width, h, color)
            mask = np.zeros((h, w), np.uint8)
            mask[:, max(round(x - left), 0) : max(round(x - left + width) + 1, 0)] = 255
            canvas.masks.append((0, mask, h))
        return canvas.lit_by(self._ambient)

    def _draw(self, canvas: Canvas, actor: Actor, at: float, left: int, down: int) -> None:
        size = actor.size * (1 + actor.growth * (at - self._duration / 2))
        width, angle = size * actor.drawing.aspect, actor.angle
        x, foot = actor.left + actor.speed * at - left, actor.foot + down
        mask = np.zeros((self.height, self.width), np.uint8)
        canvas.masks.append((CLASSES.index(actor.name) + 1, mask, 0))
        if x > self.width or x + width < 0:
            return
        canvas.shadow(x, foot, width, size)
        if actor.lift:
            canvas.box(x - 0.15 * width, foot - actor.lift, x + 1.15 * width, foot, actor.furniture)
            foot -= actor.lift
        matrix = np.array([[width, -angle * size, x + angle * size], [angle * width * 0.3, size, foot - size]])
        if actor.speed < 0:
            matrix[0] = [-width, angle * size, x + width - angle * size]
        for part in actor.drawing.parts:
            canvas.draw_part(part, matrix, size, actor.paints, mask)
        canvas.shade(mask)
        self._switch_on(canvas, actor, at, matrix, size)
        canvas.masks[-1] = (canvas.masks[-1][0], mask, int(np.count_nonzero(mask)))

    def _switch_on(self, canvas: Canvas, actor: Actor, at: float, matrix: NDArray, size: float) -> None:
        """Headlamps: a disc that shines, inside the object, and the light on the road before it."""
        if actor.lamp is None or (actor.blinks and at % 1 >= 0.5):
            return
        x, y = (np.array([0.92, 0.62]) @ matrix[:, :2].T + matrix[:, 2]).tolist()
        canvas.disc(x, y, 0.045 * size, actor.lamp, emits=True)
        tint = linear_from_srgb(np.array(actor.lamp, np.uint8))
        ahead = 0.5 * size * (1 if actor.speed > 0 else -1)
        canvas.lamps.append((x + ahead, y + 0.2 * size, 0.6 * size, tint * np.float32(0.9)))
