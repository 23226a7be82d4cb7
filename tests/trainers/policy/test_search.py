"""Algorithm 1's search equals a naive recomputation of it, and what it finds are lists that the policy could have written."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.policy.engines import Decoding, Generation
from serving.policy.engines.search_state import Continuation, Expansion, SearchState
from serving.policy.engines.transformers_engine import TransformersEngine
from serving.policy.list_form import ListForm
from serving.policy.lists import RecommendedList, is_duplicate, parse
from serving.policy.prompts import Prompt
from serving.policy.tasks import Task
from tests.support.toy_policy import ANIMALS, TASK, make_policy
from trainers.policy.search import SearchSettings, batch_rows, draw_rejected, reward_lists, search_candidates

SEP, EOS = 2, 1
WORDS = ("red", "blue", "green", "cyan sea", "black", "white", "Red", "grey owl")


def draw(*parts: object) -> int:
    """A number that depends on the parts alone."""
    return zlib.crc32(repr(parts).encode())


class TableEngine:
    """An engine whose every draw is a fixed function of prompt, items so far and number of the draw. One item is one token."""

    form = ListForm("tokens", SEP, 3, EOS, frozenset())

    def __init__(self) -> None:
        self.asked: list[Prompt] = []

    def begin(self, prompts: Sequence[Prompt]) -> SearchState:
        self.asked = list(prompts)
        count = len(prompts)
        return SearchState(prompts[0].task, None, tuple(range(count)), ((),) * count, ((),) * count, ())  # type: ignore[arg-type]

    def next_item(self, prompt: Prompt, items: tuple[str, ...], number: int) -> str:
        return WORDS[draw(prompt.token_ids, items, number) % len(WORDS)]

    def expand(self, state: SearchState, m: int, decoding: Decoding) -> Expansion:
        found = []
        for row, (prompt, items) in enumerate(zip(state.prompts, state.items, strict=True)):
            for number in range(m):
                item = self.next_item(self.asked[prompt], items, number)
                end = EOS if len(items) + 1 == state.task.n else SEP
                found.append(Continuation(row, prompt, item, (), (10 + WORDS.index(item), end), -1.0))
        return Expansion(state, tuple(found), (), ())

    def select(self, expansion: Expansion, chosen: Sequence[int]) -> SearchState:
        picked = [expansion.continuations[index] for index in chosen]
        state = expansion.state
        return replace(
            state,
            prompts=tuple(one.prompt for one in picked),
            items=tuple((*state.items[one.parent], one.item) for one in picked),
            auxiliary=((),) * len(picked),
            drafts=(),
        )

    def generate(self, prompts: Sequence[Prompt], decoding: Decoding, samples: int = 1) -> list[Generation]:
        return [self.random_list(prompt, number, decoding) for prompt in prompts for number in range(samples)]

    def random_list(self, prompt: Prompt, number: int, decoding: Decoding) -> Generation:
        text, task = prompt.token_ids, prompt.task
        items = tuple(WORDS[draw(text, number, k) % len(WORDS)] for k in range(task.n))
        ids = tuple(10 + WORDS.index(item) for item in items)
        return Generation(
            RecommendedList(items, (), draw(text, number) % 5 > 0, task.n + 1), (*ids, EOS), None, decoding, -1.0, 0
        )


class HashScorer:
    """A predictor of fixed probabilities, different for every query, position and item."""

    def score(self, queries: Sequence[str], lists: Sequence[Sequence[str]]) -> list[np.ndarray]:
        return [
            np.array([self.one(query, items[: k + 1]) for k in range(len(items))])
            for query, items in zip(queries, lists, strict=True)
        ]

    def one(self, query: str, items: Sequence[str]) -> float:
        return draw(query, tuple(items)) / 2**32


def naive_search(engine: TableEngine, prompt: Prompt, sizes: SearchSettings) -> list[tuple[tuple[str, ...], float]]:
    """Lines 4 to 18 of Algorithm 1 for one prompt, as they are printed, with the overlap filter inside."""
    beam: list[tuple[str, ...]] = [()]
    rated: list[tuple[tuple[str, ...], float]] = []
    for _ in range(prompt.task.n):
        found: dict[tuple[str, ...], tuple[str, ...]] = {}
        for items in beam:
            for number in range(sizes.candidates):
                longer = (*items, engine.next_item(prompt, items, number))
                found.setdefault(tuple(text.lower() for text in longer), longer)
        lists = list(found.values())
        if sizes.filter_overlap:
            lists = [one for one in lists if not any(is_duplicate(one[-1], item, sizes.overlap) for item in one[:-1])] or lists
        rated = sorted(((one, eq3(prompt.query, one)) for one in lists), key=lambda pair: -pair[1])[: sizes.beam]
        beam = [one for one, _ in rated]
    return rated[: sizes.chosen]


def eq3(query: str, items: Sequence[str]) -> float:
    missed = 1.0
    for k in range(len(items)):
        missed *= 1.0 - HashScorer().one(query, items[: k + 1])
    return 1.0 - missed


def make_prompts(count: int, n: int = 3) -> list[Prompt]:
    task = Task(name="suggest", n=n, template="{query}")
    return [Prompt(task, f"query {number}", (number,)) for number in range(count)]


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 5),
    st.integers(1, 4),
    st.integers(1, 4),
    st.integers(1, 8),
    st.integers(1, 5),
    st.booleans(),
    st.integers(1, 4),
)
def test_it_equals_algorithm_1_recomputed_for_each_prompt_alone(
    count: int, n: int, beam: int, candidates: int, chosen: int, filtered: bool, at_once: int
) -> None:
    sizes = SearchSettings(beam=beam, candidates=candidates, chosen=min(chosen, beam), filter_overlap=filtered, at_once=at_once)
    engine, prompts = TableEngine(), make_prompts(count, n)
    for prompt, one in zip(prompts, search_candidates(engine, HashScorer(), prompts, sizes), strict=True):
        expected = naive_search(engine, prompt, sizes)
        assert one.prompt == prompt
        assert [found.list.items for found in one.chosen] == [items for items, _ in expected]
        assert [found.reward for found in one.chosen] == pytest.approx([reward for _, reward in expected])


@given(st.integers(1, 4), st.integers(1, 6), st.integers(1, 20))
def test_the_rejected_are_the_lowest_of_the_budget_a_malformed_list_being_worth_nothing(
    count: int, rejected: int, budget: int
) -> None:
    engine, prompts, rejected = TableEngine(), make_prompts(count), min(rejected, budget)
    drawn = draw_rejected(engine, HashScorer(), prompts, SearchSettings(rejected=rejected, budget=budget), seed=0)
    for prompt, worst in zip(prompts, drawn, strict=True):
        lists = [engine.random_list(prompt, number, Decoding()).list for number in range(budget)]
        rewards = sorted(eq3(prompt.query, one.items) if one.well_formed else 0.0 for one in lists)
        assert [one.reward for one in worst] == pytest.approx(rewards[:rejected])


def test_a_chosen_list_ends_with_eos_and_separates_its_items_whatever_was_drawn() -> None:
    (one,) = search_candidates(TableEngine(), HashScorer(), make_prompts(1), SearchSettings())
    for found in one.chosen:
        words = [10 + WORDS.index(item) for item in found.list.items]
        assert found.token_ids == (words[0], SEP, words[1], SEP, words[2], EOS)
        assert found.list.tokens == len(found.token_ids)


def test_batches_hold_one_task_each_and_every_prompt_once() -> None:
    other = Task(name="hint", n=1, template="{query}")
    prompts = [replace(prompt, task=other) if number % 3 else prompt for number, prompt in enumerate(make_prompts(11))]
    batches = list(batch_rows(prompts, 4))
    assert sorted(row for rows in batches for row in rows) == list(range(11))
    assert all(len(rows) <= 4 and len({prompts[row].task.name for row in rows}) == 1 for rows in batches)


def test_the_reward_follows_the_task_and_an_empty_list_is_worth_nothing() -> None:
    class Half:
        def score(self, queries: Sequence[str], lists: Sequence[Sequence[str]]) -> list[np.ndarray]:
            return [np.full(len(items), 0.4) for items in lists]

    multi = Prompt(Task(name="suggest", n=2, template="{query}"), "q", (1,))
    single = Prompt(Task(name="hint", n=2, reward="single", template="{query}"), "q", (1,))
    lists = [("a", "b"), ("a", "b"), ()]
    assert reward_lists(Half(), [multi, single, multi], lists) == pytest.approx([1 - 0.6**2, 0.8, 0.0])


def test_on_a_real_policy_lists_are_those_of_their_tokens(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    engine = TransformersEngine.load(make_policy(tmp_path), "cpu")
    prompts = [engine.encode_prompt(TASK, animal) for animal in ANIMALS]
    sizes = SearchSettings(at_once=4, budget=6)
    found = search_candidates(engine, HashScorer(), prompts, sizes)
    assert found == search_candidates(engine, HashScorer(), prompts, sizes)
    for one in found:
        assert one.chosen[0].reward > one.rejected[0].reward
        assert all(scored.list.well_formed for scored in one.chosen)
        for scored in (*one.chosen, *one.rejected):
            assert parse(scored.token_ids, engine.tokenizer, TASK) == scored.list
            worth = eq3(one.prompt.query, scored.list.items) if scored.list.well_formed else 0.0
            assert scored.reward == pytest.approx(worth)
