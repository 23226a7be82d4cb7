"""Pass-through JSON is stored as text; values that the schema does not allow need the strict check."""

from __future__ import annotations

import json

import numpy as np
import pytest

from streams.events.json_fields import count_keys, make_pass_through, read_pass_through
from streams.events.line_spans import join_lines

ROWS = np.arange(3)


def read(*lines: bytes) -> list[tuple[bytes, ...]]:
    """Return (decoding, context, response) of each line."""
    texts, which = read_pass_through(join_lines(lines), np.arange(len(lines)))
    rows = list(zip(*texts.values(), strict=True))
    return [rows[number] for number in which.tolist()]


def test_fields_keep_the_text_of_the_line() -> None:
    found = read(b'{"decoding": {"a": 1.50}, "other": 1}', b'{"response":"r","context":[]}', b"{}", b'{"a":1,"decoding":{}}')
    assert found == [(b'{"a": 1.50}', b"", b""), (b"", b"[]", b'"r"'), (b"", b"", b""), (b"{}", b"", b"")]


def test_a_line_that_cannot_be_read_has_no_fields_and_other_lines_keep_theirs() -> None:
    found = read(b'{"a":1,"decoding":{"a":NaN}}', b'{"a":1,"decoding":{}}', b'{"decoding":{"a":NaN}}')
    assert [decoding for decoding, _, _ in found] == [b"", b"{}", b""]


def test_equal_ends_of_lines_are_read_once() -> None:
    texts, which = read_pass_through(
        join_lines([b'{"a":1,"decoding":{}}', b'{"a":2,"decoding":[]}', b'{"b":3,"decoding":{}}']), ROWS
    )
    assert texts["decoding"] == [b"{}", b"[]"]
    assert which.tolist() == [0, 1, 0]


@pytest.mark.parametrize(
    ("line", "decoding"),
    [
        (b'{"a":1,"decoding":{"b":2},"context":{"c":1,"decoding":3}}', b""),
        (b'{"a":{"b":1,"decoding":2}}', b""),
        (b'{"a":[{"b":1,"decoding":2},{"c":3}]}', b""),
        (b'{"a":1,"decoding":1,"decoding":2}', b"2"),
        (b'{"a":"\\\\","decoding":1}', b"1"),
        (b'{"a":"b,\\"decoding\\":1}"}', b""),
        (b'{"a,\\"":1,"decoding":1}', b"1"),
    ],
)
def test_a_nested_or_quoted_key_is_not_taken_for_the_field_of_the_line(line: bytes, decoding: bytes) -> None:
    json.loads(line)
    assert read(line) == [(decoding, b"", b"")]


def test_counted_keys_include_the_names_of_the_fields() -> None:
    assert count_keys({"decoding": [b'{"a":1}', b""], "context": [b"null", b""], "response": [b"", b""]}).tolist() == [3, 0]


def test_taken_rows_are_null_for_row_minus_one() -> None:
    made = make_pass_through({"decoding": [b"{}", b"1"], "context": [b"", b"2"], "response": [b"", b""]}).take_rows(
        np.array([1, -1, 0, 1])
    )
    assert made.decoding.to_pylist() == [None, None, "{}", None]
    assert made.extra.to_pylist() == ['{"context":2}', None, None, '{"context":2}']
    assert made.needs_strict.tolist() == [True, False, False, True]


def test_decoding_is_an_object_or_null_and_anything_else_needs_the_strict_check() -> None:
    made = make_pass_through(
        {"decoding": [b'{"b": 1,"a":2.0}', b"null", b"", b"[1]"], "context": [b""] * 4, "response": [b""] * 4}
    )
    assert made.decoding.to_pylist() == ['{"b":1,"a":2.0}', None, None, None]
    assert made.needs_strict.tolist() == [False, False, False, True]


def test_context_and_response_become_one_object_in_this_order() -> None:
    made = make_pass_through({"decoding": [b""] * 3, "context": [b"1", b"", b'"\xff"'], "response": [b'"r"', b"", b""]})
    assert made.extra.to_pylist() == ['{"context":1,"response":"r"}', None, ""]
    assert made.needs_strict.tolist() == [False, False, True]
