"""Lists are parsed by token id, checked for their form, and repaired for display."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.policy.list_form import AUX, SEP, find_form, store_form
from serving.policy.lists import encode_list, find_duplicates, jaccard, name_auxiliary, parse, parse_part, repair_items
from serving.policy.tasks import Task, clean_text
from tests.support.bases import IM_END, IM_START, make_chatml_tokenizer
from tests.support.models import EOS, PAD, make_tiny_tokenizer

TOKENIZER = make_tiny_tokenizer()
FORM = find_form(TOKENIZER)
SUGGEST = Task(name="suggest", n=2)
REFINE = Task(name="refine", n=2, auxiliary=("guiding", "prefix"))
LINES = make_chatml_tokenizer()
store_form(LINES, "lines")
TEXTS = st.text(max_size=30).map(lambda text: clean_text(text, 30)).filter(lambda text: text and "\ufffd" not in text)


def ids_of(text: str) -> list[int]:
    return list(TOKENIZER(text)["input_ids"])


def lines_of(text: str) -> list[int]:
    return list(LINES(text)["input_ids"])


@pytest.mark.parametrize("tokenizer", [TOKENIZER, LINES], ids=["tokens", "lines"])
@given(st.lists(TEXTS, min_size=2, max_size=2), st.lists(TEXTS, min_size=2, max_size=2))
def test_what_was_encoded_is_parsed_back(tokenizer: Any, items: list[str], auxiliary: list[str]) -> None:
    ids = encode_list(items, auxiliary, tokenizer)
    found = parse(ids, tokenizer, REFINE)
    assert found.items == tuple(items)
    assert found.auxiliary == tuple(auxiliary)
    assert found.well_formed
    assert found.tokens == len(ids)


@pytest.mark.parametrize(
    "text",
    [
        f"a{SEP}b",  # not ended
        f"a{EOS}",  # too few
        f"a{SEP}b{SEP}c{EOS}",  # too many
        f"a{SEP}{EOS}",  # an empty item
        f"{SEP}a{EOS}",
        EOS,
        "",
        f"x{AUX}a{SEP}b{EOS}",  # an auxiliary text that the task does not have
        f"a{PAD}{SEP}b{EOS}",  # a token that is no text
    ],
)
def test_ill_formed(text: str) -> None:
    assert not parse(ids_of(text), TOKENIZER, SUGGEST).well_formed


@pytest.mark.parametrize(
    "text", [f"g{AUX}a{SEP}b{EOS}", f"g{AUX}{AUX}a{SEP}b{EOS}", f"g{AUX}a{SEP}b{AUX}c{EOS}", f"a{SEP}b{EOS}"]
)
def test_ill_formed_with_auxiliary_texts(text: str) -> None:
    assert not parse(ids_of(text), TOKENIZER, REFINE).well_formed


def test_half_a_character_is_ill_formed_and_not_shown() -> None:
    broken = [*ids_of("a"), FORM.sep, ids_of("é")[0], FORM.eos]
    assert len(ids_of("é")) == 2
    found = parse(broken, TOKENIZER, SUGGEST)
    assert not found.well_formed
    assert repair_items(found.items, 2) == ("a",)


def test_what_follows_the_end_is_ignored() -> None:
    found = parse(ids_of(f"a{SEP}b{EOS}c{SEP}d"), TOKENIZER, SUGGEST)
    assert (found.items, found.well_formed, found.tokens) == (("a", "b"), True, 4)


def test_a_cut_off_list_keeps_what_is_there() -> None:
    assert parse(ids_of(f"red shoes{SEP}tra"), TOKENIZER, SUGGEST).items == ("red shoes", "tra")


def test_typed_separators_are_text_in_a_list_too() -> None:
    ids = encode_list([f"a{SEP}b", EOS], [], TOKENIZER)
    assert ids.count(FORM.sep) == 1
    assert ids.count(FORM.eos) == 1


def test_a_part_of_a_list() -> None:
    assert parse_part(ids_of(f"g{AUX}p{AUX}red shoes"), TOKENIZER) == (("g", "p", "red shoes"), True)
    assert parse_part(ids_of(""), TOKENIZER) == (("",), False)
    assert parse_part(ids_of(f"a{SEP}b"), TOKENIZER)[1] is False


def test_in_lines_each_text_is_a_line_and_a_newline_in_a_text_is_a_space() -> None:
    ids = encode_list(["red\nshoes", "boots"], ["for\r\nsport"], LINES)
    assert LINES.decode(ids) == f"for sport\nred shoes\nboots{IM_END}"
    found = parse(ids, LINES, Task(name="refine", n=2, auxiliary=("guiding",)))
    assert (found.auxiliary, found.items, found.well_formed) == (("for sport",), ("red shoes", "boots"), True)


@pytest.mark.parametrize(
    "text",
    [
        "a\nb",  # not ended
        f"a{IM_END}",  # too few
        f"a\nb\nc{IM_END}",  # too many
        f"a\n\nb{IM_END}",  # an empty item
        f"a\nb\n{IM_END}",
        f"\na{IM_END}",
        IM_END,
        "",
        f"a{IM_START}\nb{IM_END}",  # a token that is no text
    ],
)
def test_ill_formed_in_lines(text: str) -> None:
    assert not parse(lines_of(text), LINES, SUGGEST).well_formed


def test_two_newlines_in_one_token_end_no_line() -> None:
    tokenizer = make_chatml_tokenizer()
    tokenizer.add_tokens(["\n\n"])
    store_form(tokenizer, "lines")
    found = parse(tokenizer(f"a\n\nb\nc{IM_END}")["input_ids"], tokenizer, SUGGEST)
    assert (found.items, found.well_formed) == (("a b", "c"), False)
    assert parse_part(tokenizer("a\n\nb")["input_ids"], tokenizer) == (("a b",), False)


def test_a_part_of_a_list_in_lines() -> None:
    assert parse_part(lines_of("g\np\nred shoes"), LINES) == (("g", "p", "red shoes"), True)
    assert parse_part(lines_of(f"a{IM_START}"), LINES)[1] is False


@pytest.mark.parametrize(
    ("text", "items"),
    [
        (f"<think>\nWhat is it?\n</think>red\nblue{IM_END}", ("red", "blue")),
        (f"What is it?</think>red\nblue{IM_END}", ("red", "blue")),
        (f"red\n<think>What\nis it?{IM_END}", ("red", "")),
        ("<think>What\nis it?", ("",)),
    ],
)
def test_what_a_model_thinks_is_no_item(text: str, items: tuple[str, ...]) -> None:
    found = parse(lines_of(text), LINES, SUGGEST)
    assert (found.items, found.well_formed) == (items, False)


def test_repair_drops_empty_and_repeated_items_and_keeps_order() -> None:
    assert repair_items(["b", "", " ", "B ", "a", "ｂ", "c", "d"], 3) == ("b", "a", "c")


@given(st.lists(st.text(max_size=5), max_size=8), st.integers(1, 4))
def test_repair_never_shows_an_unusable_item(items: list[str], n: int) -> None:
    shown = repair_items(items, n)
    assert len(shown) <= n
    assert all(item.strip() for item in shown)
    assert repair_items(shown, n) == shown


def test_auxiliary_texts_have_names() -> None:
    assert name_auxiliary(("g",), REFINE) == {"guiding": "g", "prefix": ""}
    assert name_auxiliary(("g", "p", "more"), REFINE) == {"guiding": "g", "prefix": "p"}


def test_near_duplicates() -> None:
    assert find_duplicates(["Red  Shoes", "trail boots", "red shoes", "red shoe"]) == [2, 3]
    assert find_duplicates(["red shoes", "blue hats"]) == []


@given(st.text(max_size=20), st.text(max_size=20))
def test_jaccard_is_a_symmetric_share(first: str, second: str) -> None:
    assert jaccard(first, second) == jaccard(second, first)
    assert 0.0 <= jaccard(first, second) <= 1.0
    assert jaccard(first, first) == 1.0
