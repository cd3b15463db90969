"""The table of floors: which cases a row covers, and when it holds."""

from __future__ import annotations

import pytest

from benchmarks.floors import FLOORS, Floor
from benchmarks.suite import CASES


def test_every_floor_covers_cases_that_exist():
    for floor in FLOORS:
        assert any(floor.covers(case.name) for case in CASES), floor.row


@pytest.mark.parametrize(
    ("groups", "shapes"),
    [(("training",), 15), (("training-b1",), 5), (("training", "training-b1"), 20), (("forward", "forward-b1"), 20)],
)
def test_the_grid_has_the_shapes_that_its_floors_speak_of(groups: tuple[str, ...], shapes: int):
    floor = next(floor for floor in FLOORS if floor.groups == groups)
    assert sum(floor.covers(case.name) for case in CASES) == shapes


@pytest.mark.parametrize(
    ("statistic", "bound", "value", "holds"),
    [
        ("mean", 1.2, 1.2, True),
        ("worst", 1.2, 1.19, False),
        ("share", 0.2, 0.2, True),
        ("share", 0.2, 0.21, False),
    ],
)
def test_a_share_is_at_most_and_the_rest_at_least(statistic: str, bound: float, value: float, holds: bool):
    assert Floor("row", ("a",), statistic, bound).holds(value) is holds


def test_values():
    ratios = {"a/1": 1.0, "a/2": 4.0, "b/1": 0.1}
    chosen = {"a/1": "torch", "a/2": "cpu", "b/1": "torch"}
    assert Floor("row", ("a",), "mean", 1.0).value(ratios, chosen) == pytest.approx(2.0)
    assert Floor("row", ("a", "b"), "worst", 1.0).value(ratios, chosen) == 0.1
    assert Floor("row", ("a",), "share", 0.2).value(ratios, chosen) == 0.5
    assert Floor("row", ("a/2",), "worst", 1.0).value(ratios, chosen) == 4.0
