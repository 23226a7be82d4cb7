"""Answers a batch of requests with lists that can be shown: side information, prompts, generation, repair, predicted CTRs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import TYPE_CHECKING, Protocol

from serving.metrics import Form
from serving.policy.engines import Decoding, Engine, Generation
from serving.policy.lists import name_auxiliary, repair_items
from serving.policy.tasks import Task, clean_text

if TYPE_CHECKING:
    import numpy as np


class Retriever(Protocol):
    """What serving uses of an index (`index.retrieve.Index`)."""

    def retrieve(self, query: str, n: int) -> list[str]: ...


class Scorer(Protocol):
    """What serving uses of a predictor (`serving.predictor.scorer.Predictor`): p_k of each position, one array a list."""

    def score(self, queries: Sequence[str], lists: Sequence[Sequence[str]]) -> list[np.ndarray]: ...


@dataclass(frozen=True, slots=True)
class Request:
    """One call for a list. `session` has the earlier queries, oldest first; `response` is the answer that the user has read."""

    task: Task
    query: str
    decoding: Decoding
    session: tuple[str, ...] = ()
    response: str | None = None


@dataclass(frozen=True, slots=True)
class Recommendation:
    """One answered list. `form` is "fallback" when no policy wrote a usable item: the items are then co-occurring queries, or
    the query itself, and `logprob` and `decoding` are None because no policy drew them. `release` None: none is live, and the
    list was made of the newest index.

    `written`: for each item, whether the policy wrote it in this place; false where serving had to replace or move it. `forced`:
    how many draws of the policy's list the grammar changed."""

    release: str | None
    items: tuple[str, ...]
    auxiliary: Mapping[str, str]
    predicted: tuple[float, ...] | None
    logprob: float | None
    decoding: Decoding | None
    related: tuple[str, ...]
    form: Form
    tokens: int
    written: tuple[bool, ...]
    forced: int


def recommend(
    release: str, engine: Engine, index: Retriever | None, predictor: Scorer | None, requests: Sequence[Request]
) -> list[Recommendation]:
    """Answer a batch; the requests may be of different tasks and decodings (G1, G2; side information by G16)."""
    related = [_retrieve(index, request) for request in requests]
    prompts = [
        engine.encode_prompt(request.task, request.query, found, request.session, request.response)
        for request, found in zip(requests, related, strict=True)
    ]
    generations = engine.generate(prompts, [request.decoding for request in requests], logprobs=True)
    shown = [_choose_items(*one) for one in zip(requests, generations, related, strict=True)]
    predicted = _predict(predictor, requests, shown)
    return [_answer(release, *one) for one in zip(requests, generations, shown, related, predicted, strict=True)]


def _retrieve(index: Retriever | None, request: Request) -> tuple[str, ...]:
    if index is None or not request.task.max_related:
        return ()
    return tuple(index.retrieve(request.query, request.task.max_related))


def _choose_items(request: Request, generation: Generation, related: Sequence[str]) -> tuple[tuple[str, ...], bool]:
    """Return the items to show, and whether the policy wrote them."""
    items = repair_items(generation.list.items, request.task.n)
    return (items, True) if items else (fall_back(request, related), False)


def fall_back(request: Request, candidates: Iterable[str]) -> tuple[str, ...]:
    """Return the first usable ones of these queries as a list, or the user's own query where none is usable."""
    limit = request.task.max_query_chars
    items = repair_items((clean_text(query, limit) for query in candidates), request.task.n)
    return items or (clean_text(request.query, limit) or request.query.strip(),)


def _predict(
    predictor: Scorer | None, requests: Sequence[Request], shown: Sequence[tuple[tuple[str, ...], bool]]
) -> list[tuple[float, ...] | None]:
    if predictor is None:
        return [None] * len(requests)
    scores = predictor.score([request.query for request in requests], [items for items, _ in shown])
    return [tuple(round(float(p), 6) for p in row) for row in scores]


def _answer(
    release: str,
    request: Request,
    generation: Generation,
    shown: tuple[tuple[str, ...], bool],
    related: tuple[str, ...],
    predicted: tuple[float, ...] | None,
) -> Recommendation:
    items, own = shown
    written = generation.list
    untouched = written.well_formed and items == written.items
    return Recommendation(
        release,
        items,
        name_auxiliary(written.auxiliary, request.task),
        predicted,
        round(generation.logprob, 6) if own and generation.logprob is not None else None,
        generation.decoding if own else None,
        related,
        "fallback" if not own else "well_formed" if untouched else "repaired",
        written.tokens,
        tuple(own and item == drawn for item, drawn in zip_longest(items, written.items[: len(items)])),
        generation.forced,
    )
