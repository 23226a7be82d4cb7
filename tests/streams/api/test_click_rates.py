"""Click rates of window cells are as defined: raw, smoothed by a Beta prior of each position, and COEC."""

from __future__ import annotations

import itertools
from datetime import date
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streams.api.click_rates import Prior, PriorCache, compute_coec, fit_prior, pack_cells, sum_rows, window_row
from tests.support.click_rates import Cell, expected_coec, expected_smoothed
from tests.support.clocks import Clock

DAY = date(2021, 3, 15)


def table(cells: list[Cell]) -> pa.Table:
    columns = list(zip(*cells, strict=True))
    return pa.table({"position": columns[2], "impressions": columns[3], "clicks": columns[4]})


def rate(cells: list[Cell]) -> list[dict[str, Any]]:
    """Every cell's JSON values, each cell in two parts as if it had counts in two shards."""
    halves = [[(*key, n - n // 2, c - c // 2) for *key, n, c in cells], [(*key, n // 2, c // 2) for *key, n, c in cells]]
    sums, positions = sum_rows(halves), sum_rows([[row[2:] for row in half] for half in halves])
    prior, coec = fit_prior(table(cells)), compute_coec(sums, positions)
    return [window_row(cell, one, prior, coec) for cell, one in sums.items()]


def test_raw_ctr_is_clicks_over_impressions_summed_over_shards() -> None:
    assert [row["raw_ctr"] for row in rate([("q", "a", 0, 4, 1), ("q", "b", 1, 4, 0)])] == [0.25, 0.0]


def test_coec_is_clicks_over_the_clicks_expected_at_the_positions_shown() -> None:
    cells = [
        ("q", "a", 0, 100, 40),
        ("q", "a", 1, 100, 10),
        ("q", "b", 0, 100, 20),
        ("q", "b", 1, 300, 10),
        ("q", "c", 2, 500, 0),
    ]
    found = {row["item"]: row["coec"] for row in rate(cells)}
    assert found["a"] == pytest.approx(50 / (100 * (60 / 200) + 100 * (20 / 400)))
    assert found["c"] is None, "no click is expected at position 2"


def test_coec_is_unknown_until_its_positions_have_enough_impressions_and_a_click_is_expected() -> None:
    assert [row["coec"] for row in rate([("q", "a", 0, 1, 1)])] == [None], "one click of one impression"
    assert rate([("q", "a", 0, 50, 10), ("q", "b", 0, 49, 10)])[0]["coec"] is None
    assert rate([("q", "a", 0, 50, 10), ("q", "b", 0, 50, 10)])[0]["coec"] == pytest.approx(1.0)
    once = {row["item"]: row["coec"] for row in rate([("q", "a", 0, 1, 1), ("q", "b", 0, 999, 9)])}
    assert once["a"] is None, "a hundredth of a click is expected: one click would say 100"
    assert once["b"] is not None


def test_a_first_click_moves_the_rate_a_little_above_the_default() -> None:
    [first] = rate([("q", "a", 0, 1, 1)])
    assert first["raw_ctr"] == 1.0
    assert first["smoothed_ctr"] == pytest.approx(0.179, abs=0.001)
    [unclicked] = rate([("q", "a", 0, 1, 0)])
    assert unclicked["smoothed_ctr"] == pytest.approx(0.045, abs=0.002)


def test_smoothed_ctr_equals_the_posterior_mean_by_hand() -> None:
    cells: list[Cell] = [("q", name, 0, n, c) for name, n, c in [("a", 100, 90), ("b", 100, 0), ("c", 400, 80), ("d", 20, 10)]]
    total, mean = 620, 180 / 620
    spread = sum(n * (c / n - mean) ** 2 for *_, n, c in cells)
    rho = (spread / (mean * (1 - mean)) - 4) / (total - 4)
    strength = 1 / rho - 1
    assert strength > 1
    overall = (180 + 0.05 * 20) / (620 + 20)
    mean = (180 + overall * 20) / (620 + 20)
    by_hand = [(c + mean * strength) / (n + strength) for *_, n, c in cells]
    assert [row["smoothed_ctr"] for row in rate(cells)] == pytest.approx(by_hand)


CELLS = st.lists(st.tuples(st.integers(0, 2), st.integers(1, 500), st.floats(0, 1)), min_size=1, max_size=20)


@settings(max_examples=50, deadline=None)
@given(CELLS)
def test_rates_of_any_window_are_those_of_the_definitions(drawn: list[tuple[int, int, float]]) -> None:
    cells: list[Cell] = [(f"q{row % 2}", f"{row // 2}", place, n, round(n * rate)) for row, (place, n, rate) in enumerate(drawn)]
    smoothed, coec = expected_smoothed(cells), expected_coec(cells)
    for row in rate(cells):
        assert row["smoothed_ctr"] == pytest.approx(
            float(smoothed[row["query"], row["item"], row["position"]]), rel=1e-6, abs=1e-9
        )
        wanted = coec[row["query"], row["item"]]
        assert row["coec"] == (None if wanted is None else pytest.approx(float(wanted)))


@settings(max_examples=50, deadline=None)
@given(CELLS)
def test_a_smoothed_rate_lies_between_a_cells_own_and_its_positions_prior_and_is_never_0_or_1(
    drawn: list[tuple[int, int, float]],
) -> None:
    cells: list[Cell] = [("q", f"{row:02}", place, n, round(n * rate)) for row, (place, n, rate) in enumerate(drawn)]
    prior = fit_prior(table(cells))
    for (_, _, position, n, c), row in zip(cells, rate(cells), strict=True):
        mean, _ = prior.positions[position]
        assert 0 < row["smoothed_ctr"] < 1
        assert min(c / n, mean) - 1e-9 <= row["smoothed_ctr"] <= max(c / n, mean) + 1e-9


@settings(max_examples=50, deadline=None)
@given(CELLS)
def test_a_smoothed_rate_grows_with_the_clicks_of_a_cell(drawn: list[tuple[int, int, float]]) -> None:
    prior = fit_prior(table([("q", "", place, n, round(n * rate)) for place, n, rate in drawn]))
    for position, impressions, _ in drawn:
        rates = [prior.smooth(position, impressions, clicks) for clicks in range(impressions + 1)]
        assert all(before < after for before, after in itertools.pairwise(rates))


def test_a_prior_is_fitted_to_cells_summed_over_shards_and_used_until_it_is_too_old() -> None:
    clock = Clock()
    priors = PriorCache(clock)
    shard = {
        "key": pa.array([1, 2], pa.uint64()),
        "position": [0, 0],
        "impressions": [10**6, 4 * 10**6],
        "clicks": [9 * 10**5, 4 * 10**5],
    }
    prior = priors.compute([pack_cells(pa.table(shard)), pack_cells(pa.table(shard))])
    assert (
        prior.positions == fit_prior(table([("q", "a", 0, 2 * 10**6, 18 * 10**5), ("q", "b", 0, 8 * 10**6, 8 * 10**5)])).positions
    )
    priors.keep(DAY, prior)
    clock.now += 5.0
    assert priors.find(DAY, 5.0, [0]) is prior
    assert priors.find(DAY, 4.9, [0]) is None
    assert priors.find(DAY, 5.0, [0, 1]) is None


def test_a_prior_of_few_impressions_is_soon_computed_again() -> None:
    priors = PriorCache(clock := Clock())
    for impressions, kept_s in ((1, 0.0006), (10_000, 6.0), (100_000, 60.0), (10**9, 60.0)):
        priors.keep(DAY, Prior({0: (0.1, 20.0)}, clock.now, impressions))
        begun = clock.now
        clock.now = begun + kept_s * 0.99
        assert priors.find(DAY, 60.0, [0]) is not None
        clock.now = begun + kept_s * 1.01
        assert priors.find(DAY, 60.0, [0]) is None
