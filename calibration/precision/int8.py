"""INT8 in ``wnlb convert``: ranges, calibrator, sensitivity and budget."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import onnx

from wnlb.calibration.accuracy.judge import Judge, Ledger
from wnlb.calibration.precision.convert import EDGE_DROP, EDGES, Converter, Int8Choice, Int8Trials, ranges_by
from wnlb.calibration.precision.coverage import draw_sensitivity
from wnlb.calibration.precision.job import OVERFLOW_PICTURES, Job
from wnlb.calibration.precision.ranges import METHODS, collect_histograms
from wnlb.calibration.precision.search import Sensitivity, Trial, hold_budget, sensitivities
from wnlb.runtime.errors import WnlbError
from wnlb.runtime.files import atomic_path, sha256_of
from wnlb.runtime.table import markdown_table, table


def convert_int8(job: Job) -> onnx.ModelProto:
    """Choose calibrator and groups, and write the file."""
    arguments, converter, folder = job.arguments, job.converter, job.folder
    key = f"{converter.sha256} {job.selection.sha256()} {converter.contract.to_json()}"
    with job.bar(len(job.selection.chosen), "measure ranges") as bar:
        histograms = collect_histograms(
            converter.model, converter.activations, job.inputs(), key, folder / "ranges.npz", bar.update
        )
    if arguments.rest == "fp16":
        job.watch_overflow(OVERFLOW_PICTURES)
    small = judge = job.judge(arguments.trial_pictures)
    with job.bar(_planned(job) * len(small), "try INT8") as bar:

        def trials_on(pictures: Judge) -> Int8Trials:
            ledger = Ledger(folder / "trials.json")
            return Int8Trials(converter, histograms, pictures, ledger, f"{key} {_labels(job)}", bar.update)

        trials = trials_on(small)
        choice = _choose(job, trials)
        job.facts |= {"precision": "int8", "rest": arguments.rest, "method": choice.method}
        rows = _sensitivity(job, trials, choice) if arguments.sensitivity else []
        drop = trials.drop(choice)
        if arguments.max_ap_drop is not None:
            if arguments.annotations:
                judge = job.judge(None)
            choice, drop = _hold_budget(job, trials, trials_on(judge), choice, rows)
    job.facts |= {"groups": sorted(choice.groups), "drop": drop, "truth": judge.truth, "pictures": len(judge)}
    left = [group for group in converter.groups if group not in choice.groups]
    job.say(f"\nINT8: {', '.join(g for g in converter.groups if g in choice.groups) or 'nothing'}")
    job.say(f"{arguments.rest.upper()}: {', '.join(left) or 'no layer with weights'}")
    job.say_drop(drop, judge)
    return converter.int8(choice, ranges_by(histograms, choice.method))


def kept_groups(keep: str, converter: Converter) -> set[str]:
    """Groups that the user keeps out of INT8. Raises WnlbError for one that the network lacks."""
    kept = {name.strip() for name in keep.split(",") if name.strip()}
    if unknown := kept - set(converter.groups):
        raise WnlbError(f"--keep names {', '.join(sorted(unknown))}; the groups are {', '.join(converter.groups)}")
    return kept


def _planned(job: Job) -> int:
    """Files to measure before a budget is searched, where none was measured before: FP32, methods, edges, groups."""
    methods = len(METHODS) if job.arguments.method == "auto" else 0
    groups = 2 * len(job.converter.groups) if job.arguments.sensitivity else 0
    return 1 + methods + len(EDGES) + groups + 1


def _labels(job: Job) -> str:
    return sha256_of(job.arguments.annotations) if job.arguments.annotations else "agreement"


def _choose(job: Job, trials: Int8Trials) -> Int8Choice:
    """The calibrator, and which of the first and last layers are INT8."""
    groups, rest, method = job.converter.groups, job.arguments.rest, job.arguments.method
    kept = kept_groups(job.arguments.keep, job.converter)
    inner = frozenset(groups) - set(EDGES) - kept
    if method == "auto":
        drops = {name: trials.drop(Int8Choice(inner, name, rest)) for name in METHODS}
        method = min(drops, key=drops.__getitem__)
        job.say("\n" + table(("calibrator", "AP drop"), [(name, f"{drop:.2f}") for name, drop in drops.items()]))

    def costs_little(group: str) -> bool:
        return trials.drop(Int8Choice(frozenset({group}), method, rest)) <= EDGE_DROP

    edges = {group for group in EDGES if group in groups and group not in kept and costs_little(group)}
    return Int8Choice(inner | edges, method, rest)


def _drop_of(trials: Int8Trials, choice: Int8Choice) -> Callable[[frozenset[str]], float]:
    """The drop of AP with other groups than those of ``choice``."""
    return lambda groups: trials.drop(dataclasses.replace(choice, groups=groups))


def _sensitivity(job: Job, trials: Int8Trials, choice: Int8Choice) -> list[Sensitivity]:
    rows = sensitivities(job.converter.groups, _drop_of(trials, choice))
    header = ("group", "layers", "alone", "all but it")
    cells: list[tuple[Any, ...]] = [(r.group, r.layers, f"{r.alone:.2f}", f"{r.spared:.2f}") for r in rows]
    with atomic_path(job.folder / "sensitivity.md") as temporary:
        lines = markdown_table(header, cells)
        temporary.write_text("Drop of AP in percent with groups in INT8\n\n" + "\n".join(lines) + "\n")
    draw_sensitivity(rows, job.folder / "sensitivity.png")
    job.facts["sensitivity"] = [dataclasses.asdict(row) for row in rows]
    job.say("\ndrop of AP with only this group in INT8, and with all but it:\n")
    job.say(table(header, cells))
    return rows


def _hold_budget(
    job: Job, trials: Int8Trials, full: Int8Trials, choice: Int8Choice, rows: list[Sensitivity]
) -> tuple[Int8Choice, float]:
    """The choice with the fewest groups spared that holds the budget on all evaluation pictures, and its drop."""
    budget, drop_of = job.arguments.max_ap_drop, _drop_of(full, choice)
    order = [group for group in job.converter.groups if group in choice.groups]
    if drop_of(choice.groups) > budget:
        on_few = _drop_of(trials, choice)
        alone = {row.group: row.alone for row in rows} or {group: on_few(frozenset({group})) for group in order}
        order.sort(key=lambda group: -alone[group])
    tried: list[Trial] = []

    def tell(trial: Trial) -> None:
        tried.append(trial)
        verdict = "holds" if trial.held else "too much"
        job.say(f"spared: {', '.join(trial.spared) or 'nothing'}: drop {trial.drop:.2f}, {verdict}")

    job.say(f"\nbudget: at most {budget:g} AP")
    best, job.held = hold_budget(order, drop_of, budget, tell)
    job.facts["trials"] = [dataclasses.asdict(trial) for trial in tried]
    return dataclasses.replace(choice, groups=frozenset(order) - set(best.spared)), best.drop
