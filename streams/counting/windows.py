"""Windows: impressions and clicks of each (query, recommendation, position) over 14 UTC days, summed when read.

Counts are appended as deltas by day and summed when read, so that counting never has to find the row that it adds to. A list that
stands in the part of its day that is not folded needs none (`streams.counting.rollups`): `window_cells` are both.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import date, timedelta

import duckdb
import numpy as np
import pyarrow as pa

from streams.counting.connection import Feeds
from streams.events.rules import WINDOW_DAYS

TABLES = """
CREATE TABLE window_deltas (
    day DATE, query_norm VARCHAR, item_norm VARCHAR, position INTEGER, impressions BIGINT, clicks BIGINT
);
"""

COUNT = "INSERT INTO window_deltas SELECT day, query_norm, item_norm, position, impressions, clicks FROM cells"

TAKE_BACK_IMPRESSIONS = """
INSERT INTO window_deltas
SELECT day, query_norm, item_norm, position, -count(*), 0
FROM (
    SELECT day, query_norm, unnest(coalesce(items_norm, items)) AS item_norm, unnest(range(len(items))) AS position
    FROM replaced_lists JOIN folds USING (day)
    WHERE upto IS NULL OR query_norm < upto
)
GROUP BY ALL
"""

TAKE_BACK_CLICKS = """
INSERT INTO window_deltas
SELECT day, query_norm, item_norm, position, 0, -count(*)
FROM clicked_positions
GROUP BY ALL
"""

READ = """
SELECT query_norm, item_norm, position, sum(impressions)::BIGINT AS impressions, sum(clicks)::BIGINT AS clicks
FROM window_cells
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


def count(feeds: Feeds, lists: pa.Table, clicked: pa.Table) -> None:
    """Append what folded lists (day, query_norm, items) and newly clicked positions count.

    `clicked` has one a row: day, query_norm, item_norm, position.
    """
    if len(lists):
        feeds.add(COUNT, "cells", _numbered(_cells(lists), 1, 0))
    if len(clicked):
        feeds.add(COUNT, "cells", _numbered(clicked, 0, 1))


def take_back(feeds: Feeds) -> None:
    """Uncount the lists in the relation `replaced_lists` and the rows of `clicked_positions`."""
    feeds.change(TAKE_BACK_IMPRESSIONS)
    feeds.change(TAKE_BACK_CLICKS)


def _cells(lists: pa.Table) -> pa.Table:
    """Return a row for each position of each list."""
    items = lists["items"].combine_chunks()
    starts = items.offsets.to_numpy()
    lengths = np.diff(starts)
    row = np.repeat(np.arange(len(lists)), lengths)
    position = np.arange(len(row)) - np.repeat(starts[:-1] - starts[:1], lengths)
    cells = lists.select(["day", "query_norm"]).take(pa.array(row)).append_column("item_norm", items.flatten())
    return cells.append_column("position", pa.array(position, pa.int32()))


def _numbered(cells: pa.Table, impressions: int, clicks: int) -> pa.Table:
    numbers = [pa.array(np.full(len(cells), number)) for number in (impressions, clicks)]
    return pa.Table.from_arrays([*cells.columns, *numbers], [*cells.column_names, "impressions", "clicks"])


def read_windows(con: duckdb.DuckDBPyConnection, as_of: date) -> pa.Table:
    """Return query_norm, item_norm, position, impressions, clicks for impressions with as_of - 14 d <= ts < as_of, sorted."""
    first = as_of - timedelta(days=WINDOW_DAYS)
    return con.sql(READ, params={"first": first, "as_of": as_of}).to_arrow_table()


def sum_windows(parts: Iterable[pa.Table]) -> pa.Table:
    """Return one window table for several shards' tables, sorted."""
    with duckdb.connect(":memory:") as con:
        con.register("parts", pa.concat_tables(parts))
        return con.sql(SUM).to_arrow_table()
