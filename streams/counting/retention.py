"""Days: which UTC days changed since they were exported to the lake, and what a shard forgets.

Only whole days are forgotten, and none that still waits for its export, so an exported day always holds all that was counted
on it.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import date, timedelta

import duckdb
import numpy as np
import numpy.typing as npt

from streams.counting.connection import Feeds, run_to_end
from streams.events.rules import DAY_US, WINDOW_DAYS, CountingRules

TABLES = "CREATE TABLE days (day DATE, exported BOOLEAN, dirty BOOLEAN);"

ADD = "INSERT INTO days SELECT day, false, true FROM unnest($days::DATE[]) t(day) WHERE day NOT IN (SELECT day FROM days)"
SOIL = "UPDATE days SET dirty = true WHERE NOT dirty AND day IN (SELECT unnest($days::DATE[]))"
DIRTY = "SELECT day FROM days WHERE dirty ORDER BY day"
EXPORTED = "SELECT day FROM days WHERE exported ORDER BY day"
MARK_EXPORTED = "UPDATE days SET exported = true, dirty = $changed WHERE day = $day"

EVENTS = ("seen", "queries", "impressions", "clicks")
COUNTS = ("window_deltas", "cooccurrence_deltas", "compacted", "folds", "days")
HELD = (
    {table: f"SELECT DISTINCT ts_us // {DAY_US} FROM {table} WHERE ts_us < $cut" for table in EVENTS}
    | {"quarantine": f"SELECT DISTINCT arrived_us // {DAY_US} FROM quarantine WHERE arrived_us < $cut AND published"}
    | {table: f"SELECT DISTINCT day - DATE '1970-01-01' FROM {table} WHERE day < $cut" for table in COUNTS}
)
EXPIRE = (
    {table: f"DELETE FROM {table} WHERE ts_us < $cut" for table in EVENTS}
    | {"quarantine": "DELETE FROM quarantine WHERE arrived_us < $cut AND published"}
    | {table: f"DELETE FROM {table} WHERE day < $cut" for table in COUNTS}
)
EPOCH = date(1970, 1, 1)


def find_days(days: npt.NDArray[np.datetime64]) -> set[date]:
    """Return the distinct ones of a day column's values (datetime64[D])."""
    return set(np.unique(days).tolist())


def soil_days(feeds: Feeds, days: Iterable[date], dirty: set[date]) -> None:
    """Say of days that their counts changed; `dirty` are those that are known to have, and becomes all of them."""
    changed = sorted(set(days) - dirty)
    if changed:
        feeds.change(SOIL, {"days": changed})
        feeds.change(ADD, {"days": changed})
        dirty.update(changed)


def read_dirty(con: duckdb.DuckDBPyConnection) -> list[date]:
    """Return the days that changed since their export, or were never exported."""
    return [day for (day,) in con.execute(DIRTY).fetchall()]


def read_exported(con: duckdb.DuckDBPyConnection) -> list[date]:
    """Return the days that the lake holds, in whatever state."""
    return [day for (day,) in con.execute(EXPORTED).fetchall()]


def mark_exported(con: duckdb.DuckDBPyConnection, day: date, changed: bool) -> None:
    """Say of a day that the lake holds it: as it is, or, where it `changed` meanwhile, as it was."""
    run_to_end(con, MARK_EXPORTED, {"day": day, "changed": changed})


def find_cut(con: duckdb.DuckDBPyConnection, latest_us: int, rules: CountingRules) -> int:
    """Return the event time (microseconds) before which no accepted event can still need the state, at a day's start."""
    cut = (latest_us - rules.retention_us - rules.lookback_us) // DAY_US * DAY_US
    waiting = read_dirty(con)
    return min(cut, to_us(waiting[0])) if waiting else cut


def to_us(day: date) -> int:
    """Return a day's start, microseconds since the epoch."""
    return (day - EPOCH).days * DAY_US


def to_day(ts_us: int) -> date:
    """Return the day of an event time."""
    return EPOCH + timedelta(days=ts_us // DAY_US)


def find_expired(con: duckdb.DuckDBPyConnection, cut_us: int) -> list[tuple[str, date]]:
    """Return what a shard may forget, a table and a day at a time: events before `cut_us`, counts a window's length before it.

    `cut_us` is a day's start, as `find_cut` gives it. Quarantine rows go by when they came; those not yet published stay.
    """
    cut_day = to_day(cut_us) - timedelta(days=WINDOW_DAYS)
    found = []
    for table, sql in HELD.items():
        numbers = con.execute(sql, {"cut": cut_day if table in COUNTS else cut_us}).fetchall()
        found += [(table, EPOCH + timedelta(days=number)) for (number,) in sorted(numbers)]
    return found


def expire(con: duckdb.DuckDBPyConnection, table: str, day: date) -> int:
    """Forget what a table holds up to the end of a day, and return how many rows that were."""
    end = day + timedelta(days=1)
    cut = end if table in COUNTS else to_us(end)
    return int(con.execute(EXPIRE[table], {"cut": cut}).fetchall()[0][0])
