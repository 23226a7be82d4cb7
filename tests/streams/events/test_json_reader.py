"""Arrow's JSON reader reads ordinary events, and flags every line that it could have misread for the strict check."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from benchmarks.traffic import Traffic
from streams.events import json_reader
from streams.events.checks import WireColumns
from streams.events.json_reader import read_json_lines
from streams.events.line_spans import join_lines
from streams.events.schema import Impression, Query

QUERY: dict[str, Any] = {"type": "query", "event_id": "e", "ts": 1.5, "session_id": "s", "query": "q"}


def read(*lines: bytes) -> list[WireColumns]:
    return list(read_json_lines(join_lines(lines)))


def line(**fields: object) -> bytes:
    return json.dumps(QUERY | fields).encode()


def test_every_event_of_ordinary_traffic_is_read_and_none_needs_the_strict_check() -> None:
    lines = [made.text for made in Traffic().lines(3_000)]
    wires = read(*lines)
    assert sorted(np.concatenate([wire.rows for wire in wires]).tolist()) == list(range(3_000))
    assert not any(wire.needs_strict.any() for wire in wires)


@pytest.mark.parametrize(
    "text",
    [
        line(own=1),
        line(own=None),
        line(user_id=None),
        line(position=0),
        line(own={"type": "click"}),
        line().replace(b'"query": "q"', b'"query": "q", "own" : 1'),
        line().replace(b'"query": "q"', b'"query": "q", "own"\t \t: 1'),
        line(query='a ": b'),
    ],
)
def test_a_line_that_may_have_more_fields_than_were_read_needs_the_strict_check(text: bytes) -> None:
    (wire,) = read(line(), text, line())
    assert wire.needs_strict.tolist() == [False, True, False]


def test_pass_through_json_is_kept_as_text() -> None:
    shown = {"type": "impression", "impression_id": "i", "items": ["a"], "decoding": {"a": {"b": 1}}, "context": {"c": ["a : b"]}}
    (wire,) = read(line(**shown))
    assert wire.kind is Impression
    assert not wire.needs_strict.any()
    assert wire.fields["decoding"].to_pylist() == ['{"a":{"b":1}}']
    assert wire.fields["extra"].to_pylist() == ['{"context":{"c": ["a : b"]}}']


def test_a_line_that_cannot_be_read_costs_few_other_lines_the_fast_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_reader, "MIN_CHUNK_BYTES", 200)
    lines = [line(event_id=f"e{number}") for number in range(100)]
    lines[40] = b"{]}"
    wires = read(*lines)
    rows = np.concatenate([wire.rows for wire in wires]).tolist()
    assert 40 not in rows
    assert len(rows) > 95
    assert all(wire.kind is Query for wire in wires)


def test_long_texts_are_read_chunk_by_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_reader, "CHUNK_BYTES", 500)
    wires = read(*(line(event_id=f"é{number}") for number in range(50)))
    assert len(wires) > 5
    assert [name for wire in wires for name in wire.fields["event_id"].to_pylist()] == [f"é{number}" for number in range(50)]
    assert np.concatenate([wire.rows for wire in wires]).tolist() == list(range(50))
