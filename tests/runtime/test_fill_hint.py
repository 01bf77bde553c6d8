"""Which frames leave much of an input empty, and what is said of them."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from wnlb.runtime.fill_hint import FILLED, FillHint, filled, fitting_size
from wnlb.runtime.geometry import Geometry


def test_planted_sizes() -> None:
    square = Geometry(416, 416)
    assert filled(square, 1080, 1920) == pytest.approx(234 * 416 / 416**2)
    assert fitting_size(square, 1080, 1920) == (256, 416)
    assert fitting_size(square, 1920, 1080) == (416, 256)
    assert fitting_size(Geometry(416, 608), 416, 608) == (416, 608)
    assert filled(Geometry(416, 416, "stretch"), 1080, 1920) == 1


@pytest.mark.parametrize("frame", [(1080, 1920), (1920, 1080), (720, 1280), (33, 64), (96, 200), (101, 103), (1, 1)])
def test_a_fitting_size_is_filled_and_shrinks_nothing(frame: tuple[int, int]) -> None:
    for geometry in (Geometry(64, 64), Geometry(416, 416), Geometry(608, 128), Geometry(128, 608)):
        size = fitting_size(geometry, *frame)
        fitting = Geometry(*size)
        assert all(side % 32 == 0 and side >= 64 for side in size)
        assert filled(fitting, *frame) >= FILLED
        before, after = geometry.place(*frame), fitting.place(*frame)
        assert after.height >= before.height
        assert after.width >= before.width


@pytest.mark.parametrize("frame", [(1080, 1920), (1920, 1080), (480, 640), (33, 64), (100, 2000), (1, 1)])
def test_with_a_scale_the_hint_is_what_just_holds_the_frame(frame: tuple[int, int]) -> None:
    for size, rule in itertools.product(
        [(1344, 1344), (2048, 2048), (800, 1344), (416, 416)], ["down", "nearest", "nearest, short side first"]
    ):
        geometry = Geometry(*size, scale=(1333, 800), size_rule=rule)
        height, width = fitting_size(geometry, *frame)
        before, after = geometry.place(*frame), replace(geometry, height=height, width=width).place(*frame)
        assert after.height >= before.height
        assert after.width >= before.width
        if max(size) > 1333:
            assert after == before
            assert 0 <= height - after.height < 32 or height == 64
            assert 0 <= width - after.width < 32 or width == 64


def test_planted_sizes_with_a_scale() -> None:
    large = Geometry(1344, 1344, interpolation="antialiased", scale=(1333, 800), size_rule="nearest, short side first")
    assert fitting_size(large, 1080, 1920) == (768, 1344)  # 750 x 1333
    assert fitting_size(large, 480, 640) == (800, 1088)  # 800 x 1067
    assert "with --size 768x1344" in FillHint(large).about(1080, 1920)
    # 738 x 1312 would be 768 x 1312 by the longer side alone
    assert fitting_size(Geometry(1344, 1344, scale=(1309, 736), size_rule="nearest"), 1080, 1920) == (736, 1312)
    assert fitting_size(Geometry(416, 608, "stretch", scale=(100, 50)), 1080, 1920) == (64, 128)


def test_says_it_once_and_of_the_first_frame_that_fills_too_little() -> None:
    hint = FillHint(Geometry(416, 416))
    assert hint.about(416, 400) == hint.about(300, 416) == ""  # 72 %
    assert "1920x1080 pixels fills 56 % of the input" in (said := hint.about(1080, 1920))
    assert "fill 91 % of a file exported with --size 256x416" in said
    assert "\n" not in said
    assert hint.about(1080, 1920) == hint.about(100, 1000) == ""


def test_says_nothing_where_no_size_is_better() -> None:
    assert FillHint(Geometry(64, 96)).about(3, 40000) == ""
    assert FillHint(Geometry(64, 96)).about(8, 65536) == ""  # 1 %, and 2 % at best


@pytest.mark.parametrize("command", ["predict", "run"])
def test_both_commands_say_it_once(
    tmp_path: Path, planted_model_path: Path, wnlb_here: Callable[..., Any], command: str
) -> None:
    """A batch of two; frames of 96x64 fill the input, those of 64x64 two thirds of it."""
    (tmp_path / "in").mkdir()
    for i, width in enumerate((96, 64, 64, 60)):
        cv2.imwrite(str(tmp_path / "in" / f"{i}.png"), np.zeros((64, width, 3), np.uint8))
    output = ("-o", tmp_path / "out") if command == "predict" else ("--coco", tmp_path / "found.json")
    ran = wnlb_here(command, planted_model_path, tmp_path / "in", *output, "--quiet")
    assert ran.code == 0
    assert ran.err.count("\n") == 1
    assert ran.err.startswith(f"wnlb {command}: a frame of 64x64 pixels fills 67 % of the input")
    assert "--size 64x64" in ran.err
