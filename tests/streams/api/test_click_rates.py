"""Click rates of window cells are as defined: raw, smoothed by a Beta prior of each position, and COEC."""

from __future__ import annotations

from datetime import date
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streams.api.click_rates import PriorCache, compute_coec, fit_prior, pack_cells, sum_rows, window_row
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
    cells = [("q", "a", 0, 10, 4), ("q", "a", 1, 10, 1), ("q", "b", 0, 10, 2), ("q", "b", 1, 30, 1), ("q", "c", 2, 5, 0)]
    found = {row["item"]: row["coec"] for row in rate(cells)}
    assert found["a"] == pytest.approx(5 / (10 * (6 / 20) + 10 * (2 / 40)))
    assert found["c"] is None


def test_smoothed_ctr_equals_the_posterior_mean_by_hand() -> None:
    cells: list[Cell] = [("q", name, 0, n, c) for name, n, c in [("a", 10, 9), ("b", 10, 0), ("c", 40, 8), ("d", 2, 1)]]
    total, mean = 62, 18 / 62
    spread = sum(n * (c / n - mean) ** 2 for *_, n, c in cells)
    rho = (spread / (mean * (1 - mean)) - 4) / (total - 4)
    strength = 1 / rho - 1
    assert strength > 1
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
def test_smoothed_ctr_lies_between_a_cells_own_rate_and_its_positions_rate(drawn: list[tuple[int, int, float]]) -> None:
    cells: list[Cell] = [("q", f"{row:02}", place, n, round(n * rate)) for row, (place, n, rate) in enumerate(drawn)]
    for (_, _, position, n, c), row in zip(cells, rate(cells), strict=True):
        same = [(m, d) for _, _, p, m, d in cells if p == position]
        mean = sum(d for _, d in same) / sum(m for m, _ in same)
        assert min(c / n, mean) - 1e-9 <= row["smoothed_ctr"] <= max(c / n, mean) + 1e-9


def test_a_prior_is_fitted_to_cells_summed_over_shards_and_used_until_it_is_too_old() -> None:
    clock = Clock()
    priors = PriorCache(clock)
    shard = {"key": pa.array([1, 2], pa.uint64()), "position": [0, 0], "impressions": [10, 40], "clicks": [9, 4]}
    prior = priors.compute([pack_cells(pa.table(shard)), pack_cells(pa.table(shard))])
    assert prior.positions == fit_prior(table([("q", "a", 0, 20, 18), ("q", "b", 0, 80, 8)])).positions
    priors.keep(DAY, prior)
    clock.now += 5.0
    assert priors.find(DAY, 5.0, [0]) is prior
    assert priors.find(DAY, 4.9, [0]) is None
    assert priors.find(DAY, 5.0, [0, 1]) is None
