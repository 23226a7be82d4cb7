"""Erasure of a session or a user from a shard: its events go, with what they counted, as if they had never arrived.

Clicks of others on an erased list wait again, as they would without it. A count of a day whose events have expired cannot be
taken back any more: it stays, without any id, until its day expires. Events that arrive later are dropped (`drop_erased`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import date
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from streams.counting import clicks, impressions, quarantine, windows
from streams.counting.attribution import Change
from streams.counting.batch import Batch
from streams.counting.connection import ShardConnection
from streams.counting.key_index import key_sql
from streams.counting.pending_clicks import add_pending
from streams.events.erasures import FIELDS, Subject, Tombstones, read_owner
from streams.events.line_spans import Flags
from streams.events.rules import CountingRules

RAW_ROWS = 20_000
"""Rows whose original bytes are read at a time."""
RAW = {
    "clicks": "SELECT rowid, event_id, session_id, reason, raw FROM clicks",
    "pending": "SELECT rowid, event_id, session_id, NULL AS reason, raw FROM pending",
    "quarantine": "SELECT rowid, event_id, session_id, reason, raw FROM quarantine",
}
OWN = "SELECT event_id, session_id, day FROM {table} WHERE {field} = $id AND ts_us <= $until"
OWN_LISTS = "SELECT key, impression_id FROM impressions WHERE {field} = $id AND ts_us <= $until"
DELETE_OWN = "DELETE FROM {table} WHERE {field} = $id AND ts_us <= $until"
# A position stays clicked while a click of someone else counts on it.
CLICKED = """
CREATE OR REPLACE TEMP TABLE clicked_positions AS
WITH own AS MATERIALIZED (FROM clicks WHERE rowid IN (SELECT row FROM own_rows) AND reason IS NULL),
others AS (
    SELECT key, impression_id, position FROM clicks
    WHERE reason IS NULL AND key IN (SELECT key FROM own) AND rowid NOT IN (SELECT row FROM own_rows)
)
SELECT DISTINCT i.day, i.query_norm, c.key, c.impression_id, c.position,
    coalesce(i.items_norm, i.items)[c.position + 1] AS item_norm
FROM own c JOIN impressions i ON i.key = c.key AND i.impression_id = c.impression_id
ANTI JOIN others o ON o.key = c.key AND o.impression_id = c.impression_id AND o.position = c.position
"""
CLICKED_QUERIES = "SELECT DISTINCT day, query_norm FROM clicked_positions"
DELETE_ROWS = "DELETE FROM {table} WHERE rowid IN (SELECT row FROM own_rows)"
FORGET_IDS = f"DELETE FROM seen WHERE (key, event_id) IN (SELECT ({key_sql('event_id')}, event_id) FROM own_ids)"
EDGES = """
SELECT day, query_norm AS query, next_query, {sign} AS count FROM (
    SELECT day, ts_us, query_norm, lead(query_norm) OVER follows AS next_query, lead(ts_us) OVER follows AS next_us
    FROM queries
    WHERE source = 'user' AND session_id IN (SELECT session_id FROM queries WHERE {field} = $id) {chosen}
    WINDOW follows AS (PARTITION BY session_id ORDER BY ts_us, event_id)
)
WHERE next_us - ts_us <= $gap AND query_norm <> next_query
"""
TAKE_BACK_EDGES = f"""
INSERT INTO cooccurrence_deltas
SELECT day, query, next_query, sum(count)::BIGINT AS count FROM (
    {EDGES.replace("{sign}", "-1").replace("{chosen}", "")}
    UNION ALL
    {EDGES.replace("{sign}", "1").replace("{chosen}", "AND NOT ({field} IS NOT DISTINCT FROM $id AND ts_us <= $until)")}
)
GROUP BY ALL HAVING sum(count) <> 0
RETURNING day, query
"""

# A count and what takes it back would keep the text that nobody else had: they are summed, and what is zero goes.
SUM_UP = {
    "window_deltas": (
        """
CREATE OR REPLACE TEMP TABLE summed AS
SELECT day, query_norm, item_norm, position, sum(impressions)::BIGINT AS impressions, sum(clicks)::BIGINT AS clicks
FROM window_deltas SEMI JOIN changed USING (day, query_norm)
GROUP BY ALL HAVING sum(impressions) <> 0 OR sum(clicks) <> 0
""",
        "DELETE FROM window_deltas WHERE (day, query_norm) IN (SELECT (day, query_norm) FROM changed)",
    ),
    "cooccurrence_deltas": (
        """
CREATE OR REPLACE TEMP TABLE summed AS
SELECT d.day, d.query, d.next_query, sum(d.count)::BIGINT AS count
FROM cooccurrence_deltas d SEMI JOIN changed c ON d.day = c.day AND d.query = c.query_norm
GROUP BY ALL HAVING sum(d.count) <> 0
""",
        "DELETE FROM cooccurrence_deltas WHERE (day, query) IN (SELECT (day, query_norm) FROM changed)",
    ),
}

EventId = tuple[str, str]
"""An event id and its session."""


class RawRow(NamedTuple):
    """A row that has its line's bytes (None: dropped from quarantine); `reason` is None for a click that counts or waits."""

    row: int
    event_id: str | None
    session_id: str
    reason: str | None
    raw: bytes | None


@dataclass(slots=True)
class Erased:
    """What an erasure took from a shard: the changes of its totals, rows by table, and queries of days whose counts changed.

    `waiting` is the number of clicks of others that wait again because their list was erased.
    """

    change: Change = field(default_factory=Change)
    rows: dict[str, int] = field(default_factory=dict)
    lists: set[tuple[date, str]] = field(default_factory=set)
    pairs: set[tuple[date, str]] = field(default_factory=set)
    waiting: int = 0


def drop_erased(batch: Batch, tombstones: Tombstones) -> tuple[Batch, int]:
    """Return a batch without the events and rejects of erased sessions and users, and how many these are."""
    queries, lists = (table.filter(pa.array(~_find_erased(table, tombstones))) for table in batch.tables[:2])
    own_clicks = np.array([tombstones.cover(read_owner(raw)) for raw in batch.clicks["raw"].to_pylist()], np.bool_)
    own_rejects = np.array([tombstones.cover(read_owner(reject.raw)) for reject in batch.rejects], np.bool_)
    kept = replace(
        batch,
        queries=queries,
        impressions=lists,
        clicks=batch.clicks.filter(pa.array(~own_clicks)),
        rejects=[reject for reject, is_own in zip(batch.rejects, own_rejects, strict=True) if not is_own],
        reject_seq=batch.reject_seq[~own_rejects],
        reject_arrival_us=batch.reject_arrival_us[~own_rejects],
    )
    return kept, len(batch) - len(kept)


def _find_erased(rows: pa.Table, tombstones: Tombstones) -> Flags:
    """Return for each row (session_id, user_id, ts_us) whether it is of an erased session or user."""
    erased = np.zeros(len(rows), np.bool_)
    if not len(rows):
        return erased
    if tombstones.sessions:
        names = pc.unique(rows["session_id"])
        gone = names.filter(pa.array([tombstones.has_session(name) for name in names.to_pylist()], pa.bool_()))
        erased |= pc.is_in(rows["session_id"], value_set=gone).to_numpy()
    if tombstones.users:
        users = rows["user_id"].combine_chunks().dictionary_encode(null_encoding="encode")
        until = np.array([tombstones.erased_until(name) if name else -1 for name in users.dictionary.to_pylist()], np.int64)
        erased |= rows["ts_us"].to_numpy() <= until[users.indices.to_numpy()]
    return erased


def erase(connection: ShardConnection, subject: Subject, rules: CountingRules) -> Erased:
    """Remove a subject's events and what they counted, inside the caller's transaction."""
    erased, field_name = Erased(), FIELDS[subject.kind]
    params = {"id": subject.id, "until": subject.until_us}
    ids: list[EventId] = []
    connection.begin()
    for table in ("queries", "impressions"):
        own = connection.execute(OWN.format(table=table, field=field_name), params).fetchall()
        ids += [(event_id, session_id) for event_id, session_id, _ in own]
        erased.change.days |= {day for *_, day in own}
    for table in RAW:
        ids += _erase_raw(connection, subject, table, erased)
    _erase_queries(connection, field_name, params, rules, erased)
    _erase_lists(connection, field_name, params, erased)
    erased.rows["seen"] = _delete(connection, FORGET_IDS, own_ids=quarantine.to_events(sorted(set(ids))))
    _sum_up(connection, "window_deltas", erased.lists)
    _sum_up(connection, "cooccurrence_deltas", erased.pairs)
    erased.change.days |= {day for day, _ in erased.lists | erased.pairs}
    return erased


def _erase_raw(connection: ShardConnection, subject: Subject, table: str, erased: Erased) -> list[EventId]:
    """Remove the rows of a table that are the subject's, by their session or original bytes; return their ids."""
    rows = [row for row in _read_raw(connection, table, subject.id) if _is_own(row, subject)]
    own_rows = pa.table({"row": pa.array([row.row for row in rows], pa.int64())})
    change = erased.change
    if table == "clicks":
        connection.change(CLICKED, own_rows=own_rows)
        connection.change(windows.RETRACT_CLICKS)
        erased.lists |= set(connection.execute(CLICKED_QUERIES).fetchall())
        counted = sum(row.reason is None for row in rows)
        change.counted, change.erased = change.counted - counted, change.erased + counted
    elif table == "pending":
        change.pending, change.erased = change.pending - len(rows), change.erased + len(rows)
    else:
        change.quarantined.subtract(Counter(str(row.reason) for row in rows))
        change.erased += len(rows)
    erased.rows[table] = _delete(connection, DELETE_ROWS.format(table=table), own_rows=own_rows)
    return [(row.event_id, row.session_id) for row in rows if row.event_id is not None]


def _is_own(row: RawRow, subject: Subject) -> bool:
    return (subject.kind == "session" and row.session_id == subject.id) or (
        row.raw is not None and subject.owns(read_owner(row.raw))
    )


def _read_raw(connection: ShardConnection, table: str, name: str) -> Iterator[RawRow]:
    """Yield the rows that have the id as their session or in their bytes, or whose bytes have escapes that may hide it."""
    connection.begin()
    for batch in connection.con.sql(RAW[table]).to_arrow_reader(RAW_ROWS):
        in_bytes = pc.or_(pc.match_substring(batch["raw"], name), pc.match_substring(batch["raw"], "\\"))
        maybe = pc.or_kleene(pc.equal(batch["session_id"], name), in_bytes)
        found = pa.Table.from_batches([batch]).filter(maybe)
        yield from map(RawRow._make, zip(*(column.to_pylist() for column in found.columns), strict=True))


def _erase_queries(
    connection: ShardConnection, field_name: str, params: dict[str, Any], rules: CountingRules, erased: Erased
) -> None:
    """Remove the subject's queries; the queries before and after them in their session become neighbours."""
    sql = TAKE_BACK_EDGES.replace("{field}", field_name)
    erased.pairs |= set(connection.execute(sql, {**params, "gap": rules.session_gap_us}).fetchall())
    number = _delete(connection, DELETE_OWN.format(table="queries", field=field_name), params)
    erased.rows["queries"] = number
    erased.change.counted -= number
    erased.change.erased += number


def _erase_lists(connection: ShardConnection, field_name: str, params: dict[str, Any], erased: Erased) -> None:
    """Remove the subject's lists; the clicks of others on them wait again."""
    ids = [(key, name) for key, name in connection.execute(OWN_LISTS.format(field=field_name), params).fetchall()]
    erased.rows["impressions"] = len(ids)
    retraction = impressions.retract(connection, ids)
    waiting = clicks.read_reattributed(connection) if ids else []
    add_pending(connection, waiting)
    erased.lists |= retraction.queries
    erased.waiting = len(waiting)
    change = erased.change
    change.counted -= len(ids) + retraction.clicks
    change.erased += len(ids)
    change.pending += len(waiting)
    change.quarantined.subtract(retraction.quarantined)
    change.duplicates -= retraction.repeats


def _sum_up(connection: ShardConnection, table: str, queries: set[tuple[date, str]]) -> None:
    """Replace the deltas of these queries and days by their sums."""
    rows = sorted(queries)
    days, texts = pa.array([day for day, _ in rows], pa.date32()), pa.array([query for _, query in rows], pa.string())
    changed = pa.table({"day": days, "query_norm": texts})
    for sql in SUM_UP[table]:
        connection.change(sql, changed=changed)
    connection.con.execute(f"INSERT INTO {table} FROM summed").fetchall()
    connection.con.execute("DROP TABLE summed")


def _delete(connection: ShardConnection, sql: str, params: dict[str, Any] | None = None, **tables: pa.Table) -> int:
    return int(connection.execute(sql, params, **tables).fetchall()[0][0])
