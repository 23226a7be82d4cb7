"""Folds: how far the lists of a day are summed into window cells; those beyond are counted where they stand.

A list is in `impressions` anyway, so while its day goes on nothing else is written for it: a read takes its cells from there.
When the day is over, `streams.store.compaction` sums them in the order of their queries, a slice at a time, and moves the day's
fold with each. What comes for a part of a day that is folded is appended as deltas.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import date

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from streams.counting.connection import Feeds, run_to_end

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
"""Every day with a list has a fold: its lists with query_norm < `upto` are in `window_deltas`, all of them where it is null, the
others in `standing_lists`. A join on the day, rather than a comparison with it, lets DuckDB pass over the other days' lists."""

READ = "SELECT day, upto FROM folds"
OPEN = "INSERT INTO folds SELECT day, '' FROM unnest($days::DATE[]) t(day)"
CLOSE = "DELETE FROM folds WHERE day = $day RETURNING upto"
MOVE = "INSERT INTO folds VALUES ($day, $upto)"
UNFOLDED = "SELECT day FROM folds WHERE upto IS NOT NULL AND day < $before ORDER BY day"

Folds = dict[date, str | None]
"""The fold of each day, as in the table."""


def read_folds(con: duckdb.DuckDBPyConnection) -> Folds:
    """Return the fold of each day."""
    return dict(con.execute(READ).fetchall())


def open_days(feeds: Feeds, days: Iterable[date], folds: Folds) -> None:
    """Give days that have lists for the first time a fold, in the table and in `folds`."""
    if new := sorted(set(days) - folds.keys()):
        feeds.change(OPEN, {"days": new})
        folds.update(dict.fromkeys(new, ""))


def find_folded(lists: pa.Table, folds: Folds) -> pa.Table:
    """Return those lists (day, query_norm) that belong to a part of a day that is folded."""
    days = lists["day"].unique()
    if not any(folds[day] != "" for day in days.to_pylist()):
        return lists.slice(0, 0)
    upto = pa.array([folds[day] for day in days.to_pylist()], pa.string()).take(pc.index_in(lists["day"], value_set=days))
    return lists.filter(pc.fill_null(pc.less(lists["query_norm"], upto), fill_value=True))


def move_fold(con: duckdb.DuckDBPyConnection, day: date, upto: str | None) -> None:
    """Note that what stands before `upto` is summed now, all of the day where it is None. A fold never goes back."""
    found = con.execute(CLOSE, {"day": day}).fetchall()
    if found:
        ((before,),) = found
        run_to_end(con, MOVE, {"day": day, "upto": None if upto is None or before is None else max(before, upto)})


def find_unfolded(con: duckdb.DuckDBPyConnection, before: date) -> list[date]:
    """Return the days before this one that are not folded whole."""
    return [day for (day,) in con.execute(UNFOLDED, {"before": before}).fetchall()]
