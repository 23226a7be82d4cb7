"""Impressions: the canonical one of an impression_id in its session is the earliest by (ts, event_id), in whatever order they
arrive. Two sessions that use one impression_id have a list each.

When an earlier impression arrives it replaces the stored one: the counts of the old one are retracted, and its clicks are
re-attributed by `streams.counting.attribution`.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from datetime import date

import numpy as np
import pyarrow as pa

from streams.counting import quarantine, windows
from streams.counting.clicks import ListId
from streams.counting.connection import ShardConnection
from streams.counting.key_index import KeySet
from streams.counting.retention import find_days

TABLES = """
CREATE TABLE impressions (
    ts_us BIGINT, day DATE, key UBIGINT, impression_id VARCHAR, event_id VARCHAR, session_id VARCHAR, user_id VARCHAR,
    query VARCHAR, query_norm VARCHAR, task VARCHAR, items VARCHAR[], items_norm VARCHAR[], release VARCHAR, predicted DOUBLE[],
    logprob DOUBLE, decoding VARCHAR, extra VARCHAR, length INTEGER
);
"""
"""`key` is that of the impression_id in its session (`streams.counting.key_index`), `items_norm` is null if it equals
`items`, `length` is the number of items."""

FIND_STORED = """
WITH hits AS MATERIALIZED (
    SELECT f.impression_id AS fresh_id, i.key, i.impression_id, i.ts_us, i.event_id
    FROM impressions i JOIN fresh_impressions f ON i.key = f.impression_key
)
SELECT DISTINCT key, impression_id, ts_us, event_id FROM hits WHERE impression_id = fresh_id
"""

INSERT = """
INSERT INTO impressions
SELECT ts_us, day, impression_key, impression_id, event_id, session_id, user_id, query, query_norm, task, items, items_norm,
    release, predicted, logprob, decoding, extra, len(items)
FROM shown_lists
"""

# Quarantine has one row for all versions of an event that were refused for one reason, so these are re-attributed together.
REOPENED = """
CREATE OR REPLACE TEMP TABLE reopened AS
WITH own AS MATERIALIZED (FROM clicks WHERE (key, impression_id) IN (SELECT (key, impression_id) FROM replaced_ids))
FROM own
UNION ALL
FROM clicks
WHERE reason IS NOT NULL AND (key, impression_id) NOT IN (SELECT (key, impression_id) FROM replaced_ids)
    AND (event_id, session_id, reason) IN (SELECT (event_id, session_id, reason) FROM own WHERE reason IS NOT NULL)
"""
REPLACED = """
CREATE OR REPLACE TEMP TABLE replaced_lists AS
FROM impressions WHERE (key, impression_id) IN (SELECT (key, impression_id) FROM replaced_ids)
"""
RETRACTED_POSITIONS = """
CREATE OR REPLACE TEMP TABLE clicked_positions AS
SELECT DISTINCT i.day, i.query_norm, c.key, c.impression_id, c.position,
    coalesce(i.items_norm, i.items)[c.position + 1] AS item_norm
FROM reopened c JOIN replaced_lists i USING (key, impression_id)
WHERE c.reason IS NULL
"""
TAKEN_BACK = (
    "CREATE OR REPLACE TEMP VIEW taken_back AS SELECT event_id, session_id, reason FROM reopened WHERE reason IS NOT NULL"
)
DROP_REPLACED = "DELETE FROM impressions WHERE (key, impression_id) IN (SELECT (key, impression_id) FROM replaced_ids)"
DROP_REOPENED = """
DELETE FROM clicks
WHERE (key, impression_id) IN (SELECT (key, impression_id) FROM replaced_ids)
    OR (reason IS NOT NULL AND (event_id, session_id, reason) IN (SELECT (event_id, session_id, reason) FROM taken_back))
"""
REPLACED_QUERIES = "SELECT DISTINCT day, query_norm FROM replaced_lists"
REOPENED_NUMBERS = "SELECT count(*) FILTER (reason IS NULL), count(reason) FROM reopened"


NONE_STORED = pa.schema(
    [("key", pa.uint64()), ("impression_id", pa.string()), ("ts_us", pa.int64()), ("event_id", pa.string())]
).empty_table()


REPLACED_IDS = pa.schema([("key", pa.uint64()), ("impression_id", pa.string())])


@dataclass(frozen=True, slots=True)
class Retraction:
    """What was retracted with replaced impressions, and the queries of days that changed.

    `clicks` are those that counted, `quarantined` the quarantine rows of refused clicks by reason, `repeats` the refused clicks
    that shared such a row.
    """

    clicks: int = 0
    quarantined: Counter[str] = field(default_factory=Counter)
    repeats: int = 0
    queries: set[tuple[date, str]] = field(default_factory=set)

    @property
    def days(self) -> set[date]:
        """The days that changed."""
        return {day for day, _ in self.queries}


def find_stored(connection: ShardConnection, fresh: pa.Table, known_keys: KeySet) -> pa.Table:
    """Return key, impression_id, ts_us, event_id of the stored impressions whose impression_id a new one of their session has."""
    maybe = known_keys.contains(fresh["impression_key"].to_numpy())
    if not maybe.any():
        return NONE_STORED
    wanted = fresh.select(["impression_id", "impression_key"]).filter(pa.array(maybe))
    return connection.fetch_table(FIND_STORED, fresh_impressions=wanted)


def choose_canonical(fresh: pa.Table, stored: pa.Table) -> tuple[pa.Table, list[ListId]]:
    """Return the new impressions that become canonical, and the lists of which they replace the stored one."""
    keys = np.sort(fresh["impression_key"].to_numpy())
    if not len(stored) and (keys[1:] != keys[:-1]).all():
        return fresh, []
    stored_ids = [(row["key"], row["impression_id"]) for row in stored.to_pylist()]
    best = {
        name: (ts_us, event_id, -1)
        for name, ts_us, event_id in zip(stored_ids, stored["ts_us"].to_pylist(), stored["event_id"].to_pylist(), strict=True)
    }
    columns = (fresh[name].to_pylist() for name in ("impression_key", "impression_id", "ts_us", "event_id"))
    for row, (key, impression_id, ts_us, event_id) in enumerate(zip(*columns, strict=True)):
        version = (ts_us, event_id, row)
        best[key, impression_id] = min(best.get((key, impression_id), version), version)
    rows = sorted(row for _, _, row in best.values() if row >= 0)
    return fresh.take(pa.array(rows, pa.int64())), [name for name in stored_ids if best[name][2] >= 0]


def retract(connection: ShardConnection, replaced: list[ListId]) -> Retraction:
    """Remove these lists and their counts; their clicks are then in the temporary table `reopened`."""
    if not replaced:
        return Retraction()
    connection.register("replaced_ids", pa.Table.from_arrays(_columns(replaced), schema=REPLACED_IDS))
    for sql in (REOPENED, REPLACED, RETRACTED_POSITIONS, TAKEN_BACK):
        connection.change(sql)
    windows.retract(connection)
    quarantined = quarantine.remove_reattributed(connection)
    queries = set(connection.execute(REPLACED_QUERIES).fetchall())
    for sql in (DROP_REPLACED, DROP_REOPENED, "DROP TABLE replaced_lists"):
        connection.change(sql)
    counted, refused = connection.execute(REOPENED_NUMBERS).fetchall()[0]
    return Retraction(counted, quarantined, refused - quarantined.total(), queries)


def _columns(lists: list[ListId]) -> list[pa.Array]:
    return [pa.array([key for key, _ in lists], pa.uint64()), pa.array([name for _, name in lists], pa.string())]


def store_impressions(connection: ShardConnection, canonical: pa.Table) -> set[date]:
    """Store canonical impressions, and return their days."""
    if len(canonical):
        connection.defer(INSERT, "shown_lists", canonical)
    return find_days(canonical["day"].to_numpy())
