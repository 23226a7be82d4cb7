"""Decoding in bulk gives the same columns and rejects as the line decoder, whatever the lines, the records and the limits."""

from __future__ import annotations

import json
from typing import Any

import hypothesis.strategies as st
import pyarrow as pa
import pytest
from hypothesis import example, given, settings

from streams.events.batch_decoder import decode_columns
from streams.events.columns import Columns, to_columns
from streams.events.schema import DEFAULT_LIMITS, EventSettings, Reason
from tests.support.decoding import decode_records

QUERY: dict[str, Any] = {"type": "query", "event_id": "e", "ts": 1.5, "session_id": "s", "query": "q"}
IMPRESSION: dict[str, Any] = {**QUERY, "type": "impression", "impression_id": "i", "items": ["A", "b"]}
CLICK: dict[str, Any] = {**QUERY, "type": "click", "impression_id": "i", "position": 0}
TIGHT = EventSettings(max_query_chars=5, max_line_bytes=300, max_items=2)
NOW = 1_600_000_000.0


def _with_text(table: pa.Table, columns: Columns) -> list[dict[str, Any]]:
    texts = columns.texts.take(table["row"].to_numpy())
    return [{**row, "row": text} for row, text in zip(table.to_pylist(), texts, strict=True)]


def contents(columns: Columns) -> dict[str, Any]:
    tables = {"queries": columns.queries, "impressions": columns.impressions, "clicks": columns.clicks}
    found: dict[str, Any] = {
        name: sorted(_with_text(table, columns), key=lambda r: (r["log_offset"], r["line"])) for name, table in tables.items()
    }
    for name, table in tables.items():
        found[f"{name} columns"] = {field.name: field.type for field in table.schema}
    found["rejects"] = sorted(columns.rejects, key=lambda r: (r.offset, r.line))
    return found


def assert_same(
    records: list[tuple[int, bytes | None]], limits: EventSettings = DEFAULT_LIMITS, now: float | None = None
) -> None:
    expected = to_columns(decode_records(records, limits, now))
    assert contents(decode_columns(records, limits, now)) == contents(expected)


VALUES: list[Any] = [
    *(None, True, 0, 1, -1, 2, 1.0, 0.5, -0.0, 1e3, 1e300, 10**400, 1591016918.123456, NOW, NOW + 86_401, 253_402_300_800, 2**31),
    *(
        "",
        " ",
        "\u00a0\u2003",
        "x",
        "Straße",
        "ｒｅｄ  Shoes",
        "e\u0301",
        "\u0000",
        "\u202e<b>",
        "tab\t",
        "abcdef",
        "é" * 4,
        "x" * 600,
    ),
    *("2021-03-01T01:00:00.5+01:00", "2021-03-01T01:00:00", "0001-01-01T00:00:00Z", "9999-12-31T23:59:59.999999Z", "x" * 257),
    *(
        [],
        ["a"],
        ["A "],
        ["a", ""],
        ["a", " "],
        ["a", 1],
        [None],
        ["a"] * 3,
        ["x" * 600],
        [0.1, 2],
        [1e400],
        {},
        {"a": {"b": [1.0, 1e2]}},
    ),
    *({"temperature": 0.9, "beams": 4}, {"a": 1, "b": None}, {"deep": [[[[]]]]}),
]
NAMES = [
    *IMPRESSION,
    *CLICK,
    "user_id",
    "source",
    "task",
    "release",
    "predicted",
    "logprob",
    "decoding",
    "item",
    "context",
    "response",
    "own",
]


@st.composite
def hostile_lines(draw: st.DrawFn) -> bytes:
    """An event with a few fields changed, added or taken away, and now and then its text damaged."""
    event = dict(draw(st.sampled_from([QUERY, IMPRESSION, CLICK])))
    for name in draw(st.lists(st.sampled_from(NAMES), max_size=2)):
        event[name] = draw(st.sampled_from(VALUES))
    for name in draw(st.lists(st.sampled_from(list(event)), max_size=1)):
        del event[name]
    text = json.dumps(
        event, ensure_ascii=draw(st.booleans()), separators=draw(st.sampled_from([(",", ":"), (", ", ": ")]))
    ).encode()
    return draw(
        st.sampled_from(
            [text] * 12
            + [text[:-1], text + text, text + b"null", b" " + text, text + b"\r", text.replace(b'"', b"'"), text + b"\xff"]
        )
    )


SERVED = json.dumps({**IMPRESSION, "context": {"page": 3, "é": [1.50]}, "response": "Worn."}, ensure_ascii=False).encode()
WHOLE = [json.dumps(event).encode() for event in (QUERY, IMPRESSION, CLICK)]
ODD = [
    *(
        SERVED,
        SERVED.replace(b'"response"', b'"other"'),
        SERVED.replace(b'"context"', b'"zeta"'),
        SERVED.replace(b"Worn", b"\xff"),
    ),
    *(json.dumps({**IMPRESSION, "response": None, "context": None}).encode(), SERVED.replace(b"{", b'{"context":1,', 1)),
    *(
        b"",
        b" ",
        b"null",
        b"{}",
        b"[]",
        b"{",
        b"\xff",
        b"\xef\xbb\xbf" + WHOLE[0],
        WHOLE[0] + WHOLE[0],
        WHOLE[0] + b"null" + WHOLE[1],
    ),
    *json.dumps(IMPRESSION, indent=1).encode().split(b"\n"),
    WHOLE[0].replace(b'"ts": 1.5', b'"ts": 1.5, "ts": 2'),
    WHOLE[0].replace(b'"query"', b'"qu\\u0065ry"'),
    WHOLE[0].replace(b'"q"', b'"\\ud83d\\ude00"'),
    WHOLE[0].replace(b'"q"', b'"\\ud800"'),
    WHOLE[0].replace(b'"q"', b'"\xff"'),
    WHOLE[0].replace(b"1.5", b"NaN"),
    WHOLE[1].replace(b'["A", "b"]', b'["A", "b"], "decoding": {"a": "\xff"}'),
    WHOLE[1].replace(b'["A", "b"]', b'["A", "b"], "decoding": ' + b'{"a":' * 9000 + b"1" + b"}" * 9000),
    WHOLE[1].replace(b'["A", "b"]', b'["A", "b"], "decoding": {"a":1,"a":2,  "b": 1e2}'),
    WHOLE[1].replace(b'["A", "b"]', b'["A", "b"],"decoding":{"a":1}'),
    WHOLE[1].replace(b'["A", "b"]', b'["A", "b"],"decoding":{"a":1},"decoding":{"a":2}'),
    WHOLE[1].replace(b'["A", "b"]', b'["A", "b"],"decoding":{"a":1},"response":{"b":1,"decoding":{"a":2}}'),
    WHOLE[1].replace(b'["A", "b"]', b'["A", "b"],"response":{"b":1,"decoding":{"a":2}}'),
    WHOLE[1].replace(b'["A", "b"]', b'["A", "b"],"context":1,"decoding":{"a":1},"response":2'),
    WHOLE[1].replace(b'["A", "b"]', b'["A", "b"],"own":[{"b":1,"decoding":{"a":1}},{"c":1}]'),
    WHOLE[1].replace(b'["A", "b"]', b'["A", "b\\\\"],"decoding":{"a":1}'),
    *(WHOLE[1].replace(b'["A", "b"]', b'["A", "b"],"decoding":' + b'{"a":' * n + b"1" + b"}" * n) for n in range(1, 1000, 37)),
    *(WHOLE[1].replace(b'["A", "b"]', b'["A", "b"],"decoding":%s,"decoding":{"a":1}' % one) for one in (b"[]", b'{"a":1e400}')),
    WHOLE[1].replace(b'["A", "b"]', b'["A", "b"],"deco\\u0064ing":"x","decoding":{"a":1}'),
    *(WHOLE[1].replace(b'["A", "b"]', b'["A", "b"],"%s":{"\x80":1},"%s":1' % (name, name)) for name in (b"context", b"response")),
    WHOLE[0].replace(b"1.5", b"1e305"),
    WHOLE[2].replace(b"1.5", b"-1e308"),
    WHOLE[0].replace(b'"q"', b'"q","own":1,"type":[]'),
    WHOLE[0].replace(b'"q"', b'"q","own":' + b"[" * 9000 + b"]" * 9000),
    WHOLE[0].replace(b'"q"', b'"q","own":' + b"[" * 30_000 + b"]" * 30_000),
    SERVED.replace(b"1.5", b"NaN"),
    SERVED.replace(b"Worn.", b'a \\"word\\": and : another'),
    SERVED.replace(b'"Worn."', b'{"decoding": {"context": 1}, "type" : "click"}'),
    WHOLE[0].replace(b'"ts": 1.5', b'"ts": 1.5, "own" : 1'),
    WHOLE[0].replace(b'"ts": 1.5', b'"ts" : 1.5'),
    WHOLE[0].replace(b'"ts": 1.5', b'"ts"\t: 1.5, "source": null'),
    WHOLE[0].replace(b'"q"', b'"the \\": in \\" : a text"'),
    WHOLE[0].replace(b'"q"', b'"}\\n{"'),
    WHOLE[0].replace(b'"q"', b'"}{"'),
    WHOLE[0].replace(b'"ts": 1.5', b'"ts": 1.5, "position": 0, "items": ["a"]'),
    WHOLE[1].replace(b'["A", "b"]', b'["A", "b"], "predicted": [0.5, NaN], "logprob": -Infinity'),
    WHOLE[1].replace(b'["A", "b"]', b'["A", "b"], "predicted": [], "logprob": 0, "decoding": {}'),
    WHOLE[2].replace(b'"position": 0', b'"position": 0.0'),
    WHOLE[2].replace(b'"position": 0', b'"position": 1e0'),
    *(WHOLE[2].replace(b'"position": 0', b'"position": ' + one) for one in (b"2147483648.0", b"1.5", b"1e999", b"NaN", b"-1.0")),
    WHOLE[2].replace(b'"position": 0', b'"own": 1, "position": 3.0'),
    WHOLE[2].replace(b'"position": 0', b'"position": 1.5, "position": 2'),
    WHOLE[2].replace(b'"position": 0', b'"position": 0, "item": ""'),
    b'{"a":{"b":1}',
    b'{"c":2}}',
]
LINES = st.one_of(st.sampled_from(WHOLE), hostile_lines(), st.sampled_from(ODD))
RECORDS = st.lists(st.one_of(st.none(), st.lists(LINES, max_size=4).map(b"\n".join)), max_size=5)


@settings(max_examples=300, deadline=None)
@given(RECORDS, st.sampled_from([EventSettings(), TIGHT]), st.sampled_from([None, NOW]))
@example([b"\n".join(ODD)], EventSettings(), None)
@example([b"\r\n" + WHOLE[0] + b"\r\n" + WHOLE[1] + b"\r\n"], EventSettings(), NOW)
def test_columns_are_those_of_the_line_decoder(values: list[bytes | None], limits: EventSettings, now: float | None) -> None:
    assert_same(list(enumerate(values, 7)), limits, now)


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("name", sorted(set(NAMES)))
def test_every_value_of_every_field_is_judged_as_by_the_line_decoder(name: str, value: object) -> None:
    lines = [json.dumps({**event, name: value}).encode() for event in (QUERY, IMPRESSION, CLICK)]
    assert_same([(0, lines[0]), (1, WHOLE[0]), (2, lines[1]), (3, lines[2])], EventSettings(), NOW)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.binary(max_size=60), max_size=6))
def test_arbitrary_bytes_never_raise(values: list[bytes]) -> None:
    assert_same(list(enumerate(values)))


def test_many_records_are_decoded_in_several_calls() -> None:
    log = [json.dumps({**IMPRESSION, "event_id": f"e{number}", "ts": number / 8}).encode() for number in range(2_000)]
    log[777] = b"{"
    log[1_500] = log[1_500][:-1] + b',"own":1}'
    assert_same(list(enumerate(log)))
    assert_same([(row, b"\n".join(log[row : row + 100])) for row in range(0, 2_000, 100)])


def test_a_log_of_positions_as_pandas_writes_them_needs_no_line_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streams.events.batch_decoder.parse_line", None)
    lines = [json.dumps({**CLICK, "event_id": f"e{number}", "position": float(number % 5)}).encode() for number in range(50)]
    assert decode_columns([(0, b"\n".join(lines))]).clicks["position"].to_pylist() == [number % 5 for number in range(50)]


def test_a_record_without_a_value_is_malformed() -> None:
    (reject,) = decode_columns([(4, None)]).rejects
    assert (reject.reason, reject.offset) == (Reason.MALFORMED, 4)


def test_lines_keep_their_numbers_though_blank_ones_are_skipped() -> None:
    value = b"\n\n" + WHOLE[0] + b"\n \r\n" + WHOLE[2] + b"\r\n{\n"
    columns = decode_columns([(9, value)])
    places = [(table["log_offset"].to_pylist(), table["line"].to_pylist()) for table in (columns.queries, columns.clicks)]
    assert places == [([9], [2]), ([9], [4])]
    assert [(one.offset, one.line) for one in columns.rejects] == [(9, 5)]


@given(st.binary(max_size=300) | st.lists(LINES, max_size=4).map(b"".join))
def test_no_line_is_lost(value: bytes) -> None:
    written = [one for one in value.split(b"\n") if one.strip(b" \t\r\n")]
    assert len(decode_columns([(0, value)])) == len(written)
