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


def encode_text(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the token ids of a text, of which none is special or a marker such as <think>."""
    ids = _tokenise(text, tokenizer)
    markers = find_markers(tokenizer)
    if markers.isdisjoint(ids):
        return ids
    # A marker that is not special is found in spite of `split_special_tokens`: cut behind its first character, it is text.
    starts = re.finditer(f"(?={_any_of(tokenizer, markers)})", text)
    cuts = [0, *(match.start() + 1 for match in starts), len(text)]
    parts = (text[start:end] for start, end in pairwise(cuts))
    return [token for part in parts for token in _tokenise(part, tokenizer) if token not in markers]


def encode_pieces(pieces: Iterable[Piece], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the token ids of pieces of text in a row. What lies between two special tokens of the template is encoded together,
    so harmless text has the tokens that the tokenizer gives to the whole."""
    ids: list[int] = []
    run = ""
    for part in _split_markers(pieces, tokenizer):
        if isinstance(part, str):
            run += part
            continue
        ids += [*encode_text(run, tokenizer), part]
        run = ""
    return ids + encode_text(run, tokenizer)


def _split_markers(pieces: Iterable[Piece], tokenizer: PreTrainedTokenizerBase) -> Iterator[str | int]:
    """Yield text, and the ids of the markers that the pieces which nobody typed have."""
    markers = find_markers(tokenizer)
    pattern = re.compile(f"({_any_of(tokenizer, markers)})")
    by_text = {token.content: index for index, token in tokenizer.added_tokens_decoder.items() if index in markers}
    for piece in pieces:
        parts = [piece.text] if piece.typed or not markers else pattern.split(piece.text)
        yield from (by_text.get(part.strip(), part) if place % 2 else part for place, part in enumerate(parts))


def _any_of(tokenizer: PreTrainedTokenizerBase, markers: Iterable[int]) -> str:
    """Return a pattern for any of the markers, the longest first; one that takes white space beside it has it in the pattern."""
    added = [tokenizer.added_tokens_decoder[index] for index in markers]
    ordered = sorted(added, key=lambda token: len(token.content), reverse=True)
    space = r"\s*"
    return "|".join(space * token.lstrip + re.escape(token.content) + space * token.rstrip for token in ordered)


def _tokenise(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    if not text:
        return []
    return [int(token) for token in tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]]
