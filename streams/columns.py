"""Events as Arrow columns, the form in which a batch enters DuckDB.

Texts are normalised here, once an event, so that the SQL that counts compares plain strings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from streams.events import Click, Decoded, Event, Impression, Query, Reject, encode, normalise
from streams.lines import Spans, join_lines
from streams.rules import DAY_US

TEXTS = pa.list_(pa.string())


@dataclass(frozen=True, slots=True)
class Columns:
    """What a run of records held: one row an event, in any order, and what was refused.

    Every table has ts_us, day, event_id, row (of the event's line in `texts`) and the event's place in the log: log_offset, line.
    Clicks have the line itself too (raw).
    """

    queries: pa.Table
    impressions: pa.Table
    clicks: pa.Table
    texts: Spans
    rejects: list[Reject] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.queries) + len(self.impressions) + len(self.clicks) + len(self.rejects)


def columns_of(decoded: Decoded) -> Columns:
    """Return decoded events as columns."""
    events: list[Event] = [*decoded.queries, *decoded.impressions, *decoded.clicks]
    tables = (query_columns(decoded.queries), impression_columns(decoded.impressions), click_columns(decoded.clicks))
    ends = np.cumsum(list(map(len, tables)))
    placed = [t.append_column("row", pa.array(np.arange(end - len(t), end))) for t, end in zip(tables, ends, strict=True)]
    texts = join_lines([event.raw or encode(event) for event in events])
    return Columns(placed[0], placed[1], placed[2], texts, list(decoded.rejects))


def event_days(ts_us: pa.Array) -> pa.Array:
    """Return the UTC days (date32) of event times in microseconds since the epoch."""
    return pc.divide(ts_us, DAY_US).cast(pa.int32()).view(pa.date32())


def query_columns(queries: Sequence[Query]) -> pa.Table:
    """Return one row a query, without `row`, as the two below."""
    return pa.table(
        _shared(queries)
        | {
            "session_id": pa.array([q.session_id for q in queries], pa.string()),
            "user_id": pa.array([q.user_id for q in queries], pa.string()),
            "query": pa.array([q.query for q in queries], pa.string()),
            "query_norm": pa.array([normalise(q.query) for q in queries], pa.string()),
            "source": pa.array([q.source for q in queries], pa.string()),
        }
    )


def impression_columns(impressions: Sequence[Impression]) -> pa.Table:
    """Return one row an impression; `items_norm` is null where normalising changes no item."""
    return pa.table(
        _shared(impressions)
        | {
            "impression_id": pa.array([i.impression_id for i in impressions], pa.string()),
            "session_id": pa.array([i.session_id for i in impressions], pa.string()),
            "user_id": pa.array([i.user_id for i in impressions], pa.string()),
            "query": pa.array([i.query for i in impressions], pa.string()),
            "query_norm": pa.array([normalise(i.query) for i in impressions], pa.string()),
            "task": pa.array([i.task for i in impressions], pa.string()),
            "items": pa.array([i.items for i in impressions], TEXTS),
            "items_norm": pa.array([_changed(i.items) for i in impressions], TEXTS),
            "release": pa.array([i.release for i in impressions], pa.string()),
            "predicted": pa.array([i.predicted for i in impressions], pa.list_(pa.float64())),
            "logprob": pa.array([i.logprob for i in impressions], pa.float64()),
            "decoding": pa.array([_json(i.decoding) for i in impressions], pa.string()),
            "extra": pa.array([i.extra.decode() or None for i in impressions], pa.string()),
        }
    )


def click_columns(clicks: Sequence[Click]) -> pa.Table:
    """Return one row a click."""
    return pa.table(
        _shared(clicks)
        | {
            "impression_id": pa.array([c.impression_id for c in clicks], pa.string()),
            "position": pa.array([c.position for c in clicks], pa.int64()),
            "item_norm": pa.array([None if c.item is None else normalise(c.item) for c in clicks], pa.string()),
            "raw": pa.array([c.raw or encode(c) for c in clicks], pa.binary()),
        }
    )


def _shared(events: Sequence[Event]) -> dict[str, Any]:
    ts_us = pa.array([e.ts_us for e in events], pa.int64())
    return {
        "ts_us": ts_us,
        "day": event_days(ts_us),
        "event_id": pa.array([e.event_id for e in events], pa.string()),
        "log_offset": pa.array([e.offset for e in events], pa.int64()),
        "line": pa.array([e.line for e in events], pa.int64()),
    }


def _changed(items: tuple[str, ...]) -> tuple[str, ...] | None:
    norms = tuple(map(normalise, items))
    return None if norms == items else norms


def _json(value: dict[str, Any] | None) -> str | None:
    return None if value is None else msgspec.json.encode(value).decode()
