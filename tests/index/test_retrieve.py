"""Retrieval (G16): n own successors when there are n, otherwise theirs and the near queries', by similarity x frequency."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from index.build import build_index
from index.dictionary import make_dictionary
from index.encoder import Encoder, FeatureSpace
from index.neighbours import build_neighbours
from index.retrieve import Index
from index.settings import IndexSettings
from streams.events.normal_form import normalise

SMALL = IndexSettings(dim=8, buckets=512, epochs=2, batch=16, neighbours=3, min_similarity=0)
WORDS = ["red", "green", "blue", "red shoes", "green shoes", "blue hat", "hat", "shoes"]
triples = st.lists(st.tuples(st.sampled_from(WORDS), st.sampled_from(WORDS), st.integers(1, 5)), max_size=30)


def make_index(found: list[tuple[str, str, int]], near: int = 3, min_similarity: float = 0.0) -> Index:
    rng = np.random.default_rng(0)
    table, projection = rng.normal(size=(512, 8)).astype(np.float32), rng.normal(size=(8, 8)).astype(np.float32)
    dictionary, encoder = make_dictionary(found), Encoder(FeatureSpace(512, 3, 5), table, projection)
    neighbours = build_neighbours(encoder.encode(dictionary.queries), 1000)
    return Index(dictionary, encoder, neighbours, near, min_similarity)


def table_of(found: list[tuple[str, str, int]]) -> pa.Table:
    schema = pa.schema([("query", pa.string()), ("next_query", pa.string()), ("count", pa.int64())])
    return pa.Table.from_pylist([dict(zip(schema.names, row, strict=True)) for row in found], schema=schema)


def retrieve_plainly(index: Index, query: str, n: int) -> list[str]:
    """G16 read off the page: all cosines, all sums."""
    own = dict(index.dictionary.get(query))
    if len(own) >= n:
        return sorted(own, key=lambda text: (-own[text], text))[:n]
    vector = index.encoder.encode([query])[0]
    cosines = [(float(index.encoder.encode([other])[0] @ vector), other) for other in index.dictionary.queries if other != query]
    nearest = [(c, other) for c, other in sorted(cosines, reverse=True)[: index.near] if c >= index.min_similarity]
    worth: dict[str, float] = defaultdict(float)
    for cosine, source in [(1.0, query), *nearest]:
        for text, count in index.dictionary.get(source):
            worth[text] += cosine * count
    worth.pop(query, None)
    return sorted(worth, key=lambda text: (-round(worth[text], 4), text))[:n]


@settings(max_examples=60, deadline=None)
@given(triples, st.sampled_from([*WORDS, "green hat", "unheard of"]), st.integers(0, 6))
def test_it_equals_a_direct_computation(found: list[tuple[str, str, int]], query: str, n: int) -> None:
    index = make_index(found)
    got, expected = index.retrieve(query, n), retrieve_plainly(index, query, n)
    assert set(got) == set(expected) or len(got) == len(expected) == n  # float ties may swap the last one
    assert len(got) <= n and query not in got and len(set(got)) == len(got)


def test_enough_own_successors_need_no_neighbours() -> None:
    index = make_index([("a", "b", 1), ("a", "c", 3), ("a", "d", 2), ("aa", "z", 99)])
    assert index.retrieve(" A ", 2) == ["c", "d"]


def test_a_short_list_is_filled_from_near_queries_and_never_with_the_query_itself() -> None:
    index = make_index(
        [("red shoes", "red boots", 1), ("red shoe", "red sandals", 5), ("red shoe", "red shoes", 9)], min_similarity=-1
    )
    cosine = float(index.encoder.encode(["red shoes"])[0] @ index.encoder.encode(["red shoe"])[0])
    # Its own one is worth 1 x 1, the near query's cosine x 5; "red shoes", though frequent there, is not proposed.
    expected = ["red sandals", "red boots"] if 5 * cosine > 1 else ["red boots", "red sandals"]
    assert index.retrieve("red shoes", 3) == expected


def test_dissimilar_queries_give_nothing() -> None:
    assert make_index([("a", "b", 1)], min_similarity=1.0).retrieve("entirely different", 5) == []


def test_without_neighbours_only_own_successors_count() -> None:
    assert make_index([("a", "b", 1), ("c", "d", 1)], near=0, min_similarity=-1).retrieve("a", 5) == ["b"]


@pytest.mark.parametrize("found", [[], [("a", "b", 1)]])
def test_an_empty_or_tiny_index_is_built_saved_and_asked(found: list[tuple[str, str, int]], tmp_path: Path) -> None:
    metrics = build_index(table_of(found), tmp_path, SMALL)
    assert metrics["queries"] == metrics["pairs"] == len(found)
    assert Index.load(tmp_path).retrieve("a", 5) == [following for _, following, _ in found]
    assert Index.load(tmp_path).retrieve("", 5) in ([], ["b"])


def test_a_built_index_answers_the_same_from_disk_and_twice(tmp_path: Path) -> None:
    found = [(a, b, i + 1) for i, a in enumerate(WORDS) for b in WORDS[i + 1 :]]
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        folder.mkdir()
        metrics = build_index(table_of(found), folder, SMALL)
    assert metrics["neighbours"] == "exact" and metrics["steps"] > 0
    one, two = (Index.load(folder) for folder in folders)
    for query in [*WORDS, "something else", "RED  shoes"]:
        assert one.retrieve(query, 5) == two.retrieve(query, 5)
        assert all(text == normalise(text) for text in one.retrieve(query, 5))


def test_parts_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    index = make_index([("a", "b", 1), ("c", "d", 1)])
    replace(index, neighbours=build_neighbours(index.encoder.encode(["a"]), 10)).save(tmp_path)
    with pytest.raises(ValueError, match="2 queries"):
        Index.load(tmp_path)


def test_a_missing_column_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="next_query"):
        build_index(pa.table({"query": ["a"], "count": [1]}), tmp_path, SMALL)
