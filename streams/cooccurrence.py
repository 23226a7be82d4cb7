"""Co-occurrence: which user query follows which in a session, within the session gap.

A query that arrives between two others takes their edge away and adds its own two. So a batch appends the touched sessions' edges
after it minus their edges before it, and any order of arrival sums to the same counts.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import date, timedelta

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from streams.ranges import group_times
from streams.rules import WINDOW_DAYS, CountingRules

TABLES = """
CREATE TABLE queries (
    ts_us BIGINT, day DATE, event_id VARCHAR, session_key UBIGINT, session_id VARCHAR, user_id VARCHAR,
    query VARCHAR, query_norm VARCHAR, source VARCHAR
);
CREATE TABLE cooccurrence_deltas (day DATE, query VARCHAR, next_query VARCHAR, count BIGINT);
"""
"""`session_key` is hash(session_id)."""

KEEP = """
INSERT INTO queries
SELECT ts_us, day, event_id, hash(session_id), session_id, user_id, query, query_norm, source FROM fresh_queries
"""

# Only rows within one gap of a session's new rows can gain or lose an edge, and in that range their neighbours are complete.
NEIGHBOURS = """
WITH spans AS (
    SELECT session_id, hash(session_id) AS session_key, min(ts_us) - $gap AS low, max(ts_us) + $gap AS high
    FROM fresh_queries GROUP BY session_id
),
hits AS MATERIALIZED (
    SELECT s.session_id AS span_id, q.session_id, q.ts_us, q.event_id, q.query_norm, q.day
    FROM queries q JOIN spans s ON q.session_key = s.session_key
    WHERE q.ts_us BETWEEN $low AND $high AND q.ts_us BETWEEN s.low AND s.high AND q.source = 'user'
)
SELECT session_id, ts_us, event_id, query_norm, day FROM hits WHERE session_id = span_id
"""

APPEND = """
INSERT INTO cooccurrence_deltas
SELECT day, query, next_query, sum(sign) FROM edges GROUP BY ALL HAVING sum(sign) <> 0
RETURNING day
"""

NEIGHBOUR_COLUMNS = pa.schema(
    [
        ("session_id", pa.string()),
        ("ts_us", pa.int64()),
        ("event_id", pa.string()),
        ("query_norm", pa.string()),
        ("day", pa.date32()),
    ]
)

READ = """
SELECT query, next_query, sum(count)::BIGINT AS count
FROM cooccurrence_deltas
WHERE day >= $first AND day < $as_of
GROUP BY ALL
HAVING sum(count) <> 0
ORDER BY ALL
"""

SUM = """
SELECT query, next_query, sum(count)::BIGINT AS count FROM parts GROUP BY ALL HAVING sum(count) <> 0 ORDER BY ALL
"""


def count_queries(con: duckdb.DuckDBPyConnection, queries: pa.Table, rules: CountingRules) -> set[date]:
    """Keep the batch's queries, append what they change in co-occurrence, and return the days that changed."""
    if not len(queries):
        return set()
    gap = rules.session_gap_us
    new = queries.filter(pc.equal(queries["source"], "user"))
    old = _find_neighbours(con, new, gap)
    con.register("fresh_queries", queries)
    con.execute(KEEP)
    con.unregister("fresh_queries")
    days = _append(con, find_edges(pa.concat_tables([old, new.select(old.column_names)]), gap), find_edges(old, gap))
    return days | set(queries["day"].unique().to_pylist())


def _find_neighbours(con: duckdb.DuckDBPyConnection, new: pa.Table, gap_us: int) -> pa.Table:
    """Return the queries on file that stand within a gap of a new one in its session."""
    ts_us = new["ts_us"].to_numpy()
    found = [NEIGHBOUR_COLUMNS.empty_table()]
    for rows in group_times(ts_us):
        span = {"gap": gap_us, "low": int(ts_us[rows].min()) - gap_us, "high": int(ts_us[rows].max()) + gap_us}
        con.register("fresh_queries", new.select(["session_id", "ts_us"]).take(pa.array(rows)))
        found.append(con.sql(NEIGHBOURS, params=span).to_arrow_table())
        con.unregister("fresh_queries")
    old = pa.concat_tables(found)
    return old if len(found) <= 2 else old.group_by(old.column_names).aggregate([])


def find_edges(queries: pa.Table, gap_us: int) -> pa.Table:
    """Return day, query, next_query of each two consecutive queries in a session, within the gap and different.

    `queries` has session_id, ts_us, event_id, query_norm and day; a session's order is (ts_us, event_id).
    """
    rows = queries.sort_by([("session_id", "ascending"), ("ts_us", "ascending"), ("event_id", "ascending")])
    first, second = rows.slice(0, max(len(rows) - 1, 0)), rows.slice(1)
    near = pc.less_equal(pc.subtract(second["ts_us"], first["ts_us"]), gap_us)
    same_session = pc.equal(first["session_id"], second["session_id"])
    is_edge = pc.and_(pc.and_(near, same_session), pc.not_equal(first["query_norm"], second["query_norm"]))
    pairs = pa.table({"day": first["day"], "query": first["query_norm"], "next_query": second["query_norm"]})
    return pairs.filter(is_edge)


def _append(con: duckdb.DuckDBPyConnection, after: pa.Table, before: pa.Table) -> set[date]:
    signs = pa.array([1] * len(after) + [-1] * len(before), pa.int64())
    con.register("edges", pa.concat_tables([after, before]).append_column("sign", signs))
    days = {day for (day,) in con.execute(APPEND).fetchall()}
    con.unregister("edges")
    return days


def read_cooccurrence(con: duckdb.DuckDBPyConnection, first: date, end: date) -> pa.Table:
    """Return query, next_query, count (normalised queries) over the days first <= day < end, sorted."""
    return con.sql(READ, params={"first": first, "as_of": end}).to_arrow_table()


def read_cooccurrence_window(con: duckdb.DuckDBPyConnection, as_of: date) -> pa.Table:
    """Return query, next_query, count over the 14 days before `as_of`, sorted."""
    return read_cooccurrence(con, as_of - timedelta(days=WINDOW_DAYS), as_of)


def sum_cooccurrence(parts: Iterable[pa.Table]) -> pa.Table:
    """Return one co-occurrence table for several shards' tables, sorted."""
    with duckdb.connect(":memory:") as con:
        con.register("parts", pa.concat_tables(parts))
        return con.sql(SUM).to_arrow_table()
