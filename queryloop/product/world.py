"""The world of the simulated product, drawn from a seed: topics, entities, aspects and how attractive each is."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

from queryloop.product.names import ENDINGS, name_aspects, name_entities

TOPICS = 8
ENTITIES_PER_TOPIC = 40
ASPECTS_PER_TOPIC = 12
RELATED_ENTITIES = 3
# exp(N(0, 1)): one aspect in twenty is five times as attractive as the median one.
APPEAL_SPREAD = 1.0
APPEAL_LIMITS = (0.1, 8.0)
# Mild: the first entity gets some 5 % of the traffic, the last half 25 %.
ZIPF_EXPONENT = 0.7


@dataclass(frozen=True)
class Aspect:
    """What people ask about an entity of one topic; `appeal` is relative, the median of the law is 1."""

    text: str
    appeal: float


@dataclass(frozen=True)
class Topic:
    """One kind of thing with its aspects."""

    kind: str
    aspects: tuple[Aspect, ...]


@dataclass(frozen=True)
class Entity:
    """A thing that people ask about: its topic, entities like it, and its share of the first queries."""

    name: str
    topic: int
    related: tuple[str, ...]
    share: float


@dataclass(frozen=True)
class Reading:
    """What a text names: entities in order, the aspect (of the first one's topic, else of any), and the number of other words."""

    entities: tuple[str, ...]
    aspect: str | None
    left_over: int


@dataclass(frozen=True)
class World:
    """Everything there is to ask about. `mean_appeal` is that of an aspect picked evenly for an entity picked by its share."""

    seed: int
    topics: tuple[Topic, ...]
    entities: Mapping[str, Entity]

    @cached_property
    def mean_appeal(self) -> float:
        means = [math.fsum(a.appeal for a in topic.aspects) / len(topic.aspects) for topic in self.topics]
        return math.fsum(entity.share * means[entity.topic] for entity in self.entities.values())

    @cached_property
    def cumulative_shares(self) -> tuple[tuple[str, ...], tuple[float, ...]]:
        """Entity names and, in the same order, the running sum of their shares."""
        return tuple(self.entities), tuple(accumulate(entity.share for entity in self.entities.values()))

    @cached_property
    def appeals(self) -> tuple[Mapping[str, float], ...]:
        """Appeal by aspect text, one mapping a topic."""
        return tuple({aspect.text: aspect.appeal for aspect in topic.aspects} for topic in self.topics)

    @cached_property
    def aspects_by_word(self) -> Mapping[str, tuple[tuple[tuple[str, ...], int, str], ...]]:
        """All aspects as (words, topic, text) under their first word, longest first."""
        found = sorted(
            ((tuple(a.text.split()), number, a.text) for number, topic in enumerate(self.topics) for a in topic.aspects),
            key=lambda one: (-len(one[0]), one[1], one[2]),
        )
        return {words[0]: tuple(one for one in found if one[0][0] == words[0]) for words, _, _ in found}

    def topic_of(self, entity: str) -> Topic:
        """Return the topic of an entity that exists (KeyError otherwise)."""
        return self.topics[self.entities[entity].topic]

    def read(self, text: str) -> Reading:
        """Return what a text names, comparing words without regard to case."""
        words = text.casefold().split()
        entities = tuple(word for word in words if word in self.entities)
        topic = self.entities[entities[0]].topic if entities else None
        found = self._find_aspect(words, topic)
        used = len(entities[:1]) + (len(found.split()) if found else 0)
        return Reading(entities, found, len(words) - used)

    def _find_aspect(self, words: Sequence[str], topic: int | None) -> str | None:
        """Return the named aspect: one of the topic before any other, a longer one before a shorter one."""
        matches = [
            (number != topic, -len(aspect), text)
            for at, word in enumerate(words)
            for aspect, number, text in self.aspects_by_word.get(word, ())
            if tuple(words[at : at + len(aspect)]) == aspect
        ]
        return min(matches)[2] if matches else None


def draw_world(seed: int) -> World:
    """Return the world of a seed; the same seed gives the same world on every machine."""
    rng = random.Random(f"world {seed}")
    kinds = rng.sample(sorted(ENDINGS), TOPICS)
    topics = tuple(Topic(kind, _draw_aspects(rng, kind)) for kind in kinds)
    return World(seed, topics, _draw_entities(rng, kinds))


def _draw_aspects(rng: random.Random, kind: str) -> tuple[Aspect, ...]:
    low, high = APPEAL_LIMITS
    texts = name_aspects(rng, kind, ASPECTS_PER_TOPIC)
    return tuple(Aspect(text, min(max(rng.lognormvariate(0.0, APPEAL_SPREAD), low), high)) for text in texts)


def _draw_entities(rng: random.Random, kinds: Sequence[str]) -> dict[str, Entity]:
    taken: set[str] = set()
    named = [(name, topic) for topic, kind in enumerate(kinds) for name in name_entities(rng, kind, ENTITIES_PER_TOPIC, taken)]
    rng.shuffle(named)
    weights = [(rank + 1) ** -ZIPF_EXPONENT for rank in range(len(named))]
    peers = {topic: [name for name, own in named if own == topic] for topic in range(len(kinds))}
    return {
        name: Entity(name, topic, _draw_related(rng, name, peers[topic]), weight / math.fsum(weights))
        for (name, topic), weight in zip(named, weights, strict=True)
    }


def _draw_related(rng: random.Random, name: str, peers: Sequence[str]) -> tuple[str, ...]:
    return tuple(rng.sample([peer for peer in peers if peer != name], RELATED_ENTITIES))
