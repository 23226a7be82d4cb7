"""A snapshot of a shard's counts as bytes, from which `queryloop verify` learns what a running worker has counted.

It is a sequence of compressed Arrow IPC streams: windows by day, co-occurrence by day, events ahead of the clock. The first
stream's schema metadata has the topic id, next offset, totals and counting rules of that moment.
"""

from __future__ import annotations

import io
import json
from dataclasses import asdict, dataclass, field
from datetime import date

import duckdb
import pyarrow as pa

from streams.counting.caps.left_out import stored_caps
from streams.events.rules import CountingRules
from streams.store.shard import Shard

WINDOWS = """
SELECT day, query_norm, item_norm, position, sum(impressions)::BIGINT AS impressions, sum(clicks)::BIGINT AS clicks
FROM window_counts
GROUP BY ALL
HAVING sum(impressions) <> 0 OR sum(clicks) <> 0
"""
COOCCURRENCE = """
SELECT day, query, next_query, sum(count)::BIGINT AS count FROM pair_counts GROUP BY ALL HAVING sum(count) <> 0
"""
FUTURE = "SELECT event_id FROM quarantine WHERE reason = 'future_event'"
DAYS = "SELECT day, dirty FROM days WHERE exported OR dirty ORDER BY day"
TOTALS = "SELECT topic_id, next_offset, latest_us, events, counted, duplicates, earlier_events, erased, quarantined FROM state"
PENDING = "SELECT count(*) FROM pending"

METADATA_KEY = b"queryloop"
"""Name of the entry in the first stream's schema metadata; its value is JSON."""


class CountsError(ValueError):
    """The bytes are no snapshot by `dump_counts`."""


@dataclass(frozen=True, slots=True)
class Counts:
    """One shard's counts at `next_offset` of its log.

    windows: day, query_norm, item_norm, position, impressions, clicks. cooccurrence: day, query, next_query, count. future:
    event_id of the events that were ahead of the clock on arrival, which the log alone does not show. No row is all zero.
    `exported` are the days whose current counts are in the lake; `earlier_events` of `events` are from an earlier topic's log.
    """

    windows: pa.Table
    cooccurrence: pa.Table
    future: pa.Table
    rules: CountingRules
    topic_id: str | None = None
    next_offset: int | None = None
    latest_us: int | None = None
    events: int = 0
    counted: int = 0
    duplicates: int = 0
    earlier_events: int = 0
    erased: int = 0
    pending: int = 0
    quarantined: dict[str, int] = field(default_factory=dict)
    exported: list[date] = field(default_factory=list)


def dump_counts(shard: Shard) -> bytes:
    """Return the shard's counts at one moment. Any thread may call it while the shard's own thread counts."""
    con = shard.reader()
    try:
        con.execute("BEGIN TRANSACTION READ ONLY")
        caps = dict(zip(("session_cap", "user_cap"), stored_caps(con), strict=True))  # a stopped worker's may be others
        head = json.dumps({**_read_totals(con), "rules": asdict(shard.rules) | caps}).encode()
        sink = io.BytesIO()
        for sql, metadata in ((WINDOWS, {METADATA_KEY: head}), (COOCCURRENCE, None), (FUTURE, None)):
            _write(con, sql, sink, metadata)
        return sink.getvalue()
    finally:
        con.close()


def read_counts(dumped: bytes) -> Counts:
    """Return the counts that `dump_counts` wrote. Raises CountsError."""
    source = pa.BufferReader(dumped)
    try:
        windows, cooccurrence, future = (pa.ipc.open_stream(source).read_all() for _ in range(3))
        head = json.loads(windows.schema.metadata[METADATA_KEY])
        rules = CountingRules(**head.pop("rules"))
        exported = [date.fromisoformat(day) for day in head.pop("exported")]
        return Counts(windows.replace_schema_metadata(None), cooccurrence, future, rules, exported=exported, **head)
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
        raise CountsError(f"not the counts of a shard: {error!r}") from error


def _read_totals(con: duckdb.DuckDBPyConnection) -> dict[str, object]:
    row = con.execute(TOTALS).fetchall()[0]
    names = ("topic_id", "next_offset", "latest_us", "events", "counted", "duplicates", "earlier_events", "erased", "quarantined")
    totals = dict(zip(names, row, strict=True))
    exported = [str(day) for day, dirty in con.execute(DAYS).fetchall() if not dirty]
    pending = con.execute(PENDING).fetchall()[0][0]
    return {**totals, "quarantined": json.loads(totals["quarantined"]), "pending": pending, "exported": exported}


def _write(con: duckdb.DuckDBPyConnection, sql: str, sink: io.BytesIO, metadata: dict[bytes, bytes] | None) -> None:
    batches = con.sql(sql).to_arrow_reader(65_536)
    schema = batches.schema.with_metadata(metadata)
    with pa.ipc.new_stream(sink, schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as stream:
        for batch in batches:
            stream.write_batch(batch.replace_schema_metadata(metadata))
