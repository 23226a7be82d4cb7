"""The text form of a list: auxiliary texts, each ended by <AUX>, then items joined by <SEP>, then EOS (G1).

Lists are parsed by token id: decoding first would delete <SEP>, and a "<SEP>" that a user typed would look like the real one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from serving.policy.list_form import find_form
from serving.policy.tasks import Task, clean_text
from streams.events.normal_form import normalise

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MAX_TEXT_CHARS = 512
_BROKEN_UTF8 = "\N{REPLACEMENT CHARACTER}"


@dataclass(frozen=True, slots=True)
class RecommendedList:
    """One list of the policy. `items` and `auxiliary` are as generated (possibly empty); `tokens` counts up to and with EOS.

    `well_formed`: exactly `task.n` non-empty items after all non-empty auxiliary texts, ended by EOS."""

    items: tuple[str, ...]
    auxiliary: tuple[str, ...]
    well_formed: bool
    tokens: int


def parse(token_ids: Sequence[int], tokenizer: PreTrainedTokenizerBase, task: Task) -> RecommendedList:
    """Parse one generated list. What follows the first EOS is ignored; a text cut off by the token limit is kept."""
    form = find_form(tokenizer)
    ended = form.eos in token_ids
    body = list(token_ids[: list(token_ids).index(form.eos)]) if ended else list(token_ids)
    *auxiliary_ids, item_ids = _split(body, form.aux)
    auxiliary = tuple(_decode(ids, tokenizer) for ids in auxiliary_ids)
    items = tuple(_decode(ids, tokenizer) for ids in _split(item_ids, form.sep))
    counted = len(items) == task.n and len(auxiliary) == len(task.auxiliary)
    # A <SEP> among the auxiliary texts is an <AUX> after an item.
    pure = not any(form.special.intersection(ids) for ids in auxiliary_ids) and form.special.intersection(item_ids) <= {form.sep}
    legible = all(map(is_legible, (*auxiliary, *items)))
    return RecommendedList(items, auxiliary, ended and counted and pure and legible, len(body) + ended)


def parse_part(token_ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> tuple[tuple[str, ...], bool]:
    """Return the texts of a part of a list (auxiliary texts, if any, and one item), and whether they are legible."""
    form = find_form(tokenizer)
    texts = tuple(_decode(ids, tokenizer) for ids in _split(token_ids, form.aux))
    return texts, form.special.intersection(token_ids) <= {form.aux} and all(map(is_legible, texts))


def is_legible(text: str) -> bool:
    """Return whether a text is not empty and no character was cut in the middle."""
    return bool(text) and _BROKEN_UTF8 not in text


def encode_list(items: Sequence[str], auxiliary: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the token ids of a list, EOS at the end; the inverse of `parse` for texts without special tokens."""
    form = find_form(tokenizer)
    ids: list[int] = []
    for text in auxiliary:
        ids += [*_encode(text, tokenizer), form.aux]
    for text in items:
        ids += [*_encode(text, tokenizer), form.sep]
    return [*ids[:-1], form.eos] if items else [*ids, form.eos]


def repair_items(items: Iterable[str], n: int) -> tuple[str, ...]:
    """Return at most `n` usable items for display: empty, illegible and repeated ones dropped, order kept."""
    kept: dict[str, str] = {}
    for item in items:
        key = normalise(item)
        if key and is_legible(item) and key not in kept:
            kept[key] = item
    return tuple(kept.values())[:n]


def name_auxiliary(texts: Sequence[str], task: Task) -> Mapping[str, str]:
    """Return auxiliary texts by their field names; a missing one is an empty text."""
    padded = (*texts, *[""] * len(task.auxiliary))
    return dict(zip(task.auxiliary, padded, strict=False))


@lru_cache(maxsize=65536)
def character_ngrams(text: str, size: int = 3) -> frozenset[str]:
    """Return the character n-grams of the normalised text, a space at each end."""
    padded = f" {normalise(text)} "
    return frozenset(padded[start : start + size] for start in range(max(1, len(padded) - size + 1)))


def jaccard(first: str, second: str) -> float:
    """Return the Jaccard similarity of the character 3-grams of two texts, 0 to 1."""
    a, b = character_ngrams(first), character_ngrams(second)
    return len(a & b) / len(a | b)


def find_duplicates(items: Sequence[str], threshold: float = 0.6) -> list[int]:
    """Return the positions of items that repeat an earlier one (G10): equal when normalised, or Jaccard >= `threshold`."""
    return [k for k, item in enumerate(items) if any(is_duplicate(item, earlier, threshold) for earlier in items[:k])]


def is_duplicate(first: str, second: str, threshold: float = 0.6) -> bool:
    return normalise(first) == normalise(second) or jaccard(first, second) >= threshold


def _split(ids: Sequence[int], separator: int) -> Iterator[list[int]]:
    part: list[int] = []
    for token in ids:
        if token == separator:
            yield part
            part = []
        else:
            part.append(token)
    yield part


def _decode(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> str:
    return " ".join(str(tokenizer.decode(list(ids), skip_special_tokens=True)).split())


def _encode(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    clean = clean_text(text, _MAX_TEXT_CHARS)
    return [int(token) for token in tokenizer(clean, add_special_tokens=False)["input_ids"]]
