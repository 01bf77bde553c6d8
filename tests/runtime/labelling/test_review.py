from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from wnlb.runtime.errors import WnlbError
from wnlb.runtime.labelling.inputs import Input
from wnlb.runtime.labelling.review import Candidate, _pairs, agreed, deviations, doubt, worth_a_look


def found(*objects: tuple[str, float, tuple[float, float, float, float]]) -> list[dict[str, Any]]:
    return [{"category": name, "score": score, "bbox": list(box)} for name, score, box in objects]


def test_doubt_is_the_expected_number_of_wrong_labels() -> None:
    row = {"objects": found(*(("cat", score, (0, 0, 1, 1)) for score in (0.9, 0.6, 0.4, 0.1)))}
    assert doubt(row, 0.5) == pytest.approx(0.1 + 0.4 + 0.4 + 0.1)
    assert doubt(row, 0.95) == pytest.approx(0.9 + 0.6 + 0.4 + 0.1)
    assert doubt({"objects": []}, 0.5) == 0


def test_unusual_darkness_is_told_from_the_rest() -> None:
    usual = 0.05 * 10 ** np.random.default_rng(0).normal(0, 0.1, 200)
    apart = deviations([*usual, 0.0005, 0.9])
    assert np.abs(apart[:-2]).max() < 4 < 10 < min(-apart[-2], apart[-1])
    # Of a normal distribution the robust deviation is the standard one.
    assert np.std(apart[:-2]) == pytest.approx(1, abs=0.1)
    assert deviations([0.1] * 5).tolist() == [0] * 5
    assert deviations([]).tolist() == []


def test_objects_of_two_models_agree_by_class_and_box() -> None:
    first = found(("cat", 0.9, (0, 0, 10, 10)), ("cat", 0.8, (0, 0, 10, 8)), ("lamp", 0.7, (20, 20, 5, 5)))
    assert agreed(first, first) == 3
    assert agreed(first, found(("cat", 0.9, (0, 0, 10, 9)))) == 1  # which counts for one of them
    assert agreed(first, found(("lamp", 0.9, (0, 0, 10, 10)))) == 0
    assert agreed(first, found(("lamp", 0.9, (20, 20, 5, 2.4)))) == 0  # IoU 0.48
    assert agreed(first, found(("lamp", 0.9, (20, 20, 5, 2.5)))) == 1
    assert agreed([], first) == agreed(first, []) == 0


class Rows:
    """A job that has these pictures and rows."""

    folder = "other"

    def __init__(self, *names: str) -> None:
        self.inputs, self._names = [Input("v", "v.mp4", 9)], names

    def rows(self) -> Iterator[dict[str, Any]]:
        return iter([{"name": name} for name in self._names])


def test_rows_of_two_jobs_are_paired_by_name_also_where_one_lacks_some() -> None:
    first, second = Rows("v_00", "v_01", "v-b", "w"), Rows("v_00", "v-b", "x", "w")
    pairs = [(row["name"], other and other["name"]) for row, other in _pairs(first, second)]  # type: ignore[arg-type]
    assert pairs == [("v_00", "v_00"), ("v_01", None), ("v-b", "v-b"), ("w", "w")]
    second.inputs = [Input("u", "u.png")]
    with pytest.raises(WnlbError, match="labels of other pictures"):
        list(_pairs(first, second))  # type: ignore[arg-type]


def test_reasons_take_turns_and_no_picture_comes_twice() -> None:
    def candidate(name: str, doubt: float = 0, darkness: float = 0, disagreement: int = 0) -> Candidate:
        return Candidate(name, 0.1, 1, doubt, darkness, disagreement)

    pictures = [
        candidate("nothing"),
        candidate("doubt 1", 1),
        candidate("doubt 2", 2),
        candidate("dark 9", 3, -9),
        candidate("bright 5", 0, 5),
        candidate("apart 4", 0, 0, 4),
    ]
    names = [one.name for one in worth_a_look(pictures, 9)]
    assert names == ["apart 4", "dark 9", "doubt 2", "bright 5", "doubt 1"]
    assert [one.name for one in worth_a_look(pictures, 2)] == names[:2]
