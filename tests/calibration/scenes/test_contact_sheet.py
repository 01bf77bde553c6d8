"""The contact sheet shows what the generator makes: the right classes, unchanged pixels, darker from row to row."""

from __future__ import annotations

import functools

import numpy as np
import pytest

from wnlb.calibration.scenes import contact_sheet as module
from wnlb.calibration.scenes.camera import Camera, expose
from wnlb.calibration.scenes.contact_sheet import _GAP, _LEFT, _TOP, CELL, contact_sheet
from wnlb.calibration.scenes.scene import make_scene
from wnlb.calibration.scenes.shapes import CLASSES

LEVELS = (1000.0, 30.0)
make_scene_once = functools.cache(make_scene)


@pytest.fixture(autouse=True)
def _each_scene_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """That a scene is the same each time, its own tests check."""
    monkeypatch.setattr(module, "make_scene", make_scene_once)


def cell(sheet: np.ndarray, row: int, column: int) -> np.ndarray:
    y, x = _TOP + row * (CELL + _GAP), _LEFT + column * (CELL + _GAP)
    return sheet[y : y + CELL, x : x + CELL]


def test_each_column_is_a_scene_with_its_class() -> None:
    sheet = contact_sheet(5, LEVELS)
    assert np.array_equal(sheet, contact_sheet(5, LEVELS))
    scenes = {index: make_scene_once(5, index, CELL, CELL) for index in range(64)}
    found = []
    for column in range(len(CLASSES)):
        for row, level in enumerate(LEVELS, 1):
            shown = cell(sheet, row, column)[..., ::-1]
            matches = [
                index
                for index, scene in scenes.items()
                if column + 1 in {item.label for item in scene.objects}
                and np.array_equal(
                    expose(scene.light, Camera(level), np.random.default_rng([5, index, round(level)])), shown
                )
            ]
            assert len(matches) == 1
            found.append(matches[0])
    assert len(set(found)) == len(CLASSES)  # a scene of its own for each


def test_rows_grow_darker() -> None:
    sheet = contact_sheet(5, (1000, 100, 10))
    for column in range(len(CLASSES)):
        means = [cell(sheet, row, column).mean() for row in (1, 2, 3)]
        assert means[0] > means[1] > means[2]
