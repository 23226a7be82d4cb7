"""Compaction keeps the same counts in fewer rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from datetime import date, timedelta

import duckdb
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streams.counting import cooccurrence, impressions, rollups, windows
from streams.store import compaction
from streams.store.compaction import PAIRS, WINDOWS

DAY = date(2021, 3, 15)
NEXT = DAY + timedelta(days=1)
Row = tuple[date, str, str, int, int, int]
ROWS = st.lists(
    st.tuples(
        st.sampled_from([DAY, NEXT]),
        st.sampled_from(["", "a", "b\u0000c", "é", "z" * 20]),
        st.sampled_from(["x", "y"]),
        st.integers(0, 1),
        st.integers(-2, 2),
        st.integers(-2, 2),
    ),
    max_size=60,
)


def make_tables(con: duckdb.DuckDBPyConnection) -> None:
    for owner in (impressions, windows, rollups, cooccurrence, compaction):
        con.execute(owner.TABLES)


@pytest.fixture
def con() -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect(":memory:") as opened:
        make_tables(opened)
        yield opened


def insert(con: duckdb.DuckDBPyConnection, rows: list[Row]) -> None:
    if rows:
        con.executemany("INSERT INTO window_deltas VALUES (?, ?, ?, ?, ?, ?)", rows)


def read(con: duckdb.DuckDBPyConnection) -> list[Row]:
    return con.execute("FROM window_deltas").fetchall()


def total(rows: list[Row]) -> dict[tuple[date, str, str, int], tuple[int, int]]:
    """The sums by key of what is not all zero."""
    shown: Counter[tuple[date, str, str, int]] = Counter()
    clicks: Counter[tuple[date, str, str, int]] = Counter()
    for *key, lists, clicked in rows:
        shown[tuple(key)] += lists  # type: ignore[index]
        clicks[tuple(key)] += clicked  # type: ignore[index]
    return {key: (shown[key], clicks[key]) for key in shown if shown[key] or clicks[key]}


@settings(deadline=None)
@given(rows=ROWS, slice_rows=st.integers(1, 40))
def test_a_day_keeps_its_sums_has_one_row_a_key_and_no_zeros(rows: list[Row], slice_rows: int) -> None:
    with duckdb.connect(":memory:") as con, pytest.MonkeyPatch.context() as patch:
        patch.setattr(compaction, "SLICE_ROWS", slice_rows)
        make_tables(con)
        insert(con, rows)
        held = sum(row[0] == DAY for row in rows)
        slices = compaction.slice_day(con, WINDOWS, DAY, held) if held else []
        counted = [compaction.compact_slice(con, WINDOWS, one) for one in slices]
        found = read(con)
        assert total(found) == total(rows)
        compacted = [row for row in found if row[0] == DAY]
        assert len(compacted) == len({row[:4] for row in compacted}) == sum(after for _, after in counted)
        assert all(row[4] or row[5] for row in compacted)
        assert [row[1:4] for row in compacted] == sorted(row[1:4] for row in compacted)
        assert sum(before for before, _ in counted) == held
        assert sorted(r for r in found if r[0] == NEXT) == sorted(r for r in rows if r[0] == NEXT)


def test_a_large_day_is_divided_into_slices_of_similar_size_that_cover_it(
    con: duckdb.DuckDBPyConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compaction, "SLICE_ROWS", 1_000)
    con.execute(
        "INSERT INTO cooccurrence_deltas SELECT $day, (r * 7919 % 10_000)::VARCHAR, 'n', 1 FROM range(10_000) t(r)", {"day": DAY}
    )
    slices = compaction.slice_day(con, PAIRS, DAY, 10_000)
    sizes = [compaction.compact_slice(con, PAIRS, one)[0] for one in slices]
    assert len(sizes) == 10
    assert sum(sizes) == 10_000
    assert max(sizes) < 1_500


def test_a_day_is_due_when_it_gained_as_many_rows_as_it_was_compacted_to(con: duckdb.DuckDBPyConnection) -> None:
    insert(con, [(DAY, "q", str(number), 0, 1, 0) for number in range(9)])
    assert compaction.find_grown_days(con, WINDOWS, 10, NEXT + timedelta(days=1)) == []
    insert(con, [(NEXT, "q", str(number), 0, 1, 0) for number in range(30)])
    insert(con, [(DAY, "q", "more", 0, 1, 0)])
    assert compaction.find_grown_days(con, WINDOWS, 10, NEXT + timedelta(days=1)) == [(NEXT, 30), (DAY, 10)]
    compaction.record_compacted(con, WINDOWS, NEXT, 16)
    assert compaction.find_grown_days(con, WINDOWS, 10, NEXT + timedelta(days=1)) == [(DAY, 10)]
    insert(con, [(NEXT, "q", "x", 0, 1, 0)] * 2)
    assert compaction.find_grown_days(con, WINDOWS, 10, NEXT + timedelta(days=1)) == [(NEXT, 32), (DAY, 10)]
