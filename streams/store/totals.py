"""Totals of a shard: the outcome of every event and the position in the log, stored as the one row of the table `state`."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field, replace
from datetime import date

import duckdb
import pyarrow as pa

from streams.counting import retention
from streams.counting.attribution import Change
from streams.counting.caps.left_out import LeftOut, measure
from streams.counting.connection import ShardConnection
from streams.counting.pending_clicks import pending_state

LAYOUT = 5
"""Number of the table layout; a file with another one is upgraded or refused."""

TABLES = f"""
CREATE TABLE state (
    layout INTEGER, hash_probe UBIGINT, topic_id VARCHAR, next_offset BIGINT, latest_us BIGINT,
    events BIGINT, counted BIGINT, duplicates BIGINT, quarantined VARCHAR, earlier_events BIGINT,
    erased BIGINT DEFAULT 0
);
INSERT INTO state SELECT {LAYOUT}, hash('queryloop'), NULL, NULL, NULL, 0, 0, 0, '{{}}', 0, 0;
"""
"""`hash_probe` detects a DuckDB with another hash function, from which the `key` columns come. `quarantined` is JSON by
reason."""

LOAD = "SELECT topic_id, next_offset, latest_us, events, counted, duplicates, quarantined, earlier_events, erased FROM state"
# Not an UPDATE: while a reader needs what an update replaced there is no checkpoint, and this row changes with every batch.
CLEAR = "DELETE FROM state"
SAVE = """
INSERT INTO state
SELECT layout, hash('queryloop'), topic_id, next_offset, latest_us, events, counted, duplicates, quarantined, earlier_events,
    erased
FROM totals
"""
_NUMBERS = ("layout", "next_offset", "latest_us", "events", "counted", "duplicates", "earlier_events", "erased")
ROW = pa.schema([("topic_id", pa.string()), ("quarantined", pa.string()), *((name, pa.int64()) for name in _NUMBERS)])


@dataclass(frozen=True, slots=True)
class ShardTotals:
    """A shard's totals: events = counted + duplicates + sum of quarantined + pending + erased.

    `erased` are those of erased sessions and users, and `left_out` is how much of what counts is over a cap. `latest_us` is the
    shard's time (`streams.counting.acceptance`), `earlier_events` the value of `events` when the topic was last created anew
    (another topic id). `written_offset` is the `next_offset` in the file, None if that is of an earlier topic.
    """

    topic_id: str | None = None
    next_offset: int | None = None
    latest_us: int | None = None
    events: int = 0
    counted: int = 0
    duplicates: int = 0
    quarantined: dict[str, int] = field(default_factory=dict)
    pending: int = 0
    days_exported: list[date] = field(default_factory=list)
    earlier_events: int = 0
    written_offset: int | None = None
    erased: int = 0
    left_out: LeftOut = field(default_factory=LeftOut)


@dataclass(frozen=True, slots=True)
class Applied:
    """What one call changed in the totals; numbers are negative where an earlier impression retracted counts."""

    events: int = 0
    counted: int = 0
    duplicates: int = 0
    quarantined: dict[str, int] = field(default_factory=dict)
    pending: int = 0
    erased: int = 0


def move(totals: ShardTotals, topic_id: str, next_offset: int) -> ShardTotals:
    """Return the totals with a new position in the log, or with the first one in another log."""
    is_new = totals.topic_id not in (None, topic_id)
    earlier = totals.events if is_new else totals.earlier_events
    written = None if is_new else totals.written_offset
    return replace(totals, topic_id=topic_id, next_offset=next_offset, earlier_events=earlier, written_offset=written)


def add_change(totals: ShardTotals, change: Change) -> ShardTotals:
    """Return the totals with a batch's change."""
    by_reason = Counter(totals.quarantined)
    by_reason.update(change.quarantined)
    return replace(
        totals,
        counted=totals.counted + change.counted,
        duplicates=totals.duplicates + change.duplicates,
        quarantined={reason: number for reason, number in sorted(by_reason.items()) if number},
        pending=totals.pending + change.pending,
        erased=totals.erased + change.erased,
    )


def subtract_totals(before: ShardTotals, after: ShardTotals) -> Applied:
    """Return the change from one state of the totals to a later one."""
    quarantined = Counter(after.quarantined)
    quarantined.subtract(before.quarantined)
    return Applied(
        after.events - before.events,
        after.counted - before.counted,
        after.duplicates - before.duplicates,
        {reason: number for reason, number in quarantined.items() if number},
        after.pending - before.pending,
        after.erased - before.erased,
    )


def load_totals(con: duckdb.DuckDBPyConnection) -> ShardTotals:
    """Return the totals in a shard's file."""
    topic_id, next_offset, latest_us, events, counted, duplicates, quarantined, earlier, erased = con.execute(LOAD).fetchall()[0]
    pending, exported = pending_state(con)[0], retention.read_exported(con)
    by_reason, left_out = json.loads(quarantined), measure(con)
    position, sums = (topic_id, next_offset, latest_us), (events, counted, duplicates)
    return ShardTotals(*position, *sums, by_reason, pending, exported, earlier, next_offset, erased, left_out)


def save_totals(connection: ShardConnection, totals: ShardTotals) -> None:
    """Write the totals, in the caller's transaction."""
    row = {
        "layout": LAYOUT,
        "topic_id": totals.topic_id,
        "next_offset": totals.next_offset,
        "latest_us": totals.latest_us,
        "events": totals.events,
        "counted": totals.counted,
        "duplicates": totals.duplicates,
        "quarantined": json.dumps(totals.quarantined),
        "earlier_events": totals.earlier_events,
        "erased": totals.erased,
    }
    connection.change(CLEAR)
    connection.change(SAVE, totals=pa.Table.from_pylist([row], ROW))
