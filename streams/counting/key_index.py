"""An index in memory of the event ids and impression ids that a shard may have, so that most batches need not read its tables.

An id belongs to its session: what another session calls by the same id is something else, whatever partition either is in. So a
key is DuckDB's 64-bit hash of the id, mixed with that of the session; it is stored beside the id in the tables. Ids are compared
as texts, sessions by their hashes: of two that share an id, one pair in 2^64 would be taken for one. An id whose key is absent
here is not in the tables. Others are looked up there, so a superfluous key (of a failed transaction, of an expired row)
costs time and changes no count.

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

from streams.counting.connection import ShardConnection
from streams.events.line_spans import Flags, Int64s

KeyArray = npt.NDArray[np.uint64]

HASH = "SELECT hash(text) AS key FROM texts"
# Turned by some bits, since an id may be the same text as its session.
SESSION_KEY = "((hash({session}) >> 43) | ((hash({session}) & 8796093022207::UBIGINT) << 21))"
KEY = f"xor(hash({{id}}), {SESSION_KEY})"
"""SQL of the key of a session, and of that of an id in its session."""
LOAD = {name: f"SELECT key FROM {name}" for name in ("seen", "impressions")}

LOAD_KEYS = 2_000_000
"""Keys of a file that are read and sorted at a time: 0.03 s to sort, 0.15 s if numpy has no AVX2."""
FILTER_WIDTH = 20
"""Leading bits of a key that a new filter uses: 128 KiB for 130,000 keys. Growing it takes some 20 ms per million keys."""
FILTER_KEYS = 32_768
"""Keys whose bits are set at a time, in memory that is reused: faulting in new pages took longer than everything else."""
MAX_RUN_KEYS = 4_000_000
"""Sorted runs are not merged beyond this length; merging two such runs takes some 50 ms."""
MERGE_RATIO = 4
"""A run is merged into the one before it once that is at most this many times as long."""


class _Filter:
    """A bit for each value of a key's leading bits: shows with one look-up that most new keys are in no run."""

    def __init__(self, width: int) -> None:
        self._width = width
        self._bytes = np.zeros(2 ** (width - 3), np.uint8)

    @property
    def capacity(self) -> int:
        """The number of keys with which at most one bit in eight is set."""
        return int(2**self._width // 8)

    def widened(self, capacity: int) -> _Filter:
        """Return an empty filter for at least so many keys."""
        return _Filter(max(self._width + 1, (8 * capacity - 1).bit_length()))

    def add(self, keys: KeyArray) -> None:
        """Set the keys' bits."""
        for low in range(0, len(keys), FILTER_KEYS):
            places, bits = self._find(keys[low : low + FILTER_KEYS])
            while len(places):  # of several bits in one byte, one is set each time
                self._bytes[places] |= bits
                missed = (self._bytes[places] & bits) == 0
                places, bits = places[missed], bits[missed]

    def may_contain(self, keys: KeyArray) -> Flags:
        """Return for each key whether its bit is set."""
        places, bits = self._find(keys)
        is_set: Flags = (self._bytes[places] & bits) != 0
        return is_set

    def _find(self, keys: KeyArray) -> tuple[Int64s, npt.NDArray[np.uint8]]:
        tops = keys >> np.uint64(64 - self._width)
        return (tops >> np.uint64(3)).view(np.int64), np.uint8(1) << (tops & np.uint64(7)).astype(np.uint8)


class KeySet:
    """A growing set of 64-bit keys: sorted runs, each several times as long as the next, and a filter; 9 to 10 bytes a key."""

    def __init__(self) -> None:
        self._runs: list[KeyArray] = []
        self._filter = _Filter(FILTER_WIDTH)
        self._filter_keys = 0

    def __len__(self) -> int:
        return sum(map(len, self._runs))

    def add(self, keys: KeyArray) -> None:
        """Add keys; a key that is added again is stored again."""
        if not len(keys):
            return
        self._runs.append(np.sort(keys))
        self._add_to_filter(self._runs[-1])
        while len(self._runs) > 1:
            before, last = self._runs[-2:]
            if len(last) * MERGE_RATIO < len(before) or len(before) + len(last) > MAX_RUN_KEYS:
                break
            merged = np.concatenate([before, last])
            merged.sort(kind="stable")
            self._runs[-2:] = [merged]

    def add_runs(self, runs: Iterable[KeyArray]) -> None:
        """Add many keys, each array as a run of its own: merging them would cost as much again as sorting them."""
        self._runs += [np.sort(run) for run in runs if len(run)]
        self._filter_keys = len(self)
        if self._runs:
            self._widen(self._filter_keys)

    def _add_to_filter(self, run: KeyArray) -> None:
        self._filter_keys += len(run)
        if self._filter_keys <= self._filter.capacity:
            self._filter.add(run)
        else:
            self._widen(self._filter_keys)

    def _widen(self, capacity: int) -> None:
        self._filter = self._filter.widened(capacity)
        for run in self._runs:
            self._filter.add(run)

    def contains(self, keys: KeyArray) -> Flags:
        """Return for each key whether it was added."""
        found = np.zeros(len(keys), np.bool_)
        rows = self._filter.may_contain(keys).nonzero()[0]
        if not len(rows):
            return found
        rows = rows[keys[rows].argsort()]
        asked = keys[rows]
        for run in self._runs:
            found[rows] |= run.take(run.searchsorted(asked), mode="clip") == asked
        return found


@dataclass(frozen=True, slots=True)
class KnownKeys:
    """Keys of the event ids (`seen`) and impression ids that a shard may have."""

    seen: KeySet = field(default_factory=KeySet)
    impressions: KeySet = field(default_factory=KeySet)


def load_keys(con: duckdb.DuckDBPyConnection) -> KnownKeys:
    """Return the keys in a shard's file."""
    known = KnownKeys()
    for name, keys in (("seen", known.seen), ("impressions", known.impressions)):
        keys.add_runs(batch["key"].to_numpy() for batch in con.sql(LOAD[name]).to_arrow_reader(LOAD_KEYS))
    return known


def to_session_keys(hashes: KeyArray) -> KeyArray:
    """Return the keys of sessions, SESSION_KEY, from the hashes of their ids."""
    turned: KeyArray = hashes >> np.uint64(43) | hashes << np.uint64(21)
    return turned


def key_sql(id_column: str, session_column: str = "session_id") -> str:
    """Return SQL for the key of the id in a column, in the session of the other column."""
    return KEY.format(id=id_column, session=session_column)


def hash_texts(connection: ShardConnection, columns: Sequence[pa.ChunkedArray | pa.Array]) -> list[KeyArray]:
    """Return the hashes of the texts of each column."""
    chunks = [chunk for column in columns for chunk in (column.chunks if isinstance(column, pa.ChunkedArray) else [column])]
    texts = pa.table({"text": pa.chunked_array(chunks, pa.string())})
    keys = np.asarray(connection.look_up(HASH, texts=texts).fetchnumpy()["key"], np.uint64)
    ends = list(accumulate(map(len, columns), initial=0))
    return [keys[low:high] for low, high in pairwise(ends)]
