"""The queries of the simulated users: the first one of a visit, and the next ones, drawn by the appeal of their aspects."""

from __future__ import annotations

import random
from bisect import bisect

from queryloop.product.world import World

# A first query is the bare entity this often, otherwise an entity and any of its topic's aspects.
BARE_FIRST = 0.4
# The next query: another aspect of the same entity, or of a related one, or something else altogether.
NEXT_SAME, NEXT_RELATED = 0.75, 0.15


def first_query(world: World, rng: random.Random) -> str:
    """Return the query that opens a visit: entities by their share (Zipf), aspects evenly."""
    entity = _pick_entity(world, rng)
    return entity if rng.random() < BARE_FIRST else rng.choice(world.topic_of(entity).aspects).about(entity)


def next_query(world: World, rng: random.Random, query: str) -> str:
    """Return the query a user types after `query`: aspects in proportion to their appeal, never the one just asked."""
    reading = world.read(query)
    change = rng.random()
    if not reading.entities or change >= NEXT_SAME + NEXT_RELATED:
        return first_query(world, rng)
    entity = reading.entities[0] if change < NEXT_SAME else rng.choice(world.entities[reading.entities[0]].related)
    aspects = [a for a in world.topic_of(entity).aspects if a.text != reading.aspect]
    return rng.choices(aspects, [a.appeal for a in aspects])[0].about(entity)


def _pick_entity(world: World, rng: random.Random) -> str:
    names, edges = world.cumulative_shares
    return names[min(bisect(edges, rng.random()), len(names) - 1)]
