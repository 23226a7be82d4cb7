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
