"""The body of POST /v1/recommend, and the request that is made of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any

import msgspec
from pydantic import BaseModel, BeforeValidator, Field

from serving.policy.engines import Decoding
from serving.policy.tasks import Task
from serving.recommend import Request
from streams.events.normal_form import is_blank
from streams.events.schema import MAX_ID_CHARS, MAX_TS_US, EventSettings

_MAX_SESSION = 64
_MAX_RESPONSE_CHARS = 65_536
_MAX_CONTEXT_BYTES = 16_384

Id = Annotated[str, Field(min_length=1, max_length=MAX_ID_CHARS)]


class CallError(ValueError):
    """A body that cannot be answered; the text names the field and the limit, without what the user typed."""


def _read_ts(given: object) -> object:
    """Return a text as the time that it says, as events are read; anything else as it is. Raises ValueError."""
    return msgspec.convert(given, datetime) if isinstance(given, str) else given


class RecommendCall(BaseModel, extra="forbid", strict=True):
    """Body of POST /v1/recommend. `session` are the session's earlier queries, oldest first; `response` is the answer that the
    user has read; `context` is the product's own and is kept with the impression; `ts` is event time (default now)."""

    task: str | None = Field(default=None, max_length=64)
    query: str = Field(min_length=1)
    session_id: Id
    user_id: str | None = Field(default=None, max_length=MAX_ID_CHARS)
    impression_id: Id | None = None
    session: list[str] = Field(default_factory=list, max_length=_MAX_SESSION)
    response: str | None = Field(default=None, max_length=_MAX_RESPONSE_CHARS)
    context: dict[str, Any] | None = None
    ts: Annotated[float | datetime | None, BeforeValidator(_read_ts)] = Field(
        default=None, description="seconds since the epoch, or RFC 3339 with an offset; at most events.future_tolerance_s ahead"
    )


def read_request(call: RecommendCall, tasks: Mapping[str, Task], decoding: Decoding, limits: EventSettings) -> Request:
    """Return the request of a call. Raises CallError for what no impression could hold."""
    task = tasks.get(limits.default_task if call.task is None else call.task)
    if task is None:
        raise CallError(f"task: not one of {', '.join(sorted(tasks))}")
    if is_blank(call.query):
        raise CallError("query: only white space or invisible characters")
    if len(call.query) > limits.max_query_chars:
        raise CallError(f"query: {len(call.query)} characters, at most {limits.max_query_chars} are allowed")
    if call.context is not None:
        _check_context(call.context)
    return Request(task, call.query, decoding, tuple(call.session), call.response)


def read_time(call: RecommendCall, limits: EventSettings, now: float) -> float:
    """Return the event time of a call in epoch seconds, by default `now`. Raises CallError for one that would be quarantined."""
    if call.ts is None:
        return now
    if isinstance(call.ts, datetime) and call.ts.tzinfo is None:
        raise CallError("ts: RFC 3339 needs an offset, such as Z")
    ts = call.ts.timestamp() if isinstance(call.ts, datetime) else call.ts
    if not math.isfinite(ts) or not 0 <= ts * 1e6 < MAX_TS_US:
        raise CallError("ts: outside 1970 to 9999; it is seconds since the epoch, or RFC 3339")
    if ts > now + limits.future_tolerance_s:
        raise CallError(f"ts: more than {limits.future_tolerance_s:.0f} s ahead of the clock")
    return ts


def _check_context(context: Mapping[str, Any]) -> None:
    try:
        size = len(msgspec.json.encode(context))
    except (ValueError, OverflowError, RecursionError, TypeError) as error:
        raise CallError("context: has a value that JSON cannot represent") from error
    if size > _MAX_CONTEXT_BYTES:
        raise CallError(f"context: {size} bytes, at most {_MAX_CONTEXT_BYTES} are allowed")
