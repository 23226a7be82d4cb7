"""Normalising a column equals normalising its texts one by one."""

from __future__ import annotations

import hypothesis.strategies as st
import pyarrow as pa
from hypothesis import given, settings

from streams.events.column_normal_form import find_special, normalise_column, text_bounds
from streams.events.normal_form import normalise

PIECES = st.sampled_from(
    ["Red", "shoes", " ", "  ", "\t", "\x1f", "\x00", "\x7f", "É", "ｒ", "ß", "\u2003", "", "a", "Z", "\u200b", "\xad", "\u200d"]
)
TEXTS = st.lists(PIECES, max_size=4).map("".join) | st.text(max_size=6)


@settings(deadline=None)
@given(st.lists(TEXTS, max_size=12), st.integers(0, 3), st.integers(0, 12))
def test_a_column_is_normalised_as_its_texts_are(texts: list[str], skipped: int, length: int) -> None:
    column = pa.array(texts, pa.string()).slice(skipped, length)
    assert normalise_column(column).to_pylist() == [normalise(text) for text in column.to_pylist()]


def test_texts_that_need_full_normalisation_are_flagged() -> None:
    texts = ["red shoes", "Red Shoes", " red", "red ", "red  shoes", "r\u00e9d", "", "a\tb", "x", "\x7fx"]
    assert find_special(pa.array(texts)).nonzero()[0].tolist() == [2, 3, 4, 5, 6, 7, 9]


def test_bounds_of_a_slice_are_those_of_its_texts() -> None:
    column = pa.array(["ab", "", None, "c"], pa.string())
    assert text_bounds(column).tolist() == [0, 2, 2, 2, 3]
    assert text_bounds(column.slice(1)).tolist() == [2, 2, 2, 3]
    assert text_bounds(column.slice(4)).tolist() == []
