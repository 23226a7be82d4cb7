"""Quarantine: events that cannot be used, each with its reason and its original bytes, to be inspected and repaired.

A bad event delivered twice has one row: it is identified by its reason and event_id, or by its bytes if it has no readable id.
Once a good version with the same event_id is accepted, its rows are withdrawn: the event is repaired. A row whose bytes were
dropped (`raw` is null) is in no read; it only keeps the totals right until it expires.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b

import duckdb
import numpy as np
import pyarrow as pa

from streams.counting.connection import ShardConnection, run_to_end
from streams.counting.key_index import KeyArray, KeySet
from streams.events.schema import Reason, Reject

TABLES = """
CREATE SEQUENCE quarantine_ids;
CREATE TABLE quarantine (
    id BIGINT DEFAULT nextval('quarantine_ids'), reason VARCHAR, detail VARCHAR, event_id VARCHAR, ts_us BIGINT, raw BLOB,
    log_offset BIGINT, line BIGINT, published BOOLEAN DEFAULT false, arrived_us BIGINT, digest BLOB
);
"""
"""`arrived_us` is the latest event time that the shard had seen before, `digest` identifies duplicates."""

CLICK_REASONS = [str(r) for r in (Reason.LATE_CLICK, Reason.ORPHAN_CLICK, Reason.POSITION_OUT_OF_RANGE, Reason.ITEM_MISMATCH)]
"""Reasons for which attribution refuses a click: its id is in `seen`, but not occupied by it."""

ADD_NEW = """
INSERT INTO quarantine (reason, detail, event_id, ts_us, raw, log_offset, line, arrived_us, digest)
SELECT reason, detail, event_id, ts_us, raw, log_offset, line, $arrived, digest
FROM rejects
ORDER BY log_offset, line
RETURNING event_id, reason, hash(event_id)
"""
ADD_UNLESS_STORED = ADD_NEW.replace("FROM rejects", "FROM rejects WHERE digest NOT IN (SELECT digest FROM quarantine)")
LOAD = "SELECT hash(event_id) AS key, digest FROM quarantine"
REMOVE_REATTRIBUTED = (
    "DELETE FROM quarantine WHERE (event_id, reason) IN (SELECT event_id, reason FROM taken_back) RETURNING reason"
)
WITHDRAW = "DELETE FROM quarantine WHERE event_id IN (SELECT event_id FROM accepted) RETURNING event_id, reason"
REFUSED_IDS = """
SELECT DISTINCT event_id FROM quarantine SEMI JOIN maybe_refused USING (event_id) WHERE reason IN (SELECT unnest($reasons))
"""
# An event that counts or waits may have the same id if it is more than the retention later.
OCCUPIED_IDS = """
SELECT event_id FROM pending SEMI JOIN refused_ids USING (event_id)
UNION
SELECT event_id FROM clicks SEMI JOIN refused_ids USING (event_id) WHERE reason IS NULL
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
) -> list[tuple[str | None, Reason]]:
    """Store rejects; return event_id and reason of each new row. The other rejects are duplicates."""
    distinct = {_digest(r): r for r in reversed(rejects)}
    if not distinct:
        return []
    digests = _digest_keys(distinct)
    sql = ADD_UNLESS_STORED if known.digests.contains(digests).any() else ADD_NEW
    added = connection.execute(sql, {"arrived": arrived_us}, rejects=_columns(distinct)).fetchall()
    known.digests.add(digests)
    known.ids.add(np.array([key for _, _, key in added], np.uint64))
    return [(event_id, Reason(reason)) for event_id, reason, _ in added]


def remove_reattributed(connection: ShardConnection) -> Counter[str]:
    """Remove the rows of the re-attributed clicks in `taken_back` (event_id, reason); return their number by reason."""
    return Counter(reason for (reason,) in connection.execute(REMOVE_REATTRIBUTED).fetchall())


def withdraw(connection: ShardConnection, accepted: pa.ChunkedArray) -> list[tuple[str, Reason]]:
    """Remove the rows of these event ids, of which a good version was accepted; return event_id and reason of each."""
    withdrawn = connection.execute(WITHDRAW, accepted=pa.table({"event_id": accepted})).fetchall()
    return [(event_id, Reason(reason)) for event_id, reason in withdrawn]


def find_unoccupied(connection: ShardConnection, event_ids: pa.ChunkedArray) -> set[str]:
    """Return which of these ids have refused clicks, and no click that counts or waits."""
    maybe_refused = pa.table({"event_id": event_ids})
    refused = {
        event_id
        for (event_id,) in connection.execute(REFUSED_IDS, {"reasons": CLICK_REASONS}, maybe_refused=maybe_refused).fetchall()
    }
    if not refused:
        return refused
    ids = pa.table({"event_id": pa.array(sorted(refused), pa.string())})
    occupied = {event_id for (event_id,) in connection.execute(OCCUPIED_IDS, refused_ids=ids).fetchall()}
    return refused - occupied


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
    known_by = reject.raw if reject.event_id is None else reject.event_id.encode()
    return blake2b(
        known_by, digest_size=16, key=str(reject.reason).encode(), person=b"bytes" if reject.event_id is None else b"id"
    ).digest()


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
        }
    )
