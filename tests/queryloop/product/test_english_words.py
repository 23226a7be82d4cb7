"""The tables of the plain-English world are large enough and say what they mean only once."""

from __future__ import annotations

import pytest

from queryloop.product.english_words import ASPECTS, NAMES, list_aspects, list_names
from queryloop.product.reading import split_english

KINDS = sorted(NAMES)


def test_there_are_some_hundred_names_and_none_is_used_twice() -> None:
    names = [" ".join(split_english(name)) for kind in KINDS for name in list_names(kind)]
    assert len(names) > 400
    assert len(set(names)) == len(names)
    assert sorted(ASPECTS) == KINDS


@pytest.mark.parametrize("kind", KINDS)
def test_people_ask_ten_to_twenty_things_about_each_kind(kind: str) -> None:
    aspects = list_aspects(kind)
    assert 10 <= len(aspects) <= 20
    assert all(pattern.count("{}") == 1 for pattern, _ in aspects)
    assert len({pattern for pattern, _ in aspects}) == len(aspects)


@pytest.mark.parametrize("kind", KINDS)
def test_no_phrase_means_two_aspects_of_a_kind(kind: str) -> None:
    phrases = [" ".join(split_english(phrase)) for _, phrases in list_aspects(kind) for phrase in phrases]
    assert all(phrases)
    assert len(set(phrases)) == len(phrases)
