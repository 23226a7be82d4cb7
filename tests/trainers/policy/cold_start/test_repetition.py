"""A text repeats itself when a part follows itself at once; names that double a word do not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainers.policy.cold_start.repetition import repeats_itself


@pytest.mark.parametrize(
    "text",
    [
        "zimmermanzimmerman",
        "Zimmerman zimmerman ZIMMERMAN",
        "zimmerman zimmerman",
        "what is what is what is",
        "red shoes for red shoes and red shoes",
        "aaaaaaaa",
        "best best the best of best",
        "hahahahahahahahaha",
        "x " * 200,
    ],
)
def test_a_text_that_repeats_itself(text: str) -> None:
    assert repeats_itself(text)


@pytest.mark.parametrize(
    "text",
    [
        *("", "bora bora", "walla walla hotels", "www.example.com", "couscous", "10000000", "pago pago weather"),
        *("how to get to the airport", "new york to new jersey", "c++ vector<int>", "berlin – münchen", "東京 天気"),
    ],
)
def test_a_text_that_does_not(text: str) -> None:
    assert not repeats_itself(text)


@given(st.text(alphabet="abcdefgh ", min_size=7, max_size=20).filter(lambda text: len(text.strip()) >= 7))
def test_any_text_written_twice_without_a_gap_repeats_itself(text: str) -> None:
    assert repeats_itself(text.strip() * 2)


@given(st.text(max_size=2000))
def test_any_text_is_judged(text: str) -> None:
    repeats_itself(text)
