"""The world of the simulated product, drawn from a seed: topics, entities, aspects and how attractive each is.

There are two: `invented` has entities that no model has heard of, so that all must be learned from clicks; `english` has cities,
dishes, films and other things that a pretrained model knows, and what people ask about them.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import accumulate

from queryloop.product import english_words
from queryloop.product.names import ENDINGS, name_aspects, name_entities
from queryloop.product.reading import ENGLISH, INVENTED, Language, PhraseIndex, find_phrases, index_phrases, merge_names
from queryloop.product.settings import WorldKind

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
    """What people ask about an entity of one topic; `appeal` is relative, the median of the law is 1.

    `pattern` is the query, {} where the entity stands; a text with any of `phrases` is about the aspect."""

    text: str
    appeal: float
    pattern: str
    phrases: tuple[str, ...]

    def about(self, entity: str) -> str:
        """Return the query about this aspect of an entity."""
        return self.pattern.replace("{}", entity)


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
    language: Language = INVENTED

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
    def names(self) -> PhraseIndex[str]:
        """Entity names by their words."""
        return index_phrases((tuple(self.language.split(name)), name) for name in self.entities)

    @cached_property
    def phrases(self) -> PhraseIndex[tuple[int, str, frozenset[str]]]:
        """Phrases of aspects, with their topic, the aspect's text, and all words that belong to it."""
        split = self.language.split
        return index_phrases(
            (tuple(split(phrase)), (number, aspect.text, frozenset(split(" ".join([aspect.text, *aspect.phrases])))))
            for number, topic in enumerate(self.topics)
            for aspect in topic.aspects
            for phrase in aspect.phrases
        )

    def topic_of(self, entity: str) -> Topic:
        """Return the topic of an entity that exists (KeyError otherwise)."""
        return self.topics[self.entities[entity].topic]

    def read(self, text: str) -> Reading:
        """Return what a text names. A word of the aspect, or one that says nothing, is free once; repeated it is left over."""
        return self._parse(text)[0]

    def overlap(self, one: str, other: str) -> float:
        """Return how alike two texts are, 0 to 1: the Jaccard similarity of their words, an entity's name being one of them."""
        (first, left), (second, right) = self._parse(one), self._parse(other)
        same = first.aspect is not None and (first.entities[:1], first.aspect) == (second.entities[:1], second.aspect)
        if self.language.paraphrases and same:
            return 1.0
        return len(left & right) / len(left | right) if left | right else 1.0

    @cached_property
    def _parse(self) -> Callable[[str], tuple[Reading, frozenset[str]]]:
        """Returns what a text names and the set of its words; the latest are kept, since few texts are most of the traffic."""
        return lru_cache(maxsize=1 << 14)(self._parse_anew)

    def _parse_anew(self, text: str) -> tuple[Reading, frozenset[str]]:
        units, silent = merge_names(self.language.split(text), self.names), self.language.silent
        entities = tuple(unit for unit in units if unit in self.entities)
        found, own = self._find_aspect(units, self.entities[entities[0]].topic if entities else None)
        words = frozenset(units)
        free = words.difference(entities) & (own | silent)
        return Reading(entities, found, len(units) - len(entities[:1]) - len(free)), words - silent or words

    def _find_aspect(self, units: Sequence[str], topic: int | None) -> tuple[str | None, frozenset[str]]:
        """Return the named aspect and its words: one of the topic before any other, a longer phrase before a shorter one."""
        matches = [
            (number != topic, -len(phrase), text, own) for phrase, (number, text, own) in find_phrases(units, self.phrases)
        ]
        best = min(matches, key=lambda match: match[:3], default=None)
        return (best[2], best[3]) if best else (None, frozenset())


def draw_world(seed: int, kind: WorldKind = "invented") -> World:
    """Return the world of a seed; the same seed gives the same world on every machine."""
    rng = random.Random(f"world {seed}")
    return _draw_english(seed, rng) if kind == "english" else _draw_invented(seed, rng)


def _draw_invented(seed: int, rng: random.Random) -> World:
    kinds = rng.sample(sorted(ENDINGS), TOPICS)
    topics = tuple(
        Topic(kind, tuple(_draw_aspect(rng, "{} " + text, (text,)) for text in name_aspects(rng, kind, ASPECTS_PER_TOPIC)))
        for kind in kinds
    )
    taken: set[str] = set()
    names = [name_entities(rng, kind, ENTITIES_PER_TOPIC, taken) for kind in kinds]
    named = _shuffle(rng, names)
    related = {name: _draw_related(rng, name, [peer for peer, own in named if own == topic]) for name, topic in named}
    return World(seed, topics, _share_out(named, related))


def _draw_english(seed: int, rng: random.Random) -> World:
    """Return a world of some of the kinds, each with all its things and aspects; related are those that stand beside them."""
    kinds = rng.sample(sorted(english_words.NAMES), TOPICS)
    topics = tuple(
        Topic(kind, tuple(_draw_aspect(rng, *aspect) for aspect in english_words.list_aspects(kind))) for kind in kinds
    )
    names = [english_words.list_names(kind) for kind in kinds]
    related = {name: _find_beside(peers, at) for peers in names for at, name in enumerate(peers)}
    return World(seed, topics, _share_out(_shuffle(rng, names), related), ENGLISH)


def _draw_aspect(rng: random.Random, pattern: str, phrases: tuple[str, ...]) -> Aspect:
    low, high = APPEAL_LIMITS
    appeal = min(max(rng.lognormvariate(0.0, APPEAL_SPREAD), low), high)
    return Aspect(" ".join(pattern.replace("{}", " ").split()), appeal, pattern, phrases)


def _shuffle(rng: random.Random, names: Sequence[Sequence[str]]) -> list[tuple[str, int]]:
    """Return the names of all topics, each with its topic, in the order of their shares."""
    named = [(name, topic) for topic, of_topic in enumerate(names) for name in of_topic]
    rng.shuffle(named)
    return named


def _share_out(named: Sequence[tuple[str, int]], related: Mapping[str, tuple[str, ...]]) -> dict[str, Entity]:
    weights = [(rank + 1) ** -ZIPF_EXPONENT for rank in range(len(named))]
    return {
        name: Entity(name, topic, related[name], weight / math.fsum(weights))
        for (name, topic), weight in zip(named, weights, strict=True)
    }


def _draw_related(rng: random.Random, name: str, peers: Sequence[str]) -> tuple[str, ...]:
    return tuple(rng.sample([peer for peer in peers if peer != name], RELATED_ENTITIES))


def _find_beside(peers: Sequence[str], at: int) -> tuple[str, ...]:
    order = sorted((abs(other - at), peer) for other, peer in enumerate(peers) if other != at)
    return tuple(peer for _, peer in order[:RELATED_ENTITIES])
