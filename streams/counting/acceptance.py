"""What of a decoded batch is accepted: not applied before, neither too far ahead of the clock nor older than the retention.

Each event gets its log order (`seq`) and the shard's time when it arrived (`arrival_us`): the latest time among the events so
far, where an event counts with its own time or with its record's, whichever is earlier (`clock_us`). What depends on the order
of arrival then depends on the log alone, not on how it was split into batches.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from streams.counting.batch import Batch, split_values, to_numbers
from streams.counting.record_times import NO_TIMES, RecordTimes
from streams.events.columns import Columns
from streams.events.line_spans import Flags, Int64s, Spans
from streams.events.rules import CountingRules
from streams.events.schema import Reason, Reject


def drop_applied(columns: Columns, next_offset: int) -> Columns:
    """Return the events and rejects with an offset of at least `next_offset`."""
    tables = (columns.queries, columns.impressions, columns.clicks)
    kept = [table.filter(pc.greater_equal(table["log_offset"], next_offset)) for table in tables]
    return Columns(kept[0], kept[1], kept[2], columns.texts, [r for r in columns.rejects if r.offset >= next_offset])


def accept(
    columns: Columns, latest_us: int | None, rules: CountingRules, now_us: int, record_times: RecordTimes = NO_TIMES
) -> Batch:
    """Return decoded events as a batch; those ahead of the clock `now_us` or older than the retention become rejects."""
    tables = [columns.queries, columns.impressions, columns.clicks]
    rejects = list(columns.rejects)
    ts_us = _concat(tables, "ts_us")
    ahead = ts_us > now_us + rules.future_tolerance_us
    if ahead.any():
        detail = f"ts: more than {rules.future_tolerance_us / 1e6:.0f} s ahead of the clock"
        tables = _refuse_where(tables, columns.texts, ahead, rejects, Reason.FUTURE_EVENT, detail)
        ts_us = ts_us[~ahead]
    seq, reject_seq = _log_order(tables, rejects)
    clock_us = record_times.earlier(_concat(tables, "log_offset"), ts_us)
    arrival, reject_arrival, after = _arrivals(clock_us, seq, reject_seq, latest_us)
    if not rules.retention_us:
        arrival, reject_arrival = arrival * 0, reject_arrival * 0
    ordered = zip(tables, *(split_values(values, tables) for values in (seq, arrival, clock_us)), strict=True)
    tables = [_add_order(*one) for one in ordered]
    if rules.retention_us and (old := ts_us < arrival - rules.retention_us).any():
        detail = f"ts: more than {rules.retention_days} days before the shard's time"
        reject_seq = np.concatenate([reject_seq, seq[old]])
        reject_arrival = np.concatenate([reject_arrival, arrival[old]])
        tables = _refuse_where(tables, columns.texts, old, rejects, Reason.TOO_OLD, detail)
    return Batch(tables[0], tables[1], tables[2], columns.texts, rejects, reject_seq, reject_arrival, after)


def _concat(tables: Iterable[pa.Table], name: str) -> Int64s:
    return np.concatenate([to_numbers(table, name) for table in tables])


def _log_order(tables: Sequence[pa.Table], rejects: Sequence[Reject]) -> tuple[Int64s, Int64s]:
    """Return for the rows, table after table, and for the rejects a number that grows with (offset, line)."""
    offsets, lines = _concat(tables, "log_offset"), _concat(tables, "line")
    events = len(offsets)
    if rejects:
        offsets = np.concatenate([offsets, [reject.offset for reject in rejects]])
        lines = np.concatenate([lines, [reject.line for reject in rejects]])
    first = offsets.min() if len(offsets) else 0
    seq = (offsets - first) * (lines.max(initial=0) + 2) + lines + 1
    return seq[:events], seq[events:]


def _arrivals(clock_us: Int64s, seq: Int64s, reject_seq: Int64s, latest_us: int | None) -> tuple[Int64s, Int64s, int | None]:
    """Return the shard's time when each event arrived, itself included, when each reject arrived, and at the end."""
    order = seq.argsort(kind="stable")
    before = -1 if latest_us is None else latest_us
    running = np.maximum.accumulate(np.concatenate([[before], clock_us[order]]))
    arrival = np.empty_like(clock_us)
    arrival[order] = running[1:]
    of_rejects = running[seq[order].searchsorted(reject_seq)]
    return arrival, of_rejects, int(running[-1]) if len(clock_us) else latest_us


def _add_order(table: pa.Table, seq: Int64s, arrival: Int64s, clock_us: Int64s) -> pa.Table:
    for name, values in (("seq", seq), ("arrival_us", arrival), ("clock_us", clock_us)):
        table = table.append_column(name, pa.array(values))
    return table


def _refuse_where(
    tables: Sequence[pa.Table], texts: Spans, bad: Flags, rejects: list[Reject], reason: Reason, detail: str
) -> list[pa.Table]:
    """Return the tables without the rows flagged in `bad`, which join the rejects."""
    kept = []
    for table, flags in zip(tables, split_values(bad, tables), strict=True):
        refused = table.filter(pa.array(flags))
        known = (refused[name].to_pylist() for name in ("event_id", "ts_us", "log_offset", "line", "session_id"))
        rejects += [Reject(reason, detail, *row) for row in zip(texts.take(refused["row"].to_numpy()), *known, strict=True)]
        kept.append(table.filter(pa.array(~flags)))
    return kept
