"""What of a decoded batch goes on to be counted: not applied before, neither in the future nor too old, and delivered once.

The batch gets its log order (`seq`) and, for each event, the latest event time seen when it arrived (`arrival_us`). What depends
on the order of arrival then depends on the log alone, not on how it was cut into batches.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import chain

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from streams.columns import click_columns, impression_columns, query_columns
from streams.events import Decoded, Event, Reason, Reject, reject_event
from streams.rules import CountingRules

TABLES = """
CREATE TABLE seen (ts_us BIGINT, key UBIGINT, event_id VARCHAR);
"""
"""Every event that was taken in, so that what is delivered twice is found. `key` is hash(event_id)."""

# Joining 64-bit keys first and comparing texts only among the hits reads an eighth of what a join on the texts does.
FIND_DUPLICATES = """
WITH hits AS MATERIALIZED (
    SELECT i.row, i.event_id, s.event_id AS seen_id FROM seen s JOIN intake i ON s.key = hash(i.event_id)
)
SELECT DISTINCT row FROM hits WHERE event_id = seen_id
"""

REMEMBER = "INSERT INTO seen SELECT ts_us, hash(event_id), event_id FROM intake"


@dataclass(frozen=True, slots=True)
class Batch:
    """Columns of the events to count and the rejects beside them.

    The tables have the columns of `streams.columns` and `seq`, `arrival_us` (int64; 0 where nothing expires). `latest_us` is the
    latest event time seen after this batch, None when there was none yet.
    """

    queries: pa.Table
    impressions: pa.Table
    clicks: pa.Table
    rejects: list[Reject]
    latest_us: int | None

    def __len__(self) -> int:
        return len(self.queries) + len(self.impressions) + len(self.clicks)


def drop_applied(decoded: Decoded, next_offset: int) -> Decoded:
    """Return what stands at `next_offset` or after it in the log."""
    return Decoded(
        [e for e in decoded.queries if e.offset >= next_offset],
        [e for e in decoded.impressions if e.offset >= next_offset],
        [e for e in decoded.clicks if e.offset >= next_offset],
        [r for r in decoded.rejects if r.offset >= next_offset],
    )


def take_in(decoded: Decoded, latest_us: int | None, rules: CountingRules, now_us: int) -> Batch:
    """Order a batch and turn it into columns; what is ahead of the clock or older than the retention becomes a reject."""
    ts_us, seq = _times(decoded)
    horizon = now_us + rules.future_tolerance_us
    if len(ts_us) and pc.max(ts_us).as_py() > horizon:
        detail = f"ts: more than {rules.future_tolerance_us / 1e6:.0f} s ahead of the clock"
        decoded = _reject_where(decoded, pc.greater(ts_us, horizon), Reason.FUTURE_EVENT, detail)
        ts_us, seq = _times(decoded)
    arrival = _arrivals(ts_us, seq, latest_us)
    after = pc.max(arrival).as_py() if len(arrival) else latest_us
    if not rules.retention_us:
        return _to_columns(decoded, seq, pc.multiply(arrival, 0), after)
    old = pc.less(ts_us, pc.subtract(arrival, rules.retention_us))
    if pc.any(old).as_py():
        detail = f"ts: more than {rules.retention_days} days before the latest event seen"
        decoded = _reject_where(decoded, old, Reason.TOO_OLD, detail)
        young = pc.invert(old)
        seq, arrival = seq.filter(young), arrival.filter(young)
    return _to_columns(decoded, seq, arrival, after)


def drop_duplicates(con: duckdb.DuckDBPyConnection, batch: Batch) -> Batch:
    """Return the batch without what this shard has seen and without repeats inside it; remember the rest."""
    tables = [batch.queries, batch.impressions, batch.clicks]
    ids = pa.concat_tables([t.select(["event_id", "ts_us", "seq"]) for t in tables])
    ids = ids.append_column("row", pa.array(range(len(ids)), pa.int64()))
    con.register("intake", ids)
    gone = _repeats(ids) | {row for (row,) in con.execute(FIND_DUPLICATES).fetchall()}
    if gone:
        keep = pa.array([row not in gone for row in range(len(ids))])
        con.register("intake", ids.filter(keep))
        starts = [0, len(tables[0]), len(tables[0]) + len(tables[1])]
        tables = [t.filter(keep.slice(start, len(t))) for t, start in zip(tables, starts, strict=True)]
    con.execute(REMEMBER)
    con.unregister("intake")
    return replace(batch, queries=tables[0], impressions=tables[1], clicks=tables[2])


def _events(decoded: Decoded) -> chain[Event]:
    return chain(decoded.queries, decoded.impressions, decoded.clicks)


def _times(decoded: Decoded) -> tuple[pa.Array, pa.Array]:
    """Return event times and log order, one number that grows with (offset, line)."""
    events = list(_events(decoded))
    width = max((e.line for e in events), default=0) + 2
    first = min((e.offset for e in events), default=0)
    seq = pa.array([(e.offset - first) * width + e.line + 1 for e in events], pa.int64())
    return pa.array([e.ts_us for e in events], pa.int64()), seq


def _arrivals(ts_us: pa.Array, seq: pa.Array, latest_us: int | None) -> pa.Array:
    """Return for each event the latest event time seen when it arrived, itself included."""
    order = pc.sort_indices(seq)
    running = pc.cumulative_max(ts_us.take(order))
    if latest_us is not None:
        running = pc.max_element_wise(running, latest_us)
    return running.take(pc.sort_indices(order))


def _reject_where(decoded: Decoded, bad: pa.Array, reason: Reason, detail: str) -> Decoded:
    """Return the batch with the events flagged in `bad` (queries, impressions, clicks in turn) among its rejects."""
    kept = Decoded(rejects=list(decoded.rejects))
    for event, is_bad in zip(_events(decoded), bad.to_pylist(), strict=True):
        kept.add(reject_event(event, reason, detail) if is_bad else event)
    return kept


def _to_columns(decoded: Decoded, seq: pa.Array, arrival: pa.Array, latest_us: int | None) -> Batch:
    queries, shown = len(decoded.queries), len(decoded.queries) + len(decoded.impressions)

    def place(table: pa.Table, start: int) -> pa.Table:
        placed = table.append_column("seq", seq.slice(start, len(table)))
        return placed.append_column("arrival_us", arrival.slice(start, len(table)))

    return Batch(
        place(query_columns(decoded.queries), 0),
        place(impression_columns(decoded.impressions), queries),
        place(click_columns(decoded.clicks), shown),
        decoded.rejects,
        latest_us,
    )


def _repeats(ids: pa.Table) -> set[int]:
    """Return the rows whose event_id stands earlier in the batch."""
    names = ids["event_id"].to_pylist()
    if len(set(names)) == len(names):
        return set()
    first: set[str] = set()
    repeats = set()
    for row in pc.sort_indices(ids["seq"]).to_pylist():
        if names[row] in first:
            repeats.add(row)
        first.add(names[row])
    return repeats
