"""The line decoder: which lines it accepts, which it refuses and why."""

from __future__ import annotations

import json
from typing import Any

import pytest

from streams.events.line_decoder import parse_line
from streams.events.schema import MAX_DEPTH, Click, Event, EventSettings, Impression, Query, Reason, Reject

QUERY: dict[str, Any] = {"type": "query", "event_id": "e", "ts": 1.5, "session_id": "s", "query": "q"}
IMPRESSION: dict[str, Any] = {**QUERY, "type": "impression", "impression_id": "i", "items": ["a", "b"]}
CLICK: dict[str, Any] = {**QUERY, "type": "click", "impression_id": "i", "position": 0}


def line(event: dict[str, Any], /, **changed: Any) -> bytes:
    return json.dumps({name: value for name, value in {**event, **changed}.items() if value is not ...}).encode()


def nested(depth: int) -> dict[str, Any]:
    value: Any = 1
    for _ in range(depth):
        value = {"a": value}
    return dict(value)


def accepted(raw: bytes) -> Event:
    event = parse_line(raw)
    assert not isinstance(event, Reject), event
    return event


def refused(raw: bytes, limits: EventSettings | None = None, now: float | None = None) -> Reject:
    reject = parse_line(raw, limits or EventSettings(), now=now)
    assert isinstance(reject, Reject), reject
    assert reject.raw == raw
    assert reject.detail.isascii()
    assert reject.detail.isprintable()
    return reject


@pytest.mark.parametrize(("event", "kind"), [(QUERY, Query), (IMPRESSION, Impression), (CLICK, Click)])
def test_the_type_names_the_event(event: dict[str, Any], kind: type[Event]) -> None:
    assert type(accepted(line(event))) is kind


@pytest.mark.parametrize(
    ("ts", "micros"),
    [(0, 0), (1.5, 1_500_000), (1614556800.71, 1_614_556_800_710_000), ("2021-03-01T01:00:00.5+01:00", 1_614_556_800_500_000)],
)
def test_ts_is_seconds_or_rfc_3339(ts: object, micros: int) -> None:
    assert accepted(line(QUERY, ts=ts)).ts_us == micros


@pytest.mark.parametrize(
    ("written", "position"), [(b"1", 1), (b"1.0", 1), (b"1e0", 1), (b"-0.0", 0), (b"2147483647.0", 2**31 - 1)]
)
@pytest.mark.parametrize("more", [b"", b'"own": 1, '])
def test_a_position_is_any_whole_number_as_json_writes_it(written: bytes, position: int, more: bytes) -> None:
    raw = line(CLICK).replace(b'"position": 0', more + b'"position": ' + written)
    event = accepted(raw)
    assert isinstance(event, Click)
    assert (event.position, type(event.position), event.raw) == (position, int, raw)


@pytest.mark.parametrize(
    ("written", "said"),
    [
        (b"1.5", "Expected a whole number, got 1.5"),
        (b"2147483648.0", "Expected `int` <= 2147483647"),
        (b"9007199254740993.0", "Expected `int` <= 2147483647"),
        (b"1e300", "Expected `int` <= 2147483647"),
        (b"1e999", "Number out of range"),
        (b"-1.0", "Expected `int` >= 0"),
    ],
)
def test_any_other_position_is_refused_with_its_reason(written: bytes, said: str) -> None:
    reject = refused(line(CLICK).replace(b'"position": 0', b'"position": ' + written))
    assert (reject.reason, reject.detail) == (Reason.INVALID, f"{said} - at `$.position`")


def test_absent_fields_have_their_defaults() -> None:
    event = accepted(line(QUERY))
    assert isinstance(event, Query)
    assert (event.user_id, event.source, event.extra) == (None, "user", b"")


def test_unknown_fields_are_kept_in_their_own_text() -> None:
    event = accepted(
        b'{"type":"query","a":{"b": 1e2},"event_id":"e","ts":1,"session_id":"s","query":"q","c":123456789012345678901}'
    )
    assert event.extra == b'{"a":{"b": 1e2},"c":123456789012345678901}'


def test_class_variables_of_an_event_cannot_be_set_by_a_line() -> None:
    raw = line(QUERY, offset=99, raw="x", extra={"k": 1}, ts_us=5, query_norm="other")
    event = parse_line(raw, offset=3, number=4)
    assert not isinstance(event, Reject)
    assert (event.offset, event.line, event.raw, event.ts_us, event.query_norm) == (3, 4, raw, 1_500_000, "q")
    assert set(json.loads(event.extra)) == {"offset", "raw", "extra", "ts_us", "query_norm"}


def test_control_characters_and_terminal_escapes_are_data() -> None:
    assert accepted(line(QUERY, query="\x1b[31mred\x00\u202e")).query == "\x1b[31mred\x00\u202e"


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"not json",
        b"\xff\xfe\x00",
        b'{"type":"query"} x',
        b'{"type":"query","event_id":"e","ts":NaN,"session_id":"s","query":"q"}',
        b'{"type":"query","event_id":"e","ts":Infinity,"session_id":"s","query":"q"}',
        b'{"type":"query","event_id":"e","ts":1,"session_id":"s","query":"\xff"}',
        b'{"type":"query","event_id":"e","ts":1,"session_id":"s","query":"q","unknown":"\xff"}',
        b'{"type":"query","event_id":"e","ts":1,"session_id":"s","query":"\\ud800"}',
        b'{"type":"query","event_id":"e","ts":1,"session_id":"s","query":"tab\there"}',
        b'{"type":"impression","decoding":' + b'{"a":' * 9000 + b"1" + b"}" * 9000 + b"}",
        b'{"type":"query","unknown":' + b"[" * 9000 + b"]" * 9000 + b"}",
    ],
)
def test_what_is_not_json_in_utf8_is_malformed(raw: bytes) -> None:
    assert refused(raw).reason is Reason.MALFORMED


@pytest.mark.parametrize("more", [b"", b'"own": 1, '])
@pytest.mark.parametrize(
    ("text", "said"),
    [
        (rb"\ud800", r"'\ud800' is half of a surrogate pair"),
        (rb"a \uD83D b", r"'\uD83D' is half of a surrogate pair"),
        (rb"\ude00", r"'\ude00' is half of a surrogate pair"),
        (rb"\ud83d\ude00 \\ude00 \ude00", r"'\ude00' is half of a surrogate pair"),
    ],
)
def test_half_an_emoji_is_named(text: bytes, said: str, more: bytes) -> None:
    assert said in refused(b'{%b"type":"query","event_id":"e","ts":1,"session_id":"s","query":"%b"}' % (more, text)).detail


@pytest.mark.parametrize("more", [b"", b'"own": 1, '])
def test_a_byte_that_is_not_utf8_is_named_with_its_place_in_the_line(more: bytes) -> None:
    raw = b'{%b"type":"query","event_id":"e","ts":1,"session_id":"s","query":"caf\xe9"}' % more
    assert f"byte {raw.index(0xE9)} (0xe9) is not UTF-8" in refused(raw).detail


@pytest.mark.parametrize(
    ("raw", "field"),
    [
        (b"[]", "object"),
        (b"null", "object"),
        (line(QUERY, type=...), "type"),
        (line(QUERY, type="view"), "type"),
        (line(QUERY, type="view", unknown=1), "type"),
        (b'{"unknown":1}', "type"),
        (b'{"unknown":1,"type":5}', "type"),
        (line(QUERY, event_id=...), "event_id"),
        (line(QUERY, event_id=""), "event_id"),
        (line(QUERY, event_id=5), "event_id"),
        (line(QUERY, session_id=""), "session_id"),
        (line(QUERY, session_id=None), "session_id"),
        (line(QUERY, query=""), "query"),
        (line(QUERY, query=" \t\u00a0"), "query"),
        (line(QUERY, query=["q"], unknown=1), "query"),
        (line(QUERY, ts=...), "ts"),
        (line(QUERY, ts=True), "ts"),
        (line(QUERY, ts=None), "ts"),
        (line(QUERY, ts=-1), "ts"),
        (line(QUERY, ts=1614556800000), "ts"),
        (line(QUERY, ts=1e300), "ts"),
        (line(QUERY, ts=1e305), "ts"),
        (line(CLICK, ts=-1e308), "ts"),
        (b'{"type":"query","own":1,"type":[]}', "type"),
        (b'{"type":"query","own":1,"type":{}}', "type"),
        (b'{"type":"query","own":1,"type":1e999}', "type"),
        (line(QUERY, ts=10**400), "ts"),
        (line(QUERY, ts="1614556800"), "ts"),
        (line(QUERY, ts="2021-03-01T00:00:00"), "ts"),
        (line(QUERY, ts="0001-01-01T00:00:00Z"), "ts"),
        (line(QUERY, source=None), "source"),
        (line(IMPRESSION, items=...), "items"),
        (line(IMPRESSION, items=[]), "items"),
        (line(IMPRESSION, items=["a", ""]), "items"),
        (line(IMPRESSION, items=["a", "  "]), "items"),
        (line(IMPRESSION, items=["a", 1]), "items"),
        (line(IMPRESSION, items="a"), "items"),
        (line(IMPRESSION, impression_id=...), "impression_id"),
        (line(IMPRESSION, predicted=[True]), "predicted"),
        (line(IMPRESSION, decoding=nested(MAX_DEPTH + 1)), "decoding"),
        (line(IMPRESSION, decoding=nested(500)), "decoding"),
        (line(CLICK, position=...), "position"),
        (line(CLICK, position=-1), "position"),
        (line(CLICK, position=True), "position"),
        (line(CLICK, position=0.5), "position"),
        (line(CLICK, position="0"), "position"),
        (line(CLICK, position=2**31), "position"),
        (line(CLICK, position=10**30), "position"),
    ],
)
def test_a_missing_or_wrong_field_is_named(raw: bytes, field: str) -> None:
    reject = refused(raw)
    assert reject.reason is Reason.INVALID
    assert field in reject.detail


@pytest.mark.parametrize(
    ("raw", "named"),
    [
        (line(QUERY, query="x" * 513), "query"),
        (line(QUERY, query="x" * 2_000_000), "line"),
        (line(QUERY, session_id="x" * 257), "session_id"),
        (line(QUERY, event_id="x" * 257), "event_id"),
        (line(IMPRESSION, items=["x"] * 65), "items"),
        (line(IMPRESSION, items=["x", "y" * 513]), "items"),
        (line(CLICK, item="y" * 513), "item"),
    ],
)
def test_what_is_over_a_limit_is_too_large(raw: bytes, named: str) -> None:
    reject = refused(raw)
    assert reject.reason is Reason.TOO_LARGE
    assert named in reject.detail


def test_decoding_may_be_nested_up_to_a_depth() -> None:
    event = accepted(line(IMPRESSION, decoding=nested(MAX_DEPTH)))
    assert isinstance(event, Impression) and event.decoding == nested(MAX_DEPTH)


def test_limits_are_inclusive_and_settable() -> None:
    accepted(line(QUERY, query="x" * 512))
    accepted(line(QUERY, query="\U0001f600" * 512))
    accepted(line(IMPRESSION, items=["x"] * 64))
    limits = EventSettings(max_query_chars=3, max_line_bytes=300, max_items=1)
    assert refused(line(QUERY, query="abcd"), limits).reason is Reason.TOO_LARGE
    assert refused(line(IMPRESSION), limits).reason is Reason.TOO_LARGE
    assert refused(line(QUERY, padding="x" * 300), limits).reason is Reason.TOO_LARGE


def test_the_future_begins_beyond_the_tolerance_of_the_clock() -> None:
    now = 1_600_000_000.0
    assert refused(line(QUERY, ts=now + 86_401), now=now).reason is Reason.FUTURE_EVENT
    assert not isinstance(parse_line(line(QUERY, ts=now + 86_400), now=now), Reject)
    assert not isinstance(parse_line(line(QUERY, ts=now + 86_401)), Reject)


def test_a_reject_has_the_id_and_time_of_its_event_where_they_are_readable() -> None:
    assert refused(line(QUERY, ts=-1)).event_id == "e"
    assert refused(line(QUERY, query=...)).event_id == "e"
    assert refused(line(QUERY, query="x" * 600)).ts_us == 1_500_000
    assert refused(b'{"event_id":"e"').event_id is None
    assert refused(line(QUERY, event_id="x" * 100_000)).event_id is None


def test_hostile_text_stays_out_of_the_detail() -> None:
    detail = refused(line(QUERY, type="\x1b[31m<script>" + "y" * 500)).detail
    assert "\x1b" not in detail
    assert len(detail) <= 200
