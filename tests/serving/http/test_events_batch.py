"""Splitting a batch: one event that is no JSON costs only itself, whatever is wrong with it."""

from __future__ import annotations

import gzip
import json
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from serving.http.events_batch import BatchError, _split_by_brackets, split_batch, split_lines

VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=6) | st.sampled_from(['"', "\\", "]", "},{", '\\"', "events"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
BAD = {
    "half an emoji": rb'{"query": "cut \ud83d"}',
    "a raw NUL": b'{"query": "a\x00b"}',
    "a raw line break": b'{"query": "a\nb"}',
    "ten thousand brackets": b'{"a": ' + b"[" * 10_000 + b"]" * 10_000 + b"}",
    "a number without end": b'{"ts": ' + b"9" * 6000 + b"e999}",
    "no UTF-8": b'{"query": "\xff\xfe"}',
    "a bare word": b"undefined",
    "NaN": b'{"ts": NaN}',
    "single quotes": b"{'query': 'a'}",
    "nothing": b"",
    "an unknown escape": rb'{"query": "\q"}',
    "a key twice": b'{"query": "a", "query": "b"}',
    "a list": b"[1, 2]",
    "half an event": b'{"query": }',
}
GOOD = b'{"query": "ok, [fine] {here}"}'


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
@pytest.mark.parametrize("index", [0, 50, 99])
def test_a_bad_event_leaves_the_other_99_as_they_are(bad: bytes, index: int) -> None:
    events = [GOOD] * 99
    events.insert(index, bad)
    assert split_batch(b'{"sent": "now", "events": [' + b" ,\n".join(events) + b'], "by": [1]}', 100) == events


@settings(deadline=None)
@given(st.lists(VALUES, max_size=6), st.dictionaries(st.text(max_size=3), VALUES, max_size=3), st.none() | st.integers(0, 3))
def test_brackets_split_valid_json_as_its_parser_does(events: list[Any], more: dict[str, Any], indent: int | None) -> None:
    more = {key: value for key, value in more.items() if key != "events"}
    for body in (
        json.dumps({**more, "events": events}, indent=indent),
        json.dumps({"events": events, **more}, ensure_ascii=False),
    ):
        found = _split_by_brackets(body.encode("utf-8", "surrogatepass"), ValueError())
        assert [json.loads(event) for event in found] == events


def test_the_list_is_found_by_its_key_alone() -> None:
    body = b'{"a\\"events": ["\\ud83d"], "b": "events", "c": ["events"], "events" : [1]}'
    with pytest.raises(BatchError, match="beside the events"):
        split_batch(body, 10)
    assert _split_by_brackets(body.replace(b"\\ud83d", b"x"), ValueError()) == [b"1"]


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (b"", "the body must be .*: it is empty"),
        (b" \n", "the body must be .*: it is empty"),
        (gzip.compress(b'{"events": []}'), "the body must be .*: it is gzip: send Content-Encoding: gzip"),
        (b"[]", "the body must be"),
        (b'{"events": 3}', "the body must be"),
        (b'{"event": []}', "the body must be"),
        (b"\xff", "the body must be"),
        (b"[" * 100_000, "the body must be"),
        (b'{"a": {"events": [1]}}', "the body must be"),
        (b'{"events": [1] 2}', "beside the events"),
        (b'{"events": [1]', "beside the events"),
        (b'{"events": ["\\ud83d"], "events": [1]}', "twice"),
        (b'{"events": [1, {"a": ["\\ud83d"}]}', "event 1: its brackets do not match, at byte"),
        (b'{"events": [1, 2, {"a": "b', "event 2: a text without its closing quote"),
        (b'{"events": [1, {"a": 1},', "event 2: the body ends before"),
    ],
)
def test_a_body_that_is_no_batch_is_refused_with_the_place(body: bytes, problem: str) -> None:
    with pytest.raises(BatchError, match=problem) as caught:
        split_batch(body, 10)
    assert caught.value.status == 422


def test_too_many_events_are_refused() -> None:
    assert len(split_batch(b'{"events": [1,1,1]}', 3)) == len(split_lines(b"1\n\n1\r\n1\n", 3)) == 3
    for split, body in (
        (split_batch, b'{"events": [1,1,1]}'),
        (split_batch, b'{"events": [\x00,1,1]}'),
        (split_lines, b"1\n\n1\r\n1\n"),
    ):
        with pytest.raises(BatchError, match="3 events in one batch, at most 2") as caught:
            split(body, 2)
        assert caught.value.status == 413


def test_a_byte_order_mark_is_no_fault() -> None:
    assert split_batch(b'\xef\xbb\xbf{"events": [1]}', 1) == split_lines(b"\xef\xbb\xbf1", 1) == [b"1"]


def test_byte_order_marks_before_lines_are_no_fault() -> None:
    mark = b"\xef\xbb\xbf"
    assert split_lines(mark + GOOD + b"\r\n" + mark + b"\n" + mark + b" " + GOOD, 2) == [GOOD, GOOD]


@pytest.mark.parametrize("more", [b'"events": []', b'"events": [2]', b'"a": {"events": [2]}, "events": [3]'])
def test_a_batch_with_two_lists_is_refused_since_one_would_be_lost(more: bytes) -> None:
    with pytest.raises(BatchError, match='the body has "events" twice'):
        split_batch(b'{"events": [1], ' + more + b"}", 100)


def test_the_word_events_elsewhere_is_no_second_list() -> None:
    body = b'{"b": {"events": [1]}, "events": [{"events": [2]}, "events", ["events"]], "c": "events", "d": ["events", [4]]}'
    assert split_batch(body, 100) == [b'{"events": [2]}', b'"events"', b'["events"]']
