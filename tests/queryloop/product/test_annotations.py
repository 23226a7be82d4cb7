"""The editors' lists: mostly relevant, blind to appeal, using a uniform number of the queries that users asked next (G17)."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path

from queryloop.product.annotations import annotate, edit_list, write_annotations
from queryloop.product.world import draw_world

WORLD = draw_world(2)
ANNOTATIONS = list(annotate(WORLD, 4000))


def test_the_file_holds_one_annotation_a_line_and_is_the_same_every_time(tmp_path: Path) -> None:
    write_annotations(WORLD, tmp_path / "a.jsonl", 50)
    write_annotations(WORLD, tmp_path / "b.jsonl", 50)
    lines = (tmp_path / "a.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == ANNOTATIONS[:50]
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl", "b.jsonl"]


def test_each_has_the_fields_of_the_format() -> None:
    for annotation in ANNOTATIONS:
        assert set(annotation) == {"task", "query", "related", "session", "items"}
        assert annotation["task"] == "suggest"
        assert len(annotation["items"]) == 3
        assert all(isinstance(item, str) and item for item in annotation["items"])
        assert len(annotation["related"]) <= 5


def test_most_items_are_about_the_asked_entity_but_not_all() -> None:
    fits = [
        WORLD.read(item).entities == WORLD.read(annotation["query"]).entities
        for annotation in ANNOTATIONS
        for item in annotation["items"]
    ]
    assert 0.88 < sum(fits) / len(fits) < 0.99


def test_aspects_are_written_evenly_not_by_appeal() -> None:
    entity = next(iter(WORLD.entities))
    rng = random.Random(0)
    items = [item for _ in range(4000) for item in edit_list(WORLD, rng, entity)]
    counts = Counter(said.aspect for said in map(WORLD.read, items) if said.entities == (entity,) and said.aspect)
    assert len(counts) == 12
    assert max(counts.values()) < 1.3 * min(counts.values())


def test_the_number_of_related_queries_that_are_used_is_uniform() -> None:
    entity = next(iter(WORLD.entities))
    related = [f"{entity} {aspect.text}" for aspect in WORLD.topic_of(entity).aspects[:3]]
    marked = [text + " related" for text in related]
    rng = random.Random(0)
    used = Counter(sum(item in marked for item in edit_list(WORLD, rng, entity, marked)) for _ in range(4000))
    assert set(used) == {0, 1, 2, 3}
    # A repeated item can count twice, so the numbers are only near a quarter each.
    assert all(0.2 < count / 4000 < 0.3 for count in used.values())


def test_half_have_no_related_queries_as_the_first_release_serves_without_an_index() -> None:
    without = sum(not annotation["related"] for annotation in ANNOTATIONS) / len(ANNOTATIONS)
    assert 0.45 < without < 0.55


def test_an_english_editor_writes_about_the_asked_thing_in_the_words_that_users_type() -> None:
    world = draw_world(2, "english")
    fits = []
    for annotation in annotate(world, 500):
        asked = world.read(annotation["query"])
        assert len(asked.entities) == 1
        fits += [world.read(item).entities == asked.entities for item in annotation["items"]]
        assert all(world.read(item).left_over == 0 for item in annotation["items"])
    assert 0.88 < sum(fits) / len(fits) < 0.99
