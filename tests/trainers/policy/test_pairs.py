"""Preference pairs: one a prompt, of lists that do not repeat themselves, of like length (eq. 6)."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

from hypothesis import given
from hypothesis import strategies as st

from serving.policy.lists import RecommendedList
from serving.policy.prompts import Prompt
from serving.policy.tasks import Task
from trainers.policy.pairs import Pair, make_pair, make_pairs, match_lengths
from trainers.policy.search import Candidates, ScoredList, SearchSettings

PROMPT = Prompt(Task(name="suggest", n=2, template="{query}"), "cat", (7, 8))
SETTINGS = SearchSettings()


def make_list(
    reward: float, tokens: int = 5, items: tuple[str, ...] = ("cat food", "owl games"), well_formed: bool = True
) -> ScoredList:
    return ScoredList(RecommendedList(items, (), True, tokens), tuple(range(tokens)), reward)


def candidates(chosen: list[ScoredList], rejected: list[ScoredList]) -> Candidates:
    return Candidates(PROMPT, tuple(chosen), tuple(rejected))


rated = st.lists(st.builds(make_list, st.floats(0, 1), st.integers(1, 20)), min_size=1, max_size=6)


@given(rated, rated)
def test_no_other_pair_is_closer_in_length(chosen: list[ScoredList], rejected: list[ScoredList]) -> None:
    better, worse = match_lengths(chosen, rejected)
    distance = abs(len(better.token_ids) - len(worse.token_ids))
    assert better in chosen
    assert worse in rejected
    assert distance == min(abs(len(a.token_ids) - len(b.token_ids)) for a, b in product(chosen, rejected))


@given(rated, rated)
def test_a_pair_always_has_the_higher_reward_chosen(chosen: list[ScoredList], rejected: list[ScoredList]) -> None:
    pair = make_pair(candidates(chosen, rejected), SETTINGS)
    better, worse = match_lengths(chosen, rejected)
    assert (pair is not None) == (better.reward > worse.reward)
    if pair:
        assert pair == Pair((7, 8), better.token_ids, worse.token_ids)


def test_among_equally_close_lengths_the_rewards_that_differ_most() -> None:
    chosen, rejected = [make_list(0.5), make_list(0.9)], [make_list(0.2), make_list(0.1)]
    assert match_lengths(chosen, rejected) == (chosen[1], rejected[1])


def test_a_chosen_list_in_which_two_queries_overlap_is_dropped_unless_the_filter_is_off() -> None:
    repeats = make_list(0.9, items=("cat  Food", "cat food"))
    near = make_list(0.8, items=("cat food price", "cat food prices"))
    good = replace(make_list(0.7), token_ids=(9, 8, 7, 6, 5))
    rejected = [make_list(0.1)]
    pair = make_pair(candidates([repeats, near, good], rejected), SETTINGS)
    unfiltered = make_pair(candidates([repeats, near, good], rejected), SearchSettings(filter_overlap=False))
    assert pair is not None
    assert unfiltered is not None
    assert (pair.chosen, unfiltered.chosen) == (good.token_ids, repeats.token_ids)


def test_no_pair_without_a_chosen_list_a_rejected_one_or_a_gain() -> None:
    nothing = candidates([], [make_list(0.1)])
    unrejected = candidates([make_list(0.9)], [])
    repeats = candidates([make_list(0.9, items=("a", "A"))], [make_list(0.1)])
    equal = candidates([make_list(0.5)], [make_list(0.5)])
    assert make_pairs([nothing, unrejected, repeats, equal], SETTINGS) == []
    small = candidates([make_list(0.5)], [make_list(0.45)])
    assert len(make_pairs([small], SETTINGS)) == 1
    assert make_pairs([small], SearchSettings(min_gain=0.1)) == []
