"""Quarantine: events that cannot be used, each with its reason and its original bytes, to be looked at and repaired.

A bad event delivered twice has one row: it is known by its reason and event_id, or by its bytes where no id could be read. When a
good version of the same event_id is taken in, its rows are withdrawn: that event is repaired.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b

import duckdb
import numpy as np
import pyarrow as pa

from streams.counting.connection import Feeds, run_to_end
from streams.counting.key_index import Keys, KeySet
from streams.events.schema import Reason, Reject

TABLES = """
CREATE SEQUENCE quarantine_ids;
CREATE TABLE quarantine (
    id BIGINT DEFAULT nextval('quarantine_ids'), reason VARCHAR, detail VARCHAR, event_id VARCHAR, ts_us BIGINT, raw BLOB,
    log_offset BIGINT, line BIGINT, published BOOLEAN DEFAULT false, arrived_us BIGINT, digest BLOB
);
"""
"""`arrived_us` is the latest event time the shard had seen, `digest` tells repeats."""

CLICK_REASONS = [str(r) for r in (Reason.LATE_CLICK, Reason.ORPHAN_CLICK, Reason.POSITION_OUT_OF_RANGE, Reason.ITEM_MISMATCH)]
"""Why clicks are refused that decoded well: their ids are known to the shard, but free."""

ADD_NEW = """
INSERT INTO quarantine (reason, detail, event_id, ts_us, raw, log_offset, line, arrived_us, digest)
SELECT reason, detail, event_id, ts_us, raw, log_offset, line, $arrived, digest
FROM rejects
ORDER BY log_offset, line
RETURNING event_id, reason, hash(event_id)
"""
ADD_UNLESS_HELD = ADD_NEW.replace("FROM rejects", "FROM rejects WHERE digest NOT IN (SELECT digest FROM quarantine)")
LOAD = "SELECT hash(event_id) AS key, digest FROM quarantine"
TAKE_BACK = "DELETE FROM quarantine WHERE (event_id, reason) IN (SELECT event_id, reason FROM taken_back) RETURNING reason"
WITHDRAW = "DELETE FROM quarantine WHERE event_id IN (SELECT event_id FROM taken_in) RETURNING event_id, reason"
REFUSED_IDS = """
SELECT DISTINCT event_id FROM quarantine SEMI JOIN asked USING (event_id) WHERE reason IN (SELECT unnest($reasons))
"""
# The same id may stand for an event more than the retention later, which counts or waits.
HELD_IDS = """
SELECT event_id FROM pending SEMI JOIN refused_ids USING (event_id)
UNION
SELECT event_id FROM clicks SEMI JOIN refused_ids USING (event_id) WHERE reason IS NULL
"""

READ = """
SELECT id, reason, detail, event_id, ts_us, raw, log_offset, line, published FROM quarantine ORDER BY id
"""
UNPUBLISHED = """
SELECT id, reason, detail, event_id, ts_us, raw, log_offset, line FROM quarantine WHERE NOT published ORDER BY id LIMIT $limit
"""
PUBLISH = "UPDATE quarantine SET published = true WHERE id IN (SELECT unnest($ids::BIGINT[]))"


@dataclass(slots=True)
class Held:
    """What the quarantine may hold, so that most batches need not read it: keys of event ids, and heads of digests."""

    ids: KeySet = field(default_factory=KeySet)
    digests: KeySet = field(default_factory=KeySet)


def load_held(con: duckdb.DuckDBPyConnection) -> Held:
    """Return what the file's quarantine holds."""
    held, rows = Held(), con.execute(LOAD).fetchnumpy()
    held.ids.add(np.asarray(rows["key"], np.uint64))
    held.digests.add(_heads(rows["digest"]))
    return held


def add_rejects(feeds: Feeds, rejects: Sequence[Reject], arrived_us: int | None, held: Held) -> list[tuple[str | None, Reason]]:
    """Keep what was refused and return event_id and reason of each new row; the others are repeats."""
    distinct = {_digest(r): r for r in reversed(rejects)}
    if not distinct:
        return []
    heads = _heads(distinct)
    sql = ADD_UNLESS_HELD if held.digests.contains(heads).any() else ADD_NEW
    added = feeds.execute(sql, {"arrived": arrived_us}, rejects=_columns(distinct)).fetchall()
    held.digests.add(heads)
    held.ids.add(np.array([key for _, _, key in added], np.uint64))
    return [(event_id, Reason(reason)) for event_id, reason, _ in added]


def take_back(feeds: Feeds) -> Counter[str]:
    """Remove the clicks in the relation `taken_back` (event_id, reason), to be judged anew; return their number by reason."""
    return Counter(reason for (reason,) in feeds.execute(TAKE_BACK).fetchall())


def withdraw(feeds: Feeds, taken_in: pa.ChunkedArray) -> list[tuple[str, Reason]]:
    """Remove the rows of events (by id) of which a good version was taken in; return event_id and reason of each."""
    withdrawn = feeds.execute(WITHDRAW, taken_in=pa.table({"event_id": taken_in})).fetchall()
    return [(event_id, Reason(reason)) for event_id, reason in withdrawn]


def find_free(feeds: Feeds, event_ids: pa.ChunkedArray) -> set[str]:
    """Return those of these ids whose clicks were all refused, none of them counts or waits."""
    asked = pa.table({"event_id": event_ids})
    refused = {event_id for (event_id,) in feeds.execute(REFUSED_IDS, {"reasons": CLICK_REASONS}, asked=asked).fetchall()}
    if not refused:
        return refused
    ids = pa.table({"event_id": pa.array(sorted(refused), pa.string())})
    held = {event_id for (event_id,) in feeds.execute(HELD_IDS, refused_ids=ids).fetchall()}
    return refused - held


def read_quarantine(con: duckdb.DuckDBPyConnection) -> pa.Table:
    """Return id, reason, detail, event_id, ts_us, raw, log_offset, line, published, in order of arrival."""
    return con.sql(READ).to_arrow_table()


def read_unpublished(con: duckdb.DuckDBPyConnection, limit: int) -> pa.Table:
    """Return the first rows that are not yet in the quarantine topic."""
    return con.sql(UNPUBLISHED, params={"limit": limit}).to_arrow_table()


def mark_published(con: duckdb.DuckDBPyConnection, ids: Sequence[int]) -> None:
    """Say of rows that they are in the quarantine topic."""
    run_to_end(con, PUBLISH, {"ids": list(ids)})


def _digest(reject: Reject) -> bytes:
    known_by = reject.raw if reject.event_id is None else reject.event_id.encode()
    return blake2b(
        known_by, digest_size=16, key=str(reject.reason).encode(), person=b"bytes" if reject.event_id is None else b"id"
    ).digest()


def _heads(digests: Iterable[bytes]) -> Keys:
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
