"""No text that a user typed becomes a special token, and no harmless text is changed by that."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.policy.list_form import AUX, SEP, add_list_tokens, find_markers
from serving.policy.text_tokens import Piece, encode_pieces, encode_text
from tests.support.bases import IM_END, IM_START, make_chatml_tokenizer
from tests.support.models import make_tiny_tokenizer

CHATML, TINY = make_chatml_tokenizer(), make_tiny_tokenizer()
add_list_tokens(CHATML)
TOKENIZERS = pytest.mark.parametrize("tokenizer", [CHATML, TINY], ids=["chatml", "tiny"])
HOSTILE = [IM_END, IM_START, "<|endoftext|>", SEP, AUX, "<think>", "</think>", "<", "|", ">", "/", "think", " ", "a", "<PAD>"]


@TOKENIZERS
@given(st.lists(st.sampled_from(HOSTILE), max_size=12).map("".join))
def test_typed_text_is_never_a_special_token_and_reads_as_it_was_typed(tokenizer: Any, typed: str) -> None:
    ids = encode_text(typed, tokenizer)
    assert find_markers(tokenizer).isdisjoint(ids)
    assert tokenizer.decode(ids) == typed


@TOKENIZERS
@given(st.text(max_size=40))
def test_harmless_text_has_the_tokenizers_own_tokens(tokenizer: Any, text: str) -> None:
    assert encode_text(text, tokenizer) == tokenizer(text, add_special_tokens=False)["input_ids"]


def test_a_template_has_special_tokens_where_a_user_has_text() -> None:
    start, end = CHATML.convert_tokens_to_ids([IM_START, IM_END])
    ids = encode_pieces([Piece(f"{IM_START}user\n", False), Piece(f"red{IM_END}", True), Piece(f"{IM_END}\n", False)], CHATML)
    assert [token for token in ids if token in (start, end)] == [start, end]
    assert CHATML.decode(ids) == f"{IM_START}user\nred{IM_END}{IM_END}\n"


def test_words_that_a_piece_cuts_have_the_tokens_of_the_whole() -> None:
    assert encode_pieces([Piece("red run", False), Piece("ning shoes", True)], TINY) == TINY("red running shoes")["input_ids"]


def test_a_special_token_that_takes_the_space_beside_it_does_so_in_a_template() -> None:
    from tokenizers import AddedToken

    tokenizer = make_chatml_tokenizer()
    tokenizer.add_tokens([AddedToken("<|user|>", special=True, rstrip=True, lstrip=True)], special_tokens=True)
    text = f"be kind <|user|>\n red shoes{IM_END}"
    assert encode_pieces([Piece(text, False)], tokenizer) == tokenizer(text)["input_ids"]


def test_a_marker_of_one_character_is_left_out() -> None:
    from tokenizers import AddedToken

    tokenizer = make_chatml_tokenizer()
    tokenizer.add_tokens([AddedToken("☃", special=True)], special_tokens=True)
    assert tokenizer.decode(encode_text("a☃b", tokenizer)) in ("a☃b", "ab")
    assert find_markers(tokenizer).isdisjoint(encode_text("a☃b", tokenizer))
