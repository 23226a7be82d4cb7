"""Roll-ups: up to which query the lists of a day are summed into window cells; later ones are counted from `impressions`.

A list is in `impressions` anyway, so until its day is over nothing else is written for it: a read takes its cells from there.
When the day is over, `streams.store.compaction` sums its lists in the order of their queries, a slice at a time, and advances the
day's roll-up with each slice. A list that arrives later for the rolled-up part of its day is inserted as deltas.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import date

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from streams.counting.connection import ShardConnection, run_to_end

TABLES = """
CREATE TABLE folds (day DATE, upto VARCHAR);
CREATE VIEW standing_lists AS
SELECT i.day, i.query_norm, coalesce(i.items_norm, i.items) AS items, i.length
FROM impressions i JOIN (SELECT day, upto FROM folds WHERE upto IS NOT NULL) f ON i.day = f.day AND i.query_norm >= f.upto;
CREATE VIEW window_cells AS
SELECT day, query_norm, item_norm, position, impressions, clicks FROM window_deltas
UNION ALL
SELECT day, query_norm, unnest(items), unnest(range(length))::INTEGER, 1::BIGINT, 0::BIGINT FROM standing_lists;
"""
"""`folds` has the roll-up of every day with a list: lists with query_norm < `upto`, or all of them if it is null, are summed in
`window_deltas`; the others are in `standing_lists`. A join on the day, rather than a comparison with it, lets DuckDB skip the
lists of other days."""

READ = "SELECT day, upto FROM folds"
OPEN = "INSERT INTO folds SELECT day, '' FROM unnest($days::DATE[]) t(day)"
CLOSE = "DELETE FROM folds WHERE day = $day RETURNING upto"
ADVANCE = "INSERT INTO folds VALUES ($day, $upto)"
NOT_ROLLED_UP = "SELECT day FROM folds WHERE upto IS NOT NULL AND day < $before ORDER BY day"

Rollups = dict[date, str | None]
"""`upto` of each day, as in the table `folds`."""


def read_rollups(con: duckdb.DuckDBPyConnection) -> Rollups:
    """Return the roll-up of each day."""
    return dict(con.execute(READ).fetchall())


def open_rollups(connection: ShardConnection, days: Iterable[date], rollups: Rollups) -> None:
    """Add an empty roll-up for each day that has none, in the table and in `rollups`."""
    if new := sorted(set(days) - rollups.keys()):
        connection.change(OPEN, {"days": new})
        rollups.update(dict.fromkeys(new, ""))


def find_rolled_up(lists: pa.Table, rollups: Rollups) -> pa.Table:
    """Return the lists (day, query_norm) that belong to the rolled-up part of their day."""
    days = lists["day"].unique()
    if not any(rollups[day] != "" for day in days.to_pylist()):
        return lists.slice(0, 0)
    upto = pa.array([rollups[day] for day in days.to_pylist()], pa.string()).take(pc.index_in(lists["day"], value_set=days))
    return lists.filter(pc.fill_null(pc.less(lists["query_norm"], upto), fill_value=True))


def advance_rollup(con: duckdb.DuckDBPyConnection, day: date, upto: str | None) -> None:
    """Record that a day's lists before `upto` are summed, or all of them if it is None. A roll-up never moves back."""
    found = con.execute(CLOSE, {"day": day}).fetchall()
    if found:
        ((before,),) = found
        run_to_end(con, ADVANCE, {"day": day, "upto": None if upto is None or before is None else max(before, upto)})


def find_not_rolled_up(con: duckdb.DuckDBPyConnection, before: date) -> list[date]:
    """Return the days before this one that are not rolled up completely."""
    return [day for (day,) in con.execute(NOT_ROLLED_UP, {"before": before}).fetchall()]
