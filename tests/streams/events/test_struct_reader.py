"""The struct reader reads valid events that Arrow's reader cannot read, and skips lines that are no events."""

from __future__ import annotations

import json

import numpy as np

from streams.events.line_spans import join_lines
from streams.events.schema import Click, Query
from streams.events.struct_reader import read_struct_lines

QUERY = b'{"type":"query","event_id":"e","ts":"2020-06-01T12:53:38.5Z","session_id":"s","query":"q"}'
CLICK = b'{"type":"click","event_id":"c","ts":5,"session_id":"s","query":"q","user_id":null,"impression_id":"i","position":1}'


def test_times_in_rfc_3339_and_nulls_are_read() -> None:
    query, click = read_struct_lines(join_lines([CLICK, QUERY]))
    assert (query.kind, query.ts_us.tolist(), query.rows.tolist()) == (Query, [1_591_016_018_500_000], [1])
    assert (click.kind, click.ts_us.tolist(), click.fields["user_id"].to_pylist()) == (Click, [5_000_000], [None])


def test_a_line_that_is_no_event_is_in_no_result() -> None:
    lines = [QUERY, b"{}", QUERY + QUERY, json.dumps({"type": "query"}).encode(), QUERY]
    (wire,) = read_struct_lines(join_lines(lines))
    assert wire.rows.tolist() == [0, 4]


def test_a_time_outside_1970_to_9999_is_flagged() -> None:
    lines = [QUERY.replace(b"2020", b"0001"), QUERY, QUERY.replace(b'"2020-06-01T12:53:38.5Z"', b"1e300")]
    (wire,) = read_struct_lines(join_lines(lines))
    assert np.flatnonzero(wire.ts_us < 0).tolist() == [0, 2]
