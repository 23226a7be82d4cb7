"""Answers "what do users ask next after this query": own successors, else those of the nearest queries (G16)."""

from __future__ import annotations

import heapq
import json
from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from index.dictionary import Dictionary, read_dictionary, write_dictionary
from index.encoder import Encoder
from index.neighbours import Neighbours
from streams.events.normal_form import normalise

DICTIONARY, NEIGHBOURS, CONFIG = "dictionary.parquet", "neighbours.faiss", "index.json"
MAX_POPULAR = 256
"""Popular queries that are kept in memory: four times the longest list."""


@dataclass(frozen=True)
class Index:
    """Neighbour number i is `dictionary.queries[i]`; queries without successors are not indexed."""

    dictionary: Dictionary
    encoder: Encoder
    neighbours: Neighbours
    near: int  # N_s
    min_similarity: float

    @cached_property
    def _queries(self) -> list[str]:
        return self.dictionary.queries

    def retrieve(self, query: str, n: int) -> list[str]:
        """Return up to n queries (normalised) that users ask after `query`, best first; [] from an empty index or with n <= 0.

        With n successors or more: the n most frequent. With fewer: candidates of the query itself (similarity 1) and of its N_s
        nearest queries, each worth the sum of similarity x frequency, equal ones by text; never the query itself."""
        own = self.dictionary.get(query)
        if len(own) >= n:
            return [text for text, _ in own[: max(n, 0)]]
        worth: defaultdict[str, float] = defaultdict(float)
        for similarity, source in [(1.0, normalise(query)), *self.find_near(query)]:
            for text, count in self.dictionary.get(source):
                worth[text] += similarity * count
        worth.pop(normalise(query), None)
        best = heapq.nsmallest(n, worth.items(), key=lambda one: (-one[1], one[0]))
        return [text for text, _ in best]

    def find_popular(self, n: int) -> list[str]:
        """Return up to `n` (at most 256) queries (normalised) that users ask most, best first."""
        return self._popular[: max(n, 0)]

    @cached_property
    def _popular(self) -> list[str]:
        return self.dictionary.find_popular(MAX_POPULAR)

    def find_near(self, query: str) -> list[tuple[float, str]]:
        """Return up to N_s (cosine, query) of the dictionary that are similar enough, nearest first, without the query itself."""
        if not len(self.neighbours) or not self.near:
            return []
        # One more is asked for: the query finds itself first.
        numbers, similarities = self.neighbours.search(self.encoder.encode([query]), self.near + 1)
        found = [(float(s), self._queries[i]) for s, i in zip(similarities[0], numbers[0], strict=True) if i >= 0]
        others = [(s, text) for s, text in found if text != normalise(query) and s >= self.min_similarity]
        return others[: self.near]

    def save(self, folder: Path) -> None:
        """Write everything into an existing folder."""
        write_dictionary(self.dictionary, folder / DICTIONARY)
        self.encoder.save(folder)
        self.neighbours.save(folder / NEIGHBOURS)
        (folder / CONFIG).write_text(json.dumps({"near": self.near, "min_similarity": self.min_similarity}, indent=2) + "\n")

    @classmethod
    def load(cls, folder: Path) -> Index:
        """Read what `save` wrote; ValueError when dictionary and neighbours do not belong together."""
        dictionary, neighbours = read_dictionary(folder / DICTIONARY), Neighbours.load(folder / NEIGHBOURS)
        if len(dictionary) != len(neighbours):
            raise ValueError(
                f"{folder}: {len(dictionary)} queries in {DICTIONARY}, but {len(neighbours)} vectors in {NEIGHBOURS}"
            )
        return cls(dictionary, Encoder.load(folder), neighbours, **json.loads((folder / CONFIG).read_text()))
