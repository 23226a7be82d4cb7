"""Batches: decoded events in log order, without those applied before; events from the future and too old ones become rejects.

Each event gets its log order (`seq`) and the latest event time seen when it arrived (`arrival_us`). What depends on the order of
arrival then depends on the log alone, not on how it was split into batches.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from streams.events.columns import Columns
from streams.events.line_spans import Flags, Int64s, Spans
from streams.events.rules import CountingRules
from streams.events.schema import Reason, Reject

Value = TypeVar("Value", bound=np.generic)


@dataclass(frozen=True, slots=True)
class Batch:
    """The events to count, as tables, and the rejects.

    The tables have the columns of `streams.events.columns.Columns`, and `seq` and `arrival_us` (int64; 0 if nothing expires).
    `reject_seq` and `reject_arrival_us` are the same for the rejects. `latest_us` is the latest event time up to the end of the
    batch, None if there was no event yet.
    """

    queries: pa.Table
    impressions: pa.Table
    clicks: pa.Table
    texts: Spans
    rejects: list[Reject]
    reject_seq: Int64s
    reject_arrival_us: Int64s
    latest_us: int | None

    def __len__(self) -> int:
        return len(self.queries) + len(self.impressions) + len(self.clicks) + len(self.rejects)

    @property
    def tables(self) -> tuple[pa.Table, pa.Table, pa.Table]:
        return self.queries, self.impressions, self.clicks


def drop_applied(columns: Columns, next_offset: int) -> Columns:
    """Return the events and rejects with an offset of at least `next_offset`."""
    tables = (columns.queries, columns.impressions, columns.clicks)
    kept = [table.filter(pc.greater_equal(table["log_offset"], next_offset)) for table in tables]
    return Columns(kept[0], kept[1], kept[2], columns.texts, [r for r in columns.rejects if r.offset >= next_offset])


def make_batch(columns: Columns, latest_us: int | None, rules: CountingRules, now_us: int) -> Batch:
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
    arrival, reject_arrival, after = _arrivals(ts_us, seq, reject_seq, latest_us)
    if not rules.retention_us:
        arrival, reject_arrival = arrival * 0, reject_arrival * 0
    ordered = zip(tables, split_values(seq, tables), split_values(arrival, tables), strict=True)
    tables = [_add_order(*one) for one in ordered]
    if rules.retention_us and (old := ts_us < arrival - rules.retention_us).any():
        detail = f"ts: more than {rules.retention_days} days before the latest event seen"
        reject_seq = np.concatenate([reject_seq, seq[old]])
        reject_arrival = np.concatenate([reject_arrival, arrival[old]])
        tables = _refuse_where(tables, columns.texts, old, rejects, Reason.TOO_OLD, detail)
    return Batch(tables[0], tables[1], tables[2], columns.texts, rejects, reject_seq, reject_arrival, after)


def split_values(values: npt.NDArray[Value], tables: Iterable[pa.Table]) -> list[npt.NDArray[Value]]:
    """Split one value for each row, table after table, into an array for each table."""
    ends = accumulate(map(len, tables), initial=0)
    return [values[low:high] for low, high in pairwise(ends)]


def split_batch(batch: Batch, starts: Sequence[int], latest_us: int | None) -> list[Batch]:
    """Split a batch at these values of `seq`, each the start of a part; `latest_us` is the latest event time before the batch."""
    parts = []
    for low, high in zip([-1, *starts], [*starts, None], strict=True):
        tables = [t.filter(pa.array(_between(_numbers(t, "seq"), low, high))) for t in batch.tables]
        chosen = _between(batch.reject_seq, low, high)
        rejects = [reject for reject, is_in in zip(batch.rejects, chosen, strict=True) if is_in]
        times = [latest_us, *(pc.max(t["ts_us"]).as_py() for t in tables)]
        latest_us = max((t for t in times if t is not None), default=None)
        of_rejects = rejects, batch.reject_seq[chosen], batch.reject_arrival_us[chosen]
        parts.append(Batch(tables[0], tables[1], tables[2], batch.texts, *of_rejects, latest_us))
    return parts


def _between(seq: Int64s, low: int, high: int | None) -> Flags:
    return (seq >= low) if high is None else (seq >= low) & (seq < high)


def _numbers(table: pa.Table, name: str) -> Int64s:
    return table[name].to_numpy()  # type: ignore[no-any-return]


def _concat(tables: Iterable[pa.Table], name: str) -> Int64s:
    return np.concatenate([_numbers(table, name) for table in tables])


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


def _arrivals(ts_us: Int64s, seq: Int64s, reject_seq: Int64s, latest_us: int | None) -> tuple[Int64s, Int64s, int | None]:
    """Return the latest event time when each event arrived, itself included, when each reject arrived, and at the end."""
    order = seq.argsort(kind="stable")
    before = -1 if latest_us is None else latest_us
    running = np.maximum.accumulate(np.concatenate([[before], ts_us[order]]))
    arrival = np.empty_like(ts_us)
    arrival[order] = running[1:]
    of_rejects = running[seq[order].searchsorted(reject_seq)]
    return arrival, of_rejects, int(running[-1]) if len(ts_us) else latest_us


def _add_order(table: pa.Table, seq: Int64s, arrival: Int64s) -> pa.Table:
    return table.append_column("seq", pa.array(seq)).append_column("arrival_us", pa.array(arrival))


def _refuse_where(
    tables: Sequence[pa.Table], texts: Spans, bad: Flags, rejects: list[Reject], reason: Reason, detail: str
) -> list[pa.Table]:
    """Return the tables without the rows flagged in `bad`, which join the rejects."""
    kept = []
    for table, flags in zip(tables, split_values(bad, tables), strict=True):
        refused = table.filter(pa.array(flags))
        known = (refused[name].to_pylist() for name in ("event_id", "ts_us", "log_offset", "line"))
        rejects += [Reject(reason, detail, *row) for row in zip(texts.take(refused["row"].to_numpy()), *known, strict=True)]
        kept.append(table.filter(pa.array(~flags)))
    return kept
