"""The tokens of text that users typed: none of them is ever a special one, whatever was typed.

`<|im_end|>` in a query would end the user's turn, and `<SEP>` in an item would end the item. The text itself is left as it is:
such words are tokenised like any other.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from serving.policy.list_form import find_markers

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece of a prompt. `typed`: by users, so no special token; else by the author of a template, who may use them."""

    text: str
    typed: bool


@dataclass(frozen=True, slots=True)
class _Markers:
    """The tokens of a tokenizer that are no text: their ids, the ids by their texts, and a pattern for any of them."""

    ids: frozenset[int]
    by_text: dict[str, int]
    pattern: str

    @classmethod
    def find(cls, tokenizer: PreTrainedTokenizerBase) -> _Markers:
        added, ids = tokenizer.added_tokens_decoder, find_markers(tokenizer)
        by_text = {added[index].content: index for index in ids}
        # The longest first; a token that takes the white space beside it has it in the pattern.
        ordered = sorted((added[index] for index in ids), key=lambda token: len(token.content), reverse=True)
        space = r"\s*"
        patterns = (space * token.lstrip + re.escape(token.content) + space * token.rstrip for token in ordered)
        return cls(ids, by_text, "|".join(patterns))


def encode_text(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the token ids of a text, of which none is special or a marker such as <think>."""
    return _encode_run(text, _Markers.find(tokenizer), tokenizer)


def encode_pieces(pieces: Iterable[Piece], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the token ids of pieces of text in a row. What lies between two special tokens of the template is encoded together,
    so harmless text has the tokens that the tokenizer gives to the whole."""
    markers = _Markers.find(tokenizer)
    ids: list[int] = []
    run = ""
    for part in _split_markers(pieces, markers):
        if isinstance(part, str):
            run += part
            continue
        ids += [*_encode_run(run, markers, tokenizer), part]
        run = ""
    return ids + _encode_run(run, markers, tokenizer)


def _split_markers(pieces: Iterable[Piece], markers: _Markers) -> Iterator[str | int]:
    """Yield text, and the ids of the markers that the pieces which nobody typed have."""
    pattern = re.compile(f"({markers.pattern})")
    for piece in pieces:
        parts = [piece.text] if piece.typed or not markers.ids else pattern.split(piece.text)
        yield from (markers.by_text.get(part.strip(), part) if place % 2 else part for place, part in enumerate(parts))


def _encode_run(text: str, markers: _Markers, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    ids = _tokenise(text, tokenizer)
    if markers.ids.isdisjoint(ids):
        return ids
    # A marker that is not special is found in spite of `split_special_tokens`: cut behind its first character, it is text.
    starts = re.finditer(f"(?={markers.pattern})", text)
    parts = (text[start:end] for start, end in pairwise([0, *(match.start() + 1 for match in starts), len(text)]))
    return [token for part in parts for token in _tokenise(part, tokenizer) if token not in markers.ids]


def _tokenise(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    if not text:
        return []
    return [int(token) for token in tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]]
