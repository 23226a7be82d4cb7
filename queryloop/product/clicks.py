"""The click model of the simulated users: the true probability that each item of a list is clicked. The loop never sees it.

P(click on item k) = examination(k) x attractiveness(query, item) x penalty for repeating what is above it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from queryloop.product.world import Reading, World

# People look at position k (from 0) with probability (k + 1) ** -EXAMINATION_DECAY.
EXAMINATION_DECAY = 0.35
# The relevance of an item that names ...
RELEVANCE_SAME, RELEVANCE_RELATED, RELEVANCE_TOPIC, RELEVANCE_OTHER = 1.0, 0.3, 0.1, 0.03
RELEVANCE_NO_ENTITY, RELEVANCE_NOTHING = 0.12, 0.01
# An entity without an aspect is as attractive as a weak aspect; an aspect of another topic makes little sense.
APPEAL_BARE, APPEAL_FOREIGN = 0.5, 0.2
# For each word without a meaning.
NOISE_FACTOR = 0.6
# Two texts that share over half of their words are near-duplicates; the same words leave this much.
DUPLICATE_FROM, DUPLICATE_LEFT = 0.5, 0.05
LARGEST_PROBABILITY = 0.6
# The calibration: a list of three by an editor (see annotations) is clicked this often, averaged over the traffic.
LIST_SIZE, LIST_CLICK_RATE, EDITOR_QUALITY = 3, 0.10, 0.87


def item_probabilities(world: World, query: str, items: Sequence[str]) -> list[float]:
    """Return each item's click probability, given the user's query and the items above it."""
    return [_probability(world, query, items[:position], item) for position, item in enumerate(items)]


def _probability(world: World, query: str, above: Sequence[str], item: str) -> float:
    made = attractiveness(world, world.read(query), item) * novelty(world, item, [query, *above])
    return min(LARGEST_PROBABILITY, click_scale(world) * examination(len(above)) * made)


def list_click_probability(world: World, query: str, items: Sequence[str]) -> float:
    """Return the probability that at least one item of the list is clicked (clicks are independent given the list)."""
    return 1.0 - math.prod(1.0 - p for p in item_probabilities(world, query, items))


def best_list(world: World, query: str, size: int = LIST_SIZE) -> list[str]:
    """Return the most attractive item for each position in turn, out of all that the world has to say: what no policy can beat.

    Items are about the asked entity or a related one, alone or with an aspect; a query that names no entity has no such list."""
    asked = world.read(query).entities[:1]
    about = (*asked, *(name for entity in asked for name in world.entities[entity].related))
    texts = [text for name in about for text in (name, *(aspect.about(name) for aspect in world.topic_of(name).aspects))]
    items: list[str] = []
    while texts and len(items) < size:
        items.append(max(texts, key=lambda text: _probability(world, query, items, text)))
        texts.remove(items[-1])
    return items


def click_scale(world: World) -> float:
    """Return the factor at which lists of `LIST_SIZE` by the editors are clicked at `LIST_CLICK_RATE`, by calculation.

    Treats an item's probability as its mean: -ln(1 - rate) = scale x mean appeal x quality x sum of examination.
    """
    examined = math.fsum(examination(position) for position in range(LIST_SIZE))
    return -math.log1p(-LIST_CLICK_RATE) / (examined * world.mean_appeal * EDITOR_QUALITY)


def examination(position: int) -> float:
    """Return the probability that position `position` (from 0) is looked at."""
    return float((position + 1) ** -EXAMINATION_DECAY)


def attractiveness(world: World, asked: Reading, item: str) -> float:
    """Return relevance x appeal x specificity of an item, in units of the median aspect's appeal."""
    shown = world.read(item)
    made = _relevance(world, asked, shown) * _appeal(world, shown) * NOISE_FACTOR**shown.left_over
    return max(made, world.language.accidental)


def novelty(world: World, item: str, earlier: Sequence[str]) -> float:
    """Return 1 for an item unlike all earlier texts, down to `DUPLICATE_LEFT` for one that says the same."""
    alike = max((world.overlap(item, text) for text in earlier), default=0.0)
    excess = max(0.0, alike - DUPLICATE_FROM) / (1.0 - DUPLICATE_FROM)
    return 1.0 - (1.0 - DUPLICATE_LEFT) * excess


def _relevance(world: World, asked: Reading, shown: Reading) -> float:
    if not shown.entities:
        return RELEVANCE_NO_ENTITY if shown.aspect else RELEVANCE_NOTHING
    if not asked.entities:
        return RELEVANCE_OTHER
    wanted, named = asked.entities[0], shown.entities[0]
    if named == wanted:
        return RELEVANCE_SAME
    if named in world.entities[wanted].related:
        return RELEVANCE_RELATED
    return RELEVANCE_TOPIC if world.entities[named].topic == world.entities[wanted].topic else RELEVANCE_OTHER


def _appeal(world: World, shown: Reading) -> float:
    if shown.aspect is None:
        return APPEAL_BARE
    topics = [world.entities[shown.entities[0]].topic] if shown.entities else range(len(world.topics))
    return max(world.appeals[topic].get(shown.aspect, APPEAL_FOREIGN) for topic in topics)
