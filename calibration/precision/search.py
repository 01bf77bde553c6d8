"""Which parts of a network INT8 costs accuracy in, and how few of them have to be spared."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Sensitivity:
    """What one group costs, as drops of AP in percent against FP32; negative where it gains."""

    group: str
    layers: int
    alone: float  # with only this group in INT8
    spared: float  # with every group but this one in INT8


@dataclass(frozen=True)
class Trial:
    """One attempt at a budget."""

    spared: tuple[str, ...]
    drop: float
    held: bool


Drop = Callable[[frozenset[str]], float]  # groups in INT8 -> drop against FP32


def sensitivities(layers: dict[str, int], drop: Drop) -> list[Sensitivity]:
    """Each group alone in INT8, and all but it.

    Args:
        layers: group to its number of layers.
        drop: measures a choice of groups.
    """
    everything = frozenset(layers)
    return [
        Sensitivity(group, count, drop(frozenset({group})), drop(everything - {group}))
        for group, count in layers.items()
    ]


def hold_budget(
    candidates: Sequence[str],
    drop: Drop,
    budget: float,
    on_trial: Callable[[Trial], object] = lambda trial: None,
) -> tuple[Trial, bool]:
    """Spare the fewest groups that hold a budget.

    Groups are spared one after the other, the most sensitive first, until the drop is at most ``budget``; then each
    spared group is tried in INT8 again, the least sensitive first, and stays there where the budget still holds.

    Args:
        candidates: all groups that may be INT8, the most sensitive first.
        drop: measures a choice of groups.
        on_trial: called after each measurement.

    Returns:
        The trial with the fewest spared groups that held, or the one with the smallest drop; and whether it held.
    """
    trials: list[Trial] = []

    def attempt(spared: tuple[str, ...]) -> Trial:
        value = drop(frozenset(candidates) - set(spared))
        trials.append(Trial(spared, value, value <= budget))
        on_trial(trials[-1])
        return trials[-1]

    count = 0
    best = attempt(())
    while not best.held and count < len(candidates):
        count += 1
        best = attempt(tuple(candidates[:count]))
    if not best.held:
        return min(trials, key=lambda trial: trial.drop), False
    for group in reversed(best.spared[:-1]):
        again = attempt(tuple(name for name in best.spared if name != group))
        best = again if again.held else best
    return best, True
