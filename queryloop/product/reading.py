"""How texts of a world are read: split into words, and searched for the phrases that name an entity or an aspect.

The invented words are read as they are written. Plain English is read by meaning, since a pretrained model says what it likes in
its own words: "Climate in Lisbon?" is about the weather there, although no such text is in the world's tables.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from queryloop.product.english_words import SILENT

T = TypeVar("T")
Words = tuple[str, ...]
PhraseIndex = Mapping[str, tuple[tuple[Words, T], ...]]
"""Phrases and what they mean under their first word, longer ones first."""


@dataclass(frozen=True)
class Language:
    """How the texts of a world are compared.

    `silent` words say nothing. With `paraphrases` two texts about the same aspect of the same entity are near-duplicates whatever
    their words. `accidental` is the least attractiveness: someone clicks anything."""

    split: Callable[[str], Sequence[str]]
    silent: frozenset[str] = frozenset()
    paraphrases: bool = False
    accidental: float = 0.0


def split_on_spaces(text: str) -> list[str]:
    """Return the words between white space, without regard to case."""
    return text.casefold().split()


def split_english(text: str) -> list[str]:
    """Return the words without punctuation, accents, case and plural endings; "Café's" is cafe, s."""
    plain = "".join(letter for letter in unicodedata.normalize("NFKD", text) if not unicodedata.combining(letter))
    return [_singular(word) for word in re.findall(r"[^\W_]+", plain.casefold())]


def _singular(word: str) -> str:
    if len(word) <= 3 or not word.endswith("s") or word.endswith("ss"):
        return word
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    return word[: -2 if word.endswith(("sses", "xes", "ches", "shes")) else -1]


INVENTED = Language(split_on_spaces)
ENGLISH = Language(split_english, frozenset(split_english(SILENT)), paraphrases=True, accidental=0.004)


def index_phrases(phrases: Iterable[tuple[Words, T]]) -> PhraseIndex[T]:
    """Return an index of phrases of at least one word each; of equal lengths the earlier one stays first."""
    found: dict[str, list[tuple[Words, T]]] = {}
    for words, meaning in sorted(phrases, key=lambda one: -len(one[0])):
        found.setdefault(words[0], []).append((words, meaning))
    return {first: tuple(entries) for first, entries in found.items()}


def find_phrases(words: Sequence[str], index: PhraseIndex[T]) -> Iterator[tuple[Words, T]]:
    """Yield every phrase that stands in the words, with what it means, in order."""
    for at, word in enumerate(words):
        yield from (entry for entry in index.get(word, ()) if tuple(words[at : at + len(entry[0])]) == entry[0])


def merge_names(words: Sequence[str], index: PhraseIndex[str]) -> list[str]:
    """Return the words with every name in them, of several words too, as one; where names overlap, the first and longest."""
    merged: list[str] = []
    at = 0
    while at < len(words):
        name, length = next(
            ((name, len(own)) for own, name in index.get(words[at], ()) if tuple(words[at : at + len(own)]) == own),
            (words[at], 1),
        )
        merged.append(name)
        at += length
    return merged
