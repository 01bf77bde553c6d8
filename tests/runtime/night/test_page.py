"""The page of planted nights."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from chromium import open_page
from html_page import check_whole
from planted_night import BEGAN, FACTS, a_night, found, frame

from wnlb.runtime.night.charts import charts_of
from wnlb.runtime.night.page import page
from wnlb.runtime.night.record import Record


@pytest.fixture(scope="module")
def planted_page() -> str:
    return page(a_night(tracked=True))


def test_it_tells_what_was_seen_when(planted_page: str) -> None:
    check_whole(planted_page)
    text = re.sub(r"<svg.*?</svg>|<[^>]+>", " ", planted_page, flags=re.DOTALL)
    told = " ".join(text.split())
    assert "camera &lt;0&gt;, 2026-11-27 22:10:05 to 08:09:05." in told
    assert "9 h 59 min watched 600 frames with a result 11 objects followed" in told
    assert "1.2 % of the frames dropped for newer ones 1 time lost and found again" in told  # 7 of 607
    # Two cars in each third frame, 597 the last; a chair in each hundredth, 500 the last; a bin is 128 s long.
    assert "car 10 22:10:05 08:05:17 2 0.67" in told
    assert "chair 1 22:10:05 06:29:17 1 0.01" in told
    assert "Times to 2 min 08 s" in told
    assert planted_page.count("<figure>") == 11
    assert planted_page.count("<svg ") == 2 * 4


def test_of_a_night_without_tracks_frames_or_objects() -> None:
    whole = page(a_night(tracked=False))
    check_whole(whole)
    assert "objects followed" not in whole
    assert "Of each class, over the time" in whole
    empty = Record(FACTS, ("car",), BEGAN)
    check_whole(page(empty))
    assert "Nothing was found" in page(empty)
    empty.add(3.0, frame(), found([]), 10.0)
    assert "Nothing was found" in page(empty)
    assert [chart.title for chart in charts_of(empty)] == ["Darkness", "Frames and latency"]


def test_the_day_is_told_where_there_are_several() -> None:
    record = Record(FACTS, ("car",), BEGAN)
    for day in (0, 2):
        record.add(86400.0 * day, frame(), found([1]), 10.0)
    assert "2026-11-29 22:0" in page(record)


@pytest.mark.parametrize("width", [1200, 390])
def test_in_a_browser(planted_page: str, tmp_path: Path, width: int) -> None:
    (tmp_path / "report.html").write_text(planted_page)
    with open_page((tmp_path / "report.html").as_uri(), tmp_path / "profile") as opened:
        opened.wait_for("document.readyState == 'complete' && document.querySelectorAll('svg').length > 7")
        opened.screenshot(tmp_path / "page.png", width, 800, dark=True)
        assert opened.value("document.documentElement.scrollWidth <= innerWidth")
        assert opened.value("[...document.images].every(image => image.naturalWidth > 0)")
