"""The page of planted rows: whole, self-contained, in both widths."""

from __future__ import annotations

import builtins
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from chromium import open_page
from html_page import check_whole
from planted_rows import FACTS, planted_row

from wnlb.runtime.errors import MissingDependency
from wnlb.runtime.profile.charts import charts_of, pareto_front, stage_color
from wnlb.runtime.profile.page import page
from wnlb.runtime.profile.report import Row
from wnlb.runtime.profile.stages import STAGES
from wnlb.runtime.report.chart import VARIABLES

TIMELINE = [
    {"at_s": float(i), "total_watts": 5.0 + i, "gpu_mhz": None, "cpu_mhz": 900.0, "celsius": {"cpu-thermal": 40.0 + i}}
    for i in range(9)
]


@pytest.fixture(scope="module")
def planted_page() -> str:
    rows = [planted_row("a.onnx", 10, 40.0), planted_row("b.fp16.onnx", 20, 42.0)]
    rows.append(planted_row("/a/long/way/from/here/to/the/model.of.a.long.name.int8.plugin.engine", 15, 41.0))
    rows.append(Row("c.engine", "tensorrt", failure="no <GPU> & no driver"))
    return page(rows, {**FACTS, "timeline": TIMELINE})


def test_it_is_whole_and_needs_nothing_else(planted_page: str) -> None:
    check_whole(planted_page)
    assert "no &lt;GPU&gt; &amp; no driver" in planted_page
    assert "Lamp &lt;1&gt;, 2 cores" in planted_page
    assert planted_page.count("<svg ") == 2 * 9  # nine pictures, wide and narrow


def test_every_picture_is_xml_in_the_colours_of_the_page(planted_page: str) -> None:
    pictures = re.findall(r"<svg .*?</svg>", planted_page, re.DOTALL)
    names: list[str] = []
    for picture in pictures:
        root = ElementTree.fromstring(picture)
        own = [element.attrib["id"] for element in root.iter() if "id" in element.attrib]
        names += own
        used = re.findall(r"(?:href=\"#|url\(#)([^\")]+)", picture)
        assert set(used) <= set(own)
    assert len(names) == len(set(names))
    assert not any(color in planted_page for color in VARIABLES)
    for variable in ("--text", "--line", "--s1", "--s2"):
        assert f"var({variable})" in planted_page
        assert planted_page.count(f"{variable}:") == 2  # light and dark


def test_the_front_is_what_nothing_beats_in_both() -> None:
    points = [(10.0, 40.0), (20.0, 42.0), (15.0, 39.0), (25.0, 42.0), (10.0, 38.0), (30.0, 45.0)]
    assert pareto_front(points) == [(10.0, 40.0), (20.0, 42.0), (30.0, 45.0)]
    assert pareto_front([]) == []


def test_the_machine_is_named_at_the_head() -> None:
    machine = {"processor": "Arm, 6 cores", "GPU": "Orin (SM 8.7)", "Jetson": "Orin Nano, L4T 36.4.3", "OpenCV": "4.8"}
    head = page([planted_row("a.onnx", 10)], {**FACTS, "machine": machine}).partition("</header>")[0]
    assert "Orin Nano, L4T 36.4.3, Orin (SM 8.7), Arm, 6 cores. Measured" in head


def test_pictures_are_those_that_there_are_figures_for() -> None:
    bare = planted_row("a.onnx", 10, stages={}, floor={})
    assert [chart.title for chart in charts_of([bare], FACTS)] == ["Latency distribution", "Timeline"]
    assert charts_of([Row("a.engine", "tensorrt", failure="no GPU")], FACTS) == []
    assert "no GPU" in page([Row("a.engine", "tensorrt", failure="no GPU")], FACTS)


def test_a_stage_has_a_colour_of_its_own() -> None:
    names = [*STAGES, "c2 block", "c3 block", "c4 block", "c5 block", "prepare", "paste"]
    assert len({stage_color(name) for name in names}) == len(names)
    assert stage_color("p5 block") == stage_color("c5 block")


def test_without_matplotlib_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real: Callable[..., Any] = builtins.__import__

    def without(name: str, *arguments: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingDependency, match=r"pip install 'wnlb-deploy\[plots\]'"):
        page([planted_row("a.onnx", 10)], FACTS)


@pytest.mark.parametrize("width", [1200, 390])
@pytest.mark.parametrize("dark", [False, True])
def test_in_a_browser(planted_page: str, tmp_path: Path, width: int, dark: bool) -> None:
    (tmp_path / "report.html").write_text(planted_page)
    with open_page((tmp_path / "report.html").as_uri(), tmp_path / "profile") as opened:
        opened.wait_for("document.readyState == 'complete' && document.querySelectorAll('svg').length > 9")
        opened.screenshot(tmp_path / "page.png", width, 800, dark)
        assert opened.value("document.documentElement.scrollWidth <= innerWidth")  # only tables scroll sideways
        shown = "getComputedStyle(document.querySelector('svg.{}')).display"
        assert opened.value(shown.format("wide")) == ("block" if width > 640 else "none")
        assert opened.value(shown.format("narrow")) == ("none" if width > 640 else "block")
        text = opened.value("getComputedStyle(document.querySelector('svg text')).fill")
        assert (text == "rgb(236, 239, 244)") == dark
