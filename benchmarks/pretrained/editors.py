"""What the simulated product gives the loop: lists by its editors, a log of clicks on such lists, and its users' queries."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import islice

import msgspec

from queryloop.product.annotations import annotate, edit_list
from queryloop.product.clicks import item_probabilities
from queryloop.product.visits import first_query, next_query
from queryloop.product.world import World
from streams.events.normal_form import normalise
from trainers.policy.prompts import is_test
from trainers.policy.sft import Annotation
from trainers.predictor.examples import ListExamples

FOLLOW_RATE = 0.55
"""How often a user types another query after a list, as in the demo."""
LISTS_A_DAY = 4000


def write_annotations(world: World, count: int) -> list[Annotation]:
    """Return lists by the editors for queries that are not the test's, as a file of annotations would give them."""
    made = (msgspec.convert(one, Annotation) for one in annotate(world, 4 * count + 100) if not is_test(normalise(one["query"])))
    return [msgspec.structs.replace(one, related=()) for one in islice(made, count)]


def log_lists(world: World, count: int) -> ListExamples:
    """Return `count` lists by the editors with the clicks that the world's users made on them, oldest first."""
    rng = random.Random(f"log {world.seed}")
    rows = [(session, query, edit_list(world, rng, query)) for session, query in islice(_visit(world, rng), count)]
    return ListExamples(
        tuple(query for _, query, _ in rows),
        tuple(tuple(items) for *_, items in rows),
        tuple(tuple(rng.random() < p for p in item_probabilities(world, query, items)) for _, query, items in rows),
        tuple(session for session, *_ in rows),
        tuple(row // LISTS_A_DAY for row in range(len(rows))),
    )


def _visit(world: World, rng: random.Random) -> Iterator[tuple[str, str]]:
    """Yield (session, query) without end: a first query, then others while the user follows up."""
    session, query = 0, first_query(world, rng)
    while True:
        yield f"s{session}", query
        if rng.random() < FOLLOW_RATE:
            query = next_query(world, rng, query)
        else:
            session, query = session + 1, first_query(world, rng)


def draw_queries(world: World, count: int, *, test: bool) -> list[str]:
    """Return queries as users type them: different ones to learn from, or the test's, repeats included as in the traffic."""
    rng = random.Random(f"queries {world.seed} {test}")
    typed = (query for _, query in _visit(world, rng) if is_test(normalise(query)) == test)
    if test:
        return list(islice(typed, count))
    found: dict[str, None] = {}
    while len(found) < count:
        found[next(typed)] = None
    return list(found)
