"""Lists without a policy: co-occurring queries first, then popular ones, never the user's own query."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from serving.fallback import recommend_without_policy
from serving.policy.engines import Decoding
from serving.policy.tasks import DEFAULT_TASKS
from serving.recommend import Request
from streams.events.normal_form import normalise

NEXT = {"lisbon": ["lisbon weather", "lisbon museums"], "porto": ["porto wine", "porto map", "porto tram", "porto hotels"]}
POPULAR = ["lisbon", "Lisbon weather", "porto", "madrid", "rome"]


class Queries:
    """An index of fixed answers."""

    def retrieve(self, query: str, n: int) -> list[str]:
        return NEXT.get(normalise(query), [])[:n]

    def find_popular(self, n: int) -> list[str]:
        return POPULAR[:n]


def answer(query: str, task: str = "suggest") -> tuple[str, ...]:
    (one,) = recommend_without_policy(Queries(), [Request(DEFAULT_TASKS[task], query, Decoding())])
    return one.items


def test_queries_asked_next_come_first_and_popular_ones_fill_the_list() -> None:
    assert answer("porto") == ("porto wine", "porto map", "porto tram")
    assert answer("LISBON") == ("lisbon weather", "lisbon museums", "porto")
    assert answer("unheard of") == ("lisbon", "Lisbon weather", "porto")


def test_nothing_claims_that_a_policy_or_a_predictor_was_asked() -> None:
    (one,) = recommend_without_policy(Queries(), [Request(DEFAULT_TASKS["refine"], "lisbon", Decoding())])
    assert (one.release, one.form, one.logprob, one.decoding, one.predicted, one.tokens) == (
        None,
        "fallback",
        None,
        None,
        None,
        0,
    )
    assert one.related == ("lisbon weather", "lisbon museums")
    assert one.auxiliary == {"guiding": "", "prefix": "", "suffix": ""}


@given(st.sampled_from([*NEXT, *POPULAR, "x"]), st.sampled_from(sorted(DEFAULT_TASKS)))
def test_a_list_has_different_items_at_most_n_and_never_the_users_own_query(query: str, task: str) -> None:
    items = [normalise(item) for item in answer(query, task)]
    assert 1 <= len(set(items)) == len(items) <= DEFAULT_TASKS[task].n
    assert normalise(query) not in items
