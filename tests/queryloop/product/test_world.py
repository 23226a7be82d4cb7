"""The world is drawn whole from its seed, and what a text names can be read back from it."""

from __future__ import annotations

import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from queryloop.product import world as worlds
from queryloop.product.names import SUBJECTS, name_aspects

SEEDS = range(5)
WORLD = worlds.draw_world(0)
ENGLISH = worlds.draw_world(2, "english")


def test_a_seed_always_draws_the_same_world_and_another_seed_another_one() -> None:
    assert worlds.draw_world(3) == worlds.draw_world(3)
    assert worlds.draw_world(3).entities != worlds.draw_world(4).entities


@pytest.mark.parametrize("seed", SEEDS)
def test_it_has_the_documented_size(seed: int) -> None:
    world = worlds.draw_world(seed)
    assert len(world.topics) == 8
    assert all(len(topic.aspects) == 12 for topic in world.topics)
    assert len(world.entities) == 8 * 40
    assert sum(entity.share for entity in world.entities.values()) == pytest.approx(1.0)


@pytest.mark.parametrize("seed", SEEDS)
def test_some_aspects_are_far_more_attractive_than_the_median_one(seed: int) -> None:
    appeals = [aspect.appeal for topic in worlds.draw_world(seed).topics for aspect in topic.aspects]
    assert max(appeals) > 5 * statistics.median(appeals)


@pytest.mark.parametrize("seed", SEEDS)
def test_related_entities_are_others_of_the_same_topic(seed: int) -> None:
    world = worlds.draw_world(seed)
    for name, entity in world.entities.items():
        assert name not in entity.related
        assert {world.entities[other].topic for other in entity.related} == {entity.topic}


def test_a_head_entity_is_asked_for_far_more_often_than_a_tail_one() -> None:
    shares = sorted((entity.share for entity in WORLD.entities.values()), reverse=True)
    assert 0.02 < shares[0] < 0.2
    assert shares[0] > 20 * shares[-1]


@pytest.mark.parametrize("seed", SEEDS)
def test_every_aspect_of_every_topic_can_be_read_back(seed: int) -> None:
    world = worlds.draw_world(seed)
    for name, entity in world.entities.items():
        for aspect in world.topics[entity.topic].aspects:
            assert world.read(f"{name} {aspect.text}") == worlds.Reading((name,), aspect.text, 0)


@given(st.text())
def test_any_text_can_be_read(text: str) -> None:
    said = WORLD.read(text)
    assert 0 <= said.left_over <= len(text.split())


def test_other_words_are_counted_and_case_does_not_matter() -> None:
    name, entity = next(iter(WORLD.entities.items()))
    aspect = WORLD.topics[entity.topic].aspects[0].text
    assert WORLD.read(f"please {name.upper()} {aspect.title()} thanks") == worlds.Reading((name,), aspect, 2)


def test_aspects_of_a_topic_are_about_different_subjects() -> None:
    import random

    for kind, subjects in SUBJECTS.items():
        texts = name_aspects(random.Random(1), kind, 12)
        about = [max((s for s in subjects.split(", ") if s in text), key=len) for text in texts]
        assert len(set(about)) == 12


@pytest.mark.parametrize("seed", SEEDS)
def test_an_english_world_has_real_things_and_all_that_is_asked_about_their_kind(seed: int) -> None:
    world = worlds.draw_world(seed, "english")
    assert world == worlds.draw_world(seed, "english")
    assert len(world.topics) == 8
    assert all(10 <= len(topic.aspects) <= 20 for topic in world.topics)
    assert len(world.entities) > 300
    assert sum(entity.share for entity in world.entities.values()) == pytest.approx(1.0)


@pytest.mark.parametrize("seed", SEEDS)
def test_every_english_query_can_be_read_back_in_each_of_its_wordings(seed: int) -> None:
    world = worlds.draw_world(seed, "english")
    for name, entity in world.entities.items():
        for aspect in world.topics[entity.topic].aspects:
            for text in (aspect.about(name), *(f"{name} {phrase}" for phrase in aspect.phrases)):
                assert world.read(text) == worlds.Reading((name,), aspect.text, 0), text


def test_related_things_are_alike() -> None:
    assert set(ENGLISH.entities["lisbon"].related) == {"porto", "madrid", "barcelona"}
    for name, entity in ENGLISH.entities.items():
        assert len(set(entity.related) - {name}) == 3
        assert {ENGLISH.entities[other].topic for other in entity.related} == {entity.topic}


@pytest.mark.parametrize(
    ("text", "entities", "aspect", "left_over"),
    [
        ("What is the climate like in Lisbon?", ("lisbon",), "weather", 1),
        ("Lisbon's weather", ("lisbon",), "weather", 0),
        ("weather weather weather lisbon", ("lisbon",), "weather", 2),
        ("new york", ("new york",), None, 0),
        ("how to get from New York to Boston", ("new york", "boston"), None, 3),
        ("volkswagen golf vs ford focus price", ("volkswagen golf", "ford focus"), "price", 2),
        ("asdf qwer", (), None, 2),
        ("is it safe", (), "is safe", 0),
    ],
)
def test_what_a_pretrained_model_writes_is_read_by_its_meaning(
    text: str, entities: tuple[str, ...], aspect: str | None, left_over: int
) -> None:
    assert ENGLISH.read(text) == worlds.Reading(entities, aspect, left_over)


NAMES = sorted(ENGLISH.entities)


@given(st.sampled_from(NAMES), st.integers(0, 9), st.sampled_from(["{} ?", "  {}", "my {}!", "¿{}?"]), st.booleans())
def test_case_punctuation_and_words_that_say_nothing_do_not_change_a_meaning(
    name: str, number: int, around: str, loud: bool
) -> None:
    text = ENGLISH.topic_of(name).aspects[number].about(name)
    changed = around.replace("{}", text.upper() if loud else text)
    assert ENGLISH.read(changed) == ENGLISH.read(text)
    assert ENGLISH.overlap(changed, text) == 1.0


ENGLISH_TEXTS = st.one_of(
    st.text(max_size=20), st.sampled_from(["lisbon", "lisbon weather", "climate in Lisbon", "porto weather", "x"])
)


@given(ENGLISH_TEXTS, ENGLISH_TEXTS)
def test_overlap_is_symmetric_and_whole_for_a_text_with_itself(one: str, other: str) -> None:
    for world in (WORLD, ENGLISH):
        assert world.overlap(one, one) == 1.0
        assert 0.0 <= world.overlap(one, other) == world.overlap(other, one) <= 1.0


def test_an_aspect_in_other_words_is_the_same_and_the_name_counts_as_one_word() -> None:
    assert ENGLISH.overlap("lisbon weather", "climate in lisbon this week") == 1.0
    assert ENGLISH.overlap("new york", "new york weather") == 0.5
    assert ENGLISH.overlap("lisbon weather", "porto weather") == pytest.approx(1 / 3)
