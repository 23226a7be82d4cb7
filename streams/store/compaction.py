"""Compaction: replaces the deltas of a UTC day by their sums, one row for each key, a slice of the keys at a time.

Counting inserts deltas and every read sums them. After compaction a day has one row for each key, sorted by key, so that reads of
one query skip most of them. A slice is one transaction, and the sums are deltas themselves: a reader, or a crash between two
slices, never sees another count. Only days that are over are compacted; any other day would have to be compacted again and again.
For windows this also rolls up the lists, which have no deltas until then (`streams.counting.rollups`).
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
"""The number of rows of a day after its last compaction."""

OVER_US = HOUR_US
"""A day is over so long after its end, in event time: most late events have arrived then."""

SLICE_ROWS = 50_000
"""Rows that one transaction replaces by sums: 0.05 s on a free core, half of it for reading the day."""
MAX_SLICES = 64
"""The limit for one day: each slice reads the whole day, so more slices would cost more than they are shorter."""

SAMPLE_ROWS = 2_000


@dataclass(frozen=True, slots=True)
class Deltas:
    """A table of deltas by `day`: its key columns, by the first of which a day is sliced, and its summed columns.

    `cells` is the relation that is summed: the table, or a view that adds the lists in `lists`, each of `length` rows.
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
    """The rows of a day with low <= first key < high; None means no bound."""

    day: date
    low: str | None
    high: str | None


LISTS = "UNION ALL SELECT day, length FROM {lists} WHERE day < $over"
SIZES = "SELECT day, sum(rows) AS rows FROM (SELECT day, 1 AS rows FROM {table} WHERE day < $over {of_lists}) GROUP BY day"
GROWN = f"""
WITH held AS ({SIZES})
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
DELETE = "DELETE FROM {table} WHERE {where}"
INSERT = "INSERT INTO {table} SELECT * EXCLUDE (held) FROM compacted_slice WHERE {any_count}"
ROWS_BEFORE = "SELECT coalesce(sum(held), 0)::BIGINT FROM compacted_slice"
DELETE_RECORD = "DELETE FROM compacted WHERE relation = $relation AND day = $day"
INSERT_RECORD = "INSERT INTO compacted VALUES ($relation, $day, $rows)"


def find_over(latest_us: int) -> date:
    """Return the first day that is not over at this event time."""
    return to_day(latest_us - OVER_US)


def count_rows(con: duckdb.DuckDBPyConnection, deltas: Deltas) -> int:
    """Return the number of rows of the table, which DuckDB knows without reading them."""
    return int(con.execute(f"SELECT count(*) FROM {deltas.table}").fetchall()[0][0])


def find_grown_days(con: duckdb.DuckDBPyConnection, deltas: Deltas, least: int, over: date) -> list[tuple[date, int]]:
    """Return the days before `over` that are due and their rows, the day that gained most first.

    A day is due once it has gained `least` rows, and as many as it had after its last compaction.
    """
    of_lists = LISTS.format(lists=deltas.lists) if deltas.lists else ""
    params = {"relation": deltas.table, "least": least, "over": over}
    return con.execute(GROWN.format(table=deltas.table, of_lists=of_lists), params).fetchall()


def count_day(con: duckdb.DuckDBPyConnection, deltas: Deltas, day: date) -> int:
    """Return how many rows the slices of a day will replace."""
    return int(con.execute(f"SELECT count(*) FROM {deltas.cells} WHERE day = $day", {"day": day}).fetchall()[0][0])


def slice_day(con: duckdb.DuckDBPyConnection, deltas: Deltas, day: date, rows: int) -> list[Slice]:
    """Divide a day with so many rows into slices of about SLICE_ROWS, at most MAX_SLICES, by a sample of its first key."""
    slices = min(-(-rows // SLICE_ROWS), MAX_SLICES)
    bounds: list[str] = []
    if slices > 1:
        first, sources = deltas.keys[0], filter(None, (deltas.table, deltas.lists))
        sampled = " UNION ALL ".join(SAMPLED.format(first=first, source=source) for source in sources)
        sql = SAMPLE.format(first=first, sampled=sampled, rows=SAMPLE_ROWS)
        sample = [key for (key,) in con.execute(sql, {"day": day}).fetchall()]
        bounds = sorted({sample[len(sample) * number // slices] for number in range(1, slices)})
    return [Slice(day, low, high) for low, high in zip([None, *bounds], [*bounds, None], strict=True)]


def compact_slice(con: duckdb.DuckDBPyConnection, deltas: Deltas, one: Slice) -> tuple[int, int]:
    """Replace the rows of a slice by their sums, without zeros; return the number of rows before and after.

    Compact the slices of a day in their order, each inside a transaction.
    """
    params = {"day": one.day, "low": one.low, "high": one.high}
    where = WHERE.format(first=deltas.keys[0])
    run_to_end(con, SUM.format(cells=deltas.cells, where=where, keys=_list(deltas.keys), sums=_sums(deltas)), params)
    before = int(con.execute(ROWS_BEFORE).fetchall()[0][0])
    run_to_end(con, DELETE.format(table=deltas.table, where=where), params)
    any_count = " OR ".join(f"{name} <> 0" for name in deltas.counts)
    after = int(con.execute(INSERT.format(table=deltas.table, any_count=any_count)).fetchall()[0][0])
    run_to_end(con, "DROP TABLE compacted_slice")
    if deltas.lists:
        rollups.advance_rollup(con, one.day, one.high)
    return before, after


def record_compacted(con: duckdb.DuckDBPyConnection, deltas: Deltas, day: date, rows: int) -> None:
    """Record that a day was compacted and has so many rows now."""
    run_to_end(con, DELETE_RECORD, {"relation": deltas.table, "day": day})
    run_to_end(con, INSERT_RECORD, {"relation": deltas.table, "day": day, "rows": rows})


def _sums(deltas: Deltas) -> str:
    return _list([f"sum({name})::BIGINT AS {name}" for name in deltas.counts])


def _list(parts: Sequence[str]) -> str:
    return ", ".join(parts)
