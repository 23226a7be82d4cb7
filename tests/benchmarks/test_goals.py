"""Benchmarks, goals: medians, percentiles, and a missed goal that says by how much."""

from __future__ import annotations

import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.goals import Goal, Spread, percentile

VALUES = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=50)


def test_a_met_goal_says_so_and_its_bound_itself_is_met() -> None:
    goal = Goal("throughput", 0.7, 0.7, "at least", " x")
    assert goal.met
    assert goal.verdict() == "throughput: 0.7 x, goal at least 0.7 x: met"


def test_a_missed_goal_is_named_with_how_much_is_missing() -> None:
    goal = Goal("ours to bare", 0.525, 0.7, "at least", " x")
    assert not goal.met
    assert goal.verdict() == "ours to bare: 0.525 x, goal at least 0.7 x: MISSED by 0.175 x (25%)"


def test_a_goal_from_above_is_missed_by_its_excess() -> None:
    goal = Goal("p99", 1250, 500, "at most", " ms")
    assert goal.verdict() == "p99: 1,250 ms, goal at most 500 ms: MISSED by 750 ms (150%)"
    assert goal.to_dict() == {"name": "p99", "value": 1250, "bound": 500, "kind": "at most", "unit": " ms", "met": False}


def test_a_value_that_is_no_number_misses_every_goal() -> None:
    assert not Goal("p99", float("nan"), 500, "at most").met
    assert not Goal("rate", float("nan"), 1, "at least").met


@given(VALUES)
def test_a_spread_is_the_median_between_the_extremes(values: list[float]) -> None:
    spread = Spread.of(values)
    assert (spread.low, spread.high, spread.repeats) == (min(values), max(values), len(values))
    assert spread.median == statistics.median(values)


def test_nothing_measured_is_an_error() -> None:
    with pytest.raises(ValueError, match="no repeat"):
        Spread.of([])
    with pytest.raises(ValueError, match="percentile"):
        percentile([], 0.5)


@pytest.mark.parametrize(("share", "expected"), [(0.01, 1), (0.5, 50), (0.99, 99), (1.0, 100)])
def test_percentiles_of_one_to_a_hundred(share: float, expected: int) -> None:
    assert percentile(list(range(100, 0, -1)), share) == expected


@given(VALUES, st.floats(0.01, 1.0))
def test_a_percentile_is_the_smallest_value_that_covers_its_share(values: list[float], share: float) -> None:
    found = percentile(values, share)
    assert sum(value <= found for value in values) >= share * len(values) - 1e-9
    assert sum(value < found for value in values) < share * len(values)
