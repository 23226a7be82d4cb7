"""The pool: how much of a shard's file DuckDB keeps in memory.

DuckDB keeps every block it wrote or read until its memory limit is reached. Counting seldom comes back to a block, so with the
limit that a large read asks for, a worker would grow by hundreds of megabytes of what it never looks at. The limit stays high
for whoever needs it, and between batches, while nobody reads, the pool is cut back.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import Lock

import duckdb

LIMIT = "512MB"
"""What a shard's queries may use at once; by default every shard may grow to 80 % of the machine."""
KEPT = "32MB"
"""What is kept between batches: the ends of the tables, which every checkpoint writes to, and the last hours."""


class Pool:
    """One shard's pool. `trim` belongs to the thread that applies, `reading` is for any."""

    def __init__(self, con: duckdb.DuckDBPyConnection) -> None:
        self._con = con
        self._lock = Lock()
        self._readers = 0

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Keep the limit high while somebody reads."""
        with self._lock:
            self._readers += 1
        try:
            yield
        finally:
            with self._lock:
                self._readers -= 1

    def trim(self) -> None:
        """Cut the pool back to what is kept, unless somebody reads: a lower limit would fail the query in hand."""
        with self._lock:
            if self._readers:
                return
            with suppress(duckdb.OutOfMemoryException):  # a batch still pins more than that: cut back after the next
                self._con.execute(f"SET memory_limit = '{KEPT}'")
            self._con.execute(f"SET memory_limit = '{LIMIT}'")
