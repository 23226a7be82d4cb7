"""Arrow's JSON reader takes what plain events are, and believes nothing that it could have misread."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from benchmarks.traffic import Traffic
from streams.events import json_reader
from streams.events.checks import Wire
from streams.events.json_reader import read_json_lines
from streams.events.line_spans import join_lines
from streams.events.schema import Impression, Query

QUERY: dict[str, Any] = {"type": "query", "event_id": "e", "ts": 1.5, "session_id": "s", "query": "q"}


def read(*lines: bytes) -> list[Wire]:
    return list(read_json_lines(join_lines(lines)))


def line(**fields: object) -> bytes:
    return json.dumps(QUERY | fields).encode()


def test_every_event_of_plain_traffic_is_read_without_a_doubt() -> None:
    lines = [made.text for made in Traffic().lines(3_000)]
    wires = read(*lines)
    assert sorted(np.concatenate([wire.rows for wire in wires]).tolist()) == list(range(3_000))
    assert not any(wire.doubtful.any() for wire in wires)


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
def test_a_line_that_may_have_more_fields_than_were_read_is_doubtful(text: bytes) -> None:
    (wire,) = read(line(), text, line())
    assert wire.doubtful.tolist() == [False, True, False]


def test_what_stands_aside_is_kept_as_text() -> None:
    shown = {"type": "impression", "impression_id": "i", "items": ["a"], "decoding": {"a": {"b": 1}}, "context": {"c": ["a : b"]}}
    (wire,) = read(line(**shown))
    assert wire.kind is Impression
    assert not wire.doubtful.any()
    assert wire.fields["decoding"].to_pylist() == ['{"a":{"b":1}}']
    assert wire.fields["extra"].to_pylist() == ['{"context":{"c": ["a : b"]}}']


def test_a_line_that_cannot_be_read_takes_few_others_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_reader, "LEAST_BYTES", 200)
    lines = [line(event_id=f"e{number}") for number in range(100)]
    lines[40] = b"{]}"
    wires = read(*lines)
    rows = np.concatenate([wire.rows for wire in wires]).tolist()
    assert 40 not in rows
    assert len(rows) > 95
    assert all(wire.kind is Query for wire in wires)


def test_long_texts_are_read_piece_by_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_reader, "PIECE_BYTES", 500)
    wires = read(*(line(event_id=f"é{number}") for number in range(50)))
    assert len(wires) > 5
    assert [name for wire in wires for name in wire.fields["event_id"].to_pylist()] == [f"é{number}" for number in range(50)]
    assert np.concatenate([wire.rows for wire in wires]).tolist() == list(range(50))
