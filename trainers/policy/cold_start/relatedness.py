"""Measures whether lists depend on the query they were written for: each is compared with its own query and with others'.

Gibberish, and a list that is the same whatever was asked, fit another user's query as well as their own: a share of .5.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from serving.policy.lists import character_ngrams
from streams.events.normal_form import normalise

if TYPE_CHECKING:
    from index.encoder import Encoder

OTHERS = 2
"""Other queries that each list is compared with."""
PAIRS_AT_ONCE = 32
Items = tuple[str, ...]
Similarity = Callable[[Sequence[tuple[str, Items]]], Sequence[float]]
"""Returns how near each list is to the query beside it; only the order of the numbers matters."""


@dataclass(frozen=True)
class Relatedness:
    """The share of comparisons in which lists are nearer to their own query than to another, equal ones as half.

    `error` is its standard error over the lists, `by` what measured it."""

    share: float
    error: float
    by: str

    def holds(self, least: float) -> bool:
        """Return whether the share is at least this, and more than the .5 of chance by three standard errors; .5 asks nothing."""
        return least <= 0.5 or (self.share >= least and self.share - 3 * self.error > 0.5)


def measure_relatedness(queries: Sequence[str], lists: Sequence[Items], near: Similarity, by: str) -> Relatedness:
    """Compare each list with its own query and two others, drawn by a fixed seed. Without two different queries: .5."""
    keys = [normalise(query) for query in queries]
    draws = [_draw_others(keys, row) for row in range(len(keys))]
    pairs = [(queries[one], lists[row]) for row, others in enumerate(draws) if others for one in (row, *others)]
    found = np.asarray(near(pairs), dtype=float) if pairs else np.zeros(0)
    wins = []
    for others in draws:
        if others:
            own, rest, found = found[0], found[1 : 1 + len(others)], found[1 + len(others) :]
            wins.append(float(np.mean((own > rest) + 0.5 * (own == rest))))
    if len(wins) < 2:
        return Relatedness(0.5, math.inf, by)
    return Relatedness(float(np.mean(wins)), float(np.std(wins, ddof=1) / math.sqrt(len(wins))), by)


def _draw_others(keys: Sequence[str], row: int) -> list[int]:
    """Return up to two rows with another query than this one's."""
    others = [other for other, key in enumerate(keys) if key != keys[row]]
    return random.Random(row).sample(others, min(OTHERS, len(others)))


def compare_characters(pairs: Sequence[tuple[str, Items]]) -> list[float]:
    """Return the share of the query's character 3-grams that are in the list: a Similarity without any model."""
    return [_share_ngrams(query, items) for query, items in pairs]


def _share_ngrams(query: str, items: Items) -> float:
    own = character_ngrams(query)
    return len(own & frozenset().union(*map(character_ngrams, items))) / max(1, len(own))


def compare_vectors(encoder: Encoder) -> Similarity:
    """Return the mean cosine of query and items by the index's encoder, as a Similarity."""

    def near(pairs: Sequence[tuple[str, Items]]) -> list[float]:
        return [
            float((encoder.encode([query]) @ encoder.encode(list(items)).T).mean()) if items else 0.0 for query, items in pairs
        ]

    return near


def compare_likelihood(base: str | Path, device: str) -> Similarity:
    """Return how likely a pretrained model finds the list's text after the query's, as a Similarity.

    It sees what shares no letters, as "blueprints" for "walkout basement": real lists of annotators are nearer to their own
    query in 88 % of the comparisons by SmolLM2-135M, lists of others in 53 %. The model is loaded at the first call."""

    def near(pairs: Sequence[tuple[str, Items]]) -> list[float]:
        from trainers.policy.base import load_policy

        loaded: tuple[Any, Any] = load_policy(base, device)
        model, tokenizer = loaded
        model.eval()
        scores: list[float] = []
        for start in range(0, len(pairs), PAIRS_AT_ONCE):
            scores.extend(_score_texts(model, tokenizer, pairs[start : start + PAIRS_AT_ONCE]))
        return scores

    return near


def _score_texts(model: Any, tokenizer: Any, pairs: Sequence[tuple[str, Items]]) -> list[float]:
    """Return the log-probability in nats of each list, an item a line, after its query in a line of its own."""
    import torch

    starts = [tokenizer(query + "\n")["input_ids"] for query, _ in pairs]
    texts = [tokenizer("\n".join(items), add_special_tokens=False)["input_ids"] for _, items in pairs]
    longest = max(len(start) + len(text) for start, text in zip(starts, texts, strict=True))
    ids, mask = torch.zeros((len(pairs), longest), dtype=torch.long), torch.zeros((len(pairs), longest), dtype=torch.long)
    for row, (start, text) in enumerate(zip(starts, texts, strict=True)):
        ids[row, : len(start) + len(text)] = torch.tensor(start + text)
        mask[row, : len(start) + len(text)] = 1
    with torch.inference_mode():
        hidden = model.get_decoder()(input_ids=ids.to(model.device), attention_mask=mask.to(model.device)).last_hidden_state
        return [
            _sum_logprobs(model, hidden[row, len(start) - 1 : len(start) + len(text) - 1], text)
            for row, (start, text) in enumerate(zip(starts, texts, strict=True))
        ]


def _sum_logprobs(model: Any, hidden: Any, text: Sequence[int]) -> float:
    import torch

    logprobs = model.get_output_embeddings()(hidden).float().log_softmax(-1)
    return float(logprobs.gather(-1, torch.tensor([list(text)], device=logprobs.device).T).sum())
