import pytest

from wnlb.calibration.precision.search import Trial, hold_budget, sensitivities

COSTS = {"stem": 0.0, "c2": 5.0, "c3": 0.2, "fpn": 0.3, "mask head": 0.05}


def drop(groups: frozenset[str]) -> float:
    """Costs add up; c2 is the planted bad one."""
    return sum(COSTS[group] for group in groups)


def test_sensitivities_of_planted_costs() -> None:
    rows = sensitivities(dict.fromkeys(COSTS, 2), drop)
    assert [row.group for row in rows] == list(COSTS)
    assert {row.group: row.alone for row in rows} == COSTS
    total = sum(COSTS.values())
    assert all(row.spared == pytest.approx(total - row.alone) for row in rows)


@pytest.mark.parametrize(
    ("budget", "spared"),
    [
        (10.0, ()),
        (0.6, ("c2",)),
        (0.3, ("c2", "fpn")),
        (0.1, ("c2", "fpn", "c3")),
        (0.01, ("c2", "fpn", "c3", "mask head")),
    ],
)
def test_the_fewest_groups_are_spared(budget: float, spared: tuple[str, ...]) -> None:
    order = sorted(COSTS, key=lambda group: -COSTS[group])
    best, held = hold_budget(order, drop, budget)
    assert held
    assert best.spared == spared
    assert best.drop <= budget


def test_groups_spared_in_vain_go_back() -> None:
    """By the order fpn is first, but sparing c2 alone is enough."""
    tried: list[Trial] = []
    best, held = hold_budget(["fpn", "c3", "c2", "stem", "mask head"], drop, 0.6, tried.append)
    assert held
    assert best.spared == ("c2",)
    assert [trial.held for trial in tried] == [False, False, False, True, True, True]


def test_a_budget_that_nothing_holds() -> None:
    best, held = hold_budget(list(COSTS), lambda groups: 1.0 + len(groups), 0.5)
    assert not held
    assert best == Trial(tuple(COSTS), 1.0, False)
