"""Keys in memory: which event ids and impression ids a shard may hold, so that a batch of new ones need not read the tables.

A key is DuckDB's 64-bit hash of an id, as the tables keep it. What is not among the keys is not in the tables. What is among them
is looked up there, so a key too many (of a transaction that failed, of a row that expired) costs time and changes nothing.

A file's keys are read and sorted with its first batch: 0.3 to 0.4 s for 5 M events with 2 M lists.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from streams.counting.connection import Feeds
from streams.events.line_spans import Flags, Int64s

Keys = npt.NDArray[np.uint64]

HASH = "SELECT hash(text) AS key FROM texts"
LOAD = {name: f"SELECT key FROM {name}" for name in ("seen", "impressions")}

PIECE_KEYS = 2_000_000
"""Keys of a file that are read and sorted at a time, 0.03 s to sort (0.15 s where numpy has no AVX2)."""
FILTER_WIDTH = 20
"""Bits of a key that the filter starts with: 128 KiB, for 130,000 keys. Growing takes some 20 ms for each million keys."""
FILTER_KEYS = 32_768
"""Keys whose bits are set at a time, in memory that is used again: to fault in fresh pages took longer than all else."""
RUN_KEYS = 4_000_000
"""A sorted run is not merged beyond this; merging two such takes some 50 ms."""
SPREAD = 4
"""A run is merged into the one before it when it has a quarter of its size."""


class _Filter:
    """A bit for each top of a key: tells of most new keys, in one look, that no run holds them."""

    def __init__(self, width: int) -> None:
        self._width = width
        self._bytes = np.zeros(2 ** (width - 3), np.uint8)

    @property
    def capacity(self) -> int:
        """Keys that it is for: at most one bit in eight is set."""
        return int(2**self._width // 8)

    def widened(self, capacity: int) -> _Filter:
        """Return an empty one for more keys."""
        return _Filter(max(self._width + 1, (8 * capacity - 1).bit_length()))

    def add(self, keys: Keys) -> None:
        """Set the keys' bits."""
        for low in range(0, len(keys), FILTER_KEYS):
            places, bits = self._find(keys[low : low + FILTER_KEYS])
            while len(places):  # of several bits of one byte, one is kept each time
                self._bytes[places] |= bits
                lost = (self._bytes[places] & bits) == 0
                places, bits = places[lost], bits[lost]

    def may_hold(self, keys: Keys) -> Flags:
        """Say of each key whether its bit is set."""
        places, bits = self._find(keys)
        is_set: Flags = (self._bytes[places] & bits) != 0
        return is_set

    def _find(self, keys: Keys) -> tuple[Int64s, npt.NDArray[np.uint8]]:
        tops = keys >> np.uint64(64 - self._width)
        return (tops >> np.uint64(3)).view(np.int64), np.uint8(1) << (tops & np.uint64(7)).astype(np.uint8)


class KeySet:
    """A growing set of 64-bit keys: sorted runs, each several times as long as the next, and a filter. 9 to 10 bytes a key."""

    def __init__(self) -> None:
        self._runs: list[Keys] = []
        self._filter = _Filter(FILTER_WIDTH)
        self._filtered = 0

    def __len__(self) -> int:
        return sum(map(len, self._runs))

    def add(self, keys: Keys) -> None:
        """Add keys; repeats are kept."""
        if not len(keys):
            return
        self._runs.append(np.sort(keys))
        self._note(self._runs[-1])
        while len(self._runs) > 1:
            before, last = self._runs[-2:]
            if len(last) * SPREAD < len(before) or len(before) + len(last) > RUN_KEYS:
                break
            merged = np.concatenate([before, last])
            merged.sort(kind="stable")
            self._runs[-2:] = [merged]

    def add_pieces(self, pieces: Iterable[Keys]) -> None:
        """Add many keys. Each piece stays a run of its own: to merge pieces would cost as much again as to sort them."""
        self._runs += [np.sort(piece) for piece in pieces if len(piece)]
        self._filtered = len(self)
        if self._runs:
            self._widen(self._filtered)

    def _note(self, run: Keys) -> None:
        """Let the filter know a new run."""
        self._filtered += len(run)
        if self._filtered <= self._filter.capacity:
            self._filter.add(run)
        else:
            self._widen(self._filtered)

    def _widen(self, capacity: int) -> None:
        self._filter = self._filter.widened(capacity)
        for run in self._runs:
            self._filter.add(run)

    def contains(self, keys: Keys) -> Flags:
        """Say of each key whether it was added."""
        found = np.zeros(len(keys), np.bool_)
        rows = self._filter.may_hold(keys).nonzero()[0]
        if not len(rows):
            return found
        rows = rows[keys[rows].argsort()]
        asked = keys[rows]
        for run in self._runs:
            found[rows] |= run.take(run.searchsorted(asked), mode="clip") == asked
        return found


@dataclass(frozen=True, slots=True)
class KnownKeys:
    """What a shard may hold: ids of events taken in, ids of impressions."""

    seen: KeySet = field(default_factory=KeySet)
    impressions: KeySet = field(default_factory=KeySet)


def load_keys(con: duckdb.DuckDBPyConnection) -> KnownKeys:
    """Return the keys of what the shard's file holds."""
    known = KnownKeys()
    for name, keys in (("seen", known.seen), ("impressions", known.impressions)):
        keys.add_pieces(batch["key"].to_numpy() for batch in con.sql(LOAD[name]).to_arrow_reader(PIECE_KEYS))
    return known


def hash_texts(feeds: Feeds, columns: Sequence[pa.ChunkedArray | pa.Array]) -> list[Keys]:
    """Return the keys of columns of texts."""
    chunks = [chunk for column in columns for chunk in (column.chunks if isinstance(column, pa.ChunkedArray) else [column])]
    texts = pa.table({"text": pa.chunked_array(chunks, pa.string())})
    keys = np.asarray(feeds.look_up(HASH, texts=texts).fetchnumpy()["key"], np.uint64)
    ends = list(accumulate(map(len, columns), initial=0))
    return [keys[low:high] for low, high in pairwise(ends)]
