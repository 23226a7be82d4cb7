"""The buffer pool: how much of a shard's file DuckDB keeps in memory.

DuckDB keeps every block it wrote or read until its memory limit is reached. Counting seldom reads a block again, so with the
limit that a large read needs, a worker would grow by hundreds of megabytes that it never uses. So the limit is high, and between
batches the pool is trimmed once it is full. During a read more is kept: the export of a day takes ten seconds of a busy worker,
in which its shard would keep all that it writes and all that the export reads.

Trimming costs more than it seems: DuckDB then returns every free page of the process to the system (malloc_trim, and the same in
its own allocator), and all threads fault them in again. Five times a second that was a twelfth of a busy worker's CPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

import duckdb

LIMIT = "512MB"
"""Memory that a shard may use at once; DuckDB's default is 80 % of the machine for every shard."""
KEPT = "32MB"
"""Memory kept between batches: the ends of the tables, which every checkpoint writes to, and the last hours."""
KEPT_READING = ("48MB", "96MB", "192MB")
"""The same during a read: the smallest of these that the read's pinned blocks fit in. A sort spills the rest to disk."""
FULL_BYTES = 64_000_000
"""Memory in use at which the pool is trimmed: some 100,000 events after the last time. The check costs 0.4 ms."""
MEMORY_USED = "SELECT sum(memory_usage_bytes)::BIGINT FROM duckdb_memory()"
SET_LIMIT = f"SET memory_limit = '{LIMIT}'"


class BufferPool:
    """The buffer pool of one shard. Call `trim` from the thread that applies, `reading` from any."""

    def __init__(self, con: duckdb.DuckDBPyConnection) -> None:
        self._con = con
        self._lock = Lock()
        self._readers = 0

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Return a context in which `trim` keeps more memory, for a read."""
        with self._lock:
            self._readers += 1
        try:
            yield
        finally:
            with self._lock:
                self._readers -= 1

    def trim(self) -> None:
        """Trim the pool if it is full.

        DuckDB refuses a limit that it cannot meet. Otherwise the limit is low for a moment, in which no Python code runs: a read
        in DuckDB that needs much more at that moment fails, and `streams.store.readers` reads again.
        """
        with self._lock:
            if self._con.execute(MEMORY_USED).fetchall()[0][0] <= FULL_BYTES:
                return
            for kept in KEPT_READING if self._readers else (KEPT,):
                try:
                    self._con.execute(f"SET memory_limit = '{kept}'; {SET_LIMIT}")
                except duckdb.OutOfMemoryException:  # a batch or a read pins more than that
                    self._con.execute(SET_LIMIT)
                else:
                    break
