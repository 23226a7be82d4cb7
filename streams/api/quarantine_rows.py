"""What the repair of quarantined events reads from one shard: whole rows with their original bytes, and what became of event ids.

As JSON, because the shard is in the hands of a worker and this travels over its HTTP; without a worker the same is read from the
file.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import duckdb
import msgspec
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from streams.counting.quarantine import CLICK_REASONS
from streams.events.schema import MAX_ID_CHARS, Reason
from streams.store.shard import Shard

MAX_ROWS = 500
MAX_BYTES = 16 * 1024 * 1024
"""Of one answer's original bytes; a page ends before the row that would exceed it, unless it is the only one."""

ROWS = """
SELECT id, reason, detail, event_id, ts_us, raw, log_offset, line, published FROM quarantine
WHERE id > $after AND ($id::BIGINT IS NULL OR id = $id) AND ($reason::VARCHAR IS NULL OR reason = $reason)
ORDER BY id LIMIT $limit
"""
NEWEST = """
SELECT id, reason, detail, event_id, ts_us, NULL, log_offset, line, published FROM quarantine
WHERE ($reason::VARCHAR IS NULL OR reason = $reason)
ORDER BY id DESC LIMIT $limit
"""
COUNTS = "SELECT reason, count(*) FROM quarantine GROUP BY reason ORDER BY reason"
NEXT_OFFSET = "SELECT topic_id, next_offset FROM state"
STATES = """
WITH wanted AS (SELECT unnest($ids::VARCHAR[]) AS event_id)
SELECT event_id,
    event_id IN (SELECT s.event_id FROM seen s JOIN wanted w ON s.key = hash(w.event_id) WHERE s.event_id = w.event_id),
    event_id IN (SELECT event_id FROM pending),
    (SELECT reason FROM quarantine q WHERE q.event_id = wanted.event_id ORDER BY id DESC LIMIT 1)
FROM wanted
"""
NAMES = ("id", "reason", "detail", "event_id", "ts_us", "raw", "offset", "line", "published")

Call = TypeVar("Call", bound=BaseModel)


class RepairError(ValueError):
    """Parameters that mean nothing here; the text names them."""


class RowsCall(BaseModel):
    """Which rows: the newest without their bytes, or whole ones in order of their ids from after `after`."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    reason: Reason | None = None
    limit: int = Field(default=20, ge=1, le=MAX_ROWS)
    id: int | None = Field(default=None, ge=0)
    after: int = Field(default=-1, ge=-1)
    whole: bool = False
    local: bool = False


class StandingCall(BaseModel):
    """Of which events: `ids` is a JSON list of at most 50 event ids."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    ids: list[str] = Field(max_length=50)
    local: bool = False


def read_rows_call(query: Mapping[str, str]) -> RowsCall:
    """Return the call of a query string. Raises RepairError."""
    return _checked(RowsCall, query)


def read_standing_call(query: Mapping[str, str]) -> StandingCall:
    """Return the call of a query string. Raises RepairError."""
    try:
        ids = msgspec.json.decode(query.get("ids", "[]"), type=list[str])
    except msgspec.DecodeError as error:
        raise RepairError(f"ids: {error}") from error
    if any(len(one) > MAX_ID_CHARS for one in ids):
        raise RepairError(f"ids: an event_id has at most {MAX_ID_CHARS} characters")
    return _checked(StandingCall, {**query, "ids": ids})


def dump_rows(shard: Shard, call: RowsCall) -> bytes:
    """Return {"counts": rows by reason, "rows": [...]} as JSON; `raw` is base64, null unless `whole`. Any thread may call it."""
    return _read(shard, lambda con: _rows(con, call))


def dump_standing(shard: Shard, call: StandingCall) -> bytes:
    """Return {"topic_id", "next_offset", "events": {event_id: {"standing", "reason"}}} as JSON."""
    return _read(shard, lambda con: _standing(con, call))


def _checked(model: type[Call], values: Mapping[str, Any]) -> Call:
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        raise RepairError("; ".join(f"{one['loc'][0]}: {one['msg']}" for one in error.errors())) from error


def _read(shard: Shard, read: Callable[[duckdb.DuckDBPyConnection], dict[str, Any]]) -> bytes:
    con = shard.reader()
    try:
        con.execute("BEGIN TRANSACTION READ ONLY")
        return msgspec.json.encode(read(con))
    finally:
        con.close()


def _rows(con: duckdb.DuckDBPyConnection, call: RowsCall) -> dict[str, Any]:
    wanted = {"reason": None if call.reason is None else str(call.reason), "limit": call.limit}
    if call.whole or call.id is not None:
        found = con.execute(ROWS, {**wanted, "id": call.id, "after": call.after})
    else:
        found = con.execute(NEWEST, wanted)
    size, rows = 0, list[dict[str, Any]]()
    while (row := found.fetchone()) is not None:
        size += len(row[5] or b"")
        if rows and size > MAX_BYTES:
            break
        rows.append(dict(zip(NAMES, row, strict=True)) | {"raw": row[5] and base64.b64encode(row[5]).decode()})
    found.fetchall()
    return {"counts": dict(con.execute(COUNTS).fetchall()), "rows": rows}


def _standing(con: duckdb.DuckDBPyConnection, call: StandingCall) -> dict[str, Any]:
    topic_id, next_offset = con.execute(NEXT_OFFSET).fetchall()[0]
    events = {name: _stands(*row) for name, *row in con.execute(STATES, {"ids": call.ids}).fetchall()}
    return {"topic_id": topic_id, "next_offset": next_offset, "events": events}


def _stands(seen: bool, pending: bool, reason: str | None) -> dict[str, Any]:
    if pending:
        return {"standing": "waits", "reason": None}
    if seen and reason not in CLICK_REASONS:
        return {"standing": "counted", "reason": None}
    return {"standing": "unknown" if reason is None else "quarantined", "reason": reason}
