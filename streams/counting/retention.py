"""Retention: which UTC days changed since they were exported to the lake (dirty days), and which days a shard deletes.

Only whole days are deleted, and no dirty one, so an exported day always has all that was counted on it.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import date, timedelta

import duckdb
import numpy as np
import numpy.typing as npt

from streams.counting.connection import ShardConnection, run_to_end
from streams.events.rules import DAY_US, WINDOW_DAYS, CountingRules

TABLES = "CREATE TABLE days (day DATE, exported BOOLEAN, dirty BOOLEAN);"

ADD_DIRTY = "INSERT INTO days SELECT day, false, true FROM unnest($days::DATE[]) t(day) WHERE day NOT IN (SELECT day FROM days)"
MARK_DIRTY = "UPDATE days SET dirty = true WHERE NOT dirty AND day IN (SELECT unnest($days::DATE[]))"
DIRTY = "SELECT day FROM days WHERE dirty ORDER BY day"
EXPORTED = "SELECT day FROM days WHERE exported ORDER BY day"
MARK_EXPORTED = "UPDATE days SET exported = true, dirty = $changed WHERE day = $day"

EVENTS = ("seen", "queries", "impressions", "clicks")
COUNTS = (
    "window_deltas",
    "cooccurrence_deltas",
    "left_out",
    "left_out_lists",
    "left_out_pairs",
    "compacted",
    "folds",
    "days",
)
EXPIRED_DAYS = (
    {table: f"SELECT DISTINCT ts_us // {DAY_US} FROM {table} WHERE ts_us < $cut" for table in EVENTS}
    | {"quarantine": f"SELECT DISTINCT arrived_us // {DAY_US} FROM quarantine WHERE arrived_us < $cut AND published"}
    | {table: f"SELECT DISTINCT day - DATE '1970-01-01' FROM {table} WHERE day < $cut" for table in COUNTS}
)
DELETE_EXPIRED = (
    {table: f"DELETE FROM {table} WHERE ts_us < $cut" for table in EVENTS}
    | {"quarantine": "DELETE FROM quarantine WHERE arrived_us < $cut AND published"}
    | {table: f"DELETE FROM {table} WHERE day < $cut" for table in COUNTS}
)
EPOCH = date(1970, 1, 1)


def find_days(days: npt.NDArray[np.datetime64]) -> set[date]:
    """Return the distinct days of a column (datetime64[D])."""
    return set(np.unique(days).tolist())


def mark_days_dirty(connection: ShardConnection, days: Iterable[date], dirty: set[date]) -> None:
    """Mark days whose counts changed as dirty, in the table and in `dirty`, which has the days that are dirty already."""
    changed = sorted(set(days) - dirty)
    if changed:
        connection.change(MARK_DIRTY, {"days": changed})
        connection.change(ADD_DIRTY, {"days": changed})
        dirty.update(changed)


def read_dirty(con: duckdb.DuckDBPyConnection) -> list[date]:
    """Return the days that changed since they were exported, or that were never exported."""
    return [day for (day,) in con.execute(DIRTY).fetchall()]


def read_exported(con: duckdb.DuckDBPyConnection) -> list[date]:
    """Return the days that were exported, dirty ones included."""
    return [day for (day,) in con.execute(EXPORTED).fetchall()]


def mark_exported(con: duckdb.DuckDBPyConnection, day: date, changed: bool) -> None:
    """Record that a day was exported; it stays dirty if it `changed` during the export."""
    run_to_end(con, MARK_EXPORTED, {"day": day, "changed": changed})


def find_cutoff(con: duckdb.DuckDBPyConnection, latest_us: int, rules: CountingRules) -> int:
    """Return the start of a day (microseconds) before which no event is needed any more, and no day is dirty."""
    cutoff = (latest_us - rules.retention_us - rules.lookback_us) // DAY_US * DAY_US
    dirty = read_dirty(con)
    return min(cutoff, to_us(dirty[0])) if dirty else cutoff


def to_us(day: date) -> int:
    """Return a day's start, microseconds since the epoch."""
    return (day - EPOCH).days * DAY_US


def to_day(ts_us: int) -> date:
    """Return the day of an event time."""
    return EPOCH + timedelta(days=ts_us // DAY_US)


def find_expired(con: duckdb.DuckDBPyConnection, cutoff_us: int) -> list[tuple[str, date]]:
    """Return the days that a shard may delete, as (table, day): events before `cutoff_us`, counts a window's length before it.

    `cutoff_us` is the start of a day, as `find_cutoff` returns it. Quarantine rows expire by the time of their arrival, and only
    once they are published.
    """
    first_day = to_day(cutoff_us) - timedelta(days=WINDOW_DAYS)
    found = []
    for table, sql in EXPIRED_DAYS.items():
        numbers = con.execute(sql, {"cut": first_day if table in COUNTS else cutoff_us}).fetchall()
        found += [(table, EPOCH + timedelta(days=number)) for (number,) in sorted(numbers)]
    return found


def expire(con: duckdb.DuckDBPyConnection, table: str, day: date) -> int:
    """Delete a table's rows up to the end of a day, and return how many there were."""
    end = day + timedelta(days=1)
    before = end if table in COUNTS else to_us(end)
    return int(con.execute(DELETE_EXPIRED[table], {"cut": before}).fetchall()[0][0])
