"""Records of planted nights."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from matplotlib.figure import Figure
from planted_night import BEGAN, BOX, FACTS, a_night, found, frame

from wnlb.runtime.errors import WnlbError
from wnlb.runtime.night import record as record_module
from wnlb.runtime.night.page import page
from wnlb.runtime.night.record import FILE, Record
from wnlb.runtime.night.shot import jpeg_of, sharpness
from wnlb.runtime.report.chart import Chart


def test_sharper_is_sharper_and_noise_is_not() -> None:
    box = np.array(BOX, np.float32)
    values = [sharpness(frame(blur), box) for blur in (0.0, 1.0, 2.0, 4.0)]
    assert values == sorted(values, reverse=True)
    assert sharpness(frame(light=100), box) < sharpness(frame(), box)
    noise = np.random.default_rng(0).normal(30, 8, (96, 96, 3)).clip(0, 255).astype(np.uint8)
    assert sharpness(noise, box) < 0.1 * values[0]
    assert sharpness(frame(), np.array([5, 5, 5, 9], np.float32)) == 0
    corner = cv2.imdecode(np.frombuffer(jpeg_of(frame(light=20), box), np.uint8), cv2.IMREAD_COLOR)
    assert corner.shape == (84, 84, 3)  # 64 px and 15 % of it on each side, in whole pixels
    assert 110 < corner.max() <= 140  # six times as bright


def test_counts_and_the_sharpest_picture_of_each_track() -> None:
    record = a_night(tracked=True)
    assert record.tracks_seen == len(record.tracks) == 11
    first = record.tracks["1.1"]
    assert (first.label, first.first_s, first.last_s, first.frames, first.score) == (1, 0.0, 57 * 60, 20, 0.75)
    assert first.shot
    assert first.shot.at_s % (7 * 60) == 0  # the least blur
    total = sum(spell.frames for _, spell in record.spells)
    assert (total, sum(spell.dropped for _, spell in record.spells)) == (600, 7)
    assert sum(spell.objects[1] for _, spell in record.spells) == 400
    assert len(record.spells.contents) <= record_module.SPELLS
    assert [len(shots) for _, shots in record.shots] == [0] * len(record.shots.contents)


def test_an_object_is_what_it_was_taken_for_most(tmp_path: Path) -> None:
    """As on the terminal and the live page, by the sum of the scores; also after it was read, and of older records."""
    record = a_night(tracked=True)
    for i, labels in enumerate([[2], [2], [1], [1], [1]]):  # a car that was a bus for two frames
        record.add(60.0 * (601 + i), frame(blur=3), found(labels, [77]), 20.0)
    assert (record.tracks["1.77"].label, record.tracks["1.77"].frames) == (1, 5)
    record.write(tmp_path)
    again = Record.read(tmp_path)
    assert again.tracks["1.77"].votes == record.tracks["1.77"].votes
    values = json.loads((tmp_path / FILE).read_text())
    del values["tracks"]["1.77"]["votes"]
    (tmp_path / FILE).write_text(json.dumps(values))
    old = Record.read(tmp_path).tracks["1.77"]
    assert (old.label, old.votes) == (1, {1: pytest.approx(5 * old.score)})


def test_without_tracks_each_class_has_pictures_over_the_time() -> None:
    record = a_night(tracked=False)
    assert not record.tracks
    pictures = [shots for _, shots in record.shots]
    assert 4 <= len(pictures) <= 8
    assert all(1 in shots for shots in pictures)
    assert max(shots[1].sharpness for shots in pictures) == pytest.approx(
        sharpness(frame(blur=1), np.array(BOX, np.float32))
    )


def test_what_is_kept_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record_module, "MOST_TRACKS", 40)
    monkeypatch.setattr(record_module, "MOST_SHOTS", 8)
    record = Record(FACTS, ("car", "chair"), BEGAN)
    at = 0.0
    for identity in range(1, 201):
        for _ in range(2 + (identity == 77)):  # one is longer
            record.add(at := at + 20, frame(), found([1 + (identity == 5)], [identity]), 10.0)
    assert record.tracks_seen == 200
    assert len(record.tracks) <= 50
    assert sum(track.shot is not None for track in record.tracks.values()) <= 10
    kept = dict(record.tracks_in_turn()[:2])
    assert set(kept) == {"1.77", "1.5"}  # the longest car, and the only chair
    assert all(track.shot for track in kept.values())


@pytest.mark.parametrize("tracked", [False, True])
def test_it_is_read_as_it_was_written(tracked: bool, tmp_path: Path) -> None:
    record = a_night(tracked)
    record.write(tmp_path)
    again = Record.read(tmp_path)
    assert again.as_json() == record.as_json()
    for one in (record, again):  # and goes on alike
        one.add(40000.0, frame(), found([1], [3] if tracked else None), 10.0)
    assert again.as_json() == record.as_json()


def drawn(chart: Chart, name: str) -> str:
    """As ``picture``, without the time that an SVG takes."""
    chart.draw(Figure(), False)
    return name


def test_damage_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is read can be shown, too."""
    monkeypatch.setattr("wnlb.runtime.night.page.picture", drawn)
    a_night(tracked=True).write(tmp_path)
    text = (tmp_path / FILE).read_text()
    with pytest.raises(WnlbError, match="cannot be read"):
        Record.read(tmp_path / "no")
    pick, refused, read = random.Random(5), 0, 0
    for _ in range(300):
        values = json.loads(text)
        place: Any = values
        while True:  # somewhere inside
            key = pick.choice(list(place) if isinstance(place, dict) else range(len(place)))
            if not isinstance(place[key], (dict, list)) or not place[key] or pick.random() < 0.3:
                break
            place = place[key]
        place[key] = pick.choice([None, -1, 1e400, math.nan, "x", [], {}, [[]], True, 99, 7, 1e30])
        (tmp_path / FILE).write_text(json.dumps(values))
        try:
            page(Record.read(tmp_path))
            read += 1
        except WnlbError as error:
            refused += "\n" not in str(error)
    assert refused > 100
    assert read > 10
    for broken in ("", "[", "[]", "7", '{"format": 9}', text[: len(text) // 2]):
        (tmp_path / FILE).write_text(broken)
        with pytest.raises(WnlbError, match=r"record\.json is no record"):
            Record.read(tmp_path)
