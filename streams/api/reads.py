"""The SQL reads of one shard for the worker's HTTP; each returns JSON values that can be summed over shards.

Rates are not among them, since a click rate over several shards is no sum: `streams.api.endpoints` computes rates from the sums.
"""

from __future__ import annotations

from datetime import date, timedelta
from typing import Any

import duckdb
import pyarrow as pa

from streams.events.rules import WINDOW_DAYS
from streams.events.schema import Reason, printable

MAX_CELLS = 100_000

CELLS = """
SELECT query_norm, item_norm, position, sum(impressions)::BIGINT, sum(clicks)::BIGINT
FROM (
    SELECT day, query_norm, item_norm, position, impressions, clicks FROM window_deltas
    UNION ALL
    SELECT day, query_norm, unnest(items), unnest(range(length))::INTEGER, 1, 0
    FROM standing_lists WHERE $item::VARCHAR IS NULL OR list_contains(items, $item)
    UNION ALL
    SELECT day, query_norm, item_norm, position, -impressions, -clicks FROM left_out
)
WHERE day >= $first AND day < $as_of
    AND ($query::VARCHAR IS NULL OR query_norm = $query) AND ($item::VARCHAR IS NULL OR item_norm = $item)
GROUP BY ALL
HAVING sum(impressions) <> 0
LIMIT $limit
"""
POSITIONS = """
WITH lengths AS (
    SELECT length, count(*) AS lists FROM standing_lists WHERE day >= $first AND day < $as_of GROUP BY length
)
SELECT position, sum(impressions)::BIGINT, sum(clicks)::BIGINT
FROM (
    SELECT position, impressions, clicks FROM window_deltas WHERE day >= $first AND day < $as_of
    UNION ALL
    SELECT unnest(range(length)), lists, 0 FROM lengths
    UNION ALL
    SELECT position, -impressions, -clicks FROM left_out WHERE day >= $first AND day < $as_of
)
GROUP BY position HAVING sum(impressions) <> 0
"""
LEFT_OUT = """
SELECT coalesce(sum(impressions), 0)::BIGINT, coalesce(sum(clicks), 0)::BIGINT FROM left_out
WHERE day >= $first AND day < $as_of
    AND ($query::VARCHAR IS NULL OR query_norm = $query) AND ($item::VARCHAR IS NULL OR item_norm = $item)
"""
KEYED_CELLS = """
SELECT hash(query_norm, item_norm, position) AS key, position, impressions, clicks
FROM (
    SELECT query_norm, item_norm, position, sum(impressions)::BIGINT AS impressions, sum(clicks)::BIGINT AS clicks
    FROM window_counts WHERE day >= $first AND day < $as_of
    GROUP BY ALL HAVING sum(impressions) <> 0
)
"""
SUCCESSORS = """
SELECT next_query, sum(count)::BIGINT
FROM pair_counts
WHERE query = $query AND day >= $first AND day < $as_of
GROUP BY next_query HAVING sum(count) <> 0
LIMIT $limit
"""
QUARANTINED = """
SELECT arrived_us, id, reason, detail, event_id, ts_us, raw[:$bytes], octet_length(raw), log_offset, line
FROM quarantine
WHERE raw IS NOT NULL AND ($reason::VARCHAR IS NULL OR reason = $reason)
ORDER BY id DESC LIMIT $limit
"""
SHOWN_BYTES = 400
ROWS = "SELECT table_name, estimated_size FROM duckdb_tables() WHERE NOT temporary ORDER BY table_name"
DAYS = "SELECT min(day), max(day), count(*) FROM days"


class TooManyRows(ValueError):
    """A read has more rows than one answer may hold."""


def read_cells(con: duckdb.DuckDBPyConnection, as_of: date, query: str | None, item: str | None) -> dict[str, Any]:
    """Return "cells", the window cells of a query or an item as (query, item, position, impressions, clicks), and "positions".

    The latter are the (position, impressions, clicks) summed over all cells of the window. "left_out" are the (impressions,
    clicks) of the same cells that are over a cap. Raises TooManyRows.
    """
    wanted = {**window_days(as_of), "query": query, "item": item}
    rows = con.execute(CELLS, {**wanted, "limit": MAX_CELLS + 1}).fetchall()
    positions = con.execute(POSITIONS, window_days(as_of)).fetchall()
    return {
        "cells": _bounded(rows, "windows"),
        "positions": positions,
        "left_out": con.execute(LEFT_OUT, wanted).fetchall()[0],
    }


def read_keyed_cells(con: duckdb.DuckDBPyConnection, as_of: date) -> pa.Table:
    """Return every window cell as key (its hash), position, impressions, clicks."""
    return con.sql(KEYED_CELLS, params=window_days(as_of)).to_arrow_table()


def read_successors(con: duckdb.DuckDBPyConnection, as_of: date, query: str) -> list[tuple[str, int]]:
    """Return the (next_query, count) of a query. Raises TooManyRows."""
    rows = con.execute(SUCCESSORS, {**window_days(as_of), "query": query, "limit": MAX_CELLS + 1}).fetchall()
    return _bounded(rows, "successors")


def read_quarantine(con: duckdb.DuckDBPyConnection, reason: Reason | None, limit: int) -> list[dict[str, Any]]:
    """Return the newest quarantine rows, their texts printable ASCII of bounded length; `arrived_us` and `id` give the order."""
    wanted = {"reason": None if reason is None else str(reason), "limit": limit, "bytes": SHOWN_BYTES}
    return [_printable_row(*row) for row in con.execute(QUARANTINED, wanted).fetchall()]


def read_tables(con: duckdb.DuckDBPyConnection) -> dict[str, Any]:
    """Return the rows of each table (deleted rows not yet vacuumed included), the first, the last and the number of days, and
    the number of events read from the log."""
    first, last, number = con.execute(DAYS).fetchall()[0]
    days = {"first": first and first.isoformat(), "last": last and last.isoformat(), "number": number}
    events = con.execute("SELECT events FROM state").fetchall()[0][0]
    return {"rows": dict(con.execute(ROWS).fetchall()), "days": days, "events": events}


def window_days(as_of: date) -> dict[str, Any]:
    """Return the first day of a window and the day after its last, as parameters of its queries."""
    return {"first": as_of - timedelta(days=WINDOW_DAYS), "as_of": as_of}


def _bounded(rows: list[Any], what: str) -> list[Any]:
    if len(rows) > MAX_CELLS:
        raise TooManyRows(f"over {MAX_CELLS} {what}: ask for a query and an item, or read the lake")
    return rows


def _printable_row(
    arrived_us: int | None, number: int, reason: str, detail: str, event_id: str | None, ts_us: int | None,
    raw: bytes, size: int, log_offset: int, line: int,
) -> dict[str, Any]:  # fmt: skip
    return {
        "arrived_us": arrived_us,
        "id": number,
        "reason": reason,
        "detail": printable(detail),
        "event_id": None if event_id is None else printable(event_id),
        "ts": None if ts_us is None else ts_us / 1e6,
        "raw": printable(raw.decode("utf-8", "backslashreplace")),
        "bytes": size,
        "offset": log_offset,
        "line": line,
    }
