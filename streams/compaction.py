"""Compaction: a UTC day's deltas become their sums, a slice of the keys at a time.

Counting appends deltas and every read sums them. Compacted, a day has one row a key, in the keys' order, so that reads of one
query skip what cannot hold it. A slice is one transaction, and a sum is as good a delta as what it replaces: a reader, or a crash
between two slices, never sees another count.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date

import duckdb

TABLES = "CREATE TABLE compacted (relation VARCHAR, day DATE, rows BIGINT);"
"""How many rows a day had after it was compacted last."""

SLICE_ROWS = 50_000
"""Rows that one transaction replaces by their sums, 0.05 s on a free core, of which half is reading the day."""
MOST_SLICES = 32
"""Of one day: since each slice reads the day, more would take longer than they are shorter."""

SAMPLE_ROWS = 2_000


@dataclass(frozen=True, slots=True)
class Deltas:
    """A table of deltas by `day`: its key columns, the first of which cuts a day into slices, and the columns that are summed."""

    table: str
    keys: tuple[str, ...]
    counts: tuple[str, ...]


DELTAS = (
    Deltas("window_deltas", ("query_norm", "item_norm", "position"), ("impressions", "clicks")),
    Deltas("cooccurrence_deltas", ("query", "next_query"), ("count",)),
)


@dataclass(frozen=True, slots=True)
class Slice:
    """The rows of a day with low <= first key < high; None is no bound."""

    day: date
    low: str | None
    high: str | None


GROWN = """
WITH held AS (SELECT day, count(*) AS rows FROM {table} GROUP BY day)
SELECT h.day, h.rows
FROM held h LEFT JOIN compacted c ON c.relation = $relation AND c.day = h.day
WHERE h.rows - coalesce(c.rows, 0) >= greatest($least, coalesce(c.rows, 0))
ORDER BY h.rows - coalesce(c.rows, 0) DESC, h.day
"""
SAMPLE = """
SELECT {first} FROM (
    SELECT {first} FROM (SELECT {first} FROM {table} WHERE day = $day) USING SAMPLE reservoir({rows} ROWS) REPEATABLE (1)
)
ORDER BY {first}
"""
WHERE = "day = $day AND ($low IS NULL OR {first} >= $low) AND ($high IS NULL OR {first} < $high)"
SUM = """
CREATE OR REPLACE TEMP TABLE compacted_slice AS
SELECT day, {keys}, {sums} FROM {table} WHERE {where}
GROUP BY ALL HAVING {any_count} ORDER BY {keys}
"""
DROP = "DELETE FROM {table} WHERE {where}"
KEEP = "INSERT INTO {table} FROM compacted_slice"
FORGET = "DELETE FROM compacted WHERE relation = $relation AND day = $day"
REMEMBER = "INSERT INTO compacted VALUES ($relation, $day, $rows)"


def count_rows(con: duckdb.DuckDBPyConnection, deltas: Deltas) -> int:
    """Return how many rows the table has; DuckDB knows without reading them."""
    return int(con.execute(f"SELECT count(*) FROM {deltas.table}").fetchall()[0][0])


def find_grown_days(con: duckdb.DuckDBPyConnection, deltas: Deltas, least: int) -> list[tuple[date, int]]:
    """Return the days worth compacting and their rows, the one that gained most first.

    A day is worth it when it gained `least` rows, and as many as it was left with the last time.
    """
    sql = GROWN.format(table=deltas.table)
    return con.execute(sql, {"relation": deltas.table, "least": least}).fetchall()


def slice_day(con: duckdb.DuckDBPyConnection, deltas: Deltas, day: date, rows: int) -> list[Slice]:
    """Cut a day of so many rows into slices of about SLICE_ROWS, MOST_SLICES at most, by a sample of its first key."""
    pieces = min(-(-rows // SLICE_ROWS), MOST_SLICES)
    bounds: list[str] = []
    if pieces > 1:
        sql = SAMPLE.format(table=deltas.table, first=deltas.keys[0], rows=SAMPLE_ROWS)
        sample = [key for (key,) in con.execute(sql, {"day": day}).fetchall()]
        bounds = sorted({sample[len(sample) * piece // pieces] for piece in range(1, pieces)})
    return [Slice(day, low, high) for low, high in zip([None, *bounds], [*bounds, None], strict=True)]


def compact_slice(con: duckdb.DuckDBPyConnection, deltas: Deltas, piece: Slice) -> tuple[int, int]:
    """Replace a slice's rows by their sums, without those that are zero; return its rows before and after.

    To be called inside a transaction.
    """
    params = {"day": piece.day, "low": piece.low, "high": piece.high}
    where = WHERE.format(first=deltas.keys[0])
    con.execute(SUM.format(table=deltas.table, where=where, **_columns(deltas)), params)
    before = con.execute(DROP.format(table=deltas.table, where=where), params).fetchall()[0][0]
    after = con.execute(KEEP.format(table=deltas.table)).fetchall()[0][0]
    con.execute("DROP TABLE compacted_slice")
    return before, after


def remember_compacted(con: duckdb.DuckDBPyConnection, deltas: Deltas, day: date, rows: int) -> None:
    """Note that a day was compacted and left with so many rows."""
    con.execute(FORGET, {"relation": deltas.table, "day": day})
    con.execute(REMEMBER, {"relation": deltas.table, "day": day, "rows": rows})


def _columns(deltas: Deltas) -> dict[str, str]:
    return {
        "keys": _list(deltas.keys),
        "sums": _list([f"sum({name})::BIGINT AS {name}" for name in deltas.counts]),
        "any_count": " OR ".join(f"sum({name}) <> 0" for name in deltas.counts),
    }


def _list(parts: Sequence[str]) -> str:
    return ", ".join(parts)
