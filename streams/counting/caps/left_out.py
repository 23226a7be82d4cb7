"""Caps: how many lists of one query, and how many pairs of two queries, one session or one user adds to the counts of a UTC day.

Counting itself leaves nothing out. What is over a cap is summed in tables of its own, which every read subtracts: a list may come
to lie over the cap, or under it again, when an earlier one arrives late. The rank by (ts, session_id, event_id) decides, so that
the order of arrival does not matter. A sum is computed anew for a whole query of a day, when something changed there that may be
over the cap.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date
from typing import Any

import duckdb
import pyarrow as pa

from streams.counting.connection import ShardConnection
from streams.counting.retention import to_us
from streams.events.rules import DAY_US, CountingRules

TABLES = """
CREATE TABLE caps (session_cap BIGINT, user_cap BIGINT);
INSERT INTO caps VALUES (0, 0);
CREATE TABLE left_out (day DATE, query_norm VARCHAR, item_norm VARCHAR, position INTEGER, impressions BIGINT, clicks BIGINT);
CREATE TABLE left_out_lists (day DATE, query_norm VARCHAR, lists BIGINT);
CREATE TABLE left_out_pairs (day DATE, query VARCHAR, next_query VARCHAR, count BIGINT);
CREATE VIEW window_counts AS
SELECT day, query_norm, item_norm, position, impressions, clicks FROM window_cells
UNION ALL
SELECT day, query_norm, item_norm, position, -impressions, -clicks FROM left_out;
CREATE VIEW pair_counts AS
SELECT day, query, next_query, count FROM cooccurrence_deltas
UNION ALL
SELECT day, query, next_query, -count FROM left_out_pairs;
"""
"""`caps` are the caps by which the other tables were computed, 0: none. The views have the counts under the caps."""

NO_CAP = 2**62

OVER = """
CREATE OR REPLACE TEMP TABLE lists_over AS
SELECT day, query_norm, ts_us, key, impression_id, coalesce(items_norm, items) AS items
FROM impressions SEMI JOIN touched USING (day, query_norm)
WHERE ts_us BETWEEN $low AND $high
QUALIFY row_number() OVER (PARTITION BY day, query_norm, session_id ORDER BY ts_us, event_id) > $session_cap
    OR (user_id <> ''
        AND row_number() OVER (PARTITION BY day, query_norm, user_id ORDER BY ts_us, session_id, event_id) > $user_cap)
"""
FORGET = "DELETE FROM {table} WHERE (day, {query}) IN (SELECT (day, query_norm) FROM touched)"
LEAVE_OUT = """
INSERT INTO left_out
WITH clicked AS (
    SELECT DISTINCT o.key, o.impression_id, c.position
    FROM clicks c JOIN lists_over o ON c.key = o.key AND c.impression_id = o.impression_id
    WHERE c.reason IS NULL AND c.ts_us BETWEEN $low AND $until
),
cells AS (
    SELECT day, query_norm, key, impression_id, unnest(items) AS item_norm, unnest(range(len(items)))::INTEGER AS position
    FROM lists_over
)
SELECT day, query_norm, item_norm, position, count(*), count(c.position)
FROM cells LEFT JOIN clicked c USING (key, impression_id, position)
GROUP BY ALL
"""
LEAVE_OUT_LISTS = "INSERT INTO left_out_lists SELECT day, query_norm, count(*) FROM lists_over GROUP BY ALL"
# The sessions of a user who has too many of a query are all needed to rank that user's pairs.
LEAVE_OUT_PAIRS = """
INSERT INTO left_out_pairs
WITH asked AS (
    SELECT day, query_norm, session_id, nullif(user_id, '') AS user_id
    FROM queries SEMI JOIN touched USING (day, query_norm)
    WHERE source = 'user' AND ts_us BETWEEN $low AND $high
),
often AS (
    SELECT session_id FROM asked GROUP BY day, query_norm, session_id HAVING count(*) > $session_cap
    UNION
    SELECT session_id FROM asked SEMI JOIN (
        SELECT day, query_norm, user_id FROM asked WHERE user_id IS NOT NULL GROUP BY ALL HAVING count(*) > $user_cap
    ) USING (day, query_norm, user_id)
),
followed AS (
    SELECT day, query_norm, session_id, user_id, ts_us, event_id,
        lead(query_norm) OVER follows AS next_query, lead(ts_us) OVER follows AS next_us
    FROM queries SEMI JOIN often USING (session_id)
    WHERE source = 'user' AND ts_us BETWEEN $low AND $until
    WINDOW follows AS (PARTITION BY session_id ORDER BY ts_us, event_id)
),
pairs AS (
    SELECT * FROM followed SEMI JOIN touched USING (day, query_norm)
    WHERE next_us - ts_us <= $gap AND query_norm <> next_query
),
over AS (
    SELECT day, query_norm, next_query FROM pairs
    QUALIFY row_number() OVER (PARTITION BY day, query_norm, next_query, session_id ORDER BY ts_us, event_id) > $session_cap
        OR (user_id <> ''
            AND row_number() OVER (
                PARTITION BY day, query_norm, next_query, user_id ORDER BY ts_us, session_id, event_id
            ) > $user_cap)
)
SELECT day, query_norm, next_query, count(*) FROM over GROUP BY ALL
"""
OFTEN = {
    table: f"""
SELECT DISTINCT query_norm FROM (
    SELECT query_norm FROM {table} WHERE {chosen} GROUP BY query_norm, session_id HAVING count(*) > $session_cap
    UNION ALL
    SELECT query_norm FROM {table} WHERE {chosen} AND user_id <> '' GROUP BY query_norm, user_id HAVING count(*) > $user_cap
)
"""
    for table, chosen in {"impressions": "day = $day", "queries": "day = $day AND source = 'user'"}.items()
}
"""The queries of a day of which some session or user has more than its cap, by table."""
STORED = "SELECT session_cap, user_cap FROM caps"
STORE = "UPDATE caps SET session_cap = $session_cap, user_cap = $user_cap"
DAYS = {table: f"SELECT DISTINCT day FROM {table} ORDER BY day" for table in OFTEN}
LEFT_OUT_QUERIES = {
    "impressions": "SELECT DISTINCT day, query_norm FROM left_out_lists",
    "queries": "SELECT DISTINCT day, query FROM left_out_pairs",
}
MEASURE = "SELECT (SELECT sum(lists) FROM left_out_lists), (SELECT sum(count) FROM left_out_pairs)"

DayQuery = tuple[date, str]
"""A UTC day and a query in normal form."""


@dataclass(frozen=True, slots=True)
class LeftOut:
    """How many lists are left out of the windows, and how many pairs of co-occurrence, because they are over a cap."""

    lists: int = 0
    pairs: int = 0


def cap_params(rules: CountingRules) -> dict[str, int]:
    """Return the caps as parameters of the statements here; one that is off is never reached."""
    return {"session_cap": rules.session_cap or NO_CAP, "user_cap": rules.user_cap or NO_CAP}


def leave_out_lists(connection: ShardConnection, touched: Iterable[DayQuery], rules: CountingRules) -> None:
    """Compute anew which lists of these queries and days are over the cap, and what the windows leave out for them."""
    table, span = _touched(touched)
    if not len(table):
        return
    until = span["high"] + rules.attribution_window_us
    connection.change(OVER, {**span, **cap_params(rules)}, touched=table)
    for name in ("left_out", "left_out_lists"):
        connection.change(FORGET.format(table=name, query="query_norm"), touched=table)
    connection.change(LEAVE_OUT, {"low": span["low"], "until": until})
    connection.change(LEAVE_OUT_LISTS)
    connection.change("DROP TABLE lists_over")


def leave_out_pairs(connection: ShardConnection, touched: Iterable[DayQuery], rules: CountingRules) -> None:
    """Compute anew which pairs that begin with these queries on these days are over the cap."""
    table, span = _touched(touched)
    if not len(table):
        return
    params = {**span, **cap_params(rules), "until": span["high"] + rules.session_gap_us, "gap": rules.session_gap_us}
    connection.change(FORGET.format(table="left_out_pairs", query="query"), touched=table)
    connection.change(LEAVE_OUT_PAIRS, params, touched=table)


def measure(con: duckdb.DuckDBPyConnection) -> LeftOut:
    """Return how much of what a shard has is over a cap."""
    lists, pairs = con.execute(MEASURE).fetchall()[0]
    return LeftOut(int(lists or 0), int(pairs or 0))


def find_often(con: duckdb.DuckDBPyConnection | ShardConnection, table: str, day: date, rules: CountingRules) -> set[str]:
    """Return the queries of a day of which one session or user has more rows of `table` than its cap."""
    found = con.execute(OFTEN[table], {"day": day, **cap_params(rules)}).fetchall()
    return {query for (query,) in found}


def find_left_out(connection: ShardConnection, table: str, day: date) -> set[str]:
    """Return the queries of a day of which something is left out, even if nothing is over the cap any more."""
    return {query for _, query in connection.execute(f"{LEFT_OUT_QUERIES[table]} WHERE day = $day", {"day": day}).fetchall()}


def stored_caps(con: duckdb.DuckDBPyConnection) -> tuple[int, int]:
    """Return the session cap and the user cap by which the shard's counts were computed."""
    session_cap, user_cap = con.execute(STORED).fetchall()[0]
    return int(session_cap), int(user_cap)


def apply_caps(connection: ShardConnection, rules: CountingRules) -> set[date]:
    """Compute everything anew if the caps are not those that are stored; return the days whose counts may have changed.

    Days whose events have expired keep what they left out before.
    """
    con = connection.con
    if stored_caps(con) == (rules.session_cap, rules.user_cap):
        return set()
    changed = set()
    for table, leave_out in (("impressions", leave_out_lists), ("queries", leave_out_pairs)):
        days = [day for (day,) in con.execute(DAYS[table]).fetchall()]
        before: list[Any] = con.execute(LEFT_OUT_QUERIES[table]).fetchall()
        for day in days:
            queries = find_often(con, table, day, rules) | {query for one, query in before if one == day}
            leave_out(connection, [(day, query) for query in queries], rules)
            changed |= {day} if queries else set()
    connection.change(STORE, {"session_cap": rules.session_cap, "user_cap": rules.user_cap})
    return changed


def _touched(touched: Iterable[DayQuery]) -> tuple[pa.Table, dict[str, int]]:
    """Return queries and days as a table, and the range of event times of the days."""
    rows = sorted(set(touched))
    days = [day for day, _ in rows]
    table = pa.table({"day": pa.array(days, pa.date32()), "query_norm": pa.array([query for _, query in rows], pa.string())})
    return table, {"low": to_us(days[0]), "high": to_us(days[-1]) + DAY_US - 1} if rows else {}
