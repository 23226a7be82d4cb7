"""The normal form: what makes two queries one, what keeps them apart, and which texts have nothing to see."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from queryloop.verify.normal_form import normal_form
from streams.events.normal_form import is_blank, normalise
from tests.support import recount

UNSEEN = [
    *("\u200b", "\u00ad", "\ufeff", "\u2060", "\u200e", "\u200f", "\u061c", "\u202a", "\u202e", "\u2066", "\u2069", "\u034f"),
    *(
        "\u115f",
        "\u3164",
        "\uffa0",
        "\u2063",
        "\ufff9",
        "\U0001d173",
        "\U000e0001",
        "\U000e0100",
        "\ufe00",
        "\x00",
        "\x07",
        "\x7f",
    ),
    *("\x80", "\x9f", "\u200d", "\u200c", "\ufe0f", "\ufe0e", "\U000e0041", "\u180e"),
]
"""Characters that nobody sees among Latin letters."""
NEEDED = {
    "\N{LEFT-POINTING MAGNIFYING GLASS}\ufe0f": "\N{LEFT-POINTING MAGNIFYING GLASS}",
    "می\u200cخواهم": "میخواهم",
    "क्\u200dष": "क्ष",
    "ه\u200d": "ه",
    "👩\u200d👩\u200d👧": "👩👩👧",
    "❤\ufe0f\u200d🔥": "❤🔥",
    "1\ufe0f\u20e3": "1\u20e3",
    "🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f": "🏴",
    "ᠠ\u180eᠠ": "ᠠᠠ",
}
"""Texts that scripts and emoji write with signs, and the same without: they look different."""
PIECES = st.sampled_from(
    [*UNSEEN, *"aZé\u0301ｒ ", "  ", "\t", "\u2800", "\u2122", "ﻩ", "ه", "क", "🏴", "\U000e007f", "❤", "1", "東", "ᠠ"]
)
TEXTS = st.lists(PIECES, max_size=8).map("".join) | st.text(max_size=8)


@pytest.mark.parametrize("character", UNSEEN, ids=ascii)
@pytest.mark.parametrize("form", [normalise, normal_form])
def test_what_nobody_sees_makes_no_other_query(form: object, character: str) -> None:
    assert callable(form)
    for spelling in (
        f"{character}Red shoes",
        f"red{character} shoes",
        f"red {character} shoes",
        f"red sho{character * 2}es{character}",
    ):
        assert form(spelling) == "red shoes"


def test_an_accent_after_an_unseen_character_is_composed() -> None:
    for character in UNSEEN:
        assert normalise(f"cafe{character}\N{COMBINING ACUTE ACCENT}") == "café"


@pytest.mark.parametrize("text", NEEDED)
@pytest.mark.parametrize("form", [normalise, normal_form])
def test_signs_that_scripts_and_emoji_need_stay(form: object, text: str) -> None:
    assert callable(form)
    assert form(text) == text != form(NEEDED[text])
    assert form(f"{text}\u200b") == text, "an unseen character beside it goes all the same"


def test_a_sign_that_is_repeated_counts_once() -> None:
    assert normalise("می\u200c\u200cخواهم") == normalise("می\u200cخواهم")


@settings(deadline=None, max_examples=400)
@given(TEXTS)
def test_the_forms_of_counting_and_of_verification_agree(text: str) -> None:
    assert normalise(text) == normal_form(text)


def test_the_forms_agree_on_every_character() -> None:
    codes = [code for code in (*range(0x32000), *range(0xE0000, 0xE1100)) if not 0xD800 <= code < 0xE000]
    assert [
        hex(code) for code in codes if normalise.__wrapped__(f"a{chr(code)}b") != normal_form.__wrapped__(f"a{chr(code)}b")
    ] == []
    assert [
        hex(code) for code in codes if normalise.__wrapped__(f"ह{chr(code)}") != normal_form.__wrapped__(f"ह{chr(code)}")
    ] == []


@given(st.lists(st.sampled_from([*UNSEEN[:17], *NEEDED, "a", " ", "\t"]), max_size=6).map("".join))
def test_the_oracle_of_the_tests_agrees_where_signs_are_in_their_place(text: str) -> None:
    assert normalise(text) == recount.normal_form(text)


@pytest.mark.parametrize(
    "text",
    ["", " ", "\t\n", "\x1c", "\x1f\x1d", "\x00", "\x07\x7f", "\x85", "\u2003", "\u2800", *UNSEEN, "".join(UNSEEN)],
    ids=ascii,
)
def test_a_text_with_nothing_to_see_is_blank(text: str) -> None:
    assert is_blank(text) and normalise(text) == ""


@given(TEXTS)
def test_blank_means_an_empty_normal_form(text: str) -> None:
    assert is_blank(text) == (normalise(text) == "")
