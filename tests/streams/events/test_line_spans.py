"""Splitting many records at once gives the same lines and numbers as splitting each by itself, whatever the white space."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
from hypothesis import example, given

from streams.events.line_spans import join_lines, split_records
from streams.events.schema import BOM, strip_line

RECORDS = st.lists(
    st.lists(st.sampled_from([b"{}", b'{"a":1}', b"", b" ", b"{", b"x}", b"{}\r", b" {}", BOM + b"{}", BOM]), max_size=4).map(
        b"\n".join
    )
)


@given(RECORDS)
@example([b"{}\n{}", b"{}"])
@example([b"{}", b"{}\n", b"{}"])
@example([])
@example([BOM + b"{}", b"{}\n" + BOM + b"{}", BOM])
def test_lines_equal_those_of_each_record_split_by_itself(values: list[bytes]) -> None:
    lines = split_records(list(enumerate(values, 5)))
    expected = [
        (strip_line(line), offset, number)
        for offset, value in enumerate(values, 5)
        for number, line in enumerate(value.split(b"\n"))
        if strip_line(line)
    ]
    texts = lines.spans.take(np.arange(len(lines.spans)))
    assert list(zip(texts, lines.offsets.tolist(), lines.numbers.tolist(), strict=True)) == expected
    assert lines.braced.tolist() == [text[:1] == b"{" and text[-1:] == b"}" for text in texts]


def test_selected_lines_are_joined_with_one_line_break() -> None:
    spans = join_lines([b"one", b"two", b"three"])
    chosen = spans.select(np.array([0, 2]))
    assert (chosen.text, chosen.take(np.array([1]))) == (b"one\nthree", [b"three"])
    assert spans.select(np.arange(3)) is spans
