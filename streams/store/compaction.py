"""Compaction: what a UTC day counts becomes one row a key, a slice of the keys at a time.

Counting appends deltas and every read sums them. Compacted, a day has one row a key, in the keys' order, so that reads of one
query skip what cannot hold it. A slice is one transaction, and a sum is as good a delta as what it replaces: a reader, or a crash
between two slices, never sees another count. Only days that are over are compacted: what a day still gains would have to be
summed again and again. With the windows' deltas go the lists that have stood without any until then (`streams.counting.rollups`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date

import duckdb

from streams.counting import rollups
from streams.counting.connection import run_to_end
from streams.counting.retention import to_day
from streams.events.rules import HOUR_US

TABLES = "CREATE TABLE compacted (relation VARCHAR, day DATE, rows BIGINT);"
"""How many rows a day had after it was compacted last."""

OVER_US = HOUR_US
"""A day is over so long after its end, in event time: most of what comes late is there."""

SLICE_ROWS = 50_000
"""Rows that one transaction replaces by their sums, 0.05 s on a free core, of which half is reading the day."""
MOST_SLICES = 64
"""Of one day: since each slice reads the day, more would take longer than they are shorter."""

SAMPLE_ROWS = 2_000


@dataclass(frozen=True, slots=True)
class Deltas:
    """A table of deltas by `day`: its key columns, the first of which cuts a day into slices, and the columns that are summed.

    `cells` is the relation whose sums they are, `lists` what stands in it beside the deltas, as lists of `length` rows.
    """

    table: str
    cells: str
    lists: str | None
    keys: tuple[str, ...]
    counts: tuple[str, ...]


WINDOWS = Deltas(
    "window_deltas", "window_cells", "standing_lists", ("query_norm", "item_norm", "position"), ("impressions", "clicks")
)
PAIRS = Deltas("cooccurrence_deltas", "cooccurrence_deltas", None, ("query", "next_query"), ("count",))
DELTAS = (WINDOWS, PAIRS)


@dataclass(frozen=True, slots=True)
class Slice:
    """The rows of a day with low <= first key < high; None is no bound."""

    day: date
    low: str | None
    high: str | None


STANDING = "UNION ALL SELECT day, length FROM {lists} WHERE day < $over"
HELD = "SELECT day, sum(rows) AS rows FROM (SELECT day, 1 AS rows FROM {table} WHERE day < $over {standing}) GROUP BY day"
GROWN = f"""
WITH held AS ({HELD})
SELECT h.day, h.rows::BIGINT
FROM held h LEFT JOIN compacted c ON c.relation = $relation AND c.day = h.day
WHERE h.rows - coalesce(c.rows, 0) >= greatest($least, coalesce(c.rows, 0))
ORDER BY h.rows - coalesce(c.rows, 0) DESC, h.day
"""
SAMPLED = "SELECT {first} FROM {source} WHERE day = $day"
SAMPLE = """
SELECT {first} FROM (SELECT {first} FROM ({sampled}) USING SAMPLE reservoir({rows} ROWS) REPEATABLE (1)) ORDER BY {first}
"""
WHERE = "day = $day AND ($low IS NULL OR {first} >= $low) AND ($high IS NULL OR {first} < $high)"
SUM = """
CREATE OR REPLACE TEMP TABLE compacted_slice AS
SELECT day, {keys}, {sums}, count(*) AS held FROM {cells} WHERE {where}
GROUP BY day, {keys} ORDER BY {keys}
"""
DROP = "DELETE FROM {table} WHERE {where}"
KEEP = "INSERT INTO {table} SELECT * EXCLUDE (held) FROM compacted_slice WHERE {any_count}"
HELD_BEFORE = "SELECT coalesce(sum(held), 0)::BIGINT FROM compacted_slice"
FORGET = "DELETE FROM compacted WHERE relation = $relation AND day = $day"
REMEMBER = "INSERT INTO compacted VALUES ($relation, $day, $rows)"


def find_over(latest_us: int) -> date:
    """Return the first day that is not over at this event time."""
    return to_day(latest_us - OVER_US)


def count_rows(con: duckdb.DuckDBPyConnection, deltas: Deltas) -> int:
    """Return how many rows the table has; DuckDB knows without reading them."""
    return int(con.execute(f"SELECT count(*) FROM {deltas.table}").fetchall()[0][0])


def find_grown_days(con: duckdb.DuckDBPyConnection, deltas: Deltas, least: int, over: date) -> list[tuple[date, int]]:
    """Return the days before `over` that are worth compacting and their rows, the one that gained most first.

    A day is worth it when it gained `least` rows, and as many as it was left with the last time.
    """
    standing = STANDING.format(lists=deltas.lists) if deltas.lists else ""
    params = {"relation": deltas.table, "least": least, "over": over}
    return con.execute(GROWN.format(table=deltas.table, standing=standing), params).fetchall()


def count_day(con: duckdb.DuckDBPyConnection, deltas: Deltas, day: date) -> int:
    """Return how many rows a day's slices will replace."""
    return int(con.execute(f"SELECT count(*) FROM {deltas.cells} WHERE day = $day", {"day": day}).fetchall()[0][0])


def slice_day(con: duckdb.DuckDBPyConnection, deltas: Deltas, day: date, rows: int) -> list[Slice]:
    """Cut a day of so many rows into slices of about SLICE_ROWS, MOST_SLICES at most, by a sample of its first key."""
    pieces = min(-(-rows // SLICE_ROWS), MOST_SLICES)
    bounds: list[str] = []
    if pieces > 1:
        first, sources = deltas.keys[0], filter(None, (deltas.table, deltas.lists))
        sampled = " UNION ALL ".join(SAMPLED.format(first=first, source=source) for source in sources)
        sql = SAMPLE.format(first=first, sampled=sampled, rows=SAMPLE_ROWS)
        sample = [key for (key,) in con.execute(sql, {"day": day}).fetchall()]
        bounds = sorted({sample[len(sample) * piece // pieces] for piece in range(1, pieces)})
    return [Slice(day, low, high) for low, high in zip([None, *bounds], [*bounds, None], strict=True)]


def compact_slice(con: duckdb.DuckDBPyConnection, deltas: Deltas, piece: Slice) -> tuple[int, int]:
    """Replace a slice's rows by their sums, without those that are zero; return its rows before and after.

    A day's slices are to be compacted in their order, each inside a transaction.
    """
    params = {"day": piece.day, "low": piece.low, "high": piece.high}
    where = WHERE.format(first=deltas.keys[0])
    run_to_end(con, SUM.format(cells=deltas.cells, where=where, keys=_list(deltas.keys), sums=_sums(deltas)), params)
    before = int(con.execute(HELD_BEFORE).fetchall()[0][0])
    run_to_end(con, DROP.format(table=deltas.table, where=where), params)
    any_count = " OR ".join(f"{name} <> 0" for name in deltas.counts)
    after = int(con.execute(KEEP.format(table=deltas.table, any_count=any_count)).fetchall()[0][0])
    run_to_end(con, "DROP TABLE compacted_slice")
    if deltas.lists:
        rollups.move_fold(con, piece.day, piece.high)
    return before, after


def remember_compacted(con: duckdb.DuckDBPyConnection, deltas: Deltas, day: date, rows: int) -> None:
    """Note that a day was compacted and left with so many rows."""
    run_to_end(con, FORGET, {"relation": deltas.table, "day": day})
    run_to_end(con, REMEMBER, {"relation": deltas.table, "day": day, "rows": rows})


def _sums(deltas: Deltas) -> str:
    return _list([f"sum({name})::BIGINT AS {name}" for name in deltas.counts])


def _list(parts: Sequence[str]) -> str:
    return ", ".join(parts)
