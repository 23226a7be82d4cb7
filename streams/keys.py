"""Keys in memory: which event ids and impression ids a shard may hold, so that a batch of new ones need not read the tables.

A key is DuckDB's 64-bit hash of an id, as the tables keep it. What is not among the keys is not in the tables. What is among them
is looked up there, so a key too many (of a transaction that failed, of a row that expired) costs time and changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from streams.feeds import Feeds

Keys = npt.NDArray[np.uint64]
Flags = npt.NDArray[np.bool_]

HASH = "SELECT hash(text) AS key FROM texts"
LOAD = {name: f"SELECT key FROM {name}" for name in ("seen", "impressions")}

RUN_KEYS = 4_000_000
"""A sorted run is not merged beyond this; merging two such takes some 50 ms."""
SPREAD = 4
"""A run is merged into the one before it when it has a quarter of its size."""


class KeySet:
    """A growing set of 64-bit keys: sorted runs, each several times as long as the next. 8 bytes a key."""

    def __init__(self) -> None:
        self._runs: list[Keys] = []

    def __len__(self) -> int:
        return sum(map(len, self._runs))

    def add(self, keys: Keys) -> None:
        """Add keys; repeats are kept."""
        if not len(keys):
            return
        self._runs.append(np.sort(keys))
        while len(self._runs) > 1:
            before, last = self._runs[-2:]
            if len(last) * SPREAD < len(before) or len(before) + len(last) > RUN_KEYS:
                break
            self._runs[-2:] = [np.sort(np.concatenate([before, last]), kind="stable")]

    def contains(self, keys: Keys) -> Flags:
        """Say of each key whether it was added."""
        found = np.zeros(len(keys), np.bool_)
        if not self._runs:
            return found
        order = keys.argsort()
        wanted = keys[order]
        for run in self._runs:
            found |= run.take(run.searchsorted(wanted), mode="clip") == wanted
        answer = np.empty_like(found)
        answer[order] = found
        return answer


@dataclass(frozen=True, slots=True)
class KnownKeys:
    """What a shard may hold: ids of events taken in, ids of impressions."""

    seen: KeySet = field(default_factory=KeySet)
    impressions: KeySet = field(default_factory=KeySet)


def load_keys(con: duckdb.DuckDBPyConnection) -> KnownKeys:
    """Return the keys of what the shard's file holds."""
    known = KnownKeys()
    for name, keys in (("seen", known.seen), ("impressions", known.impressions)):
        stored = con.execute(LOAD[name]).fetchnumpy()["key"]
        for low in range(0, len(stored), RUN_KEYS):
            keys.add(np.ascontiguousarray(stored[low : low + RUN_KEYS], np.uint64))
    return known


def hash_texts(feeds: Feeds, columns: Sequence[pa.ChunkedArray | pa.Array]) -> list[Keys]:
    """Return the keys of columns of texts."""
    chunks = [chunk for column in columns for chunk in (column.chunks if isinstance(column, pa.ChunkedArray) else [column])]
    texts = pa.table({"text": pa.chunked_array(chunks, pa.string())})
    keys = np.asarray(feeds.execute(HASH, texts=texts).fetchnumpy()["key"], np.uint64)
    return np.split(keys, np.cumsum([len(column) for column in columns])[:-1])
