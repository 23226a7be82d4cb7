"""The predictor's input: a small BPE vocabulary learned from the logs, and a list laid out as columns of numbers.

Overlap is found by comparing words, before they are split into word pieces: rare words may share a piece and mean different
things.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from streams.events.normal_form import normalise

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from tokenizers import Tokenizer

PAD, UNKNOWN, CLS, SEP = "[PAD]", "[UNK]", "[CLS]", "[SEP]"
SPECIAL = [PAD, UNKNOWN, CLS, SEP]
CLS_ID, SEP_ID = 2, 3
MAX_CHARS = 2000
LEVELS = 5
"""Levels of similarity (word Jaccard) to q_user and to the nearest earlier item, as a block's [CLS] gets them."""
OVERLAPS = 4 + LEVELS * LEVELS


class Column(IntEnum):
    """The numbers of one token. `DOMAIN`: 0 for q_user, k for item k; padding has the largest, so that no token attends to it."""

    TOKEN = 0
    POSITION = 1
    SEGMENT = 2
    DOMAIN = 3
    OVERLAP = 4


@dataclass(frozen=True)
class Words:
    """One text: its words, its tokens, and for each token the number of its word."""

    words: tuple[str, ...]
    tokens: tuple[int, ...]
    owners: tuple[int, ...]

    def truncate(self, length: int) -> Words:
        return Words(self.words, self.tokens[:length], self.owners[:length])


class Vocabulary:
    """A BPE tokenizer and the layout of the predictor's input. `max_tokens` of each text are read, the rest is ignored."""

    def __init__(self, tokenizer: Tokenizer, max_tokens: int) -> None:
        self._tokenizer = tokenizer
        self._max_tokens = max_tokens
        self._read: Callable[[str], Words] = lru_cache(maxsize=65_536)(self._split)
        self._pieces: Callable[[str], tuple[int, ...]] = lru_cache(maxsize=65_536)(self._tokenize_word)

    def __len__(self) -> int:
        return int(self._tokenizer.get_vocab_size())

    def encode(self, query: str, items: Sequence[str]) -> NDArray[np.int16]:
        """Return columns int16 [L, 5] of q_user's tokens, then a block [CLS] q_k [SEP] an item (see `Column`)."""
        asked = self._read(normalise(query)[:MAX_CHARS])
        rows: list[tuple[int, ...]] = [(token, at, 0, 0, 0) for at, token in enumerate(asked.tokens)]
        user, earlier = frozenset(asked.words), list[frozenset[str]]()
        for number, item in enumerate(items, start=1):
            item_words = self._read(normalise(item)[:MAX_CHARS])
            rows += _layout_block(item_words, number, user, earlier)
            earlier.append(frozenset(item_words.words))
        return np.array(rows, dtype=np.int16).reshape(-1, len(Column))

    def save(self, path: Path) -> None:
        self._tokenizer.save(str(path))

    @classmethod
    def load(cls, path: Path, max_tokens: int) -> Vocabulary:
        """Read what `save` wrote."""
        from tokenizers import Tokenizer

        return cls(Tokenizer.from_file(str(path)), max_tokens)

    def _split(self, text: str) -> Words:
        words = [word for word, _ in self._tokenizer.pre_tokenizer.pre_tokenize_str(text)]
        pieces = [(piece, owner) for owner, word in enumerate(words) for piece in self._pieces(word)]
        tokens, owners = zip(*pieces, strict=True) if pieces else ((), ())
        return Words(tuple(words), tokens, owners).truncate(self._max_tokens)

    def _tokenize_word(self, word: str) -> tuple[int, ...]:
        return tuple(piece.id for piece in self._tokenizer.model.tokenize(word))


def learn_vocabulary(texts: Iterable[str], size: int, max_tokens: int) -> Vocabulary:
    """Learn at most `size` word pieces from the texts of a log; the same texts give the same vocabulary."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    # Not WordPiece: its trainer breaks ties by the order of a hash table, so that two runs differ.
    tokenizer = Tokenizer(models.BPE(unk_token=UNKNOWN, fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=SPECIAL, show_progress=False)
    tokenizer.train_from_iterator((normalise(text)[:MAX_CHARS] for text in texts), trainer)
    return Vocabulary(tokenizer, max_tokens)


def pad_together(encoded: Sequence[NDArray[np.int16]], domains: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return columns int64 [B, L, 5] and the places of the [CLS] tokens int64 [B, N], -1 where a list has fewer items.

    Padding has the domain `domains` - 1, the network's largest."""
    length = max(len(rows) for rows in encoded)
    columns = np.zeros((len(encoded), length, len(Column)), np.int64)
    columns[:, :, Column.DOMAIN] = domains - 1
    for row, rows in enumerate(encoded):
        columns[row, : len(rows)] = rows
    is_head = columns[:, :, Column.TOKEN] == CLS_ID
    counts = is_head.sum(axis=1)
    heads = np.full((len(encoded), int(counts.max(initial=0))), -1, np.int64)
    heads[np.arange(heads.shape[1]) < counts[:, None]] = np.nonzero(is_head)[1]
    return columns, heads


def _layout_block(
    item_words: Words, number: int, user: frozenset[str], earlier: Sequence[frozenset[str]]
) -> list[tuple[int, ...]]:
    before = frozenset[str]().union(*earlier)
    repeats = [(word in user) + 2 * (word in before) for word in item_words.words]
    likeness = _level(frozenset(item_words.words), [user]) * LEVELS + _level(frozenset(item_words.words), earlier)
    return [
        (CLS_ID, 0, 1, number, 4 + likeness),
        *(
            (token, at, 1, number, repeats[owner])
            for at, (token, owner) in enumerate(zip(item_words.tokens, item_words.owners, strict=True), 1)
        ),
        (SEP_ID, 0, 1, number, 0),
    ]


def _level(words: frozenset[str], others: Sequence[frozenset[str]]) -> int:
    """Return the largest Jaccard similarity in steps: 0 for none at all, `LEVELS` - 1 for the same words."""
    nearest = max((len(words & other) / max(len(words | other), 1) for other in others), default=0.0)
    return round(nearest * (LEVELS - 1))
