"""Lists without a release: what users ask next after a query, then what they ask most. An index is all they need."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from serving.policy.lists import name_auxiliary
from serving.recommend import Recommendation, Request, fall_back
from streams.events.normal_form import normalise


class Suggester(Protocol):
    """What lists without a policy are made of (`index.retrieve.Index`): queries asked next, and popular ones, best first."""

    def retrieve(self, query: str, n: int) -> list[str]: ...

    def find_popular(self, n: int) -> list[str]: ...


def recommend_without_policy(index: Suggester, requests: Sequence[Request]) -> list[Recommendation]:
    """Answer a batch with co-occurring queries, filled up with popular ones; never the user's own query.

    The answers have the form "fallback" and no release, log-probability, decoding or predicted click rates."""
    return [_answer(index, request) for request in requests]


def _answer(index: Suggester, request: Request) -> Recommendation:
    task, own = request.task, normalise(request.query)
    next_ones = index.retrieve(request.query, max(task.n, task.max_related))
    # One more popular query than a list has: the user's own may be among them.
    found = [text for text in (*next_ones, *index.find_popular(task.n + 1)) if normalise(text) != own]
    related = tuple(next_ones[: task.max_related])
    items = fall_back(request, found)
    return Recommendation(
        None, items, name_auxiliary((), task), None, None, None, related, "fallback", 0, (False,) * len(items), 0
    )
