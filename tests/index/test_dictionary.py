"""The co-occurrence dictionary: successors, most frequent first, by normalised texts, bounded, and the same from disk."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from index.dictionary import make_dictionary, read_dictionary, read_triples, write_dictionary
from streams.events.normal_form import normalise

texts = st.sampled_from(["paris", "Paris ", "PARIS hotels", "paris  hotels", "rome", "ﬁsh", "fish", "", "  "])
triples = st.lists(st.tuples(texts, texts, st.integers(1, 9)), max_size=40)


@given(triples)
def test_successors_are_the_summed_counts_by_falling_frequency(found: list[tuple[str, str, int]]) -> None:
    expected: Counter[tuple[str, str]] = Counter()
    for query, following, count in found:
        expected[normalise(query), normalise(following)] += count
    dictionary = make_dictionary(found)
    listed = {(q, text): count for q in dictionary.queries for text, count in dictionary.get(q)}
    assert listed == {(q, t): count for (q, t), count in expected.items() if q and t and q != t}
    for query in dictionary.queries:
        own = dictionary.get(query)
        assert list(own) == sorted(own, key=lambda one: (-one[1], one[0]))


@given(triples, st.randoms(use_true_random=False))
def test_the_order_of_the_triples_does_not_matter(found: list[tuple[str, str, int]], random: object) -> None:
    shuffled = list(found)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert make_dictionary(found) == make_dictionary(shuffled)


def test_any_spelling_finds_the_query() -> None:
    assert make_dictionary([("Ｐaris  Hotels", "Rome", 2)]).get("paris hotels ") == (("rome", 2),)


def test_rare_and_surplus_successors_are_left_out() -> None:
    dictionary = make_dictionary([("a", "b", 3), ("a", "c", 2), ("a", "d", 1), ("z", "y", 1)], min_count=2, max_successors=1)
    assert dictionary.successors == {"a": (("b", 3),)}


def test_it_is_the_same_after_a_round_trip_to_disk(tmp_path: Path) -> None:
    dictionary = make_dictionary([(f"q{i % 7}", f"n{i % 11}", i + 1) for i in range(200)])
    write_dictionary(dictionary, tmp_path / "d.parquet")
    assert read_dictionary(tmp_path / "d.parquet") == dictionary


def test_an_empty_one_is_allowed(tmp_path: Path) -> None:
    write_dictionary(make_dictionary([]), tmp_path / "d.parquet")
    assert len(read_dictionary(tmp_path / "d.parquet")) == 0


def test_a_missing_column_is_named() -> None:
    with pytest.raises(ValueError, match="no column 'count'"):
        read_triples(pa.table({"query": ["a"], "next_query": ["b"]}))


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from("abcd"), st.integers(1, 5)), max_size=20), st.integers(0, 5))
def test_popular_queries_are_those_of_the_most_pairs_equal_ones_by_text(found: list[tuple[str, str, int]], n: int) -> None:
    worth = {text: sum(count for a, b, count in found if a != b and text in (a, b)) for text in "abcd"}
    ranked = sorted((text for text in worth if worth[text]), key=lambda text: (-worth[text], text))
    assert make_dictionary(found).find_popular(n) == ranked[:n]
