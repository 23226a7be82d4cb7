"""Lists written by imperfect editors for the cold start (G3): mostly relevant, but blind to what people like to click.

Each annotation shows 0 to 5 queries that users asked next, and uses a uniformly drawn number of them (G17), so that a policy
learns to take items from the prompt. Half have none: the first release serves before there is an index.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from queryloop.product.clicks import LIST_SIZE
from queryloop.product.visits import first_query, next_query
from queryloop.product.world import World
from streams.runtime.atomic_files import replacing_file

RELATED_SHOWN = 5
WITHOUT_RELATED = 0.5
# What an editor writes instead of the query's entity with another aspect.
RELATED_ENTITY, BARE_ENTITY, REPEATED = 0.06, 0.05, 0.04


def write_annotations(world: World, path: Path, count: int) -> None:
    """Write `count` annotations of the `suggest` task as JSONL; the same world gives the same file."""
    lines = (json.dumps(annotation, ensure_ascii=False) + "\n" for annotation in annotate(world, count))
    with replacing_file(path, durable=True) as temporary, temporary.open("w", encoding="utf-8") as out:
        out.writelines(lines)


def annotate(world: World, count: int) -> Iterator[dict[str, Any]]:
    """Yield annotations {task, query, related, session, items}; queries follow the users', items the editors' habits."""
    rng = random.Random(f"annotations {world.seed}")
    for _ in range(count):
        query = first_query(world, rng) if rng.random() < 0.5 else next_query(world, rng, first_query(world, rng))
        related = [] if rng.random() < WITHOUT_RELATED else _draw_related(world, rng, query)
        yield {
            "task": "suggest",
            "query": query,
            "related": related,
            "session": [],
            "items": edit_list(world, rng, query, related),
        }


def edit_list(world: World, rng: random.Random, query: str, related: Iterable[str] = ()) -> list[str]:
    """Return `LIST_SIZE` items: none to all from the related queries about this entity, the others with aspects drawn evenly."""
    entity = world.read(query).entities[0]
    fitting = [text for text in related if world.read(text).entities[:1] == (entity,)]
    items = fitting[: rng.randint(0, min(LIST_SIZE, len(fitting)))]
    while len(items) < LIST_SIZE:
        items.append(_write_item(world, rng, entity, [query, *items]))
    rng.shuffle(items)
    return items


def _write_item(world: World, rng: random.Random, entity: str, earlier: list[str]) -> str:
    habit = rng.random()
    if habit < REPEATED:
        return rng.choice(earlier)
    if habit < REPEATED + BARE_ENTITY:
        return entity
    about = rng.choice(world.entities[entity].related) if habit < REPEATED + BARE_ENTITY + RELATED_ENTITY else entity
    texts = [aspect.about(about) for aspect in world.topic_of(about).aspects]
    return rng.choice([text for text in texts if text not in earlier])


def _draw_related(world: World, rng: random.Random, query: str) -> list[str]:
    """Return up to `RELATED_SHOWN` different queries that users type after this one, as the index would return them."""
    drawn = (next_query(world, rng, query) for _ in range(rng.randint(1, RELATED_SHOWN)))
    return [text for text in dict.fromkeys(drawn) if text != query]
