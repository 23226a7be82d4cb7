"""Nearest neighbours: exact search equals a sorted list of cosines, the graph nearly so, both also from disk."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from index.encoder import unit
from index.neighbours import Neighbours, build_neighbours


def draw(n: int, seed: int = 0) -> NDArray[np.float32]:
    return unit(np.random.default_rng(seed).normal(size=(n, 16)).astype(np.float32))


def test_exact_search_equals_sorting_all_cosines() -> None:
    vectors, queries = draw(200), draw(5, seed=1)
    numbers, similarities = build_neighbours(vectors, exact_up_to=200).search(queries, 10)
    cosines = queries @ vectors.T
    np.testing.assert_array_equal(numbers, np.argsort(-cosines, axis=1)[:, :10])
    np.testing.assert_allclose(similarities, -np.sort(-cosines, axis=1)[:, :10], rtol=1e-5)


def test_above_the_limit_a_graph_finds_nearly_the_same() -> None:
    vectors, queries = draw(2000), draw(50, seed=1)
    graph = build_neighbours(vectors, exact_up_to=1999)
    exact = build_neighbours(vectors, exact_up_to=2000)
    assert (graph.kind, exact.kind) == ("hnsw", "exact")
    found, true = graph.search(queries, 10)[0], exact.search(queries, 10)[0]
    assert np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found.tolist(), true.tolist(), strict=True)]) > 0.95


@pytest.mark.parametrize("exact_up_to", [0, 100])
def test_it_is_the_same_after_a_round_trip_to_disk(exact_up_to: int, tmp_path: Path) -> None:
    built = build_neighbours(draw(50), exact_up_to)
    built.save(tmp_path / "n.faiss")
    loaded = Neighbours.load(tmp_path / "n.faiss")
    assert (loaded.kind, len(loaded)) == (built.kind, 50)
    np.testing.assert_array_equal(loaded.search(draw(3, 1), 5)[0], built.search(draw(3, 1), 5)[0])


def test_fewer_vectors_than_asked_for_and_none_at_all() -> None:
    assert build_neighbours(draw(3), 10).search(draw(2, 1), 9)[0].shape == (2, 3)
    assert build_neighbours(draw(0), 10).search(draw(2, 1), 9)[0].shape == (2, 0)


def test_without_faiss_the_error_names_both_extras_that_bring_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ImportError, match=r"queryloop\[cpu\].*queryloop\[gpu\]"):
        build_neighbours(draw(3), 10)
