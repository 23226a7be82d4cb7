"""Windows count impressions and clicks over the 14 UTC days before a day; the click rates read from them are as defined."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streams.counting.windows import coec, raw_ctr, smoothed_ctr, sum_windows
from streams.store.shard import CountingRules, Shard
from tests.support.logs import feed, impression, rows

MIDNIGHT = datetime(2021, 3, 15, tzinfo=UTC).timestamp()


@pytest.fixture
def shard(tmp_path: Path) -> Iterator[Shard]:
    opened = Shard.open(tmp_path / "shard.duckdb", CountingRules(retention_days=0))
    yield opened
    opened.close()


def window(cells: list[tuple[str, str, int, int, int]]) -> pa.Table:
    columns = list(zip(*cells, strict=True))
    names = ["query_norm", "item_norm", "position", "impressions", "clicks"]
    types = [pa.string(), pa.string(), pa.int32(), pa.int64(), pa.int64()]
    return pa.table({name: pa.array(column, kind) for name, column, kind in zip(names, columns, types, strict=True)})


@pytest.mark.parametrize(
    ("ts", "first_day", "last_day"),
    [(MIDNIGHT, date(2021, 3, 16), date(2021, 3, 29)), (MIDNIGHT - 0.000001, date(2021, 3, 15), date(2021, 3, 28))],
)
def test_an_impression_is_in_the_windows_of_the_fourteen_days_after_its_own(
    shard: Shard, ts: float, first_day: date, last_day: date
) -> None:
    feed(
        shard,
        [impression("e1", f"{datetime.fromtimestamp(0, UTC) + timedelta(microseconds=round(ts * 1e6)):%Y-%m-%dT%H:%M:%S.%fZ}")],
    )
    one_day = timedelta(days=1)
    inside = [bool(len(shard.windows(as_of))) for as_of in (first_day - one_day, first_day, last_day, last_day + one_day)]
    assert inside == [False, True, True, False]


def test_queries_and_items_are_counted_in_normal_form_and_sorted_by_code_point(shard: Shard) -> None:
    feed(
        shard,
        [
            impression("e1", MIDNIGHT, "i", ["É", "ｚ"], query="B"),
            impression("e2", MIDNIGHT, "j", ["e\u0301", "Z "], query=" b"),
            impression("e3", MIDNIGHT, "k", ["\U0001f600", "\uffee"], query="b"),
        ],
    )
    assert rows(shard.windows(date(2021, 3, 16))) == [
        ("b", "z", 1, 2, 0),
        ("b", "é", 0, 2, 0),
        ("b", "○", 1, 1, 0),
        ("b", "\U0001f600", 0, 1, 0),
    ]


def test_windows_of_shards_are_summed() -> None:
    parts = [window([("q", "a", 0, 3, 1), ("q", "b", 1, 3, 0)]), window([("p", "a", 0, 1, 1), ("q", "a", 0, 2, 2)])]
    assert rows(sum_windows(parts)) == [("p", "a", 0, 1, 1), ("q", "a", 0, 5, 3), ("q", "b", 1, 3, 0)]


def test_raw_ctr_is_clicks_over_impressions() -> None:
    assert raw_ctr(window([("q", "a", 0, 4, 1), ("q", "b", 1, 4, 0)]))["ctr"].to_pylist() == [0.25, 0.0]


def test_coec_is_clicks_over_the_clicks_expected_at_the_positions_shown() -> None:
    counts = window([("q", "a", 0, 10, 4), ("q", "a", 1, 10, 1), ("q", "b", 0, 10, 2), ("q", "b", 1, 30, 1), ("q", "c", 2, 5, 0)])
    table = {row["item_norm"]: row for row in coec(counts).to_pylist()}
    expected = 10 * (6 / 20) + 10 * (2 / 40)
    assert table["a"]["expected"] == pytest.approx(expected)
    assert table["a"]["coec"] == pytest.approx(5 / expected)
    assert table["c"]["coec"] is None
    assert sum(row["expected"] for row in table.values()) == pytest.approx(8)


def test_smoothed_ctr_equals_the_posterior_mean_by_hand() -> None:
    cells = [("q", name, 0, n, c) for name, n, c in [("a", 10, 9), ("b", 10, 0), ("c", 40, 8), ("d", 2, 1)]]
    total, mean = 62, 18 / 62
    spread = sum(n * (c / n - mean) ** 2 for *_, n, c in cells)
    rho = (spread / (mean * (1 - mean)) - 4) / (total - 4)
    strength = 1 / rho - 1
    assert strength > 1
    by_hand = [(c + mean * strength) / (n + strength) for *_, n, c in cells]
    assert smoothed_ctr(window(cells))["ctr"].to_pylist() == pytest.approx(by_hand)


CELLS = st.lists(st.tuples(st.integers(0, 2), st.integers(1, 500), st.floats(0, 1)), min_size=1, max_size=20)


@settings(max_examples=50, deadline=None)
@given(CELLS)
def test_smoothed_ctr_lies_between_a_cells_own_rate_and_its_positions_rate(drawn: list[tuple[int, int, float]]) -> None:
    cells = sorted(("q", f"{number:02}", position, n, round(n * rate)) for number, (position, n, rate) in enumerate(drawn))
    smoothed = smoothed_ctr(window(cells))["ctr"].to_pylist()
    for (_, _, position, n, c), ctr in zip(cells, smoothed, strict=True):
        same = [(m, d) for _, _, p, m, d in cells if p == position]
        mean = sum(d for _, d in same) / sum(m for m, _ in same)
        assert min(c / n, mean) - 1e-9 <= ctr <= max(c / n, mean) + 1e-9
