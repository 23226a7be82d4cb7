"""The co-occurrence dictionary: for each query the next queries that users typed, most frequent first (G16, step 1)."""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from streams.events.normal_form import normalise

if TYPE_CHECKING:
    import pyarrow as pa

Successors = tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Dictionary:
    """Normalised query -> ((next query, count), ...), most frequent first, equal counts by text. `queries` is in sorted order."""

    successors: Mapping[str, Successors] = field(default_factory=dict)

    @property
    def queries(self) -> list[str]:
        return sorted(self.successors)

    def __len__(self) -> int:
        return len(self.successors)

    def find_popular(self, n: int) -> list[str]:
        """Return the `n` queries with the highest counts, those as first and as next query added up; equal ones by text."""
        worth: defaultdict[str, int] = defaultdict(int)
        for query, found in self.successors.items():
            for following, count in found:
                worth[query] += count
                worth[following] += count
        return heapq.nsmallest(n, worth, key=lambda text: (-worth[text], text))

    def get(self, query: str) -> Successors:
        """Return the successors of a query in any spelling; () for one never seen."""
        return self.successors.get(normalise(query), ())


def make_dictionary(triples: Iterable[tuple[str, str, int]], *, min_count: int = 1, max_successors: int = 50) -> Dictionary:
    """Add up (query, next query, count) triples by normalised texts; a query is never its own successor."""
    counts: defaultdict[str, defaultdict[str, int]] = defaultdict(lambda: defaultdict(int))
    for query, following, count in triples:
        first, second = normalise(query), normalise(following)
        if first and second and first != second:
            counts[first][second] += count
    kept = {query: _rank(found, min_count, max_successors) for query, found in counts.items()}
    return Dictionary({query: found for query, found in kept.items() if found})


def read_triples(cooccurrence: pa.Table) -> Iterable[tuple[str, str, int]]:
    """Yield the triples of a co-occurrence table; ValueError names a column that is missing."""
    names = ("query", "next_query", "count")
    if missing := [name for name in names if name not in cooccurrence.column_names]:
        raise ValueError(f"co-occurrence table has no column {missing[0]!r}; it needs {', '.join(names)}")
    return zip(*(cooccurrence.column(name).to_pylist() for name in names), strict=True)


def write_dictionary(dictionary: Dictionary, path: Path) -> None:
    """Write one row a triple, queries sorted."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [(query, following, count) for query in dictionary.queries for following, count in dictionary.successors[query]]
    columns = list(zip(*rows, strict=True)) or [(), (), ()]
    table = pa.table(
        {
            "query": pa.array(columns[0], pa.string()),
            "next_query": pa.array(columns[1], pa.string()),
            "count": pa.array(columns[2], pa.int64()),
        }
    )
    pq.write_table(table, path, compression="zstd")


def read_dictionary(path: Path) -> Dictionary:
    """Read what `write_dictionary` wrote."""
    import pyarrow.parquet as pq

    return make_dictionary(read_triples(pq.read_table(path)), max_successors=2**31)


def _rank(found: Mapping[str, int], min_count: int, max_successors: int) -> Successors:
    ranked = sorted(((text, count) for text, count in found.items() if count >= min_count), key=lambda one: (-one[1], one[0]))
    return tuple(ranked[:max_successors])
