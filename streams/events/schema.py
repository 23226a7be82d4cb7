"""The event schema: which events travel through Kafka, what makes one unusable, and how an event is written.

The structs are the wire format and the only definition of it; `json_schema` publishes it. Lines are read in
`streams.events.line_decoder`.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from functools import cached_property
from typing import Annotated, Any, ClassVar

import msgspec
from msgspec import Meta
from pydantic import BaseModel, Field

from streams.events.normal_form import normalise

MAX_ID_CHARS = 256
MAX_TS_US = 253_402_300_800 * 1_000_000
"""Event times lie in [0, MAX_TS_US) microseconds: 1970 to 9999. A ts in milliseconds falls outside and is refused as invalid."""
MAX_DEPTH = 64
"""How deep objects and lists may be nested in `decoding`: far from where reading or writing JSON runs out of stack."""

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)
MAX_DETAIL_CHARS = 200
SPACE = b" \t\r\n"
"""What JSON calls white space."""
BOM = b"\xef\xbb\xbf"
"""The byte order mark in UTF-8, with which some programs begin what they write."""

Id = Annotated[str, Meta(min_length=1, max_length=MAX_ID_CHARS)]
Text = Annotated[str, Meta(min_length=1)]
Timestamp = float | Annotated[datetime, Meta(tz=True, description="RFC 3339 with an offset")]
Position = Annotated[int, Meta(ge=0, le=2**31 - 1)]


class Reason(StrEnum):
    """Why an event is in quarantine."""

    MALFORMED = "malformed"
    INVALID = "invalid"
    TOO_LARGE = "too_large"
    FUTURE_EVENT = "future_event"
    TOO_OLD = "too_old"
    LATE_CLICK = "late_click"
    ORPHAN_CLICK = "orphan_click"
    POSITION_OUT_OF_RANGE = "position_out_of_range"
    ITEM_MISMATCH = "item_mismatch"


class EventSettings(BaseModel, frozen=True, extra="forbid"):
    """Limits of one event (section `events`)."""

    max_query_chars: int = Field(default=512, ge=1, description="characters of a query or an item")
    max_line_bytes: int = Field(default=65_536, ge=256, le=1_000_000, description="bytes of one event's JSON")
    max_items: int = Field(default=64, ge=1, description="recommendations in one list")
    default_task: str = Field(
        default="suggest",
        pattern=r"^[a-z][a-z0-9_]{0,31}$",
        description="task of a call or an impression that names none, for serving and for what is learned",
    )
    future_tolerance_s: float = Field(
        default=86_400.0, ge=0, le=36_500 * 86_400, description="seconds an event may be ahead of the clock"
    )
    click_lead_s: float = Field(
        default=300.0,
        ge=0,
        le=86_400,
        description="seconds a click's time may be before its list's, when the visitor's clock is behind the server's; such a "
        "click counts as one at the time of its list",
    )


DEFAULT_LIMITS = EventSettings()


class EventError(ValueError):
    """An event that no worker would accept; `reason` and `detail` say why."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(f"event refused, {reason}: {detail}")
        self.reason = reason
        self.detail = detail


class BaseEvent(
    msgspec.Struct, frozen=True, kw_only=True, dict=True, tag_field="type", omit_defaults=True, forbid_unknown_fields=True
):
    """The fields that all events share. Struct fields are the wire format; the decoder sets class variables for each instance.

    `offset` and `line` say where the event lies in the log (line counts from 0 inside its record; -1: made in this process),
    `raw` is the line as it was received, `extra` a JSON object (UTF-8) of the fields this schema does not know, or b"".
    """

    offset: ClassVar[int] = -1
    line: ClassVar[int] = -1
    raw: ClassVar[bytes] = b""
    extra: ClassVar[bytes] = b""

    event_id: Id
    ts: Timestamp
    session_id: Id
    query: Text
    user_id: Annotated[str, Meta(max_length=MAX_ID_CHARS)] | None = None

    @cached_property
    def ts_us(self) -> int:
        """Event time in microseconds since the epoch, UTC."""
        return to_micros(self.ts)

    @cached_property
    def query_norm(self) -> str:
        """The query in the form in which queries compare."""
        return normalise(self.query)


class Query(BaseEvent, frozen=True, tag="query"):
    """A query that was searched. `source` is "user", or "recommendation" when a click produced it."""

    source: Id = "user"


class Impression(BaseEvent, frozen=True, tag="impression"):
    """A list of recommended queries that was shown. `response` and `context` may be sent with it and are kept in `extra`."""

    impression_id: Id
    items: Annotated[tuple[Text, ...], Meta(min_length=1)]
    task: Id | None = None
    release: Id | None = None
    predicted: tuple[float, ...] | None = None
    logprob: float | None = None
    decoding: dict[str, Any] | None = None

    def click(self, position: int, ts: float, event_id: str | None = None) -> Click:
        """Return a click on the item at `position` (from 0) at `ts` (seconds since the epoch), in this list's session.

        Only such a click counts, not one with another session that began since. Raises IndexError for a position outside.
        """
        return Click(
            event_id=event_id or make_event_id(),
            ts=ts,
            session_id=self.session_id,
            user_id=self.user_id,
            query=self.query,
            impression_id=self.impression_id,
            position=position,
            item=self.items[position],
        )


class Click(BaseEvent, frozen=True, tag="click"):
    """A click on the recommendation at `position` (from 0) of an impression."""

    impression_id: Id
    position: Position
    item: Text | None = None


Event = Query | Impression | Click

KNOWN: Mapping[str, frozenset[str]] = {
    str(kind.__struct_config__.tag): frozenset((*kind.__struct_fields__, "type")) for kind in (Query, Impression, Click)
}
COMMON = ("type", *(one.name for one in msgspec.structs.fields(BaseEvent) if one.required))
"""The fields that every event must have."""
REQUIRED: Mapping[str, tuple[str, ...]] = {
    str(kind.__struct_config__.tag): ("type", *(one.name for one in msgspec.structs.fields(kind) if one.required))
    for kind in (Query, Impression, Click)
}


@dataclass(frozen=True, slots=True)
class Reject:
    """An event for quarantine. `detail` is printable ASCII; `raw` is the line itself, may be hostile and is never logged.

    `session_id` is "" for a line without a readable one.
    """

    reason: Reason
    detail: str
    raw: bytes
    event_id: str | None
    ts_us: int | None
    offset: int
    line: int
    session_id: str = ""


@dataclass(slots=True)
class Decoded:
    """The events and rejects of some records, in log order within each list."""

    queries: list[Query] = field(default_factory=list)
    impressions: list[Impression] = field(default_factory=list)
    clicks: list[Click] = field(default_factory=list)
    rejects: list[Reject] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.queries) + len(self.impressions) + len(self.clicks) + len(self.rejects)

    def add(self, found: Event | Reject) -> None:
        """Append the outcome of one line to the list of its kind."""
        match found:
            case Query():
                self.queries.append(found)
            case Impression():
                self.impressions.append(found)
            case Click():
                self.clicks.append(found)
            case _:
                self.rejects.append(found)


def strip_line(line: bytes) -> bytes:
    """Return a line of a record, a file or a body without white space around it and without byte order marks in front.

    Where files are put one behind the other, each keeps its mark, so that one stands before a line in the middle."""
    stripped = line.strip(SPACE)
    while stripped.startswith(BOM):
        stripped = stripped[len(BOM) :].lstrip(SPACE)
    return stripped


def to_micros(ts: float | datetime) -> int:
    """Return microseconds since the epoch for seconds (rounded) or an aware datetime; MAX_TS_US or -1 for times far outside."""
    if isinstance(ts, datetime):
        return (ts - EPOCH) // MICROSECOND
    if abs(ts) >= MAX_TS_US:  # its microseconds could overflow
        return MAX_TS_US if ts > 0 else -1
    return round(ts * 1_000_000)


def is_too_deep(value: object) -> bool:
    """Return whether a JSON value nests objects and lists more than MAX_DEPTH deep."""
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        level = [inner for outer in level for inner in members(outer)]
    return bool(level)


def members(value: object) -> Iterable[object]:
    """Return the values that a JSON object or list holds, nothing for any other value."""
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def make_event_id() -> str:
    """Return a new event id: 32 random hexadecimal digits."""
    return uuid.uuid4().hex


def printable(text: str) -> str:
    """Return text that is safe to log: printable ASCII, anything else escaped, at most MAX_DETAIL_CHARS characters."""
    shown = text.encode("unicode_escape", "backslashreplace").decode("ascii")
    return shown if len(shown) <= MAX_DETAIL_CHARS else shown[: MAX_DETAIL_CHARS - 3] + "..."


def with_extra(event: Event, extra: Mapping[str, Any]) -> Event:
    """Return the event with further fields that travel with it (`response`, `context`, a product's own).

    Raises EventError when one of them is a field of the schema.
    """
    taken = KNOWN[str(event.__struct_config__.tag)] & extra.keys()
    if taken:
        raise EventError(Reason.INVALID, f"extra: {', '.join(sorted(taken))} is a field of the schema")
    copy = msgspec.structs.replace(event)
    known = msgspec.json.decode(event.extra or b"{}", type=dict[str, msgspec.Raw])
    if known or extra:
        copy.__dict__["extra"] = msgspec.json.encode({**known, **extra})
    return copy


def encode(event: Event) -> bytes:
    """Return the event as one line of JSON; one that was read keeps its text, its line breaks (JSON white space) made spaces."""
    if event.raw:
        return event.raw.strip(SPACE).replace(b"\n", b" ")
    line = msgspec.json.encode(event)
    return line[:-1] + b"," + event.extra[1:] if event.extra else line


def json_schema(limits: EventSettings = DEFAULT_LIMITS) -> dict[str, Any]:
    """Return the JSON Schema of one event line, generated from the structs; unknown fields are allowed and kept."""
    schema = msgspec.json.schema(Event)
    for kind in schema["$defs"].values():
        kind["additionalProperties"] = True
        kind["properties"]["query"]["maxLength"] = limits.max_query_chars
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "Queryloop event", **schema}
