"""Days: which UTC days changed since they were exported to the lake, and what a shard forgets.

Only whole days are forgotten, and none that still waits for its export, so an exported day always holds all that was counted
on it.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import date, timedelta

import duckdb

from streams.rules import DAY_US, WINDOW_DAYS, CountingRules

TABLES = "CREATE TABLE days (day DATE, exported BOOLEAN, dirty BOOLEAN);"

ADD = "INSERT INTO days SELECT day, false, true FROM unnest($days::DATE[]) t(day) WHERE day NOT IN (SELECT day FROM days)"
SOIL = "UPDATE days SET dirty = true WHERE NOT dirty AND day IN (SELECT unnest($days::DATE[]))"
DIRTY = "SELECT day FROM days WHERE dirty ORDER BY day"
EXPORTED = "SELECT day FROM days WHERE exported ORDER BY day"
MARK_EXPORTED = "UPDATE days SET exported = true, dirty = false WHERE day = $day"

EXPIRE_EVENTS = tuple(f"DELETE FROM {table} WHERE ts_us < $cut" for table in ("seen", "queries", "impressions", "clicks"))
EXPIRE_COUNTS = tuple(f"DELETE FROM {table} WHERE day < $cut" for table in ("window_deltas", "cooccurrence_deltas", "days"))
EPOCH = date(1970, 1, 1)


def soil_days(con: duckdb.DuckDBPyConnection, days: Iterable[date]) -> None:
    """Say of days that their counts changed."""
    changed = sorted(set(days).difference(read_dirty(con)))
    if changed:
        con.execute(SOIL, {"days": changed})
        con.execute(ADD, {"days": changed})


def read_dirty(con: duckdb.DuckDBPyConnection) -> list[date]:
    """Return the days that changed since their export, or were never exported."""
    return [day for (day,) in con.execute(DIRTY).fetchall()]


def read_exported(con: duckdb.DuckDBPyConnection) -> list[date]:
    """Return the days that the lake holds, in whatever state."""
    return [day for (day,) in con.execute(EXPORTED).fetchall()]


def mark_exported(con: duckdb.DuckDBPyConnection, day: date) -> None:
    """Say of a day that the lake holds it as it is."""
    con.execute(MARK_EXPORTED, {"day": day})


def find_cut(con: duckdb.DuckDBPyConnection, latest_us: int, rules: CountingRules) -> int:
    """Return the event time (microseconds) before which no accepted event can still need the state, at a day's start."""
    cut = (latest_us - rules.retention_us - rules.reach_us) // DAY_US * DAY_US
    waiting = read_dirty(con)
    return min(cut, (waiting[0] - EPOCH).days * DAY_US) if waiting else cut


def expire(con: duckdb.DuckDBPyConnection, cut_us: int) -> None:
    """Forget events before `cut_us`, and counts from a window's length before it."""
    for sql in EXPIRE_EVENTS:
        con.execute(sql, {"cut": cut_us})
    cut_day = EPOCH + timedelta(days=cut_us // DAY_US - WINDOW_DAYS)
    for sql in EXPIRE_COUNTS:
        con.execute(sql, {"cut": cut_day})
