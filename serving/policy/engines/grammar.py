"""The grammar of lists: which tokens may come next, so that every list is well-formed, legible and free of repetitions.

A policy that knows the form is hardly disturbed by it; one that does not writes lists all the same, and what the grammar had to
decide is counted (`Generation.forced`). The masks are tables over the vocabulary, made once a policy: what a row may draw is one
row of a table, but for the token that ends its text. xgrammar and llguidance compile such grammars too, for JSON and the like;
neither can refuse a text by what it is like after normalising (an earlier item, the user's query), which has to be known before
each draw, and with that left to us the remaining automaton has 14 states.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from serving.policy.engines.characters import DEAD, STATES, WHOLE, count_missing, find_next_states
from serving.policy.engines.token_bytes import find_token_bytes
from streams.events.normal_form import normalise

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_Bools = npt.NDArray[np.bool_]
_LAST_OF_BLANK, _LAST = 0, 1
"""Classes of a row: one token is left and the text is blank so far, one is left; then come those with two left and more."""


@dataclass(frozen=True)
class Grammar:
    """What is known of a vocabulary.

    `tokens`: the bytes of each token, b"" for no text. `next_states` [tokens, STATES]: the state of `characters` after it.
    `masks` [classes * STATES + 1, columns of the logits]: the tokens that may be drawn; in the last row none. `endings`: the
    tokens by the normal form of their text, of those that may be the last of a text at its limit. `escapes`: how many of these
    forms are plain letters and digits, of which each makes another text of any text."""

    tokens: Sequence[bytes]
    next_states: npt.NDArray[np.uint8]
    masks: torch.Tensor
    endings: Mapping[str, Sequence[int]]
    escapes: int
    most_missing: int

    def check_room(self, texts: int) -> None:
        """Raise ValueError where the vocabulary may not suffice to end a text differently from so many others."""
        if self.escapes <= texts:
            raise ValueError(
                f"the vocabulary has {self.escapes} different tokens of plain letters and digits: too few for {texts} texts of "
                "which none repeats another; choose another base, or a smaller n of the task"
            )

    def find_mask(self, state: int, room: int, blank: bool) -> int:
        """Return the row of `masks` for a text in `state` that may have `room` tokens more, its end not counted."""
        if room <= 0:
            return len(self.masks) - 1
        kind = _LAST_OF_BLANK if room == 1 and blank else _LAST + min(room - 1, self.most_missing)
        return kind * STATES + state


@dataclass(frozen=True, slots=True)
class Choice:
    """What one row may draw next: the tokens of row `mask` of the grammar's masks without `refused`, and those of `admitted`,
    of which one is the token `end` where the text may end."""

    mask: int
    refused: Sequence[int]
    admitted: Sequence[int]


def make_grammar(tokenizer: PreTrainedTokenizerBase, columns: int, device: torch.device) -> Grammar:
    """Return the grammar of a tokenizer for logits of so many columns. Raises ValueError for a vocabulary of no known kind."""
    tokens = find_token_bytes(tokenizer)[:columns]
    tokens += [b""] * (columns - len(tokens))
    next_states = find_next_states(tokens)
    missing = count_missing(next_states)
    next_states[missing[next_states] >= missing.max()] = DEAD
    texts = {int(index): tokens[index].decode() for index in np.flatnonzero(next_states[:, WHOLE] == WHOLE)}
    visible, endings = _describe_texts(texts, columns)
    most = max(1, int(missing[:STATES][missing[:STATES] < missing.max()].max()))
    masks = _make_masks(next_states, missing, most, visible, endings)
    escapes = sum(text.isascii() and text.isalnum() for text in endings)
    return Grammar(tokens, next_states, torch.from_numpy(masks).to(device), endings, escapes, most)


def allow(grammar: Grammar, choices: Sequence[Choice]) -> torch.Tensor:
    """Return the mask [rows, columns] of the tokens that may be drawn."""
    masks = grammar.masks
    allowed = masks[torch.tensor([choice.mask for choice in choices], device=masks.device)]
    for value in (False, True):
        pairs = [(row, token) for row, one in enumerate(choices) for token in (one.admitted if value else one.refused)]
        if pairs:
            rows, columns = torch.tensor(pairs, device=masks.device).T
            allowed[rows, columns] = value
    return allowed


def _describe_texts(texts: Mapping[int, str], columns: int) -> tuple[_Bools, dict[str, list[int]]]:
    """Return which tokens can be seen [columns], and the tokens by normal form of those that may end a text at its limit."""
    visible = np.zeros(columns, dtype=np.bool_)
    endings: dict[str, list[int]] = {}
    for index, text in texts.items():
        form = normalise(text)
        visible[index] = bool(form)
        if stands_alone(text):
            endings.setdefault(form, []).append(index)
    return visible, endings


def stands_alone(text: str) -> bool:
    """Return whether the normal form of any text followed by this one is that of both, one after the other: this one does not
    begin with an accent, a joiner or the like, which can melt into the letter before it."""
    first = text[0]
    melted = unicodedata.normalize("NFKC", first)[0]
    jamo = "\u1160" <= melted <= "\u11ff"  # vowels and final consonants that Korean syllables are composed of
    return first.isspace() or (unicodedata.category(melted)[0] in "LNPS" and not jamo)


def _make_masks(
    next_states: npt.NDArray[np.uint8],
    missing: npt.NDArray[np.int64],
    most: int,
    visible: _Bools,
    endings: Mapping[str, Sequence[int]],
) -> _Bools:
    """Return Grammar.masks. A character is begun only where one token is left after it, so that even a text which is then a
    repetition can become another one; the last token is a whole character that normalises by itself."""
    # Tokens that must follow this one, and in which state: [tokens, STATES].
    needed = np.where(next_states == WHOLE, 0, missing[next_states] + 1)
    alive = next_states != DEAD
    alone = np.zeros(len(visible), dtype=np.bool_)
    alone[[index for indices in endings.values() for index in indices]] = True
    last = alive & (needed == 0) & alone[:, None]
    classes = [last & visible[:, None], last, *(alive & (needed <= room) for room in range(1, most + 1))]
    stacked = np.stack(classes).transpose(0, 2, 1).reshape(len(classes) * STATES, len(visible))
    return np.vstack([stacked, np.zeros((1, len(visible)), dtype=np.bool_)])
