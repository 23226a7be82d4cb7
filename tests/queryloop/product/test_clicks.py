"""The click model: items that are relevant, attractive, high up and new are clicked; editors' lists at about ten per cent."""

from __future__ import annotations

import itertools
import random
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from queryloop.product import clicks
from queryloop.product.annotations import edit_list
from queryloop.product.settings import WorldKind
from queryloop.product.visits import first_query, next_query
from queryloop.product.world import draw_world

WORLD = draw_world(1)
ENTITY = next(iter(WORLD.entities))
ASPECTS = sorted(WORLD.topic_of(ENTITY).aspects, key=lambda aspect: -aspect.appeal)
BEST = f"{ENTITY} {ASPECTS[0].text}"
ENGLISH = draw_world(2, "english")
OTHER = next(name for name, entity in WORLD.entities.items() if entity.topic != WORLD.entities[ENTITY].topic)


def probability(query: str, *items: str) -> float:
    return clicks.item_probabilities(WORLD, query, items)[-1]


def test_an_item_about_the_asked_entity_beats_a_related_one_and_that_one_an_unrelated() -> None:
    related = WORLD.entities[ENTITY].related[0]
    strangers = [name for name, one in WORLD.entities.items() if one.topic == WORLD.entities[ENTITY].topic]
    stranger = next(name for name in strangers if name not in (ENTITY, *WORLD.entities[ENTITY].related))
    values = [probability(ENTITY, f"{name} {ASPECTS[1].text}") for name in (ENTITY, related, stranger)]
    assert values == sorted(values, reverse=True)
    assert len(set(values)) == 3


def test_a_more_attractive_aspect_is_clicked_more_often() -> None:
    values = [probability(ENTITY, f"{ENTITY} {aspect.text}") for aspect in ASPECTS]
    assert values == sorted(values, reverse=True)


def test_the_same_item_lower_in_the_list_is_seen_less() -> None:
    others = [f"{ENTITY} {aspect.text}" for aspect in ASPECTS[1:3]]
    assert probability(ENTITY, BEST) > probability(ENTITY, others[0], BEST) > probability(ENTITY, *others, BEST)


def test_a_repeated_item_is_hardly_clicked() -> None:
    assert probability(ENTITY, BEST, BEST) < 0.1 * probability(ENTITY, BEST)
    assert probability(BEST, BEST) < 0.1 * probability(ENTITY, BEST)


def test_words_without_meaning_and_texts_that_name_nothing_cost_clicks() -> None:
    assert probability(ENTITY, BEST + " blah blah") < 0.5 * probability(ENTITY, BEST)
    assert 0 < probability(ENTITY, "blah") < 0.01
    assert 0 < probability("blah", BEST) < 0.01
    assert probability(ENTITY, f"{OTHER} {WORLD.topic_of(OTHER).aspects[0].text}") < probability(ENTITY, ENTITY + " blah")


TEXTS = st.one_of(st.text(max_size=20), st.sampled_from([BEST, ENTITY, OTHER, f"{ENTITY} {ASPECTS[3].text}"]))


@given(TEXTS, st.lists(TEXTS, max_size=5))
def test_probabilities_are_probabilities_and_the_list_is_clicked_if_any_item_is(query: str, items: list[str]) -> None:
    each = clicks.item_probabilities(WORLD, query, items)
    assert len(each) == len(items)
    assert all(0.0 <= p <= 1.0 for p in each)
    # Oracle: sum over every pattern of clicks but the empty one.
    patterns = itertools.product((0, 1), repeat=len(items))
    total = 0.0
    for pattern in patterns:
        if any(pattern):
            chance = 1.0
            for p, clicked in zip(each, pattern, strict=True):
                chance *= p if clicked else 1.0 - p
            total += chance
    assert clicks.list_click_probability(WORLD, query, items) == pytest.approx(total)


@given(st.lists(TEXTS, min_size=1, max_size=5), TEXTS)
def test_an_item_does_not_depend_on_the_items_below_it(items: list[str], below: str) -> None:
    assert clicks.item_probabilities(WORLD, ENTITY, items) == clicks.item_probabilities(WORLD, ENTITY, [*items, below])[:-1]


@pytest.mark.parametrize("kind", ["invented", "english"])
@pytest.mark.parametrize("seed", range(6))
def test_editors_lists_are_clicked_near_ten_per_cent_and_far_better_ones_exist(seed: int, kind: WorldKind) -> None:
    world, rng = draw_world(seed, kind), random.Random(seed)
    edited, best = [], []
    for _ in range(1500):
        query = first_query(world, rng)
        said = world.read(query)
        edited.append(clicks.list_click_probability(world, query, edit_list(world, rng, query)))
        aspects = sorted(world.topic_of(said.entities[0]).aspects, key=lambda aspect: -aspect.appeal)
        texts = [aspect.about(said.entities[0]) for aspect in aspects if aspect.text != said.aspect]
        best.append(clicks.list_click_probability(world, query, texts[:3]))
    assert statistics.mean(edited) == pytest.approx(0.10, abs=0.012)
    assert statistics.mean(best) > 2 * statistics.mean(edited)


def test_what_users_type_next_is_worth_more_clicks_than_what_editors_write() -> None:
    rng = random.Random(5)
    queries = [first_query(WORLD, rng) for _ in range(3000)]
    typed = statistics.mean(probability(query, next_query(WORLD, rng, query)) for query in queries)
    written = statistics.mean(probability(query, edit_list(WORLD, rng, query)[0]) for query in queries)
    assert typed > 1.2 * written


def says(item: str, *earlier: str, query: str = "lisbon") -> float:
    """The click probability of the last item of a list in the English world."""
    return clicks.item_probabilities(ENGLISH, query, [*earlier, item])[-1]


def test_what_no_table_holds_is_clicked_by_what_it_means() -> None:
    assert says("Climate in Lisbon") == says("lisbon weather") > says("Porto climate") > says("iphone price")
    assert says("lisbon weather") > says("lisbon weather zzz qqq")


def test_the_query_itself_and_the_same_in_other_words_are_hardly_clicked() -> None:
    fresh = says("lisbon weather")
    for repeated in (says("What is the weather in Lisbon", query="lisbon weather"), says("climate of lisbon", "lisbon weather")):
        assert repeated < 0.1 * fresh
    assert says("Lisbon!") < 0.1 * fresh


def test_an_entity_of_two_words_is_no_repetition_of_the_query() -> None:
    assert says("new york weather", query="new york") == says("lisbon weather")


@given(st.text(max_size=60))
def test_any_text_has_a_small_chance_of_a_click_and_no_more_without_a_known_name(text: str) -> None:
    chance = says(text)
    assert chance > 0
    if not ENGLISH.read(text).entities:
        assert chance < 0.2 * says("lisbon weather") or ENGLISH.read(text).aspect


SOME = ["lisbon", "new york weather", "aloe vera", "iphone price"]
BEST_LISTS = {query: clicks.best_list(ENGLISH, query) for query in SOME}


@given(st.sampled_from(SOME), st.data())
def test_no_list_out_of_the_world_is_clicked_more_than_the_best_list(query: str, data: st.DataObject) -> None:
    best = BEST_LISTS[query]
    name = ENGLISH.read(query).entities[0]
    known = [aspect.about(name) for aspect in ENGLISH.topic_of(name).aspects]
    others = data.draw(st.lists(st.sampled_from([*known, name, *SOME]), min_size=3, max_size=3))
    assert len(set(best)) == 3
    reached = clicks.list_click_probability(ENGLISH, query, others)
    assert reached <= clicks.list_click_probability(ENGLISH, query, best) * (1 + 1e-12)


def test_a_query_about_nothing_has_no_best_list() -> None:
    assert clicks.best_list(ENGLISH, "zzz") == []
