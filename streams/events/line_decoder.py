"""The decoder that decides which lines are events and why any other is refused.

Every path that reads events (workers, replay, the HTTP app, the emitter's own check) ends here, so that a line is accepted by all
of them or refused by all of them for the same reason. Workers read most lines by `streams.events.batch_decoder`, with the same
outcome.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import msgspec

from streams.events.normal_form import is_blank
from streams.events.schema import (
    COMMON,
    DEFAULT_LIMITS,
    KNOWN,
    MAX_DEPTH,
    MAX_TS_US,
    REQUIRED,
    Click,
    Event,
    EventError,
    EventSettings,
    Id,
    Impression,
    Reason,
    Reject,
    is_too_deep,
    printable,
    to_micros,
)

_decoder: msgspec.json.Decoder[Event] = msgspec.json.Decoder(Event)
_object_decoder: msgspec.json.Decoder[dict[str, msgspec.Raw]] = msgspec.json.Decoder(dict[str, msgspec.Raw])
_raw_decoder: msgspec.json.Decoder[msgspec.Raw] = msgspec.json.Decoder(msgspec.Raw)
_encoder = msgspec.json.Encoder()
_TOO_LONG = re.compile(r"Expected `(?:str|array)` of length <= ")
_UNKNOWN = "Object contains unknown field"
_MISSING = "Object missing required field"
_ESCAPE = re.compile(rb"\\u[dD][89abAB]..\\u[dD][c-fC-F]..|(\\u[dD][89a-fA-F][0-9a-fA-F]{2})|\\.", re.DOTALL)
_FRACTION = "Expected `int`, got `float` - at `$.position`"


def parse_line(
    line: bytes, limits: EventSettings = DEFAULT_LIMITS, *, offset: int = -1, number: int = -1, now: float | None = None
) -> Event | Reject:
    """Decode and check one event; a line that is refused is returned as a `Reject`, never raised."""
    if len(line) > limits.max_line_bytes:
        return _reject(
            Reason.TOO_LARGE, f"line of {len(line)} bytes, at most {limits.max_line_bytes} are allowed", line, offset, number
        )
    try:
        event, extra = _decode_line(line)
    except EventError as error:
        return _reject(error.reason, error.detail, line, offset, number)
    return _check_event(event, line, extra, offset, number, limits, horizon_us(limits, now))


def _decode_line(line: bytes) -> tuple[Event, bytes]:
    """Return the event and its unknown fields as JSON; raise EventError."""
    try:
        return _decode_known(line), b""
    except msgspec.ValidationError as error:
        _require_json(line)
        if not str(error).startswith(_UNKNOWN):
            raise EventError(*_classify_error(error, line)) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _malformed(error, line) from error
    return _decode_with_extra(line)


def _decode_known(line: bytes) -> Event:
    """Return the event of a line without unknown fields; its position may be written as 1.0. Raises msgspec.DecodeError."""
    try:
        return _decoder.decode(line)
    except msgspec.ValidationError as error:
        if str(error) != _FRACTION:
            raise
    fields = _object_decoder.decode(line)
    position = msgspec.json.decode(fields["position"])
    if isinstance(position, float):
        if not position.is_integer():
            raise msgspec.ValidationError(f"Expected a whole number, got {position} - at `$.position`")
        fields["position"] = msgspec.Raw(b"%d" % position)
    return _decoder.decode(_encoder.encode(fields))


def _require_json(line: bytes) -> None:
    """Raise EventError when the line is not JSON after the point where the decoder stopped for another reason."""
    try:
        line.decode()
        _raw_decoder.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _malformed(error, line) from error


def _malformed(error: Exception, line: bytes) -> EventError:
    return EventError(Reason.MALFORMED, f"not JSON in UTF-8: {_describe_fault(error, line)}")


def _describe_fault(error: Exception, line: bytes) -> str:
    """Return why a line cannot be read. msgspec counts bytes from a text's start, and calls half an emoji truncated."""
    try:
        line.decode()
    except UnicodeDecodeError as found:
        return f"byte {found.start} (0x{line[found.start]:02x}) is not UTF-8"
    said = str(error)
    halves = (found[1] for found in _ESCAPE.finditer(line) if found[1])
    half = next(halves, b"") if "truncated" in said or "surrogate" in said else b""
    return f"'{half.decode()}' is half of a surrogate pair" if half else printable(said)


def _decode_with_extra(line: bytes) -> tuple[Event, bytes]:
    fields = _object_decoder.decode(line)
    known = KNOWN[_read_type(fields)]
    try:
        event = _decode_known(_encoder.encode({name: value for name, value in fields.items() if name in known}))
    except msgspec.ValidationError as error:
        raise EventError(*_classify_error(error, line)) from error
    except RecursionError as error:
        raise _malformed(error, line) from error
    return event, _encoder.encode({name: fields[name] for name in sorted(fields.keys() - known)})


def _read_type(fields: Mapping[str, msgspec.Raw]) -> str:
    """Return the event's type, which may follow the unknown field at which the decoder stopped; raise EventError."""
    try:
        tag = msgspec.json.decode(fields["type"], type=str) if "type" in fields else None
    except msgspec.ValidationError as error:
        raise EventError(Reason.INVALID, f"type: {printable(str(error))}") from error
    if tag not in KNOWN:
        raise EventError(Reason.INVALID, f"type: {printable(repr(tag))} is not one of {', '.join(sorted(KNOWN))}")
    return str(tag)


def _classify_error(error: msgspec.ValidationError, line: bytes) -> tuple[Reason, str]:
    text = str(error)
    if text.startswith(_MISSING):
        return Reason.INVALID, _name_missing_fields(line)
    return (Reason.TOO_LARGE if _TOO_LONG.match(text) else Reason.INVALID), printable(text)


def _name_missing_fields(line: bytes) -> str:
    """Return all fields that an event lacks; the decoder stops at the first."""
    fields = _object_decoder.decode(line)
    kind = msgspec.json.decode(fields["type"], type=str) if "type" in fields else ""
    missing = [name for name in REQUIRED.get(kind, COMMON) if name not in fields]
    return f"{_MISSING}{'s' if len(missing) > 1 else ''} {', '.join(f'`{name}`' for name in missing)}"


def horizon_us(limits: EventSettings, now: float | None) -> float:
    """Return the latest event time (microseconds) that is accepted, infinity when `now` is None."""
    return float("inf") if now is None else (now + limits.future_tolerance_s) * 1e6


def _check_event(
    event: Event, line: bytes, extra: bytes, offset: int, number: int, limits: EventSettings, horizon: float
) -> Event | Reject:
    """Check what the types cannot express, and note in the event where it lies in the log."""
    ts_us = to_micros(event.ts)
    fault = _find_fault(event, ts_us, len(line), limits, horizon)
    if fault is not None:
        known_us = ts_us if 0 <= ts_us < MAX_TS_US else None
        return Reject(fault[0], fault[1], line, event.event_id, known_us, offset, number, event.session_id)
    known = event.__dict__
    known["ts_us"], known["raw"], known["offset"], known["line"] = ts_us, line, offset, number
    if extra:
        known["extra"] = extra
    return event


def _find_fault(event: Event, ts_us: int, size: int, limits: EventSettings, horizon: float) -> tuple[Reason, str] | None:
    if not 0 <= ts_us < MAX_TS_US:
        return Reason.INVALID, f"ts: {event.ts} is outside 1970 to 9999; it is seconds since the epoch, or RFC 3339"
    if is_blank(event.query):
        return Reason.INVALID, "query: only white space or invisible characters"
    # A text has at most as many characters as its line has bytes.
    if size > limits.max_query_chars and (long := _describe_overlong(event, limits.max_query_chars)):
        return Reason.TOO_LARGE, long
    if type(event) is Impression and (fault := _find_impression_fault(event, limits)):
        return fault
    if ts_us > horizon:
        return (
            Reason.FUTURE_EVENT,
            f"ts: {(ts_us - horizon) / 1e6:.0f} s beyond the tolerance of {limits.future_tolerance_s:.0f} s",
        )
    return None


def _describe_overlong(event: Event, limit: int) -> str | None:
    if len(event.query) > limit:
        return f"query: {len(event.query)} characters, at most {limit} are allowed"
    if type(event) is Impression and (longest := max(map(len, event.items))) > limit:
        return f"items: one of {longest} characters, at most {limit} are allowed"
    if type(event) is Click and event.item is not None and len(event.item) > limit:
        return f"item: {len(event.item)} characters, at most {limit} are allowed"
    return None


def _find_impression_fault(event: Impression, limits: EventSettings) -> tuple[Reason, str] | None:
    if len(event.items) > limits.max_items:
        return Reason.TOO_LARGE, f"items: {len(event.items)} of them, at most {limits.max_items} are allowed"
    if any(map(is_blank, event.items)):
        return Reason.INVALID, "items: one is only white space or invisible characters"
    if event.decoding and is_too_deep(event.decoding):
        return Reason.INVALID, f"decoding: nested more than {MAX_DEPTH} deep"
    return None


class _EventId(msgspec.Struct):
    """The id of a refused event, which is still read."""

    event_id: Id | None = None


class _Session(msgspec.Struct):
    """The session of a line, whatever else is wrong with it."""

    session_id: str = ""


_event_id_decoder = msgspec.json.Decoder(_EventId)
_session_decoder = msgspec.json.Decoder(_Session)


def read_session(line: bytes) -> str:
    """Return a line's session, "" where it has none that can be read. It decides the line's partition in a replay."""
    try:
        return _session_decoder.decode(line).session_id
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return ""


def _reject(reason: Reason, detail: str, line: bytes, offset: int, number: int) -> Reject:
    try:
        event_id = _event_id_decoder.decode(line).event_id
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        event_id = None
    return Reject(reason, detail, line, event_id, None, offset, number, read_session(line))
