"""Two reports with planted times: what is noise is known, and what is not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from wnlb.runtime.errors import WnlbError
from wnlb.runtime.profile.compare import (
    Change,
    as_text,
    block_length,
    compare,
    differences,
    ratio_interval,
    read_report,
    regressions,
    run_compare,
)


def independent(seed: int, count: int = 300, mean: float = 40) -> list[float]:
    return [round(time, 3) for time in np.random.default_rng(seed).normal(mean, 0.02 * mean, count).tolist()]


def autocorrelated(random: np.random.Generator, count: int, memory: float) -> NDArray[np.float64]:
    """Milliseconds around 40 that wander, as a machine's clocks do: AR(1), of one mean."""
    noise = random.normal(0, np.sqrt(1 - memory**2), count + 500)
    for i in range(1, len(noise)):
        noise[i] += memory * noise[i - 1]
    return 40 + 0.8 * noise[500:]


def row(name: str, samples_ms: list[float], **others: Any) -> dict[str, Any]:
    known = {"backend": "onnxruntime", "description": "ONNX Runtime 1.20, CPU", "precision": "fp32"}
    return {"name": name, **known, "attention": "standard", "samples_ms": samples_ms, "failure": "", **others}


def report(*rows: dict[str, Any], **facts: Any) -> dict[str, Any]:
    return {"format": 1, "machine": {"processor": "Cortex-A78AE, 6 cores"}, **facts, "rows": list(rows)}


def only(changes: list[Change]) -> Change:
    (change,) = changes
    return change


def test_the_same_distribution_is_the_same() -> None:
    change = only(compare(report(row("a", independent(1))), report(row("a", independent(2)))))
    assert change.verdict == "same"
    assert change.ratio == pytest.approx(1, abs=0.01)
    assert change.interval
    assert change.interval[0] < 1 < change.interval[1]
    assert change.interval[1] - change.interval[0] < 0.02
    assert regressions([change], 0) == []


@pytest.mark.parametrize(("factor", "verdict"), [(1.1, "slower"), (1 / 1.1, "faster")])
def test_a_shift_of_a_tenth_is_found_and_measured(factor: float, verdict: str) -> None:
    change = only(compare(report(row("a", independent(1))), report(row("a", independent(2, mean=40 * factor)))))
    assert change.verdict == verdict
    assert change.interval
    assert change.interval[0] < factor < change.interval[1]
    assert (len(regressions([change], 5)), len(regressions([change], 15))) == (verdict == "slower", 0)


def test_medians_are_trtexecs() -> None:
    old, new = [float(n) for n in range(1, 101)], [float(n) for n in range(2, 202, 2)]
    change = only(compare(report(row("a", old)), report(row("a", new))))
    assert (change.old_ms, change.new_ms, change.ratio) == (50, 100, 2)


def test_identical_times_leave_no_doubt() -> None:
    change = only(compare(report(row("a", [10.0] * 50)), report(row("a", [10.0] * 50))))
    assert (change.verdict, change.interval) == ("same", (1, 1))


def naive_interval(old: NDArray[np.float64], new: NDArray[np.float64]) -> tuple[float, float]:
    """A bootstrap that draws single times, as if they were independent."""
    random = np.random.default_rng(0)
    medians = [np.median(times[random.integers(0, len(times), (500, len(times)))], axis=1) for times in (old, new)]
    low, high = np.quantile(medians[1] / medians[0], [0.025, 0.975])
    return float(low), float(high)


def test_times_that_wander_are_not_taken_for_a_change() -> None:
    """Forty pairs of one distribution: single times err mostly, blocks seldom (2 of 40 by the book, some more here)."""
    random = np.random.default_rng(5)
    naive = blocks = 0
    for _ in range(40):
        old, new = (autocorrelated(random, 1000, 0.9) for _ in range(2))
        low, high = naive_interval(old, new)
        naive += not low <= 1 <= high
        low, high = ratio_interval(old.tolist(), new.tolist())
        blocks += not low <= 1 <= high
    assert naive >= 20
    assert blocks <= 8


def test_a_common_drift_is_the_same() -> None:
    """Both machines heat up, by other noise; the median's place in a drift is known badly."""
    random = np.random.default_rng(3)
    old, new = (np.linspace(40, 44, 400) + autocorrelated(random, 400, 0.9) - 40 for _ in range(2))
    change = only(compare(report(row("a", old.tolist())), report(row("a", new.tolist()))))
    assert change.verdict == "same"
    low, high = naive_interval(old, new)
    assert change.interval
    assert change.interval[1] - change.interval[0] > 2 * (high - low)


def test_the_interval_is_as_wide_as_medians_scatter() -> None:
    """Against the scatter of the ratios of 400 fresh pairs of runs."""
    random = np.random.default_rng(7)
    draw: Callable[[], NDArray[np.float64]] = lambda: autocorrelated(random, 1500, 0.8)  # noqa: E731
    ratios = [np.median(draw()) / np.median(draw()) for _ in range(400)]
    true = float(np.diff(np.quantile(ratios, [0.025, 0.975]))[0])
    widths = [float(np.diff(ratio_interval(draw().tolist(), draw().tolist()))[0]) for _ in range(10)]
    assert 0.75 * true < np.mean(widths) < 1.25 * true


def test_blocks_are_as_long_as_times_resemble_each_other() -> None:
    random = np.random.default_rng(0)
    lengths = [block_length(autocorrelated(random, 2000, memory)) for memory in (0.0, 0.5, 0.9)]
    assert lengths[0] < lengths[1] < lengths[2]
    assert lengths[0] <= 4
    assert 20 <= lengths[2] <= 100
    assert block_length(np.full(100, 3.0)) == 1
    assert block_length(np.repeat([1.0, 2.0], 150)) > 20  # one step
    assert 1 <= block_length(np.tile([1.0, 2.0], 150)) <= 52  # 3 sqrt(n)
    assert 1 <= block_length(np.arange(20.0)) <= 7


def test_the_interval_is_the_same_each_time_and_narrow_for_many_times() -> None:
    old, new = independent(1, 10_000), independent(2, 10_000)
    low, high = ratio_interval(old, new)
    assert (low, high) == ratio_interval(old, new)
    assert high - low < 0.003  # of a spread of 2 %: 1.96 * 1.25 * 0.02 * sqrt(2 / 10000), twice, is 0.0014


def test_few_runs_say_nothing() -> None:
    change = only(compare(report(row("a", [40.0] * 19)), report(row("a", [80.0] * 300))))
    assert (change.verdict, change.ratio, change.interval) == ("too few runs", 2, None)
    assert regressions([change], 5) == []


def test_rows_of_one_report_only() -> None:
    times = independent(1)
    changes = compare(report(row("gone", times), row("a", times)), report(row("fresh", times), row("a", times)))
    assert [(change.name, change.verdict) for change in changes] == [
        ("fresh", "added"),
        ("a", "same"),
        ("gone", "removed"),
    ]
    assert changes[0].old_ms is changes[2].new_ms is None
    assert [change.name for change in regressions(changes, 5)] == ["gone"]
    never = only(compare(report(row("never measured", [], failure="no GPU")), report()))
    assert (never.verdict, never.note, regressions([never], 5)) == ("removed", "not measured: no GPU", [])


def test_rows_that_fail() -> None:
    """A row that failed may not know its precision, attention and backend."""
    times, failed = independent(1), {"precision": "", "attention": None, "backend": "", "failure": "out of memory"}
    old = report(row("a", times), row("b", [], **failed), row("c", [], **failed), row("d", times))
    new = report(row("a", [], **failed), row("b", times), row("c", [], **failed), row("d", times, failure="fell out"))
    changes = compare(old, new)
    assert [(change.name, change.verdict) for change in changes] == [
        ("a", "fails now"),
        ("b", "works now"),
        ("c", "fails"),
        ("d", "fails now"),
    ]
    assert [change.note for change in changes] == ["out of memory", "", "out of memory", "fell out"]
    assert [change.name for change in regressions(changes, 1e6)] == ["a", "d"]


def test_rows_are_matched_by_all_that_names_them() -> None:
    """Whatever their order; an entry that one of the two lacks may be anything."""
    slow, fast = independent(1, mean=40), independent(2, mean=10)
    old = report(row("a", slow), row("a", fast, backend="tensorrt", description="TensorRT 10.3"), row("b", slow))
    new = report(row("a", fast, backend="tensorrt", description="TensorRT 10.7"), row("a", slow), row("b", slow))
    del old["rows"][2]["attention"]
    changes = compare(old, new)
    assert [(change.name, change.verdict) for change in changes] == [
        ("a fp32 standard tensorrt", "same"),
        ("a fp32 standard onnxruntime", "same"),
        ("b", "same"),
    ]
    assert changes[0].note == "ran on TensorRT 10.3, now on TensorRT 10.7"
    for key in ("precision", "attention", "backend"):
        changes = compare(report(row("a", slow)), report(row("a", slow, **{key: "other"})))
        assert [change.verdict for change in changes] == ["added", "removed"]


def test_one_that_says_all_is_not_taken_by_one_that_says_nothing() -> None:
    times = independent(1)
    old = report(row("a", times, precision="fp16"), row("a", times))
    new = report(row("a", [], precision="", failure="no"), row("a", times, precision="fp16"))
    assert [(c.old_ms is None, c.verdict) for c in compare(old, new)] == [(False, "fails now"), (False, "same")]


def test_accuracy_is_shown_where_both_were_scored_alike() -> None:
    def changed(old: dict[str, Any] | None, new: dict[str, Any] | None) -> tuple[float | None, float | None]:
        change = only(compare(report(row("a", [1.0], accuracy=old)), report(row("a", [1.0], accuracy=new))))
        return change.box_ap, change.mask_ap

    scored = {"truth": "labels", "images": 64}
    assert changed({**scored, "box_ap": 41.5, "mask_ap": 38.0}, {**scored, "box_ap": 40.25, "mask_ap": 39.0}) == (
        -1.25,
        1,
    )
    assert changed({**scored, "box_ap": 41.5, "mask_ap": None}, {**scored, "box_ap": 41.5, "mask_ap": 38}) == (0, None)
    assert changed({**scored, "box_ap": 41.5}, {**scored, "box_ap": float("nan")}) == (None, None)
    assert changed({**scored, "box_ap": 41.5}, {"truth": "reference", "images": 64, "box_ap": 99.0}) == (None, None)
    assert changed(None, {**scored, "box_ap": 41.5}) == (None, None)


def test_what_else_differs_is_told_in_a_line_each() -> None:
    here = {"processor": "Cortex-A78AE, 6 cores", "GPU": "Orin", "ONNX Runtime": "1.20"}
    there = {"processor": "Xeon, 2 cores", "ONNX Runtime": "1.22"}
    old, new = report(machine=here, frames={"count": 16}), report(machine=there, frames={"count": 8})
    assert differences(old, new) == [
        "the machines differ, so their times cannot be compared "
        "(processor: Cortex-A78AE, 6 cores, now Xeon, 2 cores; GPU: Orin, now none)",
        "other software, which may be why times changed (ONNX Runtime: 1.20, now 1.22)",
        "measured on other frames: times depend on what is found in them",
    ]
    assert differences(old, old) == []


def test_the_table() -> None:
    changes = [
        Change("model.onnx", "slower", 40, 44, 1.1, (1.08, 1.125), 0.25, None, "ran on 1.20, now on 1.22"),
        Change("model.fp16.onnx", "removed", old_ms=20),
    ]
    assert as_text(changes, ["the machines differ"]).splitlines() == [
        "row              old p50 ms  new p50 ms  change %  95 % interval  verdict  box AP  mask AP",
        "---------------  ----------  ----------  --------  -------------  -------  ------  -------",
        "model.onnx            40.00       44.00  +10.0     +8.0 to +12.5  slower   +0.2          -",
        "model.fp16.onnx       20.00           -  -         -              removed  -             -",
        "",
        "the machines differ",
        "model.onnx: ran on 1.20, now on 1.22",
    ]


@pytest.mark.parametrize("percent", [-1, float("nan"), float("inf")])
def test_thresholds_that_are_none(percent: float) -> None:
    with pytest.raises(WnlbError, match="expected percent from 0"):
        regressions([], percent)


def write(path: Path, content: object) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_reports_on_disk(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = write(tmp_path / "old.json", report(row("a", independent(1)), row("b", independent(2))))
    new = write(tmp_path / "new.json", report(row("a", independent(3, mean=44)), row("b", independent(4))))
    assert read_report(old)["rows"][1]["name"] == "b"
    assert run_compare(old, new, None, False) == 0
    assert "slower" in capsys.readouterr().out
    assert run_compare(old, new, 20, False) == 0
    assert "regressed" not in capsys.readouterr().out
    assert run_compare(old, new, 5, False) == 1
    assert capsys.readouterr().out.endswith("\nregressed: a\n")
    assert run_compare(old, new, 5, True) == 1
    told = json.loads(capsys.readouterr().out)
    assert [change["verdict"] for change in told["changes"]] == ["slower", "same"]
    assert (told["regressions"], told["differences"]) == (["a"], [])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON: "),
        ("[" * 100_000, "is not JSON: "),
        ("\x00", "is not JSON: "),
        ([], "is no report of 'wnlb profile'; expected its report.json"),
        ({"format": 1}, "is no report of 'wnlb profile'; expected its report.json"),
        ({"format": 2, "rows": []}, "is of format 2; expected 1: measure anew"),
        ({"rows": []}, "is of format None; expected 1: measure anew"),
        (report("a"), "row 0 is str; expected an object; measure anew"),  # type: ignore[arg-type]
        (report(row("a", [1.0]), row("", [1.0])), "row 1 has no name; measure anew"),
        (report(row("a", [1.0], precision=16)), "row 0 has a precision that is no text"),
        (report(row("a", [1.0], failure=False)), "row 0 has a failure that is no text"),
        (report({"name": "a"}), "row 0 has 'samples_ms' that are no list of times above 0"),
        (report(row("a", [1.0, 0.0])), "row 0 has 'samples_ms' that are no list of times above 0"),
        (report(row("a", [float("nan")])), "row 0 has 'samples_ms' that are no list of times above 0"),
        (report(row("a", [float("inf")])), "row 0 has 'samples_ms' that are no list of times above 0"),
        (report(row("a", [True])), "row 0 has 'samples_ms' that are no list of times above 0"),
        (report(row("a", ["1"])), "row 0 has 'samples_ms' that are no list of times above 0"),  # type: ignore[list-item]
        (report(row("a", [1.0], accuracy=41.5)), "row 0 has an accuracy that is no object"),
        (report(row("a", [1.0], accuracy={"box_ap": "41.5"})), "row 0 has a box_ap that is no number"),
        (report(machine=["x"]), "'machine' holds something else than text"),
        (report(machine={"GPU": 1}), "'machine' holds something else than text"),
    ],
)
def test_files_that_are_no_reports(content: object, message: str, tmp_path: Path) -> None:
    with pytest.raises(WnlbError) as refused:
        read_report(write(tmp_path / "report.json", content))
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)
    assert str(tmp_path / "report.json") in str(refused.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00{")
    for path, message in (
        (tmp_path / "no.json", "does not exist; expected the report.json of 'wnlb profile -o'"),
        (tmp_path, "is a folder; expected the report.json"),
        (tmp_path / "binary.json", "is not JSON"),
    ):
        with pytest.raises(WnlbError) as refused:
            read_report(path)
        assert message in str(refused.value)
