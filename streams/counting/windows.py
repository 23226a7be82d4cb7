"""Windows: impressions and clicks of each (query, recommendation, position) over 14 UTC days.

Counts are inserted as deltas by day and summed when read, so counting never looks for the row to add to. A list in the part of
its day that is not rolled up needs no delta (`streams.counting.rollups`); the view `window_cells` has both, and `window_counts`
leaves out what is over a cap (`streams.counting.caps`).
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import date, timedelta

import duckdb
import numpy as np
import pyarrow as pa

from streams.counting.connection import ShardConnection
from streams.events.rules import WINDOW_DAYS

TABLES = """
CREATE TABLE window_deltas (
    day DATE, query_norm VARCHAR, item_norm VARCHAR, position INTEGER, impressions BIGINT, clicks BIGINT
);
"""

COUNT = "INSERT INTO window_deltas SELECT day, query_norm, item_norm, position, impressions, clicks FROM cells"

RETRACT_IMPRESSIONS = """
INSERT INTO window_deltas
SELECT day, query_norm, item_norm, position, -count(*), 0
FROM (
    SELECT day, query_norm, unnest(coalesce(items_norm, items)) AS item_norm, unnest(range(len(items))) AS position
    FROM replaced_lists JOIN folds USING (day)
    WHERE upto IS NULL OR query_norm < upto
)
GROUP BY ALL
"""

RETRACT_CLICKS = """
INSERT INTO window_deltas
SELECT day, query_norm, item_norm, position, 0, -count(*)
FROM clicked_positions
GROUP BY ALL
"""

READ = """
SELECT query_norm, item_norm, position, sum(impressions)::BIGINT AS impressions, sum(clicks)::BIGINT AS clicks
FROM window_counts
WHERE day >= $first AND day < $as_of
GROUP BY ALL
HAVING sum(impressions) <> 0
ORDER BY ALL
"""

SUM = """
SELECT query_norm, item_norm, position, sum(impressions)::BIGINT AS impressions, sum(clicks)::BIGINT AS clicks
FROM parts
GROUP BY ALL
ORDER BY ALL
"""


def add_counts(connection: ShardConnection, lists: pa.Table, clicked: pa.Table) -> None:
    """Add the impressions of rolled-up lists and the clicks of newly clicked positions.

    `lists` has day, query_norm, items; `clicked` has day, query_norm, item_norm, position.
    """
    if len(lists):
        connection.defer(COUNT, "cells", _with_counts(_cells(lists), 1, 0))
    if len(clicked):
        connection.defer(COUNT, "cells", _with_counts(clicked, 0, 1))


def retract(connection: ShardConnection) -> None:
    """Subtract the lists in the temporary table `replaced_lists` and the clicks in `clicked_positions`."""
    connection.change(RETRACT_IMPRESSIONS)
    connection.change(RETRACT_CLICKS)


def _cells(lists: pa.Table) -> pa.Table:
    """Return a row for each position of each list."""
    items = lists["items"].combine_chunks()
    starts = items.offsets.to_numpy()
    lengths = np.diff(starts)
    row = np.repeat(np.arange(len(lists)), lengths)
    position = np.arange(len(row)) - np.repeat(starts[:-1] - starts[:1], lengths)
    cells = lists.select(["day", "query_norm"]).take(pa.array(row)).append_column("item_norm", items.flatten())
    return cells.append_column("position", pa.array(position, pa.int32()))


def _with_counts(cells: pa.Table, impressions: int, clicks: int) -> pa.Table:
    numbers = [pa.array(np.full(len(cells), number)) for number in (impressions, clicks)]
    return pa.Table.from_arrays([*cells.columns, *numbers], [*cells.column_names, "impressions", "clicks"])


def read_windows(con: duckdb.DuckDBPyConnection, as_of: date) -> pa.Table:
    """Return query_norm, item_norm, position, impressions, clicks over the 14 days before `as_of`, sorted."""
    first = as_of - timedelta(days=WINDOW_DAYS)
    return con.sql(READ, params={"first": first, "as_of": as_of}).to_arrow_table()


def sum_windows(parts: Iterable[pa.Table]) -> pa.Table:
    """Return the sum of several shards' window tables, sorted."""
    with duckdb.connect(":memory:") as con:
        con.register("parts", pa.concat_tables(parts))
        return con.sql(SUM).to_arrow_table()
