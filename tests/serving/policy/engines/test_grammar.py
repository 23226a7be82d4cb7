"""Whatever a policy would like to draw, what the grammar lets it draw is a list: well-formed, legible, without repetitions."""

from __future__ import annotations

import unicodedata
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.policy.engines import Decoding
from serving.policy.engines.characters import WHOLE, find_next_states
from serving.policy.engines.drafts import Draft, make_outline
from serving.policy.engines.grammar import Grammar, allow, make_grammar, stands_alone
from serving.policy.engines.sampling import Sampler
from serving.policy.engines.token_bytes import find_token_bytes
from serving.policy.list_form import find_form, store_form
from serving.policy.lists import encode_list, parse
from serving.policy.tasks import Task
from streams.events.normal_form import normalise
from tests.support.letter_policy import make_letter_tokenizer
from tests.support.models import make_tiny_tokenizer

CPU = torch.device("cpu")


def make_tokenizers() -> dict[str, Any]:
    found = {"tokens": make_tiny_tokenizer(), "lines": make_tiny_tokenizer()}
    store_form(found["lines"], "lines")
    return found


TOKENIZERS = make_tokenizers()
GRAMMARS: dict[str, Grammar] = {name: make_grammar(one, len(one) + 3, CPU) for name, one in TOKENIZERS.items()}
LIKED = st.lists(st.integers(0, len(TOKENIZERS["tokens"]) - 1), min_size=1, max_size=5)
"""Tokens that a policy would like to draw all the time: special ones, halves of characters; few, so that items repeat."""
QUERIES = st.one_of(st.text(max_size=4), st.sampled_from(["red", "a", " A ", "re", "\u00e9", "<SEP>", "red shoes", "\u200b"]))


def write(name: str, task: Task, query: str, liked: list[int], seed: int, redraws: int) -> Draft:
    """Write a list with random logits that are high for a few tokens."""
    tokenizer, grammar = TOKENIZERS[name], GRAMMARS[name]
    outline = make_outline(find_form(tokenizer), task, None, query, encode_list([query], [], tokenizer)[:-1])
    draft = Draft.begin(grammar, outline, redraws)
    generator = torch.Generator().manual_seed(seed)
    steps = task.max_new_tokens + redraws * task.max_item_tokens
    sampler = Sampler.prepare([Decoding(temperature=0.5, top_p=0.9, seed=seed)], steps, CPU)
    for step in range(steps):
        logits = torch.randn(1, len(grammar.tokens), generator=generator)
        logits[0, liked] += 6.0
        allowed = allow(grammar, [draft.choose(draft.redraws > 0)])
        assert allowed.any()
        draft.add(int(sampler.draw(logits, allowed, step).tokens))
        if draft.over:
            return draft
    raise AssertionError("the list did not end")


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(["tokens", "lines"]),
    st.integers(2, 6),
    st.integers(1, 4),
    st.integers(0, 2),
    QUERIES,
    LIKED,
    st.integers(0, 2**31),
    st.integers(0, 3),
)
def test_every_list_is_one(
    form: str, limit: int, n: int, auxiliary: int, query: str, liked: list[int], seed: int, redraws: int
) -> None:
    names = ("first", "second")[:auxiliary]
    task = Task(name="any", n=n, auxiliary=names, max_item_tokens=limit, max_auxiliary_tokens=7 - min(limit, 5))
    draft = write(form, task, query, liked, seed, redraws)
    found = parse(draft.token_ids, TOKENIZERS[form], task)
    assert found.well_formed
    assert len({normalise(item) for item in found.items} | {normalise(query)}) == n + 1
    assert all(normalise(text) and all(map(is_text, text)) for text in (*found.items, *found.auxiliary))
    start, ends = 0, draft.outline.ends
    for end, most in zip(ends, draft.outline.limits, strict=True):
        after = draft.token_ids.index(end, start) + 1
        assert after - start <= most
        start = after
    assert start == len(draft.token_ids)


@given(st.binary(max_size=8))
def test_the_automaton_reads_what_python_decodes(raw: bytes) -> None:
    """A text is refused where Python cannot decode it, or where it has a character that is no text."""
    state = int(find_next_states([raw])[0, WHOLE]) if raw else WHOLE
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        assert state != WHOLE
        return
    assert (state == WHOLE) == all(is_text(character) for character in text)


def is_text(character: str) -> bool:
    kind = unicodedata.category(character)
    direction = character in "\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
    return not (kind in ("Cc", "Zl", "Zp") or direction or character in "\ufffd\ufffe\uffff")


@pytest.mark.parametrize(
    "character", ["\x00", "\n", "\t", "\x7f", "\x85", "\u200e", "\u2028", "\u202e", "\u2066", "\ufffd", "\uffff"]
)
def test_what_is_no_text_is_refused(character: str) -> None:
    assert find_next_states([character.encode()])[0, WHOLE] != WHOLE


@given(st.text(min_size=1, max_size=6), st.text(min_size=1, max_size=4).filter(stands_alone))
def test_what_stands_alone_does_not_melt_into_the_text_before_it(before: str, text: str) -> None:
    joined = normalise(before + text)
    assert joined in (normalise(before) + normalise(text), f"{normalise(before)} {normalise(text)}".strip())


def test_no_second_half_of_a_composed_character_stands_alone() -> None:
    composed = (unicodedata.decomposition(chr(code)).split() for code in range(0x110000))
    seconds = {chr(int(parts[1], 16)) for parts in composed if len(parts) == 2 and not parts[0].startswith("<")}
    assert len(seconds) > 50
    assert not any(map(stands_alone, seconds))


def test_a_vocabulary_too_small_for_different_items_is_refused() -> None:
    tokenizer = make_letter_tokenizer("ab", "tokens")
    task = Task(name="many", n=3)
    outline = make_outline(find_form(tokenizer), task, None, "q", [])
    with pytest.raises(ValueError, match="2 different tokens of plain letters and digits"):
        Draft.begin(make_grammar(tokenizer, len(tokenizer), CPU), outline, 0)


def test_the_bytes_of_a_sentence_piece_vocabulary() -> None:
    from tokenizers import AddedToken, Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    tokens = ["<s>", "</s>", "<0x0A>", "<0xC3>", "\u2581red", "shoe", "\u2581"]
    core = Tokenizer(models.BPE({token: index for index, token in enumerate(tokens)}, [], byte_fallback=True))
    core.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    build: Any = PreTrainedTokenizerFast
    tokenizer = build(tokenizer_object=core, bos_token="<s>", eos_token="</s>")
    tokenizer.add_tokens([AddedToken("<think>", special=False), AddedToken("  ", special=False)])
    assert find_token_bytes(tokenizer) == [b"", b"", b"\n", b"\xc3", b" red", b"shoe", b" ", b"", b"  "]


def test_an_unknown_kind_of_vocabulary_is_refused() -> None:
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.WordPiece({"[UNK]": 0, "red": 1, "##s": 2}))
    core.decoder = decoders.WordPiece()
    build: Any = PreTrainedTokenizerFast
    with pytest.raises(ValueError, match="its decoder is WordPiece"):
        find_token_bytes(build(tokenizer_object=core))
