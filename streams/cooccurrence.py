"""Co-occurrence: which user query follows which in a session, within the session gap.

A query that arrives between two others takes their edge away and adds its own two. So a batch appends the touched sessions' edges
after it minus their edges before it, and any order of arrival sums to the same counts.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import date, timedelta

import duckdb
import pyarrow as pa

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
TOUCHED = """
CREATE OR REPLACE TEMP TABLE touched_queries AS
WITH fresh AS MATERIALIZED (SELECT * FROM fresh_queries WHERE source = 'user'),
spans AS (
    SELECT session_id, hash(session_id) AS session_key, min(ts_us) - $gap AS low, max(ts_us) + $gap AS high
    FROM fresh GROUP BY session_id
),
hits AS MATERIALIZED (
    SELECT q.session_id, s.session_id AS span_id, q.ts_us, q.event_id, q.query_norm, q.day
    FROM queries q JOIN spans s ON q.session_key = s.session_key
    WHERE q.ts_us BETWEEN $low AND $high AND q.ts_us BETWEEN s.low AND s.high AND q.source = 'user'
)
SELECT session_id, ts_us, event_id, query_norm, day, false AS is_fresh FROM hits WHERE session_id = span_id
UNION ALL
SELECT session_id, ts_us, event_id, query_norm, day, true FROM fresh
"""

ADD_EDGES = """
CREATE OR REPLACE TEMP TABLE edge_deltas AS
WITH after AS (
    SELECT day, query_norm AS query, ts_us, lead(query_norm) OVER w AS next_query, lead(ts_us) OVER w AS next_ts, 1 AS sign
    FROM touched_queries WINDOW w AS (PARTITION BY session_id ORDER BY ts_us, event_id)
),
before AS (
    SELECT day, query_norm AS query, ts_us, lead(query_norm) OVER w AS next_query, lead(ts_us) OVER w AS next_ts, -1 AS sign
    FROM touched_queries WHERE NOT is_fresh WINDOW w AS (PARTITION BY session_id ORDER BY ts_us, event_id)
)
SELECT day, query, next_query, sum(sign)::BIGINT AS count
FROM (FROM after UNION ALL FROM before)
WHERE next_query IS NOT NULL AND next_query <> query AND next_ts - ts_us <= $gap
GROUP BY ALL
HAVING sum(sign) <> 0
"""

APPEND = "INSERT INTO cooccurrence_deltas FROM edge_deltas"
DAYS = "SELECT DISTINCT day FROM edge_deltas UNION SELECT DISTINCT day FROM fresh_queries"

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
    con.register("fresh_queries", queries)
    gap = rules.session_gap_us
    ts_us = queries["ts_us"].to_pylist()
    con.execute(TOUCHED, {"gap": gap, "low": min(ts_us) - gap, "high": max(ts_us) + gap})
    con.execute(KEEP)
    con.execute(ADD_EDGES, {"gap": gap})
    con.execute(APPEND)
    days = {day for (day,) in con.execute(DAYS).fetchall()}
    con.unregister("fresh_queries")
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
