"""The pool: how much of a shard's file DuckDB keeps in memory.

DuckDB keeps every block it wrote or read until its memory limit is reached. Counting seldom comes back to a block, so with the
limit that a large read asks for, a worker would grow by hundreds of megabytes of what it never looks at. The limit stays high
for whoever needs it, and between batches the pool is cut back once it is full. While somebody reads, more is left: the export of
a day takes ten seconds of a busy worker, in which its shard would keep all that it writes and all that the export read.

Cutting back costs more than it seems: DuckDB then hands every free page of the process back to the system (malloc_trim, and the
same in its own allocator), and all threads fault them in again. Five times a second that was a twelfth of a busy worker's CPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

import duckdb

LIMIT = "512MB"
"""What a shard's queries may use at once; by default every shard may grow to 80 % of the machine."""
KEPT = "32MB"
"""What is kept between batches: the ends of the tables, which every checkpoint writes to, and the last hours."""
KEPT_READING = ("48MB", "96MB", "192MB")
"""The same while somebody reads, the least of them that leaves what the read pins; what a sort holds beyond it goes to disk."""
FULL_BYTES = 64_000_000
"""Held, beyond which the pool is cut back: some 100,000 events after the last time. To look costs 0.4 ms."""
HELD = "SELECT sum(memory_usage_bytes)::BIGINT FROM duckdb_memory()"
SET_LIMIT = f"SET memory_limit = '{LIMIT}'"


class Pool:
    """One shard's pool. `trim` belongs to the thread that applies, `reading` is for any."""

    def __init__(self, con: duckdb.DuckDBPyConnection) -> None:
        self._con = con
        self._lock = Lock()
        self._readers = 0

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Keep more while somebody reads."""
        with self._lock:
            self._readers += 1
        try:
            yield
        finally:
            with self._lock:
                self._readers -= 1

    def trim(self) -> None:
        """Cut the pool back to what is kept, if it is full.

        DuckDB refuses a limit that it cannot cut back to. Where it can, the limit is low for a moment, in which nothing of Python
        runs: a read that asks for much more at that moment fails, and `streams.store.readers` reads again.
        """
        with self._lock:
            if self._con.execute(HELD).fetchall()[0][0] <= FULL_BYTES:
                return
            for kept in KEPT_READING if self._readers else (KEPT,):
                try:
                    self._con.execute(f"SET memory_limit = '{kept}'; {SET_LIMIT}")
                except duckdb.OutOfMemoryException:  # a batch or a read pins more than that
                    self._con.execute(SET_LIMIT)
                else:
                    break
