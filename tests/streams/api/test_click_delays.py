"""Click delays in buckets: exact sums over shards, quantiles within the width of a bucket."""

from __future__ import annotations

from collections.abc import Iterator

import duckdb
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streams.api.click_delays import (
    BOUNDS_S,
    DELAY_HISTOGRAM,
    LOWEST_BUCKET,
    count_upto,
    describe_delays,
    find_quantile,
    sum_delays,
    upper_s,
)

DELAYS = st.lists(st.integers(0, 86_400_000_000), min_size=1, max_size=60)


@pytest.fixture(scope="module")
def con() -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect(":memory:") as opened:
        opened.execute("CREATE TABLE clicks (delay_us BIGINT, reason VARCHAR)")
        yield opened


def bucketed(con: duckdb.DuckDBPyConnection, delays: list[int]) -> list[tuple[int, int, int]]:
    con.execute("DELETE FROM clicks")
    con.execute("INSERT INTO clicks SELECT unnest($delays::BIGINT[]), NULL UNION ALL SELECT 99, 'late_click'", {"delays": delays})
    return con.execute(DELAY_HISTOGRAM).fetchall()


@settings(max_examples=50, deadline=None)
@given(DELAYS, DELAYS)
def test_buckets_of_shards_sum_to_the_buckets_of_all(con: duckdb.DuckDBPyConnection, some: list[int], more: list[int]) -> None:
    assert sum_delays([bucketed(con, some), bucketed(con, more)]) == bucketed(con, some + more)


@settings(max_examples=50, deadline=None)
@given(DELAYS, st.sampled_from([0.01, 0.5, 0.9, 0.99, 1.0]))
def test_a_quantile_is_off_by_a_bucket_at_most(con: duckdb.DuckDBPyConnection, delays: list[int], share: float) -> None:
    ordered = sorted(delays)
    exact = next(one for number, one in enumerate(ordered, 1) if number >= share * len(ordered) - 1e-9) / 1e6
    found = find_quantile(bucketed(con, delays), share)
    assert found is not None
    assert max(exact, upper_s(LOWEST_BUCKET)) == pytest.approx(found, rel=0.091)


@settings(max_examples=50, deadline=None)
@given(DELAYS)
def test_clicks_upto_a_bound_are_exact(con: duckdb.DuckDBPyConnection, delays: list[int]) -> None:
    expected = count_upto(bucketed(con, delays))
    assert expected == {bound: sum(delay <= bound * 1e6 for delay in delays) for bound in BOUNDS_S}


def test_no_clicks_have_no_quantiles() -> None:
    assert describe_delays([])["p99_s"] is None
    assert describe_delays([])["clicks"] == 0
