"""Reads for the repair of quarantined events from one shard: quarantine rows with their original bytes, and states of event ids.

They return JSON for the worker's HTTP; while no worker holds the shard, `queryloop quarantine` calls them on the shard's file.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Annotated, Any

import duckdb
import msgspec
from pydantic import BaseModel, BeforeValidator, Field
from pydantic_core import from_json

from streams.counting.key_index import key_sql
from streams.counting.quarantine import CLICK_REASONS
from streams.events.schema import MAX_ID_CHARS, Reason
from streams.store.shard import Shard

MAX_ROWS = 500
MAX_BYTES = 16 * 1024 * 1024
"""Original bytes per answer; a page ends before the row that would exceed them, unless it is the only one."""

ROWS = """
SELECT id, reason, detail, event_id, ts_us, raw, log_offset, line, published FROM quarantine
WHERE raw IS NOT NULL AND id > $after AND ($id::BIGINT IS NULL OR id = $id) AND ($reason::VARCHAR IS NULL OR reason = $reason)
ORDER BY id LIMIT $limit
"""
NEWEST = """
SELECT id, reason, detail, event_id, ts_us, NULL, log_offset, line, published FROM quarantine
WHERE raw IS NOT NULL AND ($reason::VARCHAR IS NULL OR reason = $reason)
ORDER BY id DESC LIMIT $limit
"""
COUNTS = "SELECT reason, count(*) FROM quarantine WHERE raw IS NOT NULL GROUP BY reason ORDER BY reason"
NEXT_OFFSET = "SELECT topic_id, next_offset FROM state"
STATES = f"""
WITH wanted AS (SELECT unnest($ids::VARCHAR[]) AS event_id, unnest($sessions::VARCHAR[]) AS session_id)
SELECT event_id,
    (event_id, session_id) IN (
        SELECT (w.event_id, w.session_id)
        FROM seen s JOIN wanted w ON s.key = {key_sql("w.event_id", "w.session_id")} WHERE s.event_id = w.event_id
    ),
    (event_id, session_id) IN (SELECT (event_id, session_id) FROM pending),
    (
        SELECT reason FROM quarantine q
        WHERE q.event_id = wanted.event_id AND q.session_id = wanted.session_id ORDER BY id DESC LIMIT 1
    )
FROM wanted
"""
EventId = Annotated[str, Field(max_length=MAX_ID_CHARS)]
NAMES = ("id", "reason", "detail", "event_id", "ts_us", "raw", "offset", "line", "published")


def _read_ids(value: object) -> object:
    return from_json(value) if isinstance(value, str) else value


class RowsParams(BaseModel, frozen=True, extra="forbid"):
    """Which quarantine rows: the newest without their bytes, or, with `whole` or an `id`, whole rows by id from after `after`."""

    reason: Reason | None = None
    limit: int = Field(default=20, ge=1, le=MAX_ROWS)
    id: int | None = Field(default=None, ge=0)
    after: int = Field(default=-1, ge=-1)
    whole: bool = False
    local: bool = False


class EventStatesParams(BaseModel, frozen=True, extra="forbid"):
    """Which events: `ids` is a list of at most 50 event ids, `sessions` has the session of each; in a query string as JSON."""

    ids: Annotated[list[EventId], BeforeValidator(_read_ids), Field(max_length=50)] = []
    sessions: Annotated[list[EventId], BeforeValidator(_read_ids), Field(max_length=50)] = []
    local: bool = False


def dump_rows(shard: Shard, params: RowsParams) -> bytes:
    """Return {"counts": rows by reason, "rows": [...]} as JSON; `raw` is base64, null for rows without bytes. Thread-safe."""
    return _read(shard, lambda con: _rows(con, params))


def dump_event_states(shard: Shard, params: EventStatesParams) -> bytes:
    """Return {"topic_id", "next_offset", "events": {event_id: {"standing", "reason"}}} as JSON. Thread-safe.

    `standing` is "counted", "waits" (a click whose impression has not arrived), "quarantined" for a `reason`, or "unknown".
    """
    return _read(shard, lambda con: _event_states(con, params))


def _read(shard: Shard, read: Callable[[duckdb.DuckDBPyConnection], dict[str, Any]]) -> bytes:
    con = shard.reader()
    try:
        con.execute("BEGIN TRANSACTION READ ONLY")
        return msgspec.json.encode(read(con))
    finally:
        con.close()


def _rows(con: duckdb.DuckDBPyConnection, params: RowsParams) -> dict[str, Any]:
    filters = {"reason": None if params.reason is None else str(params.reason), "limit": params.limit}
    if params.whole or params.id is not None:
        found = con.execute(ROWS, {**filters, "id": params.id, "after": params.after})
    else:
        found = con.execute(NEWEST, filters)
    size, rows = 0, list[dict[str, Any]]()
    while (row := found.fetchone()) is not None:
        size += len(row[5] or b"")
        if rows and size > MAX_BYTES:
            break
        rows.append(dict(zip(NAMES, row, strict=True)) | {"raw": row[5] and base64.b64encode(row[5]).decode()})
    found.fetchall()
    return {"counts": dict(con.execute(COUNTS).fetchall()), "rows": rows}


def _event_states(con: duckdb.DuckDBPyConnection, params: EventStatesParams) -> dict[str, Any]:
    topic_id, next_offset = con.execute(NEXT_OFFSET).fetchall()[0]
    events = {
        name: _describe_state(*row)
        for name, *row in con.execute(STATES, {"ids": params.ids, "sessions": params.sessions}).fetchall()
    }
    return {"topic_id": topic_id, "next_offset": next_offset, "events": events}


def _describe_state(seen: bool, pending: bool, reason: str | None) -> dict[str, Any]:
    if pending:
        return {"standing": "waits", "reason": None}
    if seen and reason not in CLICK_REASONS:
        return {"standing": "counted", "reason": None}
    return {"standing": "unknown" if reason is None else "quarantined", "reason": reason}
