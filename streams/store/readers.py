"""Reads of the held shards while they count: each shard has a cursor for reading, used on threads apart from the shard's own.

A cursor sees whole transactions only (DuckDB's MVCC), so never half of a batch. Before a read its shard writes what it has
applied, so a read sees everything counted so far. A shard's file lock is free only when this cursor is closed too: releasing a
shard interrupts the running read and waits for its end.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import TypeVar

import duckdb

from streams.store.shard import Shard

T = TypeVar("T")
Write = Callable[[int], Awaitable[None]]

THREADS = 2
MAX_QUEUED = 64
INTERRUPT_EVERY_S = 0.05


class ReadersBusy(RuntimeError):
    """Too many reads are queued; the caller may try again later."""


class ReaderClosed(RuntimeError):
    """The shard was released, so it cannot be read here any more."""


class ShardReader:
    """Reads one shard, one read at a time, each in a transaction of its own."""

    def __init__(self, shard: Shard) -> None:
        self.shard = shard
        self._con = shard.reader()
        self._lock = threading.Lock()
        self._closed = False

    def read(self, function: Callable[[duckdb.DuckDBPyConnection], T]) -> T:
        """Return what `function`, which may be called twice, reads from one snapshot.

        Raises ReaderClosed when the shard is released.
        """
        return self._read_with_retry(partial(self._read_snapshot, function))

    def _read_with_retry(self, read: Callable[[], T]) -> T:
        """Read, and try once more when the shard's buffer pool was shrunk at the moment at which the read needed memory."""
        with self._lock, self.shard.reading():
            if self._closed:
                raise ReaderClosed
            try:
                return read()
            except duckdb.OutOfMemoryException:
                return read()

    def _read_snapshot(self, function: Callable[[duckdb.DuckDBPyConnection], T]) -> T:
        self._con.execute("BEGIN TRANSACTION READ ONLY")
        try:
            return function(self._con)
        except Exception as error:
            if self._closed:  # interrupted: DuckDB and Arrow raise several types for that
                raise ReaderClosed from error
            raise
        finally:
            with suppress(duckdb.TransactionException):  # an error inside may have ended it
                self._con.execute("ROLLBACK")

    def read_shard(self, function: Callable[[Shard], T]) -> T:
        """Return what `function`, which may be called twice, reads with its own cursors; the shard stays open meanwhile."""
        return self._read_with_retry(partial(function, self.shard))

    def close(self) -> None:
        """Interrupt the running read and close the cursor."""
        self._closed = True
        while not self._lock.acquire(timeout=INTERRUPT_EVERY_S):
            self._con.interrupt()
        try:
            self._con.close()
        finally:
            self._lock.release()


class ShardReaders:
    """The readers of all held shards, with threads to read on.

    `write` is called with a partition before each read, so that its shard writes what it has applied. `nice` lowers the priority
    of the reading threads by as much, on Linux only. Each thread keeps some of the memory that its largest read took.
    """

    def __init__(self, write: Write, nice: int = 0, threads: int = THREADS) -> None:
        self._write = write
        self._readers: dict[int, ShardReader] = {}
        self._queued = 0
        self._threads = ThreadPoolExecutor(threads, "reads", initializer=_lower_priority, initargs=(nice,))

    def add(self, partition: int, shard: Shard) -> None:
        """Open the reader of a shard that was opened."""
        self._readers[partition] = ShardReader(shard)

    def remove(self, partition: int) -> None:
        """Close a shard's reader before the shard is closed; a running read is interrupted."""
        if (reader := self._readers.pop(partition, None)) is not None:
            reader.close()

    async def read(
        self, partitions: Iterable[int], function: Callable[[duckdb.DuckDBPyConnection], T], fresh: bool = True
    ) -> dict[int, T]:
        """Return what `function` reads from each of these shards that is held here, by partition.

        Unless `fresh`, what was applied in the last second may be missing. Raises ReadersBusy.
        """
        held = {partition: reader for partition in partitions if (reader := self._readers.get(partition)) is not None}
        reads = {partition: partial(reader.read, function) for partition, reader in held.items()}
        found = await asyncio.gather(*(self._submit(read, partition if fresh else None) for partition, read in reads.items()))
        return {partition: part for partition, part in zip(held, found, strict=True) if part is not None}

    async def read_shard(self, partition: int, function: Callable[[Shard], T]) -> T | None:
        """Return what `function` reads from a shard with its own cursors, None when it is not held. Raises ReadersBusy."""
        reader = self._readers.get(partition)
        return None if reader is None else await self._submit(partial(reader.read_shard, function), partition)

    def close(self) -> None:
        """End the threads."""
        self._threads.shutdown()

    async def _submit(self, read: Callable[[], T], write_first: int | None) -> T | None:
        """Read on a thread, after the shard of partition `write_first` has written what it has applied."""
        if self._queued >= MAX_QUEUED:
            raise ReadersBusy(f"{MAX_QUEUED} reads are queued already")
        self._queued += 1
        try:
            if write_first is not None:
                await self._write(write_first)
            return await asyncio.get_running_loop().run_in_executor(self._threads, read)
        except ReaderClosed:
            return None
        finally:
            self._queued -= 1


def _lower_priority(nice: int) -> None:
    """Lower the priority of the calling thread, on Linux; on other systems this would lower that of the whole process."""
    if nice and sys.platform == "linux":
        thread = threading.get_native_id()
        os.setpriority(os.PRIO_PROCESS, thread, os.getpriority(os.PRIO_PROCESS, thread) + nice)
