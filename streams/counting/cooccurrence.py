"""Co-occurrence: which user query follows which in a session, within the session gap.

A query that arrives between two others removes their edge and adds two. So each batch inserts, for the sessions that it changes,
the edges after it minus the edges before it, and any order of arrival sums to the same counts.
"""

from __future__ import annotations

from datetime import date, timedelta

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from streams.counting.connection import ShardConnection
from streams.counting.key_index import KeyArray
from streams.counting.recent_rows import RecentRows, RecentState
from streams.events.columns import to_event_days
from streams.events.line_spans import Int64s
from streams.events.rules import DAY_US, WINDOW_DAYS, CountingRules
from streams.events.time_ranges import group_times

TABLES = """
CREATE TABLE queries (
    ts_us BIGINT, day DATE, event_id VARCHAR, session_key UBIGINT, session_id VARCHAR, user_id VARCHAR,
    query VARCHAR, query_norm VARCHAR, source VARCHAR
);
CREATE TABLE cooccurrence_deltas (day DATE, query VARCHAR, next_query VARCHAR, count BIGINT);
"""
"""`session_key` is hash(session_id)."""

INSERT_QUERIES = """
INSERT INTO queries
SELECT ts_us, day, event_id, session_key, session_id, user_id, query, query_norm, source FROM fresh_queries
"""

# Only queries within one gap of a session's new ones can gain or lose an edge, and in that range their neighbours are complete.
NEIGHBOURS = """
WITH spans AS (
    SELECT session_id, session_key, min(ts_us) - $gap AS low, max(ts_us) + $gap AS high
    FROM fresh_sessions GROUP BY ALL
),
hits AS MATERIALIZED (
    SELECT s.session_id AS span_id, q.session_id, q.ts_us, q.event_id, q.query_norm
    FROM queries q JOIN spans s ON q.session_key = s.session_key
    WHERE q.ts_us BETWEEN $low AND $high AND q.ts_us BETWEEN s.low AND s.high AND q.source = 'user'
)
SELECT session_id, ts_us, event_id, query_norm FROM hits WHERE session_id = span_id
"""

INSERT_EDGES = "INSERT INTO cooccurrence_deltas SELECT day, query, next_query, count FROM edges"

NEIGHBOUR_COLUMNS = pa.schema(
    [
        ("session_id", pa.string()),
        ("ts_us", pa.int64()),
        ("event_id", pa.string()),
        ("query_norm", pa.string()),
    ]
)

EDGE_COLUMNS = ["day", "query", "next_query", "count"]

READ = """
SELECT query, next_query, sum(count)::BIGINT AS count
FROM pair_counts
WHERE day >= $first AND day < $as_of
GROUP BY ALL
HAVING sum(count) <> 0
ORDER BY ALL
"""


def count_queries(connection: ShardConnection, queries: pa.Table, rules: CountingRules, recent: RecentState) -> set[date]:
    """Store the batch's queries and the changes of co-occurrence that they make; return the days that changed."""
    if not len(queries):
        return set()
    days, edges = queries["day"].chunks, None
    new = queries.select(["session_key", *NEIGHBOUR_COLUMNS.names]).filter(pc.equal(queries["source"], "user"))
    if len(new):
        keys, ts_us, new = new["session_key"].to_numpy(), new["ts_us"].to_numpy(), new.select(NEIGHBOUR_COLUMNS.names)
        old = _find_neighbours(connection, new, keys, rules.session_gap_us, recent.queries)
        recent.queries.add(keys, new, int(ts_us.max()))
        edges = find_changes(old, new, rules.session_gap_us)
        if len(edges):
            connection.defer(INSERT_EDGES, "edges", edges)
            days += edges["day"].chunks
    connection.defer(INSERT_QUERIES, "fresh_queries", queries)
    if edges is not None:
        recent.caps.pairs.touch(connection, edges, "query", rules)
    return set(pa.chunked_array(days).unique().to_pylist())


def _find_neighbours(connection: ShardConnection, new: pa.Table, keys: KeyArray, gap_us: int, recent: RecentRows) -> pa.Table:
    """Return the earlier queries within a gap of a new one in its session, and perhaps more.

    `keys` are the session keys of the new ones.
    """
    ts_us = new["ts_us"].to_numpy()
    late = ts_us - gap_us < recent.complete_from
    if not late.any():
        return _find_recent(keys, ts_us, gap_us, recent)
    found = [_find_recent(keys[~late], ts_us[~late], gap_us, recent)]
    sessions = new.select(["session_id", "ts_us"]).append_column("session_key", pa.array(keys))
    for rows in group_times(ts_us[late]):
        chosen = late.nonzero()[0][rows]
        span = {"gap": gap_us, "low": int(ts_us[chosen].min()) - gap_us, "high": int(ts_us[chosen].max()) + gap_us}
        found.append(connection.fetch_table(NEIGHBOURS, span, fresh_sessions=sessions.take(pa.array(chosen))))
    old = pa.concat_tables(found)
    return old.group_by(old.column_names).aggregate([])


def _find_recent(keys: KeyArray, ts_us: Int64s, gap_us: int, recent: RecentRows) -> pa.Table:
    """Return the recent queries of the sessions with these keys that are within a gap of the range of these times."""
    if not len(keys):
        return NEIGHBOUR_COLUMNS.empty_table()
    low, high = int(ts_us.min()) - gap_us, int(ts_us.max()) + gap_us
    _, found = recent.find(np.unique(keys), low)
    if found is None:
        return NEIGHBOUR_COLUMNS.empty_table()
    old_us = found["ts_us"].to_numpy()
    near = (old_us >= low) & (old_us <= high)
    return found if near.all() else found.filter(pa.array(near))


def find_changes(old: pa.Table, new: pa.Table, gap_us: int) -> pa.Table:
    """Return day, query, next_query, count: the edges that sessions gain, and those that they lose (count < 0), by new queries.

    An edge is two consecutive queries of a session that are within the gap and different; its day is that of the first one. Both
    tables have NEIGHBOUR_COLUMNS; the order in a session is (ts_us, event_id). `old` has at least the queries within a gap of a
    new one in its session: no edge of others changes.
    """
    rows = pa.concat_tables([old, new])
    session_id, event_id, queries = (rows[name].combine_chunks() for name in ("session_id", "event_id", "query_norm"))
    session, query = session_id.dictionary_encode().indices.to_numpy(), queries.dictionary_encode().indices.to_numpy()
    ts_us = rows["ts_us"].to_numpy()
    order = _session_order(session, ts_us, event_id)
    is_old = order < len(old)
    places = is_old.nonzero()[0]
    separated = places[1:] - places[:-1] > 1
    has_new = ~(is_old[:-1] & is_old[1:])
    first = np.concatenate([order[:-1][has_new], order[places[:-1][separated]]])
    second = np.concatenate([order[1:][has_new], order[places[1:][separated]]])
    count = np.ones(len(first), np.int64)
    count[has_new.sum() :] = -1
    is_edge = (session[first] == session[second]) & (ts_us[second] - ts_us[first] <= gap_us) & (query[first] != query[second])
    first, second, count = first[is_edge], second[is_edge], count[is_edge]
    pairs = query[first].astype(np.int64) << 32 | query[second]
    if not set(pairs[count < 0].tolist()).isdisjoint(pairs[count > 0].tolist()):
        chosen, count = _net(pairs, ts_us[first] // DAY_US, count)
        first, second = first[chosen], second[chosen]
    texts = [queries.take(pa.array(ends)) for ends in (first, second)]
    return pa.Table.from_arrays([to_event_days(ts_us[first]), *texts, pa.array(count)], names=EDGE_COLUMNS)


def _net(pairs: Int64s, day: Int64s, count: Int64s) -> tuple[Int64s, Int64s]:
    """Return one row for each pair and day whose counts do not cancel out, and the sums of the counts."""
    _, pair = np.unique(pairs, return_inverse=True)
    _, first, same = np.unique(pair << 32 | day, return_index=True, return_inverse=True)
    sums = np.zeros(len(first), np.int64)
    np.add.at(sums, same, count)
    return first[sums != 0], sums[sums != 0]


def _session_order(session: Int64s, ts_us: Int64s, event_id: pa.Array) -> Int64s:
    """Return the rows in the order of (session, ts_us, event_id)."""
    order = np.lexsort((ts_us, session))
    before, after = order[:-1], order[1:]
    if not ((session[before] == session[after]) & (ts_us[before] == ts_us[after])).any():
        return order
    columns = pa.table({"session": session, "ts_us": ts_us, "event_id": event_id})
    found: Int64s = pc.sort_indices(columns, sort_keys=[(name, "ascending") for name in columns.column_names]).to_numpy()
    return found.astype(np.int64)


def read_cooccurrence(con: duckdb.DuckDBPyConnection, first: date, end: date) -> pa.Table:
    """Return query, next_query, count (queries normalised) over the days first <= day < end, sorted."""
    return con.sql(READ, params={"first": first, "as_of": end}).to_arrow_table()


def read_cooccurrence_window(con: duckdb.DuckDBPyConnection, as_of: date) -> pa.Table:
    """Return query, next_query, count over the 14 days before `as_of`, sorted."""
    return read_cooccurrence(con, as_of - timedelta(days=WINDOW_DAYS), as_of)
