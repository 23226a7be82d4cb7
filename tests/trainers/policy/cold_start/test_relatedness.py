"""Lists are compared with their own query and with others': gibberish and lists that ignore their query come to .5."""

from __future__ import annotations

import random
import string

import pytest

from trainers.policy.cold_start.relatedness import Items, Relatedness, compare_characters, measure_relatedness

TOWNS = tuple(
    first + last for first in ("lis", "por", "mad", "rom", "ber", "osl", "pra", "vie") for last in ("bon", "to", "rid", "lin")
)


def gibberish(rng: random.Random) -> str:
    return "".join(rng.choices(string.ascii_lowercase, k=9))


def relate(lists: list[Items]) -> Relatedness:
    return measure_relatedness(TOWNS, lists, compare_characters, "letters")


def test_lists_that_share_words_with_their_query_are_related() -> None:
    found = relate([(f"{town} weather", f"{town} museums") for town in TOWNS])
    assert found.share > 0.9
    assert found.holds(0.6)


@pytest.mark.parametrize("seed", range(20))
def test_gibberish_constant_shuffled_and_empty_lists_are_not(seed: int) -> None:
    rng = random.Random(seed)
    good = [(f"{town} weather", f"{town} museums") for town in TOWNS]
    for lists in (
        [(gibberish(rng), gibberish(rng)) for _ in TOWNS],
        [good[seed]] * len(TOWNS),
        [("zimmermanzimmerman",) * 2] * len(TOWNS),
        rng.sample(good, len(good)),
        [()] * len(TOWNS),
    ):
        assert not relate(list(lists)).holds(0.6)


def test_one_query_alone_shows_nothing() -> None:
    found = measure_relatedness(["lisbon"] * 9, [("lisbon weather",)] * 9, compare_characters, "letters")
    assert (found.share, found.holds(0.6), found.holds(0.5)) == (0.5, False, True)


def test_few_lists_must_be_nearer_than_chance_by_three_standard_errors() -> None:
    assert not Relatedness(0.7, 0.07, "").holds(0.6)
    assert Relatedness(0.7, 0.06, "").holds(0.6)
    assert not Relatedness(0.7, 0.01, "").holds(0.75)


def test_the_order_of_queries_does_not_matter_for_ties() -> None:
    assert measure_relatedness(["a", "b", "c"], [("x",)] * 3, lambda pairs: [1.0] * len(pairs), "").share == 0.5
