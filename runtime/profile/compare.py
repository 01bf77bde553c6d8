"""What changed between two reports of ``wnlb profile``, beyond noise."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wnlb.runtime.errors import WnlbError
from wnlb.runtime.latency import percentile
from wnlb.runtime.profile.report import FORMAT
from wnlb.runtime.table import table

FEWEST = 20  # runs of each report, below which nothing is said of noise
RESAMPLES = 1000
COVERAGE = 0.95
_REGRESSED = ("fails now", "removed")
_HARDWARE = ("processor", "Jetson", "power mode", "GPU clocks", "GPU")  # of the report's "machine"
_Row = dict[str, Any]


@dataclass(frozen=True)
class Change:
    """One row of the two reports.

    The interval is that of the noise inside the two runs. What differs from one start of a program to the next
    (placement in memory, clocks, heat) is not in it: hence a threshold beside it, see ``regressions``.
    """

    name: str
    verdict: str  # slower, faster, same, too few runs; added, removed; fails now, works now, fails
    old_ms: float | None = None  # medians, as trtexec's
    new_ms: float | None = None
    ratio: float | None = None  # new over old
    interval: tuple[float, float] | None = None  # of the ratio, 95 %
    box_ap: float | None = None  # new minus old, percent
    mask_ap: float | None = None
    note: str = ""  # why it fails, or what else is not as it was


def run_compare(old: Path, new: Path, max_regression: float | None, as_json: bool) -> int:
    """``wnlb profile --compare``: print what changed; 1 where a row regressed by more than ``max_regression`` percent.

    Raises:
        WnlbError: see ``read_report`` and ``regressions``.
    """
    before, after = read_report(old), read_report(new)
    changes, notes = compare(before, after), differences(before, after)
    worse = [] if max_regression is None else [change.name for change in regressions(changes, max_regression)]
    if as_json:
        entries = [dataclasses.asdict(change) for change in changes]
        print(json.dumps({"changes": entries, "differences": notes, "regressions": worse}, indent=1))
        return 1 if worse else 0
    print(as_text(changes, notes))
    if worse:
        print(f"\nregressed: {', '.join(worse)}")
    return 1 if worse else 0


def read_report(path: Path) -> dict[str, Any]:
    """A report.json of ``wnlb profile``.

    Raises:
        WnlbError: it is not there, is no such report, or is of another format.
    """
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise WnlbError(f"report {path} {what}; expected the report.json of 'wnlb profile -o'")
    try:
        report = json.loads(path.read_bytes())
    except OSError as error:
        raise WnlbError(f"report {path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise WnlbError(f"report {path} is not JSON: {error}; expected the report.json of 'wnlb profile -o'") from error
    if not isinstance(report, dict) or not isinstance(report.get("rows"), list):
        raise WnlbError(f"{path} is no report of 'wnlb profile'; expected its report.json")
    if report.get("format") != FORMAT:
        raise WnlbError(f"report {path} is of format {report.get('format')!r}; expected {FORMAT}: measure anew")
    for number, row in enumerate(report["rows"]):
        if problem := _problem(row):
            raise WnlbError(f"report {path}: row {number} {problem}; measure anew")
    machine = report.get("machine", {})
    if not isinstance(machine, dict) or not all(isinstance(value, str) for value in machine.values()):
        raise WnlbError(f"report {path}: 'machine' holds something else than text; measure anew")
    return report


def compare(old: dict[str, Any], new: dict[str, Any]) -> list[Change]:
    """The rows of ``new`` in its order, then those that only ``old`` has.

    Two rows are the same where name, precision, attention and backend (``tensorrt``, of any version, on any GPU) are;
    what one of them leaves empty, as a row that failed does, may be anything in the other.

    Args:
        old, new: as ``read_report`` returns them.
    """
    pairs = _pairs(old["rows"], new["rows"])
    names = [[row["name"] for row in report["rows"]] for report in (old, new)]
    repeated = {name for own in names for name in own if own.count(name) > 1}
    return [_change(before, after, repeated) for before, after in pairs]


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """What besides the models was not the same in both: a line each, for people."""
    before, after = (report.get("machine", {}) for report in (old, new))
    changed = [key for key in {**before, **after} if before.get(key) != after.get(key)]
    lines = []
    for what, keys in (
        ("the machines differ, so their times cannot be compared", [key for key in changed if key in _HARDWARE]),
        ("other software, which may be why times changed", [key for key in changed if key not in _HARDWARE]),
    ):
        told = [f"{key}: {before.get(key, 'none')}, now {after.get(key, 'none')}" for key in keys]
        lines += [f"{what} ({'; '.join(told)})"] if told else []
    if old.get("frames") != new.get("frames"):
        lines.append("measured on other frames: times depend on what is found in them")
    return lines


def regressions(changes: Sequence[Change], percent: float) -> list[Change]:
    """Rows slower beyond noise and by more than ``percent``, rows that fail now, and measured rows that are gone.

    Raises:
        WnlbError: percent is negative or no number.
    """
    if not (math.isfinite(percent) and percent >= 0):
        raise WnlbError(f"--max-regression {percent:g}; expected percent from 0")
    return [
        change
        for change in changes
        if (change.verdict in _REGRESSED and change.old_ms is not None)
        or (change.verdict == "slower" and change.ratio is not None and 100 * (change.ratio - 1) > percent)
    ]


def as_text(changes: Sequence[Change], notes: Sequence[str] = ()) -> str:
    """For a terminal: a table of the rows, then ``notes`` (see ``differences``) and the rows' own."""
    header = ["row", "old p50 ms", "new p50 ms", "change %", "95 % interval", "verdict", "box AP", "mask AP"]
    cells = []
    for change in changes:
        percents = [None if change.ratio is None else 100 * (change.ratio - 1)]
        percents += [100 * (edge - 1) for edge in change.interval or ()]
        interval = " to ".join(f"{edge:+.1f}" for edge in percents[1:] if edge is not None) or "-"
        shown = [_cell(change.old_ms, ".2f"), _cell(change.new_ms, ".2f"), _cell(percents[0], "+.1f"), interval]
        cells.append([change.name, *shown, change.verdict, _cell(change.box_ap, "+.1f"), _cell(change.mask_ap, "+.1f")])
    lines = [*notes, *(f"{change.name}: {change.note}" for change in changes if change.note)]
    return "\n\n".join([table(header, cells), *(["\n".join(lines)] if lines else [])])


def ratio_interval(old_ms: Sequence[float], new_ms: Sequence[float]) -> tuple[float, float]:
    """The 95 % interval of the ratio of the medians, new over old, by a moving-block bootstrap with a fixed seed.

    Blocks of consecutive runs are drawn, since a slow run seldom comes alone (Kuensch 1989, Annals of Statistics 17).
    Where there are only a few blocks it is somewhat too narrow.

    Args:
        old_ms, new_ms: two times at least, above 0, in the order in which they were measured.
    """
    random = np.random.default_rng(0)
    old, new = (_medians(np.asarray(times, np.float64), random) for times in (old_ms, new_ms))
    low, high = np.quantile(new / old, [(1 - COVERAGE) / 2, (1 + COVERAGE) / 2])
    return float(low), float(high)


def block_length(times: NDArray[np.float64]) -> int:
    """Of the bootstrap's blocks, from the data: 1 for independent times, longer the longer they resemble each other.

    The rule of Politis and White 2004 (Econometric Reviews 23) for blocks that overlap, on whether a time is above the
    median: that is what a median's error is made of.
    """
    n = len(times)
    above = (times > np.median(times)).astype(np.float64)
    above -= above.mean()
    if not above.any():
        return 1
    quiet = max(5, math.ceil(math.sqrt(math.log10(n))))  # so many correlations in a row that are none
    lags = min(math.ceil(math.sqrt(n)) + quiet, n - 1)
    covariance = np.array([above[: n - lag] @ above[lag:] for lag in range(lags + 1)]) / n
    none = np.abs(covariance[1:]) < 2 * math.sqrt(math.log10(n) / n) * covariance[0]
    reach = next((lag for lag in range(lags - quiet + 1) if none[lag : lag + quiet].all()), lags)
    lag = np.arange(1, min(2 * max(reach, 1), lags) + 1)
    weighted = np.minimum(1, 2 * (1 - lag / lag[-1])) * covariance[lag]  # the flat-top window
    spectrum = covariance[0] + 2 * weighted.sum()
    longest = math.ceil(min(3 * math.sqrt(n), n / 3))
    if spectrum <= 0:
        return longest
    slope = 2 * (lag * weighted).sum()
    return min(max(math.ceil((1.5 * n * (slope / spectrum) ** 2) ** (1 / 3)), 1), longest)


def _medians(times: NDArray[np.float64], random: np.random.Generator) -> NDArray[np.float64]:
    """[RESAMPLES], trtexec's medians of as many times as there are, drawn in blocks."""
    count, length = len(times), block_length(times)
    middle = int(percentile(range(count), 50))
    blocks = -(-count // length)
    medians = np.empty(RESAMPLES)
    step = max(1_000_000 // count, 1)  # resamples at once: some megabytes
    for first in range(0, RESAMPLES, step):
        resamples = min(step, RESAMPLES - first)
        starts = random.integers(0, count - length + 1, (resamples, blocks, 1))
        drawn = times[(starts + np.arange(length)).reshape(resamples, -1)[:, :count]]
        medians[first : first + resamples] = np.partition(drawn, middle, axis=1)[:, middle]
    return medians


def _pairs(old: list[_Row], new: list[_Row]) -> Iterator[tuple[_Row | None, _Row | None]]:
    """Rows that are the same in all, then those that are so where both say something; each is used once."""
    partners: dict[int, int] = {}
    for exact in (True, False):
        for j, row in enumerate(new):
            if j in partners:
                continue
            fits = (i for i in range(len(old)) if i not in partners.values() and _same(old[i], row, exact))
            if (i := next(fits, None)) is not None:
                partners[j] = i
    for j, row in enumerate(new):
        yield (old[partners[j]] if j in partners else None), row
    for i, row in enumerate(old):
        if i not in partners.values():
            yield row, None


def _key(row: _Row) -> tuple[str, str, str, str]:
    precision, attention, backend = (row.get(key) or "" for key in ("precision", "attention", "backend"))
    return row["name"], precision, attention, backend


def _same(old: _Row, new: _Row, exact: bool) -> bool:
    return all(a == b or (not exact and not (a and b)) for a, b in zip(_key(old), _key(new), strict=True))


def _change(old: _Row | None, new: _Row | None, repeated: set[str]) -> Change:
    row = new or old or {}
    name = " ".join(filter(None, _key(row))) if row["name"] in repeated else row["name"]
    before, after = (_median(row) for row in (old, new))
    if old is None or new is None:
        note = f"not measured: {row['failure']}" if row.get("failure") else ""
        return Change(name, "added" if old is None else "removed", before, after, note=note)
    if before is None or after is None:
        verdict = "fails" if before is None and after is None else "works now" if before is None else "fails now"
        return Change(name, verdict, before, after, note=new.get("failure") or "")
    ratio = after / before
    interval = None
    verdict = "too few runs"
    if min(len(old["samples_ms"]), len(new["samples_ms"])) >= FEWEST:
        interval = ratio_interval(old["samples_ms"], new["samples_ms"])
        verdict = "slower" if interval[0] > 1 else "faster" if interval[1] < 1 else "same"
    box_ap, mask_ap = (_difference(old, new, kind) for kind in ("box_ap", "mask_ap"))
    said = [row.get("description") or "" for row in (old, new)]
    note = f"ran on {said[0]}, now on {said[1]}" if all(said) and said[0] != said[1] else ""
    return Change(name, verdict, before, after, ratio, interval, box_ap, mask_ap, note)


def _median(row: _Row | None) -> float | None:
    """None for a row that was not measured."""
    return percentile(row["samples_ms"], 50) if row and row["samples_ms"] and not row.get("failure") else None


def _difference(old: _Row, new: _Row, kind: str) -> float | None:
    """None where one of them does not know it, or where they were scored against different truths."""
    before, after = (row.get("accuracy") or {} for row in (old, new))
    if any(before.get(key) != after.get(key) for key in ("truth", "images")):
        return None
    known = before.get(kind) is not None and after.get(kind) is not None
    difference = after[kind] - before[kind] if known else math.nan
    return difference if math.isfinite(difference) else None


def _problem(row: object) -> str:
    """Why this is no row of a report; "" where it is one."""
    if not isinstance(row, dict):
        return f"is {type(row).__name__}; expected an object"
    if not isinstance(row.get("name"), str) or not row["name"]:
        return "has no name"
    for key in ("precision", "attention", "backend", "description", "failure"):
        if not isinstance(row.get(key), str | None):
            return f"has a {key} that is no text"
    times = row.get("samples_ms")
    if not isinstance(times, list) or not all(_is_number(time) and 0 < time < math.inf for time in times):
        return "has 'samples_ms' that are no list of times above 0"
    accuracy = row.get("accuracy")
    if not isinstance(accuracy, dict | None):
        return "has an accuracy that is no object"
    for key in ("box_ap", "mask_ap"):
        value = (accuracy or {}).get(key)
        if value is not None and not _is_number(value):
            return f"has a {key} that is no number"
    return ""


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _cell(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
