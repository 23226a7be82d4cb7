"""Quarantine: events that cannot be used, each with its reason and its original bytes, to be inspected and repaired.

A bad event delivered twice has one row: it is identified by its reason, event_id and session, or by its bytes if it has no
readable id. Once a good version with the same event_id is accepted in its session, its rows are withdrawn: the event is repaired.
A row whose bytes were dropped (`raw` is null) is in no read; it only keeps the totals right until it expires.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import NamedTuple

import duckdb
import numpy as np
import pyarrow as pa

from streams.counting.connection import ShardConnection, run_to_end
from streams.counting.key_index import KeyArray, KeySet, key_sql
from streams.events.schema import Reason, Reject

TABLES = """
CREATE SEQUENCE quarantine_ids;
CREATE TABLE quarantine (
    id BIGINT DEFAULT nextval('quarantine_ids'), reason VARCHAR, detail VARCHAR, event_id VARCHAR, ts_us BIGINT, raw BLOB,
    log_offset BIGINT, line BIGINT, published BOOLEAN DEFAULT false, arrived_us BIGINT, digest BLOB,
    session_id VARCHAR
);
"""
"""`arrived_us` is the shard's time after the batch, `digest` identifies duplicates, `session_id` is "" if none could be read."""

CLICK_REASONS = [str(r) for r in (Reason.LATE_CLICK, Reason.ORPHAN_CLICK, Reason.POSITION_OUT_OF_RANGE, Reason.ITEM_MISMATCH)]
"""Reasons for which attribution refuses a click: its id is in `seen`, but not occupied by it."""

ADD_NEW = f"""
INSERT INTO quarantine (reason, detail, event_id, ts_us, raw, log_offset, line, arrived_us, digest, session_id)
SELECT reason, detail, event_id, ts_us, raw, log_offset, line, $arrived, digest, session_id
FROM rejects
ORDER BY log_offset, line
RETURNING event_id, session_id, reason, {key_sql("event_id")}
"""
ADD_UNLESS_STORED = ADD_NEW.replace("FROM rejects", "FROM rejects WHERE digest NOT IN (SELECT digest FROM quarantine)")
LOAD = f"SELECT {key_sql('event_id')} AS key, digest FROM quarantine"
REMOVE_REATTRIBUTED = """
DELETE FROM quarantine WHERE (event_id, session_id, reason) IN (SELECT (event_id, session_id, reason) FROM taken_back)
RETURNING reason
"""
WITHDRAW = """
DELETE FROM quarantine WHERE (event_id, session_id) IN (SELECT (event_id, session_id) FROM accepted)
RETURNING event_id, session_id, reason
"""
REFUSED_IDS = """
SELECT DISTINCT event_id, session_id FROM quarantine SEMI JOIN maybe_refused USING (event_id, session_id)
WHERE reason IN (SELECT unnest($reasons))
"""
# An event that counts or waits may have the same id if it is more than the retention later.
OCCUPIED_IDS = """
SELECT event_id, session_id FROM pending SEMI JOIN refused_ids USING (event_id, session_id)
UNION
SELECT event_id, session_id FROM clicks SEMI JOIN refused_ids USING (event_id, session_id) WHERE reason IS NULL
"""

READ = """
SELECT id, reason, detail, event_id, ts_us, raw, log_offset, line, published FROM quarantine WHERE raw IS NOT NULL ORDER BY id
"""
# What identifies the event stays, so that it is a duplicate when it is delivered again, and every count stays as it is.
DROP = """
UPDATE quarantine SET raw = NULL, detail = NULL, published = true
WHERE raw IS NOT NULL AND reason = $reason AND ($before::BIGINT IS NULL OR coalesce(ts_us, arrived_us, 0) < $before)
"""
UNPUBLISHED = """
SELECT id, reason, detail, event_id, ts_us, raw, log_offset, line FROM quarantine WHERE NOT published ORDER BY id LIMIT $limit
"""
PUBLISH = "UPDATE quarantine SET published = true WHERE id IN (SELECT unnest($ids::BIGINT[]))"


EVENT = pa.schema([("event_id", pa.string()), ("session_id", pa.string())])


class Row(NamedTuple):
    """Which row of the quarantine: that of this event id in its session, refused for this reason."""

    event_id: str | None
    session_id: str
    reason: Reason


@dataclass(slots=True)
class QuarantineKeys:
    """Keys of the event ids and digests that the quarantine may have, so that most batches need not read it."""

    ids: KeySet = field(default_factory=KeySet)
    digests: KeySet = field(default_factory=KeySet)


def load_quarantine_keys(con: duckdb.DuckDBPyConnection) -> QuarantineKeys:
    """Return the keys of the quarantine in a shard's file."""
    keys, rows = QuarantineKeys(), con.execute(LOAD).fetchnumpy()
    keys.ids.add(np.asarray(rows["key"], np.uint64))
    keys.digests.add(_digest_keys(rows["digest"]))
    return keys


def add_rejects(
    connection: ShardConnection, rejects: Sequence[Reject], arrived_us: int | None, known: QuarantineKeys
) -> list[Row]:
    """Store rejects; return which new rows there are. The other rejects are duplicates."""
    distinct = {_digest(r): r for r in reversed(rejects)}
    if not distinct:
        return []
    digests = _digest_keys(distinct)
    sql = ADD_UNLESS_STORED if known.digests.contains(digests).any() else ADD_NEW
    added = connection.execute(sql, {"arrived": arrived_us}, rejects=_columns(distinct)).fetchall()
    known.digests.add(digests)
    known.ids.add(np.array([key for *_, key in added], np.uint64))
    return [Row(event_id, session_id, Reason(reason)) for event_id, session_id, reason, _ in added]


def remove_reattributed(connection: ShardConnection) -> Counter[str]:
    """Remove the rows of re-attributed clicks in `taken_back` (event_id, session_id, reason); return their number by reason."""
    return Counter(reason for (reason,) in connection.execute(REMOVE_REATTRIBUTED).fetchall())


def withdraw(connection: ShardConnection, accepted: pa.Table) -> list[Row]:
    """Remove the rows of these events (EVENT), of which a good version was accepted; return which they were."""
    withdrawn = connection.execute(WITHDRAW, accepted=accepted).fetchall()
    return [Row(event_id, session_id, Reason(reason)) for event_id, session_id, reason in withdrawn]


def find_unoccupied(connection: ShardConnection, events: pa.Table) -> set[tuple[str, str]]:
    """Return event_id and session_id of those of these events (EVENT) that are refused clicks, where none counts or waits."""
    found = connection.execute(REFUSED_IDS, {"reasons": CLICK_REASONS}, maybe_refused=events).fetchall()
    refused = set(found)
    if not refused:
        return refused
    ids = to_events(sorted(refused))
    return refused - set(connection.execute(OCCUPIED_IDS, refused_ids=ids).fetchall())


def to_events(ids: Sequence[tuple[str | None, str]]) -> pa.Table:
    """Return these event ids and sessions as a table (EVENT)."""
    columns = [pa.array([one[column] for one in ids], pa.string()) for column in (0, 1)]
    return pa.Table.from_arrays(columns, schema=EVENT)


def read_quarantine(con: duckdb.DuckDBPyConnection) -> pa.Table:
    """Return id, reason, detail, event_id, ts_us, raw, log_offset, line, published, in order of arrival."""
    return con.sql(READ).to_arrow_table()


def read_unpublished(con: duckdb.DuckDBPyConnection, limit: int) -> pa.Table:
    """Return the first rows that are not in the quarantine topic yet."""
    return con.sql(UNPUBLISHED, params={"limit": limit}).to_arrow_table()


def mark_published(con: duckdb.DuckDBPyConnection, ids: Sequence[int]) -> None:
    """Record that these rows are in the quarantine topic."""
    run_to_end(con, PUBLISH, {"ids": list(ids)})


def drop(con: duckdb.DuckDBPyConnection, reason: Reason, before_us: int | None) -> int:
    """Remove the bytes and details of the rows of a reason, and return their number.

    With `before_us` only those of events from before that time, or, where an event has none, that arrived before it.
    """
    return int(con.execute(DROP, {"reason": str(reason), "before": before_us}).fetchall()[0][0])


def _digest(reject: Reject) -> bytes:
    return digest_of(str(reject.reason), reject.event_id, reject.session_id, reject.raw)


def digest_of(reason: str, event_id: str | None, session_id: str, raw: bytes) -> bytes:
    """Return the digest by which a bad event is known: of its reason and its id in its session, or its bytes without an id."""
    known_by = raw if event_id is None else f"{len(session_id)}:{session_id}{event_id}".encode()
    return blake2b(known_by, digest_size=16, key=reason.encode(), person=b"bytes" if event_id is None else b"session+id").digest()


def _digest_keys(digests: Iterable[bytes]) -> KeyArray:
    return np.frombuffer(b"".join(digest[:8] for digest in digests), np.uint64)


def _columns(rejects: dict[bytes, Reject]) -> pa.Table:
    rows = list(rejects.values())
    return pa.table(
        {
            "reason": pa.array([str(r.reason) for r in rows], pa.string()),
            "detail": pa.array([r.detail for r in rows], pa.string()),
            "event_id": pa.array([r.event_id for r in rows], pa.string()),
            "ts_us": pa.array([r.ts_us for r in rows], pa.int64()),
            "raw": pa.array([r.raw for r in rows], pa.binary()),
            "log_offset": pa.array([r.offset for r in rows], pa.int64()),
            "line": pa.array([r.line for r in rows], pa.int64()),
            "digest": pa.array(list(rejects), pa.binary()),
            "session_id": pa.array([r.session_id for r in rows], pa.string()),
        }
    )
