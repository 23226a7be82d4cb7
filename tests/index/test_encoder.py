"""The query encoder: unit vectors that do not depend on the batch, learned so that queries that follow one another are near."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from index.dictionary import Dictionary, make_dictionary
from index.encoder import Encoder, FeatureSpace
from index.encoder_training import info_nce, train_encoder
from index.settings import IndexSettings

SMALL = IndexSettings(dim=16, buckets=2048, epochs=30, batch=32, max_steps=120)
TOPICS = {"cat": ["purr", "whiskers", "kitten", "litter"], "car": ["tyres", "engine", "mileage", "brakes"]}


@pytest.fixture(scope="module")
def dictionary() -> Dictionary:
    pairs = [(f"{one} {a}", f"{one} {b}", 2) for one, words in TOPICS.items() for a in words for b in words]
    return make_dictionary([*pairs, *((a, b, 1) for words in TOPICS.values() for a in words for b in words)])


@pytest.fixture(scope="module")
def encoder(dictionary: Dictionary) -> Encoder:
    return train_encoder(dictionary, SMALL)[0]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.text(max_size=40), max_size=6))
def test_vectors_have_length_one_and_do_not_depend_on_the_batch(texts: list[str]) -> None:
    rng = np.random.default_rng(0)
    space = FeatureSpace(512, 3, 5)
    encoder = Encoder(space, rng.normal(size=(512, 8)).astype(np.float32), rng.normal(size=(8, 8)).astype(np.float32))
    together = encoder.encode(texts)
    assert together.shape == (len(texts), 8) and together.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, rtol=1e-5)
    for row, text in enumerate(texts):
        np.testing.assert_array_equal(encoder.encode([text])[0], together[row])


def test_queries_that_follow_one_another_become_near(encoder: Encoder) -> None:
    words = [word for found in TOPICS.values() for word in found]
    cosines = encoder.encode(words) @ encoder.encode(words).T
    own = np.kron(np.eye(2, dtype=bool), np.ones((4, 4), bool)) & ~np.eye(8, dtype=bool)
    other = np.kron(1 - np.eye(2, dtype=bool), np.ones((4, 4))).astype(bool)
    assert cosines[own].mean() > cosines[other].mean() + 0.3


def test_an_unseen_query_is_near_those_that_share_its_words(encoder: Encoder) -> None:
    near, far = encoder.encode(["car engine", "cat kitten"]) @ encoder.encode(["my car engine noise"])[0]
    assert near > far


def test_the_same_seed_gives_the_same_weights_and_leaves_the_dictionary_alone(dictionary: Dictionary) -> None:
    before = dict(dictionary.successors)
    state = torch.random.get_rng_state()
    one, two = (train_encoder(dictionary, SMALL)[0] for _ in range(2))
    other = train_encoder(dictionary, SMALL.model_copy(update={"seed": 1}))[0]
    np.testing.assert_array_equal(one.table, two.table)
    assert not np.array_equal(one.table, other.table)
    assert dictionary.successors == before
    assert torch.equal(torch.random.get_rng_state(), state)


def test_it_is_the_same_after_a_round_trip_to_disk(encoder: Encoder, tmp_path: Path) -> None:
    encoder.save(tmp_path)
    np.testing.assert_array_equal(Encoder.load(tmp_path).encode(["cat purr", "unseen"]), encoder.encode(["cat purr", "unseen"]))


def test_weights_that_do_not_fit_the_configuration_are_refused(encoder: Encoder, tmp_path: Path) -> None:
    encoder.save(tmp_path)
    (tmp_path / "encoder.json").write_text('{"buckets": 99, "min_ngram": 3, "max_ngram": 5}')
    with pytest.raises(ValueError, match="99 buckets"):
        Encoder.load(tmp_path)


@pytest.mark.parametrize("triples", [[], [("a", "b", 1)]])
def test_too_few_pairs_to_contrast_leave_it_untrained(triples: list[tuple[str, str, int]]) -> None:
    encoder, training = train_encoder(make_dictionary(triples), SMALL)
    assert training == {"steps": 0, "loss": 0.0}
    assert encoder.encode(["a"]).shape == (1, 16)


def test_info_nce_is_the_symmetric_cross_entropy_without_repeated_texts() -> None:
    rng = np.random.default_rng(0)
    left, right = (torch.nn.functional.normalize(torch.tensor(rng.normal(size=(3, 4))), dim=1) for _ in range(2))
    # Row 2 has row 0's query: neither is a negative for the other.
    got = info_nce(left, right, np.array([7, 8, 7]), np.array([1, 2, 3]), 0.5)
    s = np.exp((left @ right.T / 0.5).numpy())
    s[0, 2] = s[2, 0] = 0
    rows, columns = -np.log(np.diag(s) / s.sum(1)), -np.log(np.diag(s) / s.sum(0))
    assert float(got) == pytest.approx((rows.mean() + columns.mean()) / 2)
