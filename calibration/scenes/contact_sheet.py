"""A picture of what the scenes generator makes: a column per class, rows from evenly lit to the darkest level."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from wnlb.calibration.scenes.camera import Camera, expose
from wnlb.calibration.scenes.scene import Scene, make_scene
from wnlb.calibration.scenes.shapes import CLASSES
from wnlb.runtime.overlay import class_color

CELL = 200  # pixels, both ways
_LEFT, _TOP, _GAP = 104, 34, 3
_SEARCHED = 64  # scenes in which a good example of each class is looked for
_GOOD_SHARE = 0.12  # of the picture that the example covers
_FONT = cv2.FONT_HERSHEY_DUPLEX
Picture = NDArray[np.uint8]


def contact_sheet(seed: int, darkness: Sequence[float]) -> Picture:
    """BGR picture ``[h, w, 3]``: for each class a scene of series ``seed`` that shows it well.

    The first row is evenly lit and without noise, with the outline of every object; then one row for each level of
    ``darkness`` (photo-electrons at white), just as the camera delivers it.
    """
    scenes = [make_scene(seed, index, CELL, CELL) for index in range(_SEARCHED)]
    chosen: list[int] = []
    for label in range(1, len(CLASSES) + 1):
        chosen.append(max(set(range(_SEARCHED)) - set(chosen), key=lambda i: (_clarity(scenes[i], label), -i)))
    sheet = np.full((_TOP + (CELL + _GAP) * (len(darkness) + 1), _LEFT + (CELL + _GAP) * len(CLASSES), 3), 24, np.uint8)
    for column, (name, index) in enumerate(zip(CLASSES, chosen, strict=True)):
        x = _LEFT + column * (CELL + _GAP)
        _text(sheet, name, x + 4, _TOP - 11, class_color(column + 1))
        rows = [_outlined(scenes[index])]
        for level in darkness:
            rng = np.random.default_rng([seed, index, round(level)])
            rows.append(np.ascontiguousarray(expose(scenes[index].light, Camera(level), rng)[..., ::-1]))
        for row, picture in enumerate(rows):
            y = _TOP + row * (CELL + _GAP)
            sheet[y : y + CELL, x : x + CELL] = picture
    for row, text in enumerate(("clean", *(f"{level:g} e-" for level in darkness))):
        _text(sheet, text, 8, _TOP + row * (CELL + _GAP) + CELL // 2, (225, 225, 225))
    return sheet


def _clarity(scene: Scene, label: int) -> float:
    """How well a scene shows a class: an object of about ``_GOOD_SHARE`` of the picture, in much light."""
    best = 0.0
    for item in scene.objects:
        if item.label == label:
            share, light = float(item.mask.mean()), float(scene.light[item.mask].clip(0, 1).mean())
            best = max(best, min(share / _GOOD_SHARE, _GOOD_SHARE / share) * light)
    return best


def _outlined(scene: Scene) -> Picture:
    picture = np.ascontiguousarray(scene.clean[..., ::-1])
    for item in scene.objects:
        outlines, _ = cv2.findContours(item.mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(picture, outlines, -1, class_color(item.label), 1, cv2.LINE_AA)
    return picture


def _text(sheet: Picture, text: str, x: int, y: int, color: tuple[int, int, int]) -> None:
    cv2.putText(sheet, text, (x, y), _FONT, 0.55, color, 1, cv2.LINE_AA)
