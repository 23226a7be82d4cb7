"""Events as Arrow columns, the form in which a batch enters DuckDB.

Texts are normalised here, once for each event, so that the SQL that counts compares strings as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa

from streams.events.line_spans import Int64s, Spans, join_lines
from streams.events.normal_form import normalise
from streams.events.rules import DAY_US
from streams.events.schema import Click, Decoded, Event, Impression, Query, Reject, encode

TEXTS = pa.list_(pa.string())


def _schema(**own: pa.DataType) -> pa.Schema:
    shared = {"ts_us": pa.int64(), "day": pa.date32(), "event_id": pa.string()}
    location = {"log_offset": pa.int64(), "line": pa.int64(), "row": pa.int64()}
    return pa.schema(shared | own | location)


QUERIES = _schema(session_id=pa.string(), user_id=pa.string(), query=pa.string(), query_norm=pa.string(), source=pa.string())
IMPRESSIONS = _schema(
    impression_id=pa.string(),
    session_id=pa.string(),
    user_id=pa.string(),
    query=pa.string(),
    query_norm=pa.string(),
    task=pa.string(),
    items=TEXTS,
    items_norm=TEXTS,
    release=pa.string(),
    predicted=pa.list_(pa.float64()),
    logprob=pa.float64(),
    decoding=pa.string(),
    extra=pa.string(),
)
"""`items_norm` is null where every item is its own normal form."""
CLICKS = _schema(impression_id=pa.string(), session_id=pa.string(), position=pa.int64(), item_norm=pa.string(), raw=pa.binary())


@dataclass(frozen=True, slots=True)
class Columns:
    """The events of some records, one row each in any order, and the events that were refused.

    The tables have the schemas QUERIES, IMPRESSIONS and CLICKS. `log_offset` and `line` say where an event lies in the log, `row`
    is the number of its line in `texts`. Clicks have the line itself too (`raw`).
    """

    queries: pa.Table
    impressions: pa.Table
    clicks: pa.Table
    texts: Spans
    rejects: list[Reject] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.queries) + len(self.impressions) + len(self.clicks) + len(self.rejects)


def to_columns(decoded: Decoded) -> Columns:
    """Return decoded events as columns."""
    events: list[Event] = [*decoded.queries, *decoded.impressions, *decoded.clicks]
    found = (_query_columns(decoded.queries), _impression_columns(decoded.impressions), _click_columns(decoded.clicks))
    tables, first = [], 0
    for columns, schema in zip(found, (QUERIES, IMPRESSIONS, CLICKS), strict=True):
        rows = range(first, first + len(columns["event_id"]))
        tables.append(pa.table(columns | {"row": rows}, schema=schema))
        first = rows.stop
    texts = join_lines([event.raw or encode(event) for event in events])
    return Columns(tables[0], tables[1], tables[2], texts, list(decoded.rejects))


def to_event_days(ts_us: Int64s) -> pa.Array:
    """Return the UTC days (date32) of event times in microseconds since the epoch."""
    return pa.array((ts_us // DAY_US).astype(np.int32)).view(pa.date32())


def _query_columns(queries: Sequence[Query]) -> dict[str, Any]:
    return _shared_columns(queries) | {
        "session_id": [q.session_id for q in queries],
        "user_id": [q.user_id for q in queries],
        "query": [q.query for q in queries],
        "query_norm": [normalise(q.query) for q in queries],
        "source": [q.source for q in queries],
    }


def _impression_columns(impressions: Sequence[Impression]) -> dict[str, Any]:
    return _shared_columns(impressions) | {
        "impression_id": [i.impression_id for i in impressions],
        "session_id": [i.session_id for i in impressions],
        "user_id": [i.user_id for i in impressions],
        "query": [i.query for i in impressions],
        "query_norm": [normalise(i.query) for i in impressions],
        "task": [i.task for i in impressions],
        "items": [i.items for i in impressions],
        "items_norm": [_changed_normal_forms(i.items) for i in impressions],
        "release": [i.release for i in impressions],
        "predicted": [i.predicted for i in impressions],
        "logprob": [i.logprob for i in impressions],
        "decoding": [_to_json(i.decoding) for i in impressions],
        "extra": [i.extra.decode() or None for i in impressions],
    }


def _click_columns(clicks: Sequence[Click]) -> dict[str, Any]:
    return _shared_columns(clicks) | {
        "impression_id": [c.impression_id for c in clicks],
        "session_id": [c.session_id for c in clicks],
        "position": [c.position for c in clicks],
        "item_norm": [None if c.item is None else normalise(c.item) for c in clicks],
        "raw": [c.raw or encode(c) for c in clicks],
    }


def _shared_columns(events: Sequence[Event]) -> dict[str, Any]:
    return {
        "ts_us": [e.ts_us for e in events],
        "day": to_event_days(np.array([e.ts_us for e in events], np.int64)),
        "event_id": [e.event_id for e in events],
        "log_offset": [e.offset for e in events],
        "line": [e.line for e in events],
    }


def _changed_normal_forms(items: tuple[str, ...]) -> tuple[str, ...] | None:
    norms = tuple(map(normalise, items))
    return None if norms == items else norms


def _to_json(value: dict[str, Any] | None) -> str | None:
    return None if value is None else msgspec.json.encode(value).decode()
