"""Measures of lists: intervals that hold what they say, texts that repeat themselves, the best lists as a ceiling."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.pretrained.measures import bootstrap_mean, bootstrap_ratio, measure_ceiling
from queryloop.product.clicks import list_click_probability
from queryloop.product.world import draw_world

WORLD = draw_world(2, "english")
RATES = st.lists(st.floats(0.01, 0.6), min_size=2, max_size=40)


@settings(deadline=None)  # thousands of draws, slow on a busy machine
@given(RATES)
def test_an_interval_lies_around_the_mean_within_the_values(rates: list[float]) -> None:
    found = bootstrap_mean(rates)
    assert found.value == pytest.approx(sum(rates) / len(rates))
    assert min(rates) - 1e-9 <= found.low <= found.value + 1e-9
    assert found.value - 1e-9 <= found.high <= max(rates) + 1e-9


def test_an_interval_is_as_wide_as_the_normal_law_says() -> None:
    rates = np.random.default_rng(1).normal(0.2, 0.05, 400)
    found, error = bootstrap_mean(list(rates)), rates.std() / 20
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.1)


@settings(deadline=None)
@given(RATES, st.floats(0.5, 3))
def test_a_policy_that_is_better_by_a_factor_everywhere_is_so_surely(rates: list[float], factor: float) -> None:
    found = bootstrap_ratio([factor * rate for rate in rates], rates)
    assert (found.low, found.value, found.high) == pytest.approx((factor, factor, factor))


def test_the_ceiling_is_above_every_list() -> None:
    queries = ["lisbon", "lisbon weather", "iphone price", "lisbon"]
    lists = [["lisbon weather", "lisbon hotels", "flights to lisbon"], ["lisbon"], ["iphone review"], ["lisbon map"]]
    reached = [list_click_probability(WORLD, query, items) for query, items in zip(queries, lists, strict=True)]
    assert measure_ceiling(WORLD, queries) > sum(reached) / len(reached)
