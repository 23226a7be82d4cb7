"""Keys in memory: which event ids and impression ids a shard may hold, so that a batch of new ones need not read the tables.

A key is DuckDB's 64-bit hash of an id, as the tables keep it. What is not among the keys is not in the tables. What is among them
is looked up there, so a key too many (of a transaction that failed, of a row that expired) costs time and changes nothing.

To read the keys of 20 M events takes 0.5 s, to sort them two. So they are sorted piece by piece between the first batches; what
is not sorted yet is looked through as a whole.
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

PIECE_KEYS = 1_000_000
"""Keys sorted at a time, 0.07 s; to look through as many unsorted ones takes 6 ms."""
BUCKET_BITS = 22
"""A table of so many bits of a key says which unsorted keys may be among those of a batch: 1 in 200 for 20,000."""
RUN_KEYS = 4_000_000
"""A sorted run is not merged beyond this; merging two such takes some 50 ms."""
SPREAD = 4
"""A run is merged into the one before it when it has a quarter of its size."""


class KeySet:
    """A growing set of 64-bit keys: sorted runs, each several times as long as the next. 8 bytes a key."""

    def __init__(self) -> None:
        self._runs: list[Keys] = []
        self._unsorted: list[Keys] = []

    def __len__(self) -> int:
        return sum(map(len, self._runs + self._unsorted))

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

    def add_unsorted(self, keys: Keys) -> None:
        """Add keys and leave it to `sort_piece` to sort them."""
        self._unsorted.append(keys)

    def sort_piece(self) -> bool:
        """Sort a piece of what is unsorted; return False where nothing is."""
        if not self._unsorted:
            return False
        self.add(self._unsorted.pop())
        return True

    def contains(self, keys: Keys) -> Flags:
        """Say of each key whether it was added."""
        if not (self._runs or self._unsorted):
            return np.zeros(len(keys), np.bool_)
        order = keys.argsort()
        wanted = keys[order]
        found = _find_unsorted(self._unsorted, wanted)
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

    def sort_piece(self) -> bool:
        """Sort a piece of what is unsorted; return False where nothing is."""
        return self.seen.sort_piece() or self.impressions.sort_piece()


def load_keys(con: duckdb.DuckDBPyConnection) -> KnownKeys:
    """Return the keys of what the shard's file holds, not sorted yet."""
    known = KnownKeys()
    for name, keys in (("seen", known.seen), ("impressions", known.impressions)):
        for batch in con.sql(LOAD[name]).to_arrow_reader(PIECE_KEYS):
            keys.add_unsorted(batch["key"].to_numpy())
    return known


def hash_texts(feeds: Feeds, columns: Sequence[pa.ChunkedArray | pa.Array]) -> list[Keys]:
    """Return the keys of columns of texts."""
    chunks = [chunk for column in columns for chunk in (column.chunks if isinstance(column, pa.ChunkedArray) else [column])]
    texts = pa.table({"text": pa.chunked_array(chunks, pa.string())})
    keys = np.asarray(feeds.execute(HASH, texts=texts).fetchnumpy()["key"], np.uint64)
    return np.split(keys, np.cumsum([len(column) for column in columns])[:-1])


def _find_unsorted(pieces: Sequence[Keys], wanted: Keys) -> Flags:
    """Say of each wanted key whether a piece holds it."""
    if not pieces:
        return np.zeros(len(wanted), np.bool_)
    shift = np.uint64(64 - BUCKET_BITS)
    is_wanted = np.zeros(2**BUCKET_BITS, np.bool_)
    is_wanted[wanted >> shift] = True
    near = [piece[is_wanted[piece >> shift]] for piece in pieces]
    return np.isin(wanted, np.concatenate(near))
