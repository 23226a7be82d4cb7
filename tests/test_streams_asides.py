"""Fields with any JSON are stored as text; what is not of the schema's kind there is doubtful."""

from __future__ import annotations

from streams.asides import make_asides, read_asides


def test_fields_are_taken_from_the_line_as_they_stand() -> None:
    texts = read_asides([b'{"decoding": {"a": 1.50}, "other": 1}', b'{"response":"r","context":[]}', b"{}"])
    assert texts == {"decoding": [b'{"a": 1.50}', b"", b""], "context": [b"", b"[]", b""], "response": [b"", b'"r"', b""]}


def test_a_line_that_cannot_be_read_has_none_and_the_others_keep_theirs() -> None:
    assert read_asides([b'{"decoding":{"a":NaN}}', b'{"decoding":{}}'])["decoding"] == [b"", b"{}"]


def test_decoding_is_an_object_or_null() -> None:
    made = make_asides({"decoding": [b'{"b": 1,"a":2.0}', b"null", b"", b"[1]"], "context": [b""] * 4, "response": [b""] * 4})
    assert made.decoding.to_pylist() == ['{"b":1,"a":2.0}', None, None, None]
    assert made.doubtful.tolist() == [False, False, False, True]


def test_companions_are_one_object_in_their_order() -> None:
    made = make_asides({"decoding": [b""] * 3, "context": [b"1", b"", b'"\xff"'], "response": [b'"r"', b"", b""]})
    assert made.extra.to_pylist() == ['{"context":1,"response":"r"}', None, ""]
    assert made.doubtful.tolist() == [False, False, True]
