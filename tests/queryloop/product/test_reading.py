"""Texts are split into words and searched for phrases; plain English without regard to case, accents, punctuation, plural."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from queryloop.product.reading import find_phrases, index_phrases, merge_names, split_english, split_on_spaces

LETTERS = ["a", "b", "c", "d"]
WORDS = st.lists(st.sampled_from(LETTERS), max_size=8)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Flights to New York!", ["flight", "to", "new", "york"]),
        ("  café   MÜNCHEN ", ["cafe", "munchen"]),
        ("berries, dishes, foxes & glass", ["berry", "dish", "fox", "glass"]),
        ("it's 2024", ["it", "s", "2024"]),
        ("東京の天気", ["東京の天気"]),
        ("?!…", []),
    ],
)
def test_english_is_split_into_plain_words(text: str, words: list[str]) -> None:
    assert split_english(text) == words


@given(st.text())
def test_punctuation_case_and_spaces_change_nothing(text: str) -> None:
    assert split_english(f" \t{text}  ?!") == split_english(text)
    assert all(word and not any(letter.isspace() for letter in word) for word in split_english(text))


@given(st.text())
def test_invented_words_are_what_stands_between_spaces(text: str) -> None:
    assert split_on_spaces(text) == text.casefold().split()


@given(WORDS, st.lists(st.lists(st.sampled_from(LETTERS), min_size=1, max_size=3), max_size=6))
def test_every_phrase_is_found_wherever_it_stands(words: list[str], phrases: list[list[str]]) -> None:
    index = index_phrases((tuple(phrase), number) for number, phrase in enumerate(phrases))
    expected = [
        number for at in range(len(words)) for number, phrase in enumerate(phrases) if words[at : at + len(phrase)] == phrase
    ]
    assert sorted(number for _, number in find_phrases(words, index)) == sorted(expected)


def test_a_name_of_several_words_becomes_one_and_the_longest_wins() -> None:
    index = index_phrases([(("new", "york"), "new york"), (("york",), "york"), (("new", "york", "city"), "new york city")])
    assert merge_names(["in", "new", "york", "city", "york", "new"], index) == ["in", "new york city", "york", "new"]
