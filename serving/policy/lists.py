"""The text form of a list: auxiliary texts, then items, each text ended by the token of the list's form, the last by EOS (G1).

Lists are parsed by token id: decoding first would delete <SEP>, and a "<SEP>" that a user typed would look like the real one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from serving.policy.list_form import ListForm, find_form, find_thinking
from serving.policy.tasks import MAX_TEXT_CHARS, Task, clean_text
from serving.policy.text_tokens import encode_text
from streams.events.normal_form import normalise

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

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
    """Parse one generated list. What follows the first EOS is ignored; a text cut off by the token limit is kept.

    What a model thinks before it answers is no text of the list, and a list with it is not well-formed."""
    form = find_form(tokenizer)
    ended = form.eos in token_ids
    body = list(token_ids[: list(token_ids).index(form.eos)]) if ended else list(token_ids)
    said = _drop_thinking(body, tokenizer)
    auxiliary_ids, items_ids = _split_list(said, form, task)
    auxiliary = tuple(_decode(ids, form, tokenizer) for ids in auxiliary_ids)
    items = tuple(_decode(ids, form, tokenizer) for ids in items_ids)
    counted = len(items) == task.n and len(auxiliary) == len(task.auxiliary)
    pure = said == body and all(_is_text(ids, form, tokenizer) for ids in (*auxiliary_ids, *items_ids))
    legible = all(map(is_legible, (*auxiliary, *items)))
    return RecommendedList(items, auxiliary, ended and counted and pure and legible, len(body) + ended)


def parse_part(token_ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> tuple[tuple[str, ...], bool]:
    """Return the texts of a part of a list (auxiliary texts, if any, and one item; no ending token after it), and whether they
    are legible."""
    form = find_form(tokenizer)
    parts = list(_split(token_ids, form.aux))
    texts = tuple(_decode(ids, form, tokenizer) for ids in parts)
    return texts, all(_is_text(ids, form, tokenizer) for ids in parts) and all(map(is_legible, texts))


def is_legible(text: str) -> bool:
    """Return whether a text is not empty and no character was cut in the middle."""
    return bool(text) and _BROKEN_UTF8 not in text


def encode_list(items: Sequence[str], auxiliary: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the token ids of a list, EOS at the end; the inverse of `parse`. Texts are cleaned: a newline in one is a space."""
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


def _split_list(body: Sequence[int], form: ListForm, task: Task) -> tuple[list[list[int]], list[list[int]]]:
    """Return the token ids of each auxiliary text and of each item; `body` is a list without its EOS.

    A <SEP> among auxiliary texts, or an <AUX> after an item, is left in its text, which is then no text. In lines only its place
    says what a text is."""
    if form.name == "lines":
        texts = list(_split(body, form.sep))
        return texts[: len(task.auxiliary)], texts[len(task.auxiliary) :]
    *auxiliary, items = _split(body, form.aux)
    return auxiliary, list(_split(items, form.sep))


def _drop_thinking(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return what follows the last </think>, without a <think> that was never ended and all after it."""
    left = list(ids)
    if (tokens := find_thinking(tokenizer)) is None:
        return left
    start, end = tokens
    if end in left:
        left = left[len(left) - left[::-1].index(end) :]
    return left[: left.index(start)] if start in left else left


def _is_text(ids: Sequence[int], form: ListForm, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether token ids are text alone; in lines also that no token has a newline in it, such as two of them at once."""
    if form.special.intersection(ids):
        return False
    return form.name == "tokens" or "\n" not in str(tokenizer.decode(list(ids)))


def _split(ids: Sequence[int], separator: int) -> Iterator[list[int]]:
    part: list[int] = []
    for token in ids:
        if token == separator:
            yield part
            part = []
        else:
            part.append(token)
    yield part


def _decode(ids: Sequence[int], form: ListForm, tokenizer: PreTrainedTokenizerBase) -> str:
    return " ".join(str(tokenizer.decode([token for token in ids if token not in form.special])).split())


def _encode(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    return encode_text(clean_text(text, MAX_TEXT_CHARS), tokenizer)
