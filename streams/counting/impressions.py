"""Impressions: the canonical impression of each impression_id is the earliest by (ts, event_id), in whatever order they arrive.

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
"""`key` is hash(impression_id), `items_norm` is null if it equals `items`, `length` is the number of items."""

FIND_STORED = """
WITH hits AS MATERIALIZED (
    SELECT f.impression_id AS fresh_id, i.impression_id, i.ts_us, i.event_id
    FROM impressions i JOIN fresh_impressions f ON i.key = f.impression_key
)
SELECT DISTINCT impression_id, ts_us, event_id FROM hits WHERE impression_id = fresh_id
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
WITH own AS MATERIALIZED (FROM clicks WHERE impression_id IN (SELECT impression_id FROM replaced_ids))
FROM own
UNION ALL
FROM clicks
WHERE reason IS NOT NULL AND impression_id NOT IN (SELECT impression_id FROM replaced_ids)
    AND (event_id, reason) IN (SELECT (event_id, reason) FROM own WHERE reason IS NOT NULL)
"""
REPLACED = """
CREATE OR REPLACE TEMP TABLE replaced_lists AS FROM impressions WHERE impression_id IN (SELECT impression_id FROM replaced_ids)
"""
RETRACTED_POSITIONS = """
CREATE OR REPLACE TEMP TABLE clicked_positions AS
SELECT DISTINCT i.day, i.query_norm, c.impression_id, c.position, coalesce(i.items_norm, i.items)[c.position + 1] AS item_norm
FROM reopened c JOIN replaced_lists i USING (impression_id)
WHERE c.reason IS NULL
"""
TAKEN_BACK = "CREATE OR REPLACE TEMP VIEW taken_back AS SELECT event_id, reason FROM reopened WHERE reason IS NOT NULL"
DROP_REPLACED = "DELETE FROM impressions WHERE impression_id IN (SELECT impression_id FROM replaced_ids)"
DROP_REOPENED = """
DELETE FROM clicks
WHERE impression_id IN (SELECT impression_id FROM replaced_ids)
    OR (reason IS NOT NULL AND (event_id, reason) IN (SELECT (event_id, reason) FROM taken_back))
"""
REPLACED_DAYS = "SELECT DISTINCT day FROM replaced_lists"
REOPENED_NUMBERS = "SELECT count(*) FILTER (reason IS NULL), count(reason) FROM reopened"


NONE_STORED = pa.table(
    {"impression_id": pa.nulls(0, pa.string()), "ts_us": pa.nulls(0, pa.int64()), "event_id": pa.nulls(0, pa.string())}
)


@dataclass(frozen=True, slots=True)
class Retraction:
    """What was retracted with replaced impressions, and the days that changed.

    `clicks` are those that counted, `quarantined` the quarantine rows of refused clicks by reason, `repeats` the refused clicks
    that shared such a row.
    """

    clicks: int = 0
    quarantined: Counter[str] = field(default_factory=Counter)
    repeats: int = 0
    days: set[date] = field(default_factory=set)


def find_stored(connection: ShardConnection, fresh: pa.Table, known_keys: KeySet) -> pa.Table:
    """Return impression_id, ts_us, event_id of the stored impressions whose impression_id a new one has."""
    maybe = known_keys.contains(fresh["impression_key"].to_numpy())
    if not maybe.any():
        return NONE_STORED
    wanted = fresh.select(["impression_id", "impression_key"]).filter(pa.array(maybe))
    return connection.fetch_table(FIND_STORED, fresh_impressions=wanted)


def choose_canonical(fresh: pa.Table, stored: pa.Table) -> tuple[pa.Table, list[str]]:
    """Return the new impressions that become canonical, and the impression_ids of which they replace the stored one."""
    keys = np.sort(fresh["impression_key"].to_numpy())
    if not len(stored) and (keys[1:] != keys[:-1]).all():
        return fresh, []
    best = {row["impression_id"]: (row["ts_us"], row["event_id"], -1) for row in stored.to_pylist()}
    times, names = fresh["ts_us"].to_pylist(), fresh["event_id"].to_pylist()
    for row, impression_id in enumerate(fresh["impression_id"].to_pylist()):
        version = (times[row], names[row], row)
        best[impression_id] = min(best.get(impression_id, version), version)
    rows = sorted(row for _, _, row in best.values() if row >= 0)
    replaced = [name for name in stored["impression_id"].to_pylist() if best[name][2] >= 0]
    return fresh.take(pa.array(rows, pa.int64())), replaced


def retract(connection: ShardConnection, replaced: list[str]) -> Retraction:
    """Remove the impressions of these ids and their counts; their clicks are then in the temporary table `reopened`."""
    if not replaced:
        return Retraction()
    connection.register("replaced_ids", pa.table({"impression_id": pa.array(replaced, pa.string())}))
    for sql in (REOPENED, REPLACED, RETRACTED_POSITIONS, TAKEN_BACK):
        connection.change(sql)
    windows.retract(connection)
    quarantined = quarantine.remove_reattributed(connection)
    days = {day for (day,) in connection.execute(REPLACED_DAYS).fetchall()}
    for sql in (DROP_REPLACED, DROP_REOPENED, "DROP TABLE replaced_lists"):
        connection.change(sql)
    counted, refused = connection.execute(REOPENED_NUMBERS).fetchall()[0]
    return Retraction(counted, quarantined, refused - quarantined.total(), days)


def store_impressions(connection: ShardConnection, canonical: pa.Table) -> set[date]:
    """Store canonical impressions, and return their days."""
    if len(canonical):
        connection.defer(INSERT, "shown_lists", canonical)
    return find_days(canonical["day"].to_numpy())
