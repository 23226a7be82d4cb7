"""The event schema: how queries compare, how events are written, and which events the published schema accepts."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import jsonschema
import msgspec
import pytest
from hypothesis import given

from streams.events.line_decoder import parse_line
from streams.events.normal_form import is_blank, normalise
from streams.events.schema import (
    Click,
    Event,
    EventError,
    Impression,
    Query,
    Reject,
    encode,
    json_schema,
    make_event_id,
    printable,
    to_micros,
    with_extra,
)

ROOT = Path(__file__).resolve().parents[3]
DATA = ROOT.parent / "shared" / "data"

words = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=20)
texts = words.filter(lambda text: not is_blank(text))
offsets = st.integers(-1380, 1380).map(lambda minutes: timezone(timedelta(minutes=minutes)))
times = st.floats(0, 253_402_300_799) | st.datetimes(datetime(1970, 1, 2), datetime(9999, 12, 30), timezones=offsets)
shared: dict[str, Any] = {"event_id": words, "ts": times, "session_id": words, "query": texts, "user_id": st.none() | words}
numbers = st.floats(allow_nan=False, allow_infinity=False)
events: st.SearchStrategy[Event] = st.one_of(
    st.builds(Query, **shared, source=words),
    st.builds(
        Impression,
        **shared,
        impression_id=words,
        items=st.lists(texts, min_size=1, max_size=8).map(tuple),
        task=st.none() | words,
        release=st.none() | words,
        predicted=st.none() | st.lists(numbers, max_size=8).map(tuple),
        logprob=st.none() | numbers,
        decoding=st.none() | st.dictionaries(words, numbers | words | st.booleans(), max_size=3),
    ),
    st.builds(Click, **shared, impression_id=words, position=st.integers(0, 2**31 - 1), item=st.none() | texts),
)


@pytest.mark.parametrize(
    ("text", "norm"),
    [
        ("  Berlin \t Hotels\n", "berlin hotels"),
        ("STRASSE", "strasse"),
        ("Straße", "strasse"),
        ("\N{FULLWIDTH LATIN CAPITAL LETTER A}\N{NO-BREAK SPACE}b", "a b"),
        ("ﬁne", "fine"),
        ("e\N{COMBINING ACUTE ACCENT}", "\N{LATIN SMALL LETTER E WITH ACUTE}"),
    ],
)
def test_queries_compare_after_nfkc_case_folding_and_white_space(text: str, norm: str) -> None:
    assert normalise(text) == norm


def test_ids_do_not_repeat() -> None:
    assert len({make_event_id() for _ in range(1000)}) == 1000


@pytest.mark.parametrize(
    ("ts", "micros"),
    [
        (1591016918.0, 1_591_016_918_000_000),
        (1614556800.71, 1_614_556_800_710_000),
        (datetime(2021, 3, 1, 1, tzinfo=timezone(timedelta(hours=1))), 1_614_556_800_000_000),
        (datetime(1970, 1, 1, 0, 0, 0, 1, tzinfo=UTC), 1),
    ],
)
def test_event_time_is_microseconds_utc(ts: float | datetime, micros: int) -> None:
    assert to_micros(ts) == micros


@given(events)
def test_a_written_event_is_read_back_equal(event: Event) -> None:
    line = encode(event)
    assert b"\n" not in line
    read = parse_line(line)
    assert not isinstance(read, Reject), read
    assert msgspec.structs.replace(read, ts=event.ts) == event
    assert read.ts_us == to_micros(event.ts)
    assert read.query_norm == normalise(event.query)


@given(events)
def test_an_event_that_was_read_is_written_with_its_own_text(event: Event) -> None:
    line = json.dumps(json.loads(encode(event)), indent=2).encode() + b" \r\n"
    read = parse_line(line)
    assert not isinstance(read, Reject)
    again = encode(read)
    assert b"\n" not in again
    assert json.loads(again) == json.loads(line)


def query() -> Query:
    return Query(event_id="e", ts=1.0, session_id="s", query="q")


def test_further_fields_travel_with_an_event() -> None:
    event = with_extra(with_extra(query(), {"context": {"page": 3}}), {"device": "phone"})
    assert event == query()
    assert json.loads(encode(event)) == {**json.loads(encode(query())), "context": {"page": 3}, "device": "phone"}
    assert with_extra(query(), {}).extra == b""


def test_further_fields_cannot_replace_the_schemas_own() -> None:
    with pytest.raises(EventError, match="ts is a field of the schema"):
        with_extra(query(), {"ts": 5})


@given(st.text())
def test_logged_text_is_printable_and_short(text: str) -> None:
    shown = printable(text)
    assert shown.isascii()
    assert shown.isprintable()
    assert len(shown) <= 200


def test_the_published_schema_accepts_the_documented_examples_and_refuses_their_faults() -> None:
    validator = jsonschema.Draft202012Validator(json_schema())
    examples = [
        '{"type":"query","event_id":"e","ts":1591016918.0,"session_id":"s","user_id":null,"query":"q","source":"user"}',
        '{"type":"impression","event_id":"e","ts":"2021-03-01T00:00:00Z","session_id":"s","query":"q","impression_id":"i",'
        '"task":"suggest","items":["a","b"],"release":"r","predicted":[0.1,0.2],"logprob":-7.1,"decoding":{"temperature":0.9},"x":1}',
        '{"type":"click","event_id":"e","ts":1,"session_id":"s","query":"q","impression_id":"i","position":0,"item":"a"}',
    ]
    for example in examples:
        validator.validate(json.loads(example))
        assert not isinstance(parse_line(example.encode()), Reject)
    for fault in ({"position": -1}, {"query": ""}, {"query": "x" * 513}, {"type": "view"}, {"ts": True}):
        assert not validator.is_valid({**json.loads(examples[2]), **fault}), fault


@pytest.mark.parametrize("name", ["clara2_dev", "excite", "mimics_duo_dev"])
def test_every_event_of_the_shared_logs_is_good(name: str) -> None:
    path = DATA / f"{name}.jsonl.gz"
    if not path.exists():
        pytest.skip("no shared data beside the checkout")
    with gzip.open(path) as log:
        for line in log:
            read = parse_line(line)
            plain = json.loads(line)
            assert not isinstance(read, Reject), read
            assert (read.event_id, read.ts, read.session_id) == (plain["event_id"], plain["ts"], plain["session_id"])


def test_a_click_made_from_its_list_has_the_session_of_the_list() -> None:
    line = (
        b'{"type":"impression","event_id":"e","ts":1,"session_id":"s1","user_id":"u","query":"q",'
        b'"impression_id":"i","items":["a","b"]}'
    )
    shown = parse_line(line)
    assert isinstance(shown, Impression)
    clicked = shown.click(1, ts=9000.0, event_id="c")
    assert (clicked.session_id, clicked.user_id, clicked.query, clicked.impression_id) == ("s1", "u", "q", "i")
    assert (clicked.event_id, clicked.ts, clicked.position, clicked.item) == ("c", 9000.0, 1, "b")
    assert len(shown.click(0, ts=1.0).event_id) == 32
    with pytest.raises(IndexError):
        shown.click(2, ts=1.0)


def test_importing_the_schema_is_cheap() -> None:
    heavy = {"torch", "faust", "duckdb", "pyarrow", "kafka", "numpy"}
    code = f"import sys, streams.events, streams.events.line_decoder; print({heavy!r} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
